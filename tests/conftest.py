"""Toy objects for the tests, built in memory: a random two-layer model and a tokenizer of single characters."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may reach the network
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of a processor, on machines with a GPU too

import pytest
import torch
from hypothesis import settings
from tiny_model import tiny_model, tiny_tokenizer

torch.set_num_threads(1)  # faster than more for objects this small

# The same examples each time, and no time limit on each: the machine may be busy.
settings.register_profile("cream", derandomize=True, deadline=None)
settings.load_profile("cream")


# These files take longest, so they begin first: no process then works on one of them while the other has none left.
SLOW = ["test_pipeline.py", "test_workers.py", "test_launch.py", "test_seeds.py", "test_results.py"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


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
