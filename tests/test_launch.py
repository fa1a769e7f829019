"""Training in several processes, with gloo on this machine: the model that one process makes."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from test_training import EXAMPLES, LORA, SETTINGS, assert_same_weights, pairs_of
from transformers import AutoModelForCausalLM, Lfm2Config

from cream.data.errors import InputError
from cream.models.loading import load_model, save_model
from cream.training import launch as launch_module
from cream.training.launch import train_model
from cream.training.trainers import fine_tune, in_order

ROOT = Path(__file__).parents[1]
DDP = f"accelerate launch --config_file {ROOT / 'launch' / 'ddp.yaml'} --num_processes 2 --main_process_port 0"


def by_forks(config, module="cream.training.launch"):
    """The same, but all three processes are forks of the server of the stages, which has imported torch. What comes last,
    `-m cream.training.launch JOB`, is $0 to $2."""
    return (
        f"bash -c 'exec {sys.executable} -m cream.pipeline.warm accelerate.commands.launch --config_file {ROOT / 'launch' / config} "
        f"""--num_processes 2 --main_process_port 0 -m cream.pipeline.warm {module} "$2"'"""
    )


@pytest.fixture
def folder(tmp_path, make_model, tokenizer, monkeypatch, warm):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copy(ROOT / "tests" / "fsdp_on_cpu.py", tmp_path)
    save_model(make_model(), tokenizer, tmp_path / "models" / "m0")
    return tmp_path / "models"


def hybrid(tokenizer):
    """A model of an architecture that is tried out first: see cream/models/architectures.py."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    ends = dict(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=0, pad_token_id=0)
    return AutoModelForCausalLM.from_config(Lfm2Config(**sizes, **ends, layer_types=["conv", "full_attention"]))


# DDP: test_two_workers_and_two_processes_make_the_same_rows_and_model in test_workers.py.
@pytest.mark.parametrize("architecture", ["llama", "hybrid"])
def test_two_processes_train_the_model_that_one_trains(folder, tokenizer, architecture):
    if architecture == "hybrid":
        save_model(hybrid(tokenizer), tokenizer, folder / "m0")
    consistency = [[0.8, 1.0, 0.3][i % 3] for i in range(11)]  # batches of 4, and the last one of an epoch is not full
    pairs, settings = pairs_of(load_model(folder / "m0"), 11, consistency), SETTINGS | {"epochs": 2}
    one, two = (
        train_model(folder / "m0", folder / name, folder.parent / f"{name}.csv", pairs, settings, seed=3, launch=command)
        for name, command in (("one", None), ("two", by_forks("fsdp.yaml", "fsdp_on_cpu")))
    )
    assert len(one) == 2 * 3
    assert one.margin.abs().max() > 0.1  # it has learned something
    torch.testing.assert_close(torch.tensor(two.values), torch.tensor(one.values), atol=1e-4, rtol=0)
    assert_same_weights(load_model(folder / "two"), load_model(folder / "one"), atol=1e-4)
    pd.testing.assert_frame_equal(pd.read_csv(folder.parent / "one.csv"), one)
    assert {path.name for path in folder.iterdir()} == {"m0", "one", "two"}


def test_two_processes_fine_tune_the_adapter_that_one_does(folder):
    rows, settings = EXAMPLES * 4, {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8}  # micro-batches of 4 in both
    def trained(name, command):
        place, half = folder / name, folder / f"{name}-halfway"
        return train_model(
            folder / "m0", place, folder.parent / f"{name}.csv", rows, settings, seed=3, halfway=half, lora=LORA, launch=command
        )

    one, two = trained("one", None), trained("two", by_forks("ddp.yaml"))
    torch.testing.assert_close(torch.tensor(two.values), torch.tensor(one.values), atol=1e-4, rtol=0)
    assert_same_weights(load_model(folder / "two"), load_model(folder / "one"), atol=1e-4)
    assert_same_weights(load_model(folder / "two-halfway"), load_model(folder / "one-halfway"), atol=1e-4)
    assert (folder / "two" / "adapter_config.json").exists()


def test_the_model_halfway_is_the_one_of_a_training_that_stops_there(folder, monkeypatch):
    settings = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 8}  # 6 steps
    train_model(folder / "m0", folder / "m1", folder.parent / "m1.csv", EXAMPLES * 4, settings, seed=3, halfway=folder / "half")

    class Stop(launch_module.Halfway):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    monkeypatch.setattr(launch_module, "Halfway", Stop)
    train_model(folder / "m0", folder / "stopped", folder.parent / "s.csv", EXAMPLES * 4, settings, seed=3, halfway=folder / "none")
    assert_same_weights(load_model(folder / "half"), load_model(folder / "stopped"), atol=0)
    assert not (folder / "none").exists()


def test_a_killed_process_leaves_nothing_half_made_and_a_rerun_makes_the_same_model(folder, monkeypatch):
    rows, settings = EXAMPLES * 200, {"learning_rate": 1e-3, "epochs": 4, "batch_size": 8}
    short = rows[:16], settings | {"epochs": 1}
    train_model(folder / "m0", folder / "before", folder.parent / "before.csv", *short, seed=3)
    popen, curve = subprocess.Popen, folder.parent / "m1.csv"

    def killed(*args, **kwargs):
        process = popen(*args, **kwargs)
        while not curve.exists():  # until it has trained for a step
            assert process.poll() is None
            time.sleep(0.05)
        psutil.Process(process.pid).children()[0].send_signal(signal.SIGKILL)
        return process

    monkeypatch.setattr(launch_module.subprocess, "Popen", killed)
    with pytest.raises(InputError, match="ended with exit code 1 and left no model.*run again"):
        train_model(folder / "m0", folder / "m1", folder.parent / "m1.csv", rows, settings, seed=3, launch=DDP)
    assert {path.name for path in folder.iterdir()} == {"m0", "before"}
    train_model(folder / "m0", folder / "m1", folder.parent / "m1.csv", *short, seed=3)
    assert_same_weights(load_model(folder / "m1"), load_model(folder / "before"))


def test_the_processes_end_with_the_notebook(folder):
    settings = {"learning_rate": 1e-3, "epochs": 1000, "batch_size": 8}
    work = (folder / "m0", folder / "m1", folder.parent / "m1.csv", EXAMPLES * 4, settings, 3)
    notebook = multiprocessing.get_context("fork").Process(target=train_model, args=work, kwargs={"launch": DDP}, daemon=True)
    notebook.start()
    while not (folder.parent / "m1.csv").exists():  # until it has trained for a step
        assert notebook.is_alive()
        time.sleep(0.1)
    processes = psutil.Process(notebook.pid).children(recursive=True)
    assert len(processes) >= 3  # the launcher and two more
    notebook.kill()
    notebook.join()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, make_model, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="a batch_size of 4 cannot be shared by 3 processes"):
        fine_tune(make_model(), EXAMPLES, SETTINGS, seed=1)


def test_every_row_comes_once_an_epoch_and_batches_are_filled_up_with_weight_0():
    ordered = in_order([{"id": i} for i in range(5)], epochs=3, batch_size=4, seed=1)
    assert len(ordered) == 3 * 8
    epochs = [ordered[:8], ordered[8:16], ordered[16:]]
    for epoch in epochs:
        assert sorted(row["id"] for row in epoch if row["weight"]) == [0, 1, 2, 3, 4]
        assert [row["weight"] for row in epoch] == [1.0] * 5 + [0.0] * 3
    assert len({tuple(row["id"] for row in epoch[:5]) for epoch in epochs}) == 3


def test_bad_input_that_a_process_meets_is_a_sentence_and_no_traceback(folder, capfd):
    launch = f"""bash -c 'WORLD_SIZE=3 exec {sys.executable} -m cream.pipeline.warm "$1" "$2"'"""  # one of three processes
    with pytest.raises(InputError, match="ended with exit code 1 and left no model"):
        train_model(folder / "m0", folder / "m1", folder.parent / "m1.csv", EXAMPLES, SETTINGS, seed=1, launch=launch)
    said = capfd.readouterr()
    assert "a batch_size of 4 cannot be shared by 3 processes: change one in params.yaml" in said.out + said.err
    assert "Traceback" not in said.out + said.err


def test_a_launcher_that_fails_is_named(folder):
    with pytest.raises(InputError, match="training by `false` .*exit code 1"):
        train_model(folder / "m0", folder / "m1", folder.parent / "m1.csv", EXAMPLES, SETTINGS, seed=1, launch="false")


@pytest.mark.parametrize("name, kind", [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("deepspeed", "DEEPSPEED")])
def test_accelerate_reads_the_settings_and_leaves_precision_to_the_trainer(name, kind):
    config = load_config_from_file(str(ROOT / "launch" / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert config.mixed_precision in (None, "no")
