"""Work spread over two Ray workers on this machine: the rows of one process. On a cluster of RAY_ADDRESS: see test_pipeline.py."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from cream.data.errors import InputError
from cream.models import workers
from cream.models.loading import save_model
from cream.models.logprobs import score
from cream.models.workers import spread, work_on

ROOT = Path(__file__).parents[1]
PROMPTS = [[5 + (7 * i + k) % 90 for k in range(3 + i % 9)] for i in range(24)]


@pytest.fixture
def folder(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "m0")
    return tmp_path / "m0"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


# Two workers that write: test_two_workers_and_two_processes_make_the_same_rows_and_model in test_pipeline.py.
def test_two_workers_score_what_one_process_does(folder, make_model, tokenizer):
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    tokens = [[6 + (5 * i + k) % 80 for k in range(1 + i % 8)] for i in range(len(prompts))]
    tokens[1] = tokens[0]
    other = make_model()
    other.lm_head.weight.data *= 0.5
    save_model(other, tokenizer, folder.parent / "m1")
    folders = [folder.parent / "m1", folder]
    one, two = (score(folders, prompts, tokens, workers=workers, chunk=5) for workers in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)
    assert two.dtype == torch.float32 and two.shape == (2, 72) and two[0, 0] == two[0, 1]
    assert (two[0] - two[1]).abs().min() > 1e-2


# The functions below are made in the tests, so that Ray hands over their code and a worker need not import this file.


def test_a_killed_worker_is_replaced_and_loses_nothing(tmp_path):
    died = tmp_path / "died"

    def squares():
        """Squares numbers; whoever comes to 7 first is killed at it, as by a machine that goes down."""

        def work(number):
            if number == 7 and not died.exists():
                died.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.5)  # so that no worker does all of them
            return [number**2, os.getpid()]

        return work

    results = work_on(squares, range(24), workers=2, progress="squares")
    assert [square for square, _ in results] == [number**2 for number in range(24)]
    processes, killed = {process for _, process in results}, int(died.read_text())
    assert results[7][1] != killed and len(processes - {killed}) >= 2  # another took its place


def test_bad_input_that_a_worker_meets_is_one_sentence_here():
    def refuse_at_work():
        def work(number):
            if number == 2:
                raise InputError("row 2 is wrong: mend it")
            return number

        return work

    def refuse():
        raise InputError("the model is wrong: mend it")

    with pytest.raises(InputError) as error:
        list(spread(refuse_at_work, {0: 1, 1: 2, 2: 3}, workers=1, progress="refusals"))
    assert str(error.value) == "row 2 is wrong: mend it" and error.value.__cause__ is None
    import ray  # as late as spread does, which has set what it reads

    with pytest.raises(ray.exceptions.RaySystemError, match="Ray has not been started yet"):  # and no call starts it
        ray.put(1)
    made = workers._Worker(refuse)({"number": 0, "chunk": "1"})  # as Ray calls it
    assert made == {"number": 0, "result": "", "refusal": "the model is wrong: mend it"}


@pytest.mark.parametrize("gpus, processors, asked", [(0, 4, 5), (2, 64, 3)])
def test_more_workers_than_the_cluster_has_room_for_are_refused(gpus, processors, asked):
    says = f"scale.workers: the Ray cluster has {gpus} GPUs and {processors} processors, too few for {asked} workers"
    with pytest.raises(InputError, match=says):
        workers._resources_of_one({"GPU": float(gpus), "CPU": float(processors)}, asked)


def test_a_worker_takes_a_gpu_or_an_equal_share_of_the_processors():
    assert workers._resources_of_one({"GPU": 2.0, "CPU": 64.0}, 2) == {"num_gpus": 1}
    assert workers._resources_of_one({"CPU": 9.0}, 2) == {"num_cpus": 4}
