"""Supervised fine-tuning and consistency-weighted preference training, on the trainers of transformers and TRL.

The same code runs in one process and in several (see cream/training/launch.py): a global batch holds the same rows, each with
the same weight, however many processes share it.
"""

import contextlib
import json
import os
import re
import time
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from accelerate.utils import broadcast
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from cream.data.errors import InputError
from cream.data.parts import folder_for
from cream.inference.logprobs import response_logprobs
from cream.method.loss import cream_loss
from cream.models.loading import save_model
from cream.models.precision import computing_in, in_effect

# Sequences (SFT) or pairs (DPO) in one forward pass: as many as this many tokens hold, but at least four. The global
# batch is reached by accumulation.
MICRO_TOKENS = 4096


def fine_tune(model, rows, settings, seed, lora=None, precision="fp32", kept=None):
    """SFT on the responses alone. `rows` have prompt_ids and response_ids. Returns the model and its loss curve.

    `settings` are the learning_rate, epochs and (global) batch_size; `lora` is None or its r, alpha and dropout.
    The loss is the mean over response tokens of -log p, so prompts and padding are not learned. `precision` is that of the
    matrix products (see `computing_in`); the weights stay in fp32. Checkpoints are kept below the folder `kept` (see `train`).
    """
    kept = checkpoint_folder(kept, model, [rows, settings, seed, lora, in_effect(precision)])
    trainer = sft_trainer(model, rows, settings, seed, lora, precision)
    return trainer.model, train(trainer, kept=kept)


def train_preferences(model, tokenizer, pairs, settings, seed, precision="fp32"):
    """One round of CREAM. Returns the model and its loss and margin curve.

    `pairs` have prompt_ids, chosen_ids, rejected_ids, the log-probs of both responses under the round's start model
    (ref_chosen_logps, ref_rejected_logps) and their C (consistency). `settings` are those of SFT, beta and perhaps
    sft_weight (0 if it is missing). `precision` is that of `score`, so that the first margin is 0.
    """
    trainer = preference_trainer(model, tokenizer, pairs, settings, seed, precision)
    return trainer.model, train(trainer)


def sft_trainer(model, rows, settings, seed, lora=None, precision="fp32"):
    """What `fine_tune` trains with."""
    if lora:
        model = get_peft_model(model, adapter_config(model, lora))
    config = one_gpu(TrainingArguments(**optimiser_settings(settings, seed, rows), **IN_ORDER))
    rows = in_order(rows, settings["epochs"], settings["batch_size"], seed)
    trainer = SFTTrainer(model, config, train_dataset=rows, data_collator=_columns)
    trainer.precision = precision
    return trainer


def adapter_config(model, lora):
    """What is adapted: what PEFT adapts by default, or every linear layer where it has no default for the architecture.
    Left out are the output layer, images and sound, and what computes from a layer's weight past its adapter: routers,
    and the inner layers of state-space blocks, whose kernels take the weights themselves."""
    targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    others = r"vision|visual|audio|image|multi_modal|modality|altup|router|(mamba|mixer)\..*(out|dt|x)_proj$"
    linear = [
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and module is not model.get_output_embeddings() and not re.search(others, name)
    ]
    return LoraConfig(
        r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=targets or linear
    )


def preference_trainer(model, tokenizer, pairs, settings, seed, precision="fp32"):
    """What `train_preferences` trains with."""
    config = DPOConfig(
        **optimiser_settings(settings, seed, pairs), **IN_ORDER, beta=settings["beta"], precompute_ref_log_probs=True
    )
    pairs = in_order(pairs, settings["epochs"], settings["batch_size"], seed)
    # TRL hashes all weights to find log-probs of the reference that it has cached, a minute for 8B; these come with the pairs.
    # It also puts a forward of its own on the model, by which a copy of the trained model would compute with the original.
    with patch("trl.trainer.dpo_trainer.hash_module", return_value=None), patch("trl.trainer.dpo_trainer.add_fused_lm_head"):
        trainer = CreamTrainer(
            model,
            args=one_gpu(config),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            data_collator=_columns,
        )
    trainer.sft_weight, trainer.precision = settings.get("sft_weight", 0.0), precision
    return trainer


# The rows come epoch after epoch from `in_order`, so to the trainer they are one epoch.
IN_ORDER = dict(num_train_epochs=1, train_sampling_strategy="sequential")


def in_order(rows, epochs, batch_size, seed):
    """The rows of all epochs, each shuffled anew and filled up to whole batches with a row of weight 0.

    A batch holds its rows by length, so that those of like length meet in a forward pass; it is the same batch. Left to
    the trainer, a last and smaller batch would be filled up with rows that have been trained on already, where several
    processes share it.
    """
    ordered = []
    for epoch in range(epochs):
        shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        ordered += [{**rows[i], "weight": 1.0} for i in shuffled]
        ordered += [{**rows[0], "weight": 0.0}] * (-len(rows) % batch_size)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [row for batch in batches for row in sorted(batch, key=_length)]


def _length(row):
    return sum(len(tokens) for column, tokens in row.items() if column.endswith("_ids"))


class SFTTrainer(Trainer):
    """Supervised fine-tuning on the log-probs that ranking and preference training use."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the global batch, so accumulation must not divide again

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with computing_in(self.precision):
            logps = response_logprobs(model, inputs["prompt_ids"], inputs["response_ids"], max_tokens=None)
        return -(logps * _weights(inputs, logps)).sum() / num_items_in_batch

    def _get_num_items_in_batch(self, batches, device):
        tokens = sum(
            weight * len(response)
            for batch in batches
            for response, weight in zip(batch["response_ids"], batch["weight"])
        )
        return _share(self, tokens, device)


class CreamTrainer(DPOTrainer):
    """TRL's DPOTrainer with the loss of CREAM, on token ids and reference log-probs that the rank stage made."""

    loss_is_scaled_for_ga = True

    def _prepare_dataset(self, dataset, *args):
        return dataset  # already token ids

    def _precompute_ref_logps(self, dataset, *args):
        return dataset  # already scored, in ranking

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with computing_in(self.precision):
            logps = response_logprobs(
                model, inputs["prompt_ids"] * 2, inputs["chosen_ids"] + inputs["rejected_ids"], max_tokens=None
            )
        chosen, rejected = logps.chunk(2)
        reference_chosen, reference_rejected, consistency = (
            torch.tensor(inputs[column], device=logps.device)
            for column in ("ref_chosen_logps", "ref_rejected_logps", "consistency")
        )
        chosen_tokens, rejected_tokens = (
            torch.tensor([len(tokens) for tokens in inputs[column]], device=logps.device)
            for column in ("chosen_ids", "rejected_ids")
        )
        losses = cream_loss(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            consistency,
            self.beta,
            self.sft_weight,
            chosen_tokens,
            rejected_tokens,
        )
        weights = _weights(inputs, logps)
        with torch.no_grad():
            moved = {"chosen": chosen - reference_chosen, "rejected": rejected - reference_rejected}
            moved["margin"] = self.beta * (moved["chosen"] - moved["rejected"])
            counted = self.accelerator.gather(weights) > 0
            for name, values in moved.items():
                self._metrics["train"][name].extend(self.accelerator.gather(values)[counted].tolist())
        return (losses * weights).sum() / num_items_in_batch

    def _get_num_items_in_batch(self, batches, device):
        return _share(self, sum(sum(batch["weight"]) for batch in batches), device)


def _weights(inputs, logps):
    return torch.tensor(inputs["weight"], device=logps.device)


def _share(trainer, count, device):
    """What to divide a sum by: the tokens (SFT) or pairs (DPO) of a global batch, over the number of processes.

    Gradients are averaged over processes. Dividing by the whole batch, not by each micro-batch, gives every token and
    pair the same weight, those of a last and smaller micro-batch too.
    """
    return trainer.accelerator.gather(torch.tensor(float(count), device=device)).mean()


def optimiser_settings(settings, seed, rows):
    """The paper's optimiser: AdamW, weight decay 0.01, 10% warm-up, cosine decay, gradients clipped at 1.

    `batch_size` is the global one: each of several processes takes its share of it. `rows` hold token ids.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if settings["batch_size"] % processes:
        raise InputError(
            f"a batch_size of {settings['batch_size']} cannot be shared by {processes} processes: change one in params.yaml"
        )
    share = settings["batch_size"] // processes
    most = max(4, MICRO_TOKENS // max(map(_length, rows)))
    micro = max(size for size in range(1, most + 1) if share % size == 0)
    return dict(
        output_dir=".cache/trainer",
        learning_rate=settings["learning_rate"],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=False,
        gradient_checkpointing=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        save_total_limit=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to="none",
        seed=seed,
    )


def one_gpu(config):
    """A process trains on one GPU. Trainer would spread each batch over all it sees, and the batch would grow."""
    config._n_gpu = min(config.n_gpu, 1)
    return config


def _columns(rows):
    """A batch as lists: the log-prob function pads for itself."""
    return {column: [row[column] for row in rows] for column in rows[0]}


def train(trainer, curve=None, report_to=None, kept=None):
    """Trains the trainer's model. Returns one row a step: step, loss, learning rate; for preferences also the mean margin,
    and how far the mean log-probs of the chosen and the rejected response have moved (nats).

    The file `curve` holds these rows too, and grows by one at each step. `report_to` names a tracker that transformers
    knows (tensorboard, wandb, ...), or several. The folder `kept` is for a checkpoint every few minutes: a killed run goes
    on from the last one.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressBar)
    if curve:
        trainer.add_callback(CurveFile(curve))
    for tracker in get_reporting_integration_callbacks(report_to):
        trainer.add_callback(tracker)
    last = None
    if kept:
        trainer.args.output_dir = str(kept)
        trainer.add_callback(Checkpoints())
        last = last_checkpoint(kept)
    # The backward pass takes its dtypes from the forward pass, but not whether fp32 may be tf32.
    with computing_in("tf32" if getattr(trainer, "precision", None) == "tf32" else "fp32"):
        trainer.train(resume_from_checkpoint=last)
    return _curve(entry for entry in trainer.state.log_history if "loss" in entry)


def _curve(entries):
    steps = pd.DataFrame(entries)
    names = ("step", "loss", "learning_rate", "margin", "chosen", "rejected")
    return steps[[name for name in names if name in steps]]


def save_trained(trainer, tokenizer, folder):
    """Writes the trained model, whole, whatever each process holds of it. All processes call this; one writes."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        save_model(trainer.accelerator.unwrap_model(trainer.model_wrapped), tokenizer, folder, weights)


class ProgressBar(TrainerCallback):
    """One bar on stderr. Trainer's own bars fill a notebook with tables and run times."""

    def on_train_begin(self, args, state, control, **kwargs):
        hidden = not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=hidden)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_log(self, args, state, control, logs, **kwargs):
        self.bar.set_postfix({name: f"{logs[name]:.3f}" for name in ("loss", "margin") if name in logs}, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class CurveFile(TrainerCallback):
    """The curve as a CSV file that grows while a model is trained, for whoever watches."""

    def __init__(self, path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.log_history:  # of a run that was killed, up to its last checkpoint
            _curve(state.log_history).to_csv(self.path, index=False)

    def on_log(self, args, state, control, logs, **kwargs):
        if state.is_world_process_zero and "loss" in logs:
            first = state.global_step == 1
            row = _curve(state.log_history[-1:])
            row.to_csv(self.path, mode="w" if first else "a", header=first, index=False)


class Halfway(TrainerCallback):
    """Writes the model as it is after half of the steps to a folder."""

    def __init__(self, trainer, tokenizer, folder):
        self.trainer, self.tokenizer, self.folder = trainer, tokenizer, folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == max(1, state.max_steps // 2):
            save_trained(self.trainer, self.tokenizer, self.folder)


class Checkpoints(TrainerCallback):
    """A checkpoint every `minutes`: weights, optimiser, schedule, random states, and the place in the data."""

    minutes = 5

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        due = torch.tensor(time.monotonic() - self.last > 60 * self.minutes, device=args.device)
        if broadcast(due):  # the first process's clock counts: all of several save together
            control.should_save, self.last = True, time.monotonic()


def checkpoint_folder(kept, model, inputs):
    """The folder below `kept` for the checkpoints of a model with these weights that is trained on these inputs. None
    where `kept` is None."""
    if kept is None:
        return None
    weights = {name: weight.sum(dtype=torch.float64).item() for name, weight in model.named_parameters()}
    return folder_for(kept, [weights, inputs], [])


def last_checkpoint(folder):
    """The newest one that is whole, which its state, the last file written, tells; None where there is none."""
    states = sorted(Path(folder).glob("checkpoint-*/trainer_state.json"), key=lambda state: int(state.parent.name[11:]))
    for state in reversed(states):
        with contextlib.suppress(ValueError):
            json.loads(state.read_text())
            return str(state.parent)
    return None
