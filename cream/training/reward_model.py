"""An external reward model: trained here on TRL's RewardTrainer, or fetched from a folder or the Hub.

A classifier pools at the last token that is not config.pad_token_id, which is the same token however much padding
follows. Where the pad token is also the end token, that is the token before it, in training and in scoring alike.
"""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from cream.data.errors import InputError
from cream.data.hub import first_line, model_folder
from cream.data.rows import user_message
from cream.models.chat import chat_ids
from cream.models.loading import UnfitWeights, load_weights, tokenizer_in
from cream.training.trainers import checkpoint_folder, one_gpu, optimiser_settings, train


def train_reward_model(model, tokenizer, pairs, settings, seed, dtype=torch.float32, kept=None):
    """The model, a classifier with one label, and its curve: step, loss, learning rate and mean margin of a step.

    `pairs` are rows with a question and two texts, chosen and rejected. The loss is Bradley-Terry's,
    -log sigmoid(r(chosen) - r(rejected)); `settings` are the learning_rate, epochs and (global) batch_size; `dtype` is
    that of the forward pass. Checkpoints are kept below the folder `kept` (see `train` in cream/training/trainers.py).
    """
    rows = [
        {f"{kind}_ids": chat_ids(tokenizer, user_message(pair), pair[kind]) for kind in ("chosen", "rejected")} for pair in pairs
    ]
    kept = checkpoint_folder(kept, model, [rows, settings, seed, str(dtype)])
    data, arguments = Dataset.from_list(rows), optimiser_settings(settings, seed, rows)
    arguments["bf16"] = dtype == torch.bfloat16
    # max_length None: no pair is left out.
    config = one_gpu(RewardConfig(**arguments, num_train_epochs=settings["epochs"], max_length=None))
    trainer = RewardTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    curve = train(trainer, kept=kept)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the forward pass is in fp32 again
    return model, curve


def fetch_reward_model(base, revision=None, root="."):
    """A reward model in its own precision and its tokenizer. `base` is a folder (seen from `root`), or a Hub id with a
    pinned `revision`."""
    named = f"the reward model {base!r} (reward_model.base in params.yaml)"
    if not (Path(root) / Path(base).expanduser()).is_dir() and revision is None:
        raise InputError(f"{named} is no folder: give one, or a Hub id with its commit as reward_model.revision")
    try:
        folder = model_folder(base, revision, root)
        tokenizer = tokenizer_in(folder)
        model = load_weights(AutoModelForSequenceClassification, folder, named, dtype="auto")
    except UnfitWeights as error:  # a language model's, say, whose reward head would be random
        raise InputError(
            f"{named} is no reward model: give a sequence classifier with one label, or 'trained' ({error})"
        ) from None
    except (OSError, InputError) as error:
        raise InputError(
            f"{named} could not be loaded: {first_line(error)} Give a folder that holds a sequence classifier's safetensors "
            "weights and a tokenizer, a Hub id that this machine can reach, or 'trained'."
        ) from None
    if model.config.get_text_config().num_labels != 1:
        raise InputError(f"{named} is no reward model: give a sequence classifier with one label, or 'trained'")
    if tokenizer.chat_template is None:
        raise InputError(f"{named} has no chat template: add the one it was trained with to its tokenizer")
    return model, tokenizer
