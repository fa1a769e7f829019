"""Toy objects for the tests, built in memory: a random two-layer model and a tokenizer of single characters."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may reach the network

import pytest
import torch
from hypothesis import settings
from tiny_model import tiny_model, tiny_tokenizer

torch.set_num_threads(1)  # faster than more for objects this small

# The same examples each time, and no time limit on each: the machine may be busy.
settings.register_profile("cream", derandomize=True, deadline=None)
settings.load_profile("cream")


@pytest.fixture
def make_model():
    """Equal toy models, as many as asked for. Their end token is 0, and their pad token too."""
    return toy_llama


@pytest.fixture
def model():
    return toy_llama()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def toy_llama():
    model = tiny_model(len(tiny_tokenizer())).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 10  # far from uniform predictions, so that a wrong token or position shows
    return model
