"""Work that is killed goes on from the parts that are done, and ends with the same bytes."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from test_rankers import pairs as easy_pairs
from test_rankers import reward_model
from test_training import EXAMPLES, SETTINGS, pairs_of
from transformers import TrainerCallback

from cream.data import parts
from cream.data.parts import folder_for, in_parts
from cream.inference import logprobs, sampling
from cream.inference.logprobs import score
from cream.inference.sampling import sample
from cream.models.loading import save_model
from cream.training import trainers
from cream.training.launch import train_model
from cream.training.reward_model import train_reward_model
from cream.training.trainers import fine_tune, last_checkpoint

PROMPTS = [[i, i + 1, i + 2][: 1 + i % 3] for i in range(4, 14)]
RESPONSES = [[20 + i, 30, 31][: 1 + i % 3] for i in range(10)]


class Killed(Exception):
    pass


@pytest.fixture
def folder(tmp_path, model, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(model, tokenizer, tmp_path / "models" / "m0")
    return tmp_path / "models" / "m0"


def killed_after(count, function):
    """The function, which dies when it is called for the `count`-th time, and the list of its calls."""
    calls = []

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            raise Killed
        return function(*args, **kwargs)

    return dying, calls


def test_what_is_done_is_not_done_again(tmp_path):
    def compute(missing):
        for number, chunk in missing.items():
            if chunk == "c" and not (tmp_path / "alive").exists():
                raise Killed
            done.append(chunk)
            yield number, {"result": chunk * 2}

    done = []
    with pytest.raises(Killed):
        in_parts("abcd", compute, tmp_path / "kept")
    (tmp_path / "alive").touch()
    assert [each["result"] for each in in_parts("abcd", compute, tmp_path / "kept")] == ["aa", "bb", "cc", "dd"]
    assert done == ["a", "b", "c", "d"]
    assert len(in_parts("abcd", compute)) == 4 and done == [*"abcd", *"abcd"]  # without a folder nothing is kept


def test_parts_of_other_work_are_never_taken_up(folder, tmp_path, monkeypatch):
    def make(inputs):
        made = folder_for(tmp_path / "kept", inputs, [folder])
        made.mkdir(parents=True, exist_ok=True)
        return made

    first = make({"temperature": 0.8})
    assert make({"temperature": 0.8}) == first and first.exists()
    assert make({"temperature": 0.9}) != first and not first.exists()
    first = make({"temperature": 0.8})
    os.utime(folder / "model.safetensors", (1, 1))
    second = make({"temperature": 0.8})
    assert second != first and not first.exists()
    (tmp_path / "new_code.py").write_text("")
    monkeypatch.setattr(parts, "CODE", [*parts.CODE[1:], tmp_path / "new_code.py"])
    assert make({"temperature": 0.8}) != second and not second.exists()


def test_killed_sampling_goes_on(folder, monkeypatch):
    settings = dict(responses=2, max_new_tokens=4, temperature=1.0, chunk=3, seed=5)
    whole = sample(folder, PROMPTS, **settings)
    with monkeypatch.context() as patch:
        dying, _ = killed_after(3, sampling.generate)
        patch.setattr(sampling, "generate", dying)
        with pytest.raises(Killed):
            sample(folder, PROMPTS, **settings, kept="parts")
    counting, calls = killed_after(0, sampling.generate)
    monkeypatch.setattr(sampling, "generate", counting)
    assert sample(folder, PROMPTS, **settings, kept="parts") == whole
    assert len(calls) == 2  # of 4 chunks


def test_killed_scoring_goes_on(folder, make_model, tokenizer, monkeypatch):
    save_model(make_model().half().float(), tokenizer, folder.parent / "m1")
    models, settings = [folder.parent / "m1", folder], dict(chunk=4)
    whole = score(models, PROMPTS, RESPONSES, **settings)
    with monkeypatch.context() as patch:
        dying, _ = killed_after(5, logprobs.response_logprobs)
        patch.setattr(logprobs, "response_logprobs", dying)
        with pytest.raises(Killed):
            score(models, PROMPTS, RESPONSES, **settings, kept="parts")
    counting, calls = killed_after(0, logprobs.response_logprobs)
    monkeypatch.setattr(logprobs, "response_logprobs", counting)
    assert torch.equal(score(models, PROMPTS, RESPONSES, **settings, kept="parts"), whole)
    assert len(calls) == 2  # of 2 models and 3 chunks


@pytest.mark.parametrize("what", ["preferences", "fine-tuning", "adapter with dropout"])
def test_killed_training_goes_on(folder, model, monkeypatch, what):
    settings, lora = SETTINGS | {"epochs": 4}, None
    rows = pairs_of(model, consistency=0.8)
    if what != "preferences":
        rows, settings = EXAMPLES * 2, {key: settings[key] for key in ("learning_rate", "epochs", "batch_size")}
        lora = dict(r=4, alpha=8, dropout=0.3) if "adapter" in what else None

    def train_it(name, kept=None):
        out, half = folder.parent / name, folder.parent / f"{name}-halfway"
        curve = train_model(folder, out, f"{name}.csv", rows, settings, 3, halfway=half, lora=lora, kept=kept)
        file = "adapter_model.safetensors" if lora else "model.safetensors"
        weights = {(place, key): value for place in (out, half) for key, value in load_file(place / file).items()}
        return curve, {(place.name.removeprefix(name), key): value for (place, key), value in weights.items()}, open(f"{name}.csv").read()

    monkeypatch.setattr(trainers.Checkpoints, "minutes", 0)
    curve, weights, file = train_it("undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "ProgressBar", KilledAtStep5)
        with pytest.raises(Killed):
            train_it("resumed", "parts")
    assert last_checkpoint(next(iter((folder.parents[1] / "parts").iterdir()))).endswith("checkpoint-4")
    monkeypatch.setattr(trainers, "ProgressBar", FirstStep)
    again, same, file_again = train_it("resumed", "parts")
    assert FirstStep.seen == 5
    assert again.equals(curve) and file_again == file
    assert same.keys() == weights.keys() and all(torch.equal(same[name], weights[name]) for name in weights)


@pytest.mark.parametrize("what", ["the base", "a reward model"])
def test_killed_training_of_a_model_in_memory_goes_on(tmp_path, make_model, tokenizer, monkeypatch, what):
    settings = {"learning_rate": 1e-3, "epochs": 4, "batch_size": 2}

    def train_it(scale=1.0, kept=tmp_path / "parts"):
        if what == "the base":
            model = make_model()
            model.lm_head.weight.data *= scale
            return fine_tune(model, EXAMPLES[:4], settings, seed=3, kept=kept)
        model = reward_model()
        model.score.weight.data *= scale
        return train_reward_model(model, tokenizer, easy_pairs(4), settings, seed=3, kept=kept)

    monkeypatch.setattr(trainers.Checkpoints, "minutes", 0)
    undisturbed, curve = train_it(kept=None)
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "ProgressBar", KilledAtStep5)
        with pytest.raises(Killed):
            train_it()
    monkeypatch.setattr(trainers, "ProgressBar", FirstStep)
    resumed, again = train_it()
    assert FirstStep.seen == 5 and again.equals(curve)
    assert all(map(torch.equal, resumed.parameters(), undisturbed.parameters()))
    train_it(scale=2.0)  # another model's checkpoints are not taken up
    assert FirstStep.seen == 1


class KilledAtStep5(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise Killed


class FirstStep(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        FirstStep.seen = None

    def on_step_end(self, args, state, control, **kwargs):
        FirstStep.seen = FirstStep.seen or state.global_step


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, text in ((9, "{}"), (10, '{"glob'), (11, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(json.dumps({"global_step": 10}))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
