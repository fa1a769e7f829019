"""Work spread over two Ray workers on this machine: the rows of one process."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_pipeline import ROOT, copy, finished, run  # noqa: F401  two are fixtures

from cream.data.errors import InputError
from cream.data.files import read_rows
from cream.inference import workers
from cream.inference.logprobs import score
from cream.inference.workers import spread, work_on
from cream.models.loading import save_model

PROMPTS = [[5 + (7 * i + k) % 90 for k in range(3 + i % 9)] for i in range(24)]


# A local cluster turns tokens on for the rest of its process, which then finds no way into a cluster without them. So all have one.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 32 * "0"}


@pytest.fixture(scope="module")
def ray_address():
    """Of a Ray cluster of two processors, started once for all tests of the file: each start takes seconds. A process of
    its own starts it, so that this one imports ray as late as `spread` does."""
    start = """
import sys
from ray.cluster_utils import Cluster
print(Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}).address, flush=True)
sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # for the workers
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", start], env=environment, **pipes) as cluster:  # it ends with its input
        address = cluster.stdout.readline().strip()
        assert address, "Ray started no cluster"
        yield address


def test_two_workers_and_two_processes_make_the_same_rows_and_model(finished, tmp_path, ray_address, monkeypatch):  # noqa: F811
    """`scale` in params.yaml: no stage is out of date, and what the stages make when forced is the same."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    folder = tmp_path / "scaled"
    shutil.copytree(finished, folder, symlinks=True)
    params = (folder / "params.yaml").read_text()
    launch = "accelerate launch --config_file launch/ddp.yaml --num_processes 2 --main_process_port 0"

    def scale(workers):
        scaled = f"scale: {{workers: {workers}, launch: {launch}}}"
        (folder / "params.yaml").write_text(params.replace("scale: {workers: 1, launch: null}", scaled))

    def stage(notebook, argument, check=True):
        command = [sys.executable, "-m", "cream.pipeline.stage", f"notebooks/{notebook}.ipynb", f"{notebook}.html", argument]
        return run(folder, *command, check=check)

    scale(workers=2)
    status = run(folder, "dvc", "status", "sample", "rank", "pairs", "train", "evaluate", "sft", "base", "--json")
    assert not status.stdout.strip("{}\n")
    stage("04_sample", "policy=m1")
    stage("06_train", "model_name=cream-m2")
    assert read_rows(folder / "data/samples/m1.jsonl") == read_rows(finished / "data/samples/m1.jsonl")
    ours, theirs = (load_file(place / "models" / "cream-m2" / "model.safetensors") for place in (folder, finished))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4
    scale(workers=3)  # ranking and evaluation ask the cluster too: for more than it has
    for notebook, argument in (("05_rank", "policy=m1"), ("07_evaluate", "model_name=cream-m2")):
        said = stage(notebook, argument, check=False).stderr
        assert f"Stage {notebook} failed" in said
        assert "the Ray cluster has 0 GPUs and 2 processors, too few for 3 workers" in said


def test_two_workers_score_what_one_process_does(tmp_path, model, tokenizer, ray_address, monkeypatch):
    """Under a model and an adapter over it, which a worker loads together."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    tokens = [[6 + (5 * i + k) % 80 for k in range(1 + i % 8)] for i in range(len(prompts))]
    tokens[1] = tokens[0]
    save_model(model, tokenizer, tmp_path / "m0")
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    save_model(get_peft_model(model, adapter), tokenizer, tmp_path / "m1")
    folders = [tmp_path / "m1", tmp_path / "m0"]
    one, two = (score(folders, prompts, tokens, workers=workers, chunk=5) for workers in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)
    assert two.dtype == torch.float32 and two.shape == (2, 72) and two[0, 0] == two[0, 1]
    assert (two[0] - two[1]).abs().min() > 1e-2


# The functions below are made in the tests, so that Ray hands over their code and a worker need not import this file.


def test_a_killed_worker_is_replaced_and_loses_nothing(tmp_path, ray_address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
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


def test_bad_input_that_a_worker_meets_is_one_sentence_here(monkeypatch):
    """Without RAY_ADDRESS: by a worker of a cluster that is started for it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the worker

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


def test_work_apart_is_done_by_one_other_process():
    make = partial(eval, "lambda chunk: [__import__('os').getpid(), 2 * chunk]")
    (pid, first), (same, second) = work_on(make, [1, 2], 1, "work", apart=True)
    assert (first, second) == (2, 4) and pid == same != os.getpid()


def test_bad_input_of_work_apart_stays_a_sentence(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{")
    with pytest.raises(InputError, match="rows.jsonl, line 1"):
        work_on(partial(partial, read_rows), [str(tmp_path / "rows.jsonl")], 1, "work", apart=True)


def test_work_apart_ends_with_the_process_that_wanted_it():
    code = """
from functools import partial
from cream.inference.workers import _apart
make = partial(eval, "lambda seconds: __import__('time').sleep(seconds) or __import__('os').getpid()")
for _, pid in _apart(make, {0: 0, 1: 600}):
    print(pid, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        process.kill()
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}"):
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("it goes on")
