"""Times sampling, scoring and preference training beside the ordinary ways, on the same inputs, and compares results.

    python benchmarks/speed.py --model models/m1 --questions data/splits/prompts-1.jsonl

Every way has a process of its own, which loads its model once. The ways take turns, so that whatever else the machine
does meets them all. The first turn warms up and measures memory; the others are timed. Scoring and training are in
fp32 where no other precision is named, sampling and vLLM in what the machine is fast at. Memory and the machine's rate are
those of the CPU. Then the first way of sampling and of scoring and CREAM's take one turn each with less of everything.
Writes reports/benchmarks/speed.json, which notebooks/15_speed.ipynb shows.
"""

import argparse
import os
import platform
import re
import time
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from trl import DPOConfig, DPOTrainer

from cream.data.files import read_rows, write_json
from cream.inference.logprobs import response_logprobs, score
from cream.inference.sampling import generate, generate_with_vllm, sample, start_vllm
from cream.models.chat import prompt_ids
from cream.models.loading import base_of, load_model, load_tokenizer, save_model
from cream.models.precision import computing_in, fast_dtype
from cream.pipeline.stage import ALLOCATOR
from cream.training.trainers import in_order, optimiser_settings, preference_trainer, train

N, LONGEST = 5, 32  # responses to a prompt, and the tokens of one at most
SAMPLING = dict(temperature=0.8, top_p=0.95)
TRAINING = dict(beta=0.1, learning_rate=1e-5, epochs=1, batch_size=2)
OFFICIAL_BATCH = 6
SIZE, PRODUCTS = 2048, 10  # of the matrices that show the machine's rate
GROWTH = [{}, {"n": 1}, {"longest": 8}, {"width": 1 / 3}]  # one change at a time, on half of the prompts


def main():
    options = _options()
    folder = options.model.resolve()
    tokenizer = load_tokenizer(folder)
    prompts = [prompt_ids(tokenizer, row) for row in read_rows(options.questions)[: options.prompts]]
    written = sample(folder, prompts, responses=N, max_new_tokens=LONGEST, **SAMPLING)
    responses = [[response["tokens"] for response in rows] for rows in written]
    growing = _inputs(prompts, responses, LONGEST)
    inputs = growing | {"training": _preferences(folder, prompts, responses)}
    inputs["scoring, short answers"] = _pairs(prompts, [_letters(tokenizer)] * len(prompts))
    found = {
        what: measure({way: partial(load, folder, given) for way, load in _ways(what).items()}, options.repeats, what)
        for what, given in inputs.items()
    }
    products = {what: found[what].pop("matrix products")["seconds"] for what in inputs if what.startswith("scoring")}
    model = load_model(folder)
    write_json(
        "reports/benchmarks/speed.json",
        {
            "about": {
                "machine": _machine(),
                "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl")),
                "model": options.model.name,
                "questions": options.questions.stem,
                "prompts": len(prompts),
                "responses to each": N,
                "mean tokens of a prompt": sum(map(len, prompts)) / len(prompts),
                "mean tokens of a response": sum(len(r) for rows in responses for r in rows) / len(prompts) / N,
            },
            "measurements": found,
            "machine_rate": {what: PRODUCTS * 2 * SIZE**3 / median(seconds) for what, seconds in products.items()},
            "operations": {what: _operations(model, inputs[what]) for what in products},
            "growth": [
                _row(folder, N, len(prompts), LONGEST, {what: _compared(found[what]) for what in growing}),
                *(_growth(folder, prompts, responses, **change) for change in GROWTH),
            ],
        },
    )


# Sampling. A way takes the model's folder and its inputs, loads the model, and returns the work to time. Here these are
# the arguments of `cream.inference.sampling.generate`. The result of sampling is the length of each response.


def sampling_by_generate(folder, wanted, batch=64):
    """transformers' `generate`, prompts of like length in a batch of so many responses, padded on the left."""
    model, tokenizer = _plain(_load(folder, fast_dtype())), load_tokenizer(folder)
    end = tokenizer.eos_token_id
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    settings = GenerationConfig(
        do_sample=True,
        temperature=wanted["temperature"],
        top_p=wanted["top_p"],
        top_k=0,
        max_new_tokens=wanted["max_new_tokens"],
        num_return_sequences=wanted["responses"],
        eos_token_id=end,
        pad_token_id=end,
    )

    def work():
        torch.manual_seed(0)  # the same responses each turn
        lengths = []
        for rows in _batches(sorted(wanted["prompts"], key=len), batch // wanted["responses"]):
            inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
            written = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :]
            lengths += ((written != end).sum(-1) + (written == end).any(-1)).tolist()
        return lengths

    return work


def sampling_by_vllm(folder, wanted):
    engine = start_vllm(folder, max(map(len, wanted["prompts"])) + wanted["max_new_tokens"])
    return lambda: _lengths(generate_with_vllm(engine, folder, **wanted))


def sampling_by_cream(folder, wanted):
    model, tokenizer = _load(folder, fast_dtype()), load_tokenizer(folder)
    return lambda: _lengths(generate(model, tokenizer, **wanted))


def _lengths(written):
    return [len(response["tokens"]) for rows in written for response in rows]


# Scoring. `pairs` are a prompt and a response; the results are log-probs.


def scoring_by_the_official_way(folder, pairs):
    """Batches of 6 in the order given, padded on the left, and the log-softmax of every position."""
    model = _plain(_load(folder))

    @torch.inference_mode()
    def work():
        sums = []
        for batch in _batches(pairs, OFFICIAL_BATCH):
            width = max(len(prompt) + len(response) for prompt, response in batch)
            pads = [width - len(prompt) - len(response) for prompt, response in batch]
            ids = torch.tensor([[0] * pad + prompt + response for pad, (prompt, response) in zip(pads, batch)])
            mask = torch.arange(width) >= torch.tensor(pads)[:, None]
            ids, mask = ids.to(model.device), mask.long().to(model.device)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logprobs = model(ids, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
            logprobs = logprobs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
            sums += [logprobs[i, -len(response) :].sum().item() for i, (_, response) in enumerate(batch)]
        return sums

    return work


def scoring_by_trl(folder, pairs):
    """`DPOTrainer.compute_ref_log_probs`, which takes two responses to a prompt, chosen and rejected.

    Of an odd number of responses the last is left out; its result is None.
    """
    places = [(i + k, i + k + 1) for i in range(0, len(pairs), N) for k in range(0, N - 1, 2)]
    rows = [
        {"prompt_ids": pairs[a][0], "chosen_ids": pairs[a][1], "rejected_ids": pairs[b][1]} for a, b in places
    ]
    trainer = _trl_trainer(_plain(_load(folder)), load_tokenizer(folder), rows)

    def work():
        sums = [None] * len(pairs)
        for batch in _batches(list(zip(places, rows)), OFFICIAL_BATCH // 2):
            inputs = trainer.data_collator([row for _, row in batch])
            inputs = {name: values.to(trainer.model.device) for name, values in inputs.items()}
            for ((a, b), _), *values in zip(batch, *trainer.compute_ref_log_probs(trainer.model, inputs)):
                sums[a], sums[b] = (value.item() for value in values)
        return sums

    return work


def scoring_by_vllm(folder, pairs):
    """`prompt_logprobs` of prompt and response together."""
    from vllm import SamplingParams, TokensPrompt

    engine = start_vllm(folder, max(len(prompt) + len(response) for prompt, response in pairs) + 1)
    settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)

    def work():
        requests = [TokensPrompt(prompt_token_ids=prompt + response) for prompt, response in pairs]
        return [
            sum(at[token].logprob for at, token in zip(done.prompt_logprobs[-len(response) :], response))
            for (_, response), done in zip(pairs, engine.generate(requests, settings, use_tqdm=False))
        ]

    return work


def scoring_by_cream(folder, pairs, precision="fp32"):
    model = _load(folder)

    @torch.inference_mode()
    def work():
        with computing_in(precision):
            return response_logprobs(model, *zip(*pairs)).tolist()

    return work


def matrix_products(folder, pairs):
    """What the machine can do at its best: products of large fp32 matrices, while the scoring ways take their turns."""
    a = torch.randn(SIZE, SIZE)

    def work():
        for _ in range(PRODUCTS):
            a @ a

    return work


# Training: an epoch of DPO. The results are the losses of its steps.


def training_by_trl(folder, pairs, precompute):
    """TRL's DPOTrainer, with a reference model beside the policy or with the reference's log-probs computed first."""
    model, tokenizer = _plain(_load(folder, trainable=True)), load_tokenizer(folder)
    reference = None if precompute else _plain(_load(folder))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = [
        {name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        for row in in_order(pairs, TRAINING["epochs"], TRAINING["batch_size"], seed=0)
    ]

    def work():
        model.load_state_dict(start)
        trainer = _trl_trainer(model, tokenizer, rows, reference, precompute)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return work


def training_by_cream(folder, pairs, precision="fp32", sft_weight=0.0):
    """CREAM's trainer with C = 1, which is DPO, perhaps with the NLL term. The reference's log-probs came with the ranking."""
    model, tokenizer = _load(folder, trainable=True), load_tokenizer(folder)
    if precision != "fp32":
        responses = [[pair["chosen_ids"], pair["rejected_ids"]] for pair in pairs]
        pairs = _preferences(folder, [pair["prompt_ids"] for pair in pairs], responses, precision)
    settings = TRAINING | {"sft_weight": sft_weight}
    start = {name: weight.clone() for name, weight in model.state_dict().items()}

    def work():
        model.load_state_dict(start)
        return train(preference_trainer(model, tokenizer, pairs, settings, 0, precision))["loss"].tolist()

    return work


class _TokenIdsTrainer(DPOTrainer):
    def _prepare_dataset(self, dataset, *args):
        return dataset  # already token ids, so that all train on the same ones


def _trl_trainer(model, tokenizer, rows, reference=None, precompute=False):
    settings = optimiser_settings(TRAINING, seed=0, rows=rows) | {"remove_unused_columns": True, "num_train_epochs": 1}
    config = DPOConfig(
        **settings,
        beta=TRAINING["beta"],
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=precompute,
        max_length=None,
    )
    dataset = Dataset.from_list(rows)
    dataset._fingerprint = os.urandom(8).hex()  # else the reference's log-probs of the last turn would be found again
    return _TokenIdsTrainer(model, reference, args=config, train_dataset=dataset, processing_class=tokenizer)


def _load(folder, *options, **named):
    """A model that is in memory: its file is only mapped at first, and memory would count it as the work's."""
    model = load_model(folder, *options, **named)
    with torch.no_grad():
        for weight in model.parameters():
            weight.sum()
    return model


def _plain(model):
    """The model with transformers' own attention, as the ordinary ways have it."""
    model.set_attn_implementation("sdpa")
    return model


def _batches(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


# What is measured, and how.


def _ways(what):
    """{way: a function that loads the model and returns the work}, of those that this machine has and is fast at."""
    ways = {
        "sampling": {"generate": sampling_by_generate, "vLLM": sampling_by_vllm, "cream": sampling_by_cream},
        "scoring": {
            "official": scoring_by_the_official_way,
            "TRL": scoring_by_trl,
            "vLLM": scoring_by_vllm,
            "cream": scoring_by_cream,
            "cream, bf16": partial(scoring_by_cream, precision="bf16"),
            "matrix products": matrix_products,
        },
        "training": {
            "TRL, reference model": partial(training_by_trl, precompute=False),
            "TRL, precomputed": partial(training_by_trl, precompute=True),
            "cream": training_by_cream,
            "cream, NLL term": partial(training_by_cream, sft_weight=1.0),
            "cream, bf16": partial(training_by_cream, precision="bf16"),
        },
    }[what.split(",")[0]]
    # vLLM takes a minute to start, so it is left out where it would say the same again.
    missing = {"vLLM": not find_spec("vllm") or "," in what, "cream, bf16": fast_dtype() != torch.bfloat16}
    return {way: load for way, load in ways.items() if not missing.get(way)}


def _inputs(prompts, responses, longest):
    """{measurement: what its ways work on}, of those whose growth is measured too."""
    return {
        "sampling": dict(prompts=prompts, responses=len(responses[0]), max_new_tokens=longest, **SAMPLING),
        "scoring": _pairs(prompts, responses),
    }


def _pairs(prompts, responses):
    return [(prompt, response) for prompt, written in zip(prompts, responses) for response in written]


def _letters(tokenizer):
    return [tokenizer(f"Answer: {letter}", add_special_tokens=False)["input_ids"] for letter in "ABCDE"[:N]]


def _preferences(folder, prompts, responses, precision="fp32"):
    """`_first_and_last` with the log-probs that a ranking would have given."""
    return _first_and_last(prompts, responses, lambda *pairs: score([folder], *pairs, precision=precision)[0])


def _first_and_last(prompts, responses, log_probs):
    """The first and the last response to each prompt as a pair, with their log-probs, `[prompts]` of prompts and responses."""
    rows = [
        {"prompt_ids": prompt, "chosen_ids": written[0], "rejected_ids": written[-1], "consistency": 1.0}
        for prompt, written in zip(prompts, responses)
    ]
    for which in ("chosen", "rejected"):
        sums = log_probs(prompts, [row[f"{which}_ids"] for row in rows])
        for row, value in zip(rows, sums.tolist()):
            row[f"ref_{which}_logps"] = value
    return rows


def _growth(folder, prompts, responses, n=N, count=None, longest=LONGEST, width=1):
    """The first way of sampling and of scoring and CREAM's, one turn each, with an input or the model of another size."""
    count = count or len(prompts) // 2
    prompts, responses = prompts[:count], [[tokens[:longest] for tokens in rows[:n]] for rows in responses[:count]]
    with TemporaryDirectory() as resized:
        if width != 1:
            folder = _resized(folder, width, Path(resized))
        found = {}
        for what, given in _inputs(prompts, responses, longest).items():
            ways = {way: partial(load, folder, given) for way, load in _compared(_ways(what)).items()}
            found[what] = measure(ways, 1, f"{what}, {n} responses of {longest} to {count} prompts, width {width:.2f}")
        return _row(folder, n, count, longest, found)


def _compared(ways):
    """Of the ways of a measurement the first and CREAM's."""
    return {way: ways[way] for way in (next(iter(ways)), "cream")}


def _row(folder, n, count, longest, found):
    size = sum(weight.numel() for weight in load_model(folder).parameters())
    return {"N": n, "prompts": count, "longest response": longest, "parameters": size, "measurements": found}


def _resized(folder, width, resized):
    """A model that is `width` times as wide, by whole key and value heads, of random weights: large ones, so that its
    predictions are as peaked as a trained model's."""
    config = AutoConfig.from_pretrained(base_of(folder), initializer_range=0.5)
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = max(1, round(heads * width)) / heads
    for name in ("num_key_value_heads", "num_attention_heads", "hidden_size", "intermediate_size"):
        if hasattr(config, name):
            setattr(config, name, round(getattr(config, name) * width))
    save_model(AutoModelForCausalLM.from_config(config), load_tokenizer(folder), resized)
    return resized


def _operations(model, pairs):
    """Those that scoring cannot do without: two a weight and token, leaving attention out."""
    layers = sum(weight.numel() for name, weight in model.named_parameters() if ".layers." in name)
    answered = sum(len(response) for _, response in set((tuple(p), tuple(r)) for p, r in pairs))
    asked = sum(len(prompt) for prompt in set(tuple(prompt) for prompt, _ in pairs))
    return 2 * layers * (asked + answered) + 2 * model.get_output_embeddings().weight.numel() * answered


def measure(ways, repeats, what):
    """{way: the seconds of each repeat, the peak in MB above the loaded model, and the result}."""
    os.environ |= {**ALLOCATOR, **os.environ}  # as in a stage, for all ways
    clean, workers = get_context("forkserver"), {}  # forks of a process that has imported what this file does, and no more
    for way, load in ways.items():
        here, there = clean.Pipe()
        process = clean.Process(target=_serve, args=(there, load), daemon=True)
        process.start()
        workers[way] = process, here
        there.close()  # so that a process that dies ends the wait for its answer
    found = {way: {"seconds": []} for way in ways}
    for turn in tqdm(range(repeats + 1), what, unit="turn"):
        for way, (_, connection) in workers.items():
            connection.send("go")
            answer = connection.recv()
            if isinstance(answer, Exception):
                raise answer
            seconds, peak, result = answer
            if turn:
                found[way]["seconds"].append(seconds)
            else:
                found[way] |= {"peak_mb": peak, "result": result}
    for process, connection in workers.values():
        connection.send("stop")
        process.join()  # giving its memory back takes time, which is not the next measurement's
    return found


def _serve(connection, load):
    """A way's process: it does its work whenever it is told to."""
    try:
        work = load()
        while connection.recv() == "go":
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            before, started = _memory("VmRSS"), time.perf_counter()
            result = work()
            connection.send((time.perf_counter() - started, _memory("VmHWM") - before, result))
    except Exception as error:
        connection.send(error)


def _memory(field):
    """MB of this process: VmRSS now, VmHWM at its peak."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


def _machine():
    names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads, {fast_dtype()} sampling"


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/m1"))
    parser.add_argument("--questions", type=Path, default=Path("data/splits/prompts-1.jsonl"))
    parser.add_argument("--prompts", type=int, default=4, help="how many of the questions")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for path in (options.model, options.questions):
        if not path.exists():
            parser.error(f"{path} is not there: run `make repro` first, or name another")
    if options.prompts % (2 * TRAINING["batch_size"]):
        parser.error(f"--prompts: give a multiple of {2 * TRAINING['batch_size']}, so that every batch of training is full")
    return options


if __name__ == "__main__":
    main()
