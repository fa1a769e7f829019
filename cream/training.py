"""Supervised fine-tuning and consistency-weighted preference training, on the trainers of transformers and TRL."""

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from cream.logprobs import response_logprobs
from cream.losses import cream_loss

MICRO_BATCH = 4  # sequences (SFT) or pairs (DPO) in one forward pass; the global batch is reached by accumulation


def fine_tune(model, rows, settings, seed, lora=None):
    """SFT on the responses alone. `rows` have prompt_ids and response_ids. Returns the model and its loss curve.

    `settings` are the learning_rate, epochs and (global) batch_size; `lora` is None or its r, alpha and dropout.
    The loss is the mean over response tokens of -log p, so prompts and padding are not learned.
    """
    if lora:
        model = get_peft_model(model, LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"]))
    # Autocast keeps the weights in fp32 and is about twice as fast on CPUs with bf16 instructions.
    config = TrainingArguments(**optimiser_settings(settings, seed), bf16=True)
    return train(SFTTrainer(model, config, train_dataset=rows, data_collator=_columns))


def train_preferences(model, tokenizer, pairs, settings, seed):
    """One round of CREAM. Returns the model and its loss and margin curve.

    `pairs` have prompt_ids, chosen_ids, rejected_ids, the log-probs of both responses under the round's start model
    (ref_chosen_logps, ref_rejected_logps) and their C (consistency). `settings` are those of SFT and beta.
    """
    # fp32 on both sides of the margin: the references were scored in fp32 by the rank stage.
    config = DPOConfig(
        **optimiser_settings(settings, seed),
        bf16=False,
        beta=settings["beta"],
        precompute_ref_log_probs=True,
    )
    data = Dataset.from_list(pairs)
    return train(
        CreamTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, data_collator=_columns)
    )


class SFTTrainer(Trainer):
    """Supervised fine-tuning on the log-probs that ranking and preference training use."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the global batch, so accumulation must not divide again

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logps = response_logprobs(model, inputs["prompt_ids"], inputs["response_ids"], max_tokens=None)
        return -logps.sum() / num_items_in_batch

    def _get_num_items_in_batch(self, batches, device):
        return _share(self, sum(len(response) for batch in batches for response in batch["response_ids"]), device)


class CreamTrainer(DPOTrainer):
    """TRL's DPOTrainer with the loss of CREAM, on token ids and reference log-probs that the rank stage made."""

    loss_is_scaled_for_ga = True

    def _prepare_dataset(self, dataset, *args):
        return dataset  # already token ids

    def _precompute_ref_logps(self, dataset, *args):
        return dataset  # already scored, in ranking

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logps = response_logprobs(
            model, inputs["prompt_ids"] * 2, inputs["chosen_ids"] + inputs["rejected_ids"], max_tokens=None
        )
        chosen, rejected = logps.chunk(2)
        reference_chosen, reference_rejected, consistency = (
            torch.tensor(inputs[column], device=logps.device)
            for column in ("ref_chosen_logps", "ref_rejected_logps", "consistency")
        )
        losses = cream_loss(chosen, rejected, reference_chosen, reference_rejected, consistency, self.beta)
        with torch.no_grad():
            margin = self.beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
            self._metrics["train"]["margin"].append(self.accelerator.gather(margin).mean().item())
        return losses.sum() / num_items_in_batch

    def _get_num_items_in_batch(self, batches, device):
        return _share(self, sum(len(batch["prompt_ids"]) for batch in batches), device)


def _share(trainer, count, device):
    """What to divide a sum by: the tokens (SFT) or pairs (DPO) of a global batch, over the number of processes.

    Gradients are averaged over processes. Dividing by the whole batch, not by each micro-batch, gives every token and
    pair the same weight, those of a last and smaller micro-batch too.
    """
    return trainer.accelerator.gather(torch.tensor(float(count), device=device)).mean()


def optimiser_settings(settings, seed):
    """The paper's optimiser: AdamW, weight decay 0.01, 10% warm-up, cosine decay, gradients clipped at 1."""
    micro = max(size for size in range(1, MICRO_BATCH + 1) if settings["batch_size"] % size == 0)
    return dict(
        output_dir=".cache/trainer",
        learning_rate=settings["learning_rate"],
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings["batch_size"] // micro,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        gradient_checkpointing=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to="none",
        seed=seed,
    )


def _columns(rows):
    """A batch as lists: the log-prob function pads for itself."""
    return {column: [row[column] for row in rows] for column in rows[0]}


def train(trainer):
    """The trained model and one row a step: step, loss, learning rate, and for preferences the mean margin."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressBar)
    trainer.train()
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # the forward pass is in fp32 again
    steps = pd.DataFrame(entry for entry in trainer.state.log_history if "loss" in entry)
    return trainer.model, steps[[name for name in ("step", "loss", "learning_rate", "margin") if name in steps]]


class ProgressBar(TrainerCallback):
    """One bar on stderr. Trainer's own bars fill a notebook with tables and run times."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc="training", unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
