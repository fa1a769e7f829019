"""Toy objects for the tests, built in memory: a random two-layer model and a tokenizer of single characters."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may reach the network
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of a processor, on machines with a GPU too
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: faster than more for objects this small

import pytest
from hypothesis import settings

# torch and transformers are imported where they are needed: the process that deals the tests out needs neither.

# The same examples each time, and no time limit on each: the machine may be busy.
settings.register_profile("cream", derandomize=True, deadline=None)
settings.load_profile("cream")


# These files take longest, so they begin first: no process then works on one of them while the other has none left. Workers
# and notebooks come when the pipeline's tests have made the run that all three use.
SLOW = [f"test_{name}.py" for name in ("pipeline", "launch", "llama3", "workers", "notebooks", "results", "seeds", "stage")]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def warm():
    """Stages that tests start are forks of one process that has imported the libraries: see cream/pipeline/warm.py."""
    with tempfile.TemporaryDirectory() as folder:
        address = os.path.join(folder, "server")
        start = "import sys; from cream.pipeline import warm; warm.IDLE = 600; warm.serve(sys.argv[1])"
        server = subprocess.Popen([sys.executable, "-c", start, address])
        while not os.path.exists(address) and server.poll() is None:
            time.sleep(0.1)
        os.environ["CREAM_WARM"] = address
        yield
        del os.environ["CREAM_WARM"]
        server.terminate()
        server.wait()


@pytest.fixture
def run_stage(tmp_path, warm):
    """A function that runs a notebook as a stage in a folder that is laid out like a run: its end and its page."""
    root = Path(__file__).parents[1]
    (tmp_path / "cream").symlink_to(root / "cream")
    shutil.copytree(root / "notebooks", tmp_path / "notebooks")
    shutil.copy(root / "profiles" / "test.yaml", tmp_path / "params.yaml")

    def run(notebook, name="page", **given):
        page = f"reports/{name}.html"
        command = [sys.executable, "-m", "cream.pipeline.stage", "--no-input", f"notebooks/{notebook}.ipynb", page]
        command += [f"{name}={value}" for name, value in given.items()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done, (tmp_path / page).read_text(encoding="utf-8") if done.returncode == 0 else ""

    return run


@pytest.fixture
def make_model():
    """Equal toy models, as many as asked for. Their end token is 0, and their pad token too."""
    return toy_llama


@pytest.fixture
def model():
    return toy_llama()


@pytest.fixture
def tokenizer():
    from tiny_model import tiny_tokenizer

    return tiny_tokenizer()


def toy_llama():
    from tiny_model import tiny_model, tiny_tokenizer

    model = tiny_model(len(tiny_tokenizer())).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 10  # far from uniform predictions, so that a wrong token or position shows
    return model
