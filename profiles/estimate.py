"""Disk, memory and time of a profile, estimated: python profiles/estimate.py

Time is operations over the rates that `make bench-gpu` measured with a Llama of 8 billion random weights on one GPU
(reports/benchmarks/gpu.json); for writing it is the steps of the longest response of each batch, which is taken to reach
max_new_tokens. Lengths were measured with SmolLM2's tokenizer on the train questions of the paper's data sets and
OpenAssistant's pairs; how long a Llama's responses are is a guess.
"""

import json
from pathlib import Path

from cream.pipeline.check import TRAINING, WEIGHT
from cream.pipeline.parameters import load_parameters, models_of

MEASURED = Path(__file__).parents[1] / "reports" / "benchmarks" / "gpu.json"

PARAMETERS = {
    "embedded": 134_515_008,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
}
# Tokens. Measured: a prompt with the chat template, a seed pair. Guessed: a response, by base model.
PROMPT, SEED_PAIR = 100, 300
RESPONSE = {"embedded": 60, "meta-llama/Llama-2-7b-chat-hf": 200, "meta-llama/Meta-Llama-3-8B-Instruct": 200}
SEED_PAIRS, TEST_QUESTIONS = 3400, 7321  # where a profile takes all
BATCH = {"embedded": 512, "meta-llama/Llama-2-7b-chat-hf": 64, "meta-llama/Meta-Llama-3-8B-Instruct": 256}


def estimate(params):
    """{stage: hours}, the memory of a GPU and the disk in bytes. Several GPUs are taken to share the work without loss."""
    base, data, adapter = params["model"]["base"], params["data"], params["model"]["lora"]
    size, response, responses = PARAMETERS[base], RESPONSE[base], params["sampling"]["responses"]
    prompts = data["prompts_per_round"] * len(params["rank"])
    rates, step = measured_rates()
    logprobs = rates[params["logprob_precision"]]
    forward, backward = 2 * size, (2 if adapter else 4) * size  # operations a token; frozen weights need no gradient
    training = 2 * forward + backward  # the forward pass twice, for gradient checkpointing
    scorings = 3 * len(params["rank"])  # by the policy, M0, and the previous model, or in round 1 the SFT's at its half

    warmup = params["model"]["warmup"] or {"examples": 0, "epochs": 0}
    examples = warmup["examples"] * warmup["epochs"]
    examples += (data["seed_examples"] or SEED_PAIRS) * params["sft"]["epochs"]
    pairs = data["prompts_per_round"] * len(params["train"]) * params["dpo"]["epochs"]
    models, gpus = models_of(params), params["scale"]["workers"]

    def writing(sequences, new_tokens):
        return sequences / BATCH[base] * new_tokens * step

    answers = len(models) * (data["test_questions"] or TEST_QUESTIONS)
    seconds = {
        "SFT": examples * SEED_PAIR * training / rates["bf16"],
        "sampling": writing(prompts * (responses + 1), params["sampling"]["max_new_tokens"]),
        "ranking": scorings * data["prompts_per_round"] * (PROMPT + responses * response) * forward / logprobs,
        "training": pairs * (PROMPT + 2 * response) * training / logprobs,
        "evaluation": writing(answers, params["evaluation"]["max_new_tokens"]),
    }
    sharded = 1 if adapter else gpus
    memory = size * max(WEIGHT, (WEIGHT if adapter else TRAINING) / sharded)
    disk = WEIGHT * size * (1 + 0.02 * len(models) if adapter else len(models) + 1)
    disk += 2 * size * (base != "embedded")  # the Hub's copy, in bf16
    return {stage: value / gpus / 3600 for stage, value in seconds.items()}, memory, disk


def measured_rates():
    """{precision: operations a second in scoring}, and the seconds of one step of writing; of 8 billion weights."""
    rows = [row for row in json.loads(MEASURED.read_text())["rows"] if row["model"] == "llama 8B"]
    writing = next(row for row in rows if row["what"] == "sampling")
    scoring = {row["precision"]: row["operations_per_s"] for row in rows if row["what"] == "scoring"}
    return scoring, writing["seconds"] / writing["steps"]


def table():
    """The estimates of all profiles for a GPU, as Markdown."""
    stages = ["SFT", "sampling", "ranking", "training", "evaluation"]
    lines = [
        "| profile | memory per GPU | disk | " + " | ".join(stages) + " | in all |",
        "|---|---|---|" + "---|" * (len(stages) + 1),
    ]
    for name in ("smollm2-benchmarks", "llama3-8b-lora", "llama3-8b-lora-8gpu", "llama3-8b", "llama3-8b-8gpu", "llama2-7b"):
        hours, memory, disk = estimate(load_parameters(Path(__file__).with_name(f"{name}.yaml")))
        times = [_time(value) for value in [*(hours[stage] for stage in stages), sum(hours.values())]]
        lines.append(f"| `{name}` | {memory / 1e9:.0f} GB | {disk / 1e9:.0f} GB | " + " | ".join(times) + " |")
    return "\n".join(lines)


def _time(hours):
    return f"{hours:.0f} h" if hours >= 2 else f"{max(1, hours * 60):.0f} min"


if __name__ == "__main__":
    print(table())
