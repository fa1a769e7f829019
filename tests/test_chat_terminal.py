"""Talking to models of a run."""

import builtins
import re

import pytest
from peft import LoraConfig, get_peft_model
from templates import template_tokenizer
from test_chat import PUBLISHED
from test_parameters import changed

from cream.data.errors import InputError
from cream.inference.sampling import generate
from cream.models.chat import chat_ids, turn_ids
from cream.models.loading import save_model
from cream.share.conversation import Conversation, folder_of, talk

PARAMS = changed({"sampling.max_new_tokens": 6})
TURNS = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "é ☃?"},
]


@pytest.fixture
def root(tmp_path, model, tokenizer):
    for name in ("m0", "m1"):
        save_model(model, tokenizer, tmp_path / "models" / name)
    return tmp_path


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_turn_is_the_prompt_of_all_other_stages(name):
    tokenizer = template_tokenizer(name)
    assert turn_ids(tokenizer, TURNS[:1]) == chat_ids(tokenizer, "1+1=")


def test_an_answer_is_to_all_that_was_said(root, model, tokenizer):
    text = tokenizer.decode(turn_ids(tokenizer, TURNS))
    unknown = "<|unknown|>"
    assert text == f"<|user|>1+1=<|end|><|assistant|>2<|end|><|user|>{unknown} {unknown}?<|end|><|assistant|>"
    conversation = Conversation(root / "models" / "m1", max_new_tokens=6)
    conversation.turns = TURNS[:2]
    [[expected]] = generate(model, tokenizer, [turn_ids(tokenizer, TURNS)], max_new_tokens=6)
    assert conversation.ask("é ☃?") == expected["text"]
    assert conversation.turns == [*TURNS, {"role": "assistant", "content": expected["text"]}]


def test_a_conversation_that_is_too_long_is_a_sentence_and_stays_as_it_was(root):
    conversation = Conversation(root / "models" / "m1", max_new_tokens=6)
    assert isinstance(conversation.ask("1" * 247), str)  # with 3 tokens of the template and the answer, all 256
    conversation.turns = []
    says = "the conversation has 251 tokens; with an answer of up to 6 it exceeds the model's context of 256: begin a new one"
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"):
        conversation.ask("1" * 248)
    assert conversation.turns == []


def test_an_adapter_is_talked_to_over_its_base(root, model, tokenizer):
    before = Conversation(root / "models" / "m1", max_new_tokens=6).ask("1+1=")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(1.0)
    save_model(adapted, tokenizer, root / "models" / "cream-m2")
    assert Conversation(root / "models" / "cream-m2", max_new_tokens=6).ask("1+1=") != before
    (root / "models" / "m0").rename(root / "away")
    with pytest.raises(InputError, match="^cream-m2 is an adapter over m0, which is not there: run `make repro`, or"):
        folder_of(PARAMS, "cream-m2", root)


def test_a_model_that_is_not_there_is_told_from_those_that_are(root, tmp_path):
    assert folder_of(PARAMS, "m1", root) == root / "models" / "m1"
    for name in ("cream-m2", "reward", "../m0", ""):  # of these, cream-m2 is one of the run that is not made yet
        with pytest.raises(InputError, match=f"^there is no model '{name}': name one of m0, m1$"):
            folder_of(PARAMS, name, root)
    with pytest.raises(InputError, match="^there is no model 'm1': run `make repro`, or `dvc pull` from a remote$"):
        folder_of(PARAMS, "m1", tmp_path / "elsewhere")


def test_two_models_answer_under_their_names(root, monkeypatch, capsys):
    said = iter(["1+1=", "1+1=", "new", " 1+1= ", "1" * 300, "\udcff", ""])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(said))
    monkeypatch.chdir(root)
    talk(PARAMS, ["m0", "m1"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "Greedy answers of up to 6 tokens; `new` begins anew, an empty line or Ctrl-D ends."
    first, second, anew, long, broken = (lines[i : i + 2] for i in range(0, 10, 2))
    assert [line.split(": ")[0] for line in lines] == ["m0", "m1"] * 5
    assert anew == first != second and "exceeds the model's context of 256: begin a new one)" in long[0] and broken


def test_the_end_of_the_input_ends_it(root, monkeypatch, capsys):
    def ended(prompt):
        raise EOFError

    monkeypatch.setattr(builtins, "input", ended)
    monkeypatch.chdir(root)
    talk(PARAMS, ["m1"])
    assert len(capsys.readouterr().out.splitlines()) == 1
