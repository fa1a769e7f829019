"""profiles/llama3-8b.yaml through the whole pipeline: Llama-3's architecture and chat template, in small, and invented
questions in the columns and folders of the Hub."""

import json

import pytest
import yaml
from test_benchmarks import arc, message, openbook, parquet, siqa
from test_pipeline import ROOT, copy, run  # noqa: F401  copy is a fixture
from tiny_model import llama3_model, llama3_tokenizer

from cream.data.files import read_rows
from cream.models.loading import save_model

OPTIONS = ["red", "green", "blue", "white"]


def questions(split, count):
    """Rows of every data set, alike but for a number that makes their questions different."""
    numbers = range(count)
    return {
        f"allenai/ai2_arc/ARC-Easy/{split}": [
            arc("", f"{split} colour {n}?", OPTIONS, list("ABCD"), "ABCD"[n % 4]) for n in numbers
        ],
        f"allenai/ai2_arc/ARC-Challenge/{split}": [
            arc("", f"{split} hue {n}?", OPTIONS, list("1234"), "1234"[n % 4]) for n in numbers
        ],
        f"allenai/openbookqa/main/{split}": [openbook("", f"{split} paint {n} is", OPTIONS, "A") for n in numbers],
        f"lighteval/siqa/data/{'train' if split == 'train' else 'validation'}": [
            siqa(f"Kim painted {n} walls.", f"{split}: why?", *OPTIONS[:3], "2") for n in numbers
        ],
        f"openai/gsm8k/main/{split}": [{"question": f"{split}: {n} + 1?", "answer": f"#### {n + 1}"} for n in numbers],
    }


@pytest.fixture(scope="module")
def finished(copy, warm):  # noqa: F811
    save_model(llama3_model(llama3_tokenizer()), llama3_tokenizer(), copy / ".cache" / "llama3")
    chat = [
        [message(f"p{n}", None, "prompter", f"Say {n}."), message(f"a{n}", f"p{n}", "assistant", f"{n}!", rank=0)]
        for n in range(8)
    ]
    files = questions("train", 9) | questions("test", 2)
    files["OpenAssistant/oasst1/data/train"] = [row for pair in chat for row in pair]
    for name, rows in files.items():
        path = copy / "hub" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parquet(rows))

    params = yaml.safe_load((ROOT / "profiles" / "llama3-8b.yaml").read_text())
    params["model"] |= {"base": ".cache/llama3", "revision": None}
    params["data"] |= {"source": "hub", "seed_examples": 5, "prompts_per_round": 12}
    params["sft"]["batch_size"] = params["dpo"]["batch_size"] = 4
    params["sampling"] |= {"responses": 3, "max_new_tokens": 8}
    params["evaluation"]["max_new_tokens"] = 8
    params["logprob_precision"] = "fp32"  # there is no GPU
    # SRLM's rows and those of the second round are of the same stages.
    params["rank"], params["train"] = {"m1": params["rank"]["m1"]}, {"cream-m2": params["train"]["cream-m2"]}
    (copy / "params.yaml").write_text(yaml.safe_dump(params))
    run(copy, "make", "--no-print-directory", "--assume-old=.venv/ready", "repro")
    return copy


def test_every_stage_passes(finished):
    for model in ("m0", "m1", "cream-m2"):
        found = json.loads((finished / f"results/evaluate/{model}.json").read_text())
        assert {task: values["questions"] for task, values in found["tasks"].items()} == dict.fromkeys(
            ("arc-challenge", "arc-easy", "gsm8k", "openbookqa", "siqa"), 2
        )
    for page in ("consistency", "benchmark", "index"):
        assert "most recent call last" not in (finished / f"reports/{page}.html").read_text()


def test_prompts_are_llama_3s_with_one_start_token(finished):
    for row in read_rows(finished / "data/samples/m1.jsonl"):
        text = llama3_tokenizer().decode(row["prompt_ids"])
        assert text.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n" + row["question"])
        assert text.endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
        assert text.count("<|begin_of_text|>") == 1


def test_a_response_ends_with_either_end_token_if_it_ended(finished):
    ends = llama3_tokenizer().convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    for row in read_rows(finished / "data/samples/m1.jsonl"):
        for response in row["responses"]:
            ended = response["finish_reason"] == "stop"
            assert (response["tokens"][-1] in ends) == ended and ended or len(response["tokens"]) == 8


def test_chat_prompts_are_ranked_and_trained_on_without_a_known_answer(finished):
    rankings = read_rows(finished / "data/rankings/m1.jsonl")
    chat = [row for row in rankings if row["task"] == "oasst1"]
    assert chat and all(row["correct"] == [None] * 3 for row in chat)
    assert not [row for row in rankings if row["task"] != "oasst1" and None in row["correct"]]
    pairs = {pair["id"]: pair for pair in read_rows(finished / "data/pairs/cream-m2.jsonl")}
    assert any(pairs[row["id"]]["chosen_right"] is None for row in chat if row["id"] in pairs)
    summary = json.loads((finished / "results/rank/m1.json").read_text())
    assert summary["pairs_with_answer"] == summary["pairs"] - sum(row["id"] in pairs for row in chat)


def test_the_first_round_is_compared_with_the_sft_at_its_half(finished):
    assert json.loads((finished / "results/pairs/cream-m2.json").read_text())["rankers"] == ["reward", "halfway"]
    rows = read_rows(finished / "data/rankings/m1.jsonl")
    assert all(len(row["scores"]["halfway"]) == 3 for row in rows)
    assert any(row["scores"]["halfway"] != row["scores"]["reward"] for row in rows)
