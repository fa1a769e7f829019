"""Measures one GPU: what sampling, scoring and training reach on it in each precision, beside the ordinary ways.

    python benchmarks/gpu.py

First the card's own rate of matrix products, then SmolLM2-135M beside the ordinary ways of speed.py, then a Llama of 8
billion random weights. Each work is done once to warm up and then timed. Writes reports/benchmarks/gpu.json after each
measurement, and prints it as a table. `--tiny` tries the script itself, with models and inputs of no size, on any machine.
"""

import argparse
import gc
import os
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import pandas as pd
import speed
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from cream.data.files import write_json
from cream.data.tasks import digits
from cream.inference.logprobs import response_logprobs, score
from cream.inference.sampling import generate, sample
from cream.method.consistency import kendall_tau
from cream.models.chat import prompt_ids
from cream.models.loading import fetch_base, load_model, load_tokenizer, save_model
from cream.models.precision import computing_in
from cream.models.scratch import character_tokenizer, small_llama
from cream.training.trainers import adapter_config, preference_trainer, train

OUT = Path("reports/benchmarks/gpu.json")
PRECISIONS = ("fp32", "tf32", "bf16")
N = speed.N
SIZES = dict(matrix=8192, prompts=64, longest=128, batch=16, large_prompts=16, large_prompt=100, large_response=200)
TINY = dict(matrix=64, prompts=4, longest=4, batch=2, large_prompts=2, large_prompt=5, large_response=4)
LLAMA_8B = dict(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rope_theta=500000.0,
)
LORA = {"r": 32, "alpha": 64, "dropout": 0.1}


def main():
    options = _options()
    sizes = TINY if options.tiny else SIZES
    found = {"about": about(), "rows": []}
    parts = {"card": card, "smollm2": smollm2, "llama 8B": partial(llama, tiny=options.tiny)}
    with TemporaryDirectory() as folder:
        for name in options.only or parts:
            if name == "smollm2":
                _write_base(Path(folder, "m0"), options.tiny)
            for row in parts[name](sizes, Path(folder)):
                found["rows"].append({"model": name, **row})
                write_json(options.out, found)
                print({"model": name, **row}, flush=True)
            _forget()
    print(pd.DataFrame(found["rows"]).round(3).fillna("").to_string(index=False))


def about():
    gpu = torch.cuda.is_available()
    return {
        "card": torch.cuda.get_device_name() if gpu else "none: this processor",
        "memory": torch.cuda.get_device_properties(0).total_memory if gpu else None,
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft")),
    }


def card(sizes, folder):
    """Products of large square matrices: 2 n^3 operations each."""
    n = sizes["matrix"]
    a, b = torch.randn(2, n, n, device=_device())
    for precision in PRECISIONS:
        seconds, _ = timed(lambda: a @ b, precision, repeats=5)
        yield {"what": "matrix products", "precision": precision, "operations_per_s": 2 * n**3 / seconds}


# SmolLM2-135M, beside the ordinary ways.


def smollm2(sizes, folder):
    m0 = folder / "m0"
    tokenizer = load_tokenizer(m0)
    prompts = [prompt_ids(tokenizer, row) for row in digits()["prompts"][: sizes["prompts"]]]
    written = sample(m0, prompts, responses=N, max_new_tokens=sizes["longest"], **speed.SAMPLING)
    responses = [[response["tokens"] for response in rows] for rows in written]
    yield from _sampling(m0, prompts, sizes)
    yield from _scoring(m0, prompts, responses)
    for precision in PRECISIONS:
        yield from _training(m0, prompts, responses, precision, sizes, folder / "m1")
    yield from _noise([folder / "m1", m0], prompts, responses)


def _sampling(m0, prompts, sizes):
    """Tokens written a second. The weights are in the precision, but for tf32."""
    wanted = dict(prompts=prompts, responses=N, max_new_tokens=sizes["longest"], **speed.SAMPLING)
    ways = {"generate": partial(speed.sampling_by_generate, batch=512), "cream": speed.sampling_by_cream}
    for precision in PRECISIONS:
        os.environ["CREAM_BF16"] = str(int(precision == "bf16"))
        for way, load in ways.items():
            work = load(m0, wanted)
            seconds, lengths = timed(work, "tf32" if precision == "tf32" else "fp32", repeats=1)
            yield _row("sampling", way, precision, sum(lengths), seconds)
    del os.environ["CREAM_BF16"]


def _scoring(m0, prompts, responses):
    """Tokens scored a second, a prompt counted with each of its responses; over the operations that are needed at least."""
    pairs = speed._pairs(prompts, responses)
    model = load_model(m0)
    least, tokens = speed._operations(model, pairs), sum(len(prompt) + len(response) for prompt, response in pairs)

    def by_cream(max_tokens):
        with torch.inference_mode():
            return response_logprobs(model, *zip(*pairs), max_tokens=max_tokens).tolist()

    ways = {
        "official": speed.scoring_by_the_official_way(m0, pairs),
        "cream, 1024 tokens at once": partial(by_cream, 1024),
        "cream, 4096 tokens at once": partial(by_cream, 4096),
        "cream, 16384 tokens at once": partial(by_cream, 16384),
    }
    for precision in PRECISIONS:
        for way, work in ways.items():
            seconds, _ = timed(work, precision)
            yield _row("scoring", way, precision, tokens, seconds, operations_per_s=least / seconds)


def _training(m0, prompts, responses, precision, sizes, m1):
    """Tokens trained on a second, a prompt counted with both of its responses. CREAM's model of fp32 is kept as `m1`."""
    speed.TRAINING |= {"batch_size": sizes["batch"], "learning_rate": 2e-5, "epochs": 2}
    pairs = speed._preferences(m0, prompts, responses, precision)
    tokens = speed.TRAINING["epochs"] * _tokens(pairs)
    seconds, _ = timed(speed.training_by_trl(m0, pairs, precompute=True), precision, repeats=1)
    yield _row("training", "TRL, precomputed", precision, tokens, seconds, memory=_peak())

    model, tokenizer = load_model(m0, trainable=True), load_tokenizer(m0)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}

    def by_cream():
        model.load_state_dict(start)
        return train(preference_trainer(model, tokenizer, pairs, speed.TRAINING, seed=0, precision=precision))

    seconds, curve = timed(by_cream, "fp32", repeats=1)
    yield _row("training", "cream", precision, tokens, seconds, memory=_peak(), first_margin=float(curve.margin[0]))
    if precision == "fp32":
        save_model(model, tokenizer, m1)


def _noise(folders, prompts, responses):
    """How far rewards in each precision are from fp32's, in nats, and tau between their rankings."""
    shape = len(prompts), N
    inputs = [prompt for prompt in prompts for _ in range(N)], sum(responses, [])

    def rewards(**settings):
        policy, base = score(folders, *inputs, **settings)
        return (policy - base).view(shape)

    exact = rewards()
    ways = {"fp32": dict(max_tokens=1), "tf32": dict(precision="tf32"), "bf16": dict(precision="bf16")}
    for precision, settings in ways.items():
        rounded = rewards(**settings)
        yield {
            "what": "noise of the reward",
            "precision": precision,
            "reward_std": exact.std().item(),
            "noise": (rounded - exact).abs().mean().item(),
            "tau": kendall_tau(exact, rounded).mean().item(),
            "ceiling": kendall_tau(exact, exact).mean().item(),
        }


# A Llama of 8 billion random weights, and two of its layers.


def llama(sizes, folder, tiny=False):
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2) if tiny else {}
    tokenizer = character_tokenizer("Answer: ")
    model = _random_llama(tokenizer, **small)
    count, n_prompt, n_response = sizes["large_prompts"], sizes["large_prompt"], sizes["large_response"]
    ids = torch.randint(10, 100, (count, n_prompt + N * n_response), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [row[:n_prompt] for row in ids]
    responses = [[row[n_prompt + k * n_response :][:n_response] for k in range(N)] for row in ids]
    pairs = speed._pairs(prompts, responses)
    least, tokens = speed._operations(model, pairs), sum(len(prompt) + len(response) for prompt, response in pairs)

    @torch.inference_mode()
    def scoring(max_tokens=8192):
        return response_logprobs(model, *zip(*pairs), max_tokens=max_tokens)

    for precision in PRECISIONS:
        seconds, _ = timed(scoring, precision, repeats=1)
        yield _row("scoring", "cream", precision, tokens, seconds, operations_per_s=least / seconds, memory=_peak())

    model = get_peft_model(model, adapter_config(model, LORA)).train()
    for precision in PRECISIONS[1:]:
        yield _preference_row("LoRA training", model, tokenizer, prompts, responses, precision)
    model = model.unload().to(torch.bfloat16).eval()
    _forget()
    wanted = dict(prompts=prompts * 3, responses=N, max_new_tokens=n_response // 3, **speed.SAMPLING)
    seconds, written = timed(lambda: generate(model, tokenizer, **wanted), "fp32", repeats=1)
    lengths = speed._lengths(written)
    yield _row("sampling", "cream", "bf16", sum(lengths), seconds, memory=_peak(), steps=max(lengths))

    del model
    _forget()
    model = _random_llama(tokenizer, **{**small, "num_hidden_layers": 2}).train()
    row = _preference_row("full training, two layers", model, tokenizer, prompts, responses, "bf16")
    yield {**row, "weights": sum(weight.numel() for weight in model.parameters())}


def _random_llama(tokenizer, **changes):
    with torch.device(_device()):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**{**LLAMA_8B, **changes}))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval()


def _preference_row(what, model, tokenizer, prompts, responses, precision):
    """Two steps of half of the prompts each, timed after a first run of as many."""
    with torch.inference_mode(), computing_in(precision):
        pairs = speed._first_and_last(prompts, responses, partial(response_logprobs, model.eval()))
    settings = dict(beta=0.1, learning_rate=1e-6, epochs=1, batch_size=len(pairs) // 2)
    margins = []

    def work():
        if "ref" in getattr(model, "peft_config", {}):  # which the trainer adds to an adapter
            model.delete_adapter("ref")
        trainer = preference_trainer(model.train(), tokenizer, pairs, settings, seed=0, precision=precision)
        margins.append(float(train(trainer).margin.iloc[0]))

    seconds, _ = timed(work, "fp32", repeats=1)
    return _row(what, "cream", precision, _tokens(pairs), seconds, memory=_peak(), first_margin=margins[0])


# What is measured, and how.


def timed(work, precision, repeats=3):
    """The median seconds of some runs behind a first one, and the last result."""
    seconds = []
    for turn in range(repeats + 1):
        _wait()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        with computing_in(precision):
            result = work()
        _wait()
        if turn:
            seconds.append(time.perf_counter() - started)
    return median(seconds), result


def _tokens(pairs):
    """Of pairs, a prompt counted with each of its two responses."""
    return sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in pairs)


def _row(what, way, precision, tokens, seconds, **more):
    return {"what": what, "way": way, "precision": precision, "tokens_per_s": tokens / seconds, "seconds": seconds, **more}


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak():
    """Bytes on the card at the peak of the last run, the model's among them."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _forget():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def _write_base(folder, tiny):
    if tiny:
        tokenizer = character_tokenizer("Answer: ")
        model = small_llama(len(tokenizer), layers=2, width=16, heads=2, seed=0)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    else:
        model, tokenizer = fetch_base("embedded")
    save_model(model, tokenizer, folder)


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=["card", "smollm2", "llama 8B"], help="these parts alone")
    parser.add_argument("--tiny", action="store_true", help="try the script, on any machine")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.tiny):
        parser.error("there is no GPU here: --tiny tries the script itself on a CPU")
    return options


if __name__ == "__main__":
    main()
