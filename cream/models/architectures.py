"""What an architecture allows: how far it sees, what its positions are, and how it is tried out."""

import math
import re
from contextlib import contextmanager

import torch

from cream.data.errors import InputError

# Architectures whose tokens meet in attention alone, by the mask and positions that it is given. Others are tried out
# before they are scored or written with in a way that relies on it; these five, by tests/test_architectures.py.
PLAIN = {"gpt2", "llama", "mistral", "qwen2", "qwen3"}


def attention_span(config):
    """The most tokens that every layer sees at a time: the smallest window or chunk in the config; infinite without one."""
    spans = [
        min(value) if isinstance(value, (list, tuple)) and value else value
        for name, value in vars(config.get_text_config()).items()
        if re.search(r"window(_size)?$|attention_chunk_size$", name)
    ]
    return min((span for span in spans if type(span) is int and span > 0), default=math.inf)


def context_of(config):
    """The most tokens that the model was made for; None where the config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_positions(config, length):
    """An InputError if a text of that length has other positions than a shorter one in its batch (dynamic rotary ones)."""
    config = config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            most = rope.get("original_max_position_embeddings") or context_of(config)
            if length > most:
                raise InputError(
                    f"a prompt with its response has up to {length} tokens, and the model's rotary positions change at "
                    f"{most} ({rope['rope_type']}): leave long prompts out or lower max_new_tokens"
                )


def trial(model, lengths):
    """Sequences of random tokens of those lengths to try a model on, the same each time, that leave torch's own random
    numbers alone."""
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    return [tuple(torch.randint(size, (length,), generator=generator).tolist()) for length in lengths]


def tolerance(dtype):
    """How far (nats) two ways of computing log-probs may differ by rounding: in bf16, SmolLM2's did by up to 0.7, and by
    4 or more where it read pads."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 2.0


@contextmanager
def measured(model):
    """While it lasts, the model has no dropout, no gradients and no autocast: what it computes, it computes again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True
