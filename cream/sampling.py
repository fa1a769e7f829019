"""Responses as they were sampled: token ids, their text, and why each one ended."""

import json
import os
from functools import partial
from pathlib import Path

import psutil
import torch
from torch.nn.functional import pad
from tqdm import tqdm
from transformers import GenerationConfig

from cream.models import base_of, dtype_of, fast_dtype, load_model, load_tokenizer
from cream.workers import spread


def sample(folder, prompts, *, engine="transformers", workers=1, seed=0, chunk=256, precision="auto", **settings):
    """N responses to each prompt by the model in `folder`, written by "transformers" or "vllm".

    `prompts` is a list of lists of token ids; `settings` are those of `generate`; `precision` is "fp32", or "auto" for bf16
    where that is fast. Both engines return the same rows, and
    draw from the same distribution, but not the same responses. Each `chunk` of prompts draws from a seed of its own,
    so that the rows do not depend on how many Ray `workers` there are to write them.
    """
    chunks = [(prompts[start : start + chunk], start // chunk) for start in range(0, len(prompts), chunk)]
    length = max(map(len, prompts)) + settings["max_new_tokens"]
    make = partial(_writer, str(Path(folder).resolve()), engine, length, seed, precision, settings)
    if workers > 1:
        written = spread(make, chunks, workers, "sampling")
    else:
        write = make()
        written = [write(each, f"sampling, part {n} of {len(chunks)}") for n, each in enumerate(chunks, start=1)]
    return [rows for each in written for rows in each]


def _writer(folder, engine, length, seed, precision, settings):
    """Loads a model once, to write as many chunks as come."""
    dtype = dtype_of(precision)
    if engine == "vllm":
        write = partial(generate_with_vllm, start_vllm(folder, length, dtype), folder)
    else:
        write = partial(generate, load_model(folder, dtype=dtype), load_tokenizer(folder))
    return lambda chunk, progress=None: write(chunk[0], seed=seed + chunk[1], progress=progress, **settings)


@torch.inference_mode()
def generate(
    model,
    tokenizer,
    prompts,
    *,
    responses=1,
    temperature=0.0,
    top_p=1.0,
    max_new_tokens=256,
    seed=0,
    batch_size=None,
    progress=None,
):
    """N responses to each prompt; temperature 0 is greedy.

    `prompts` is a list of lists of token ids. Returns one list a prompt of N rows {tokens, text, finish_reason}.
    `tokens` holds exactly what was sampled: it ends with the end token only if that was sampled (finish_reason
    "stop"), and has `max_new_tokens` tokens without one otherwise ("length"). `text` leaves special tokens out.
    `batch_size` is the number of responses written at once (None: what the free memory holds).
    `progress` names a progress bar; without it there is none.
    """
    torch.manual_seed(seed)
    ends = _end_tokens(model.generation_config)
    # Prompts of like length share a batch, so there is little padding; answers go back to the order given.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    length = max(map(len, prompts), default=0) + max_new_tokens
    size = max(1, (batch_size or _batch_size(model, length)) // responses)
    rows = [[] for _ in prompts]
    with tqdm(total=len(prompts) * responses, desc=progress, unit="response", disable=not progress) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            written = _write(model, [prompts[i] for i in batch], responses, temperature, top_p, max_new_tokens, ends)
            for k, tokens in enumerate(written):
                rows[batch[k // responses]].append(_response(tokens, ends, tokenizer))
                bar.update()
    return rows


def _write(model, prompts, responses, temperature, top_p, max_new_tokens, ends):
    """The tokens of each response, prompt after prompt; what follows an end token has no meaning.

    A prompt is computed once for all of its responses, and a response that has ended is soon computed no further.
    """
    ids, mask = _left_padded(prompts, model.device)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=True)
    cache, logits = output.past_key_values, output.logits[:, -1]
    cache.batch_repeat_interleave(responses)
    mask, positions, logits = (x.repeat_interleave(responses, dim=0) for x in (mask, positions[:, -1:], logits))

    written = [[] for _ in logits]
    running, ended = list(range(len(written))), set()  # which response each row of the batch is
    for left in reversed(range(max_new_tokens)):
        tokens = draw(logits, temperature, top_p)
        for i, token in zip(running, tokens.tolist()):
            written[i].append(token)
            if token in ends:
                ended.add(i)
        going = [row for row, i in enumerate(running) if i not in ended]
        if not going or not left:
            break
        if len(going) <= 0.9 * len(running):  # not for each: to leave rows out costs a copy of the cache
            running, going = [running[row] for row in going], torch.tensor(going, device=model.device)
            cache.batch_select_indices(going)
            mask, positions, tokens = mask[going], positions[going], tokens[going]
        mask, positions = pad(mask, (0, 1), value=1), positions + 1
        output = model(input_ids=tokens[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache)
        logits = output.logits[:, -1]
    return written


def draw(logits, temperature, top_p, likeliest=256):
    """The next token of each row, `[rows]`, of `[rows, vocabulary]` logits: from the fewest tokens that together reach
    `top_p`, at that temperature; the likeliest one at temperature 0.

    To sort the whole vocabulary takes more time than a small model does. So only the `likeliest` tokens are looked at,
    and all in those rows where these do not reach top_p.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    best, tokens = logits.topk(min(likeliest, logits.shape[-1]))
    best = (best - logits.logsumexp(dim=-1, keepdim=True)).exp()
    before = best.cumsum(dim=-1) - best
    drawn = tokens.gather(-1, torch.multinomial(best * (before < top_p), 1)).squeeze(-1)
    wide = best.sum(dim=-1) < top_p
    if likeliest < logits.shape[-1] and wide.any():
        drawn[wide] = draw(logits[wide], 1.0, top_p, likeliest=logits.shape[-1])
    return drawn


def start_vllm(folder, length, dtype=None):
    """A vLLM engine for the model in `folder`, prompt and response of at most `length` tokens. An adapter is served over
    M0, not merged into it. One engine a process: its memory is given back only when the process ends."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process, so the same order of requests each time
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GB, on a CPU
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings hold process ids and times, and there are many
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    from vllm import LLM

    lora, base = {}, base_of(folder)
    if base != Path(folder):
        adapter = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        lora = {"enable_lora": True, "max_lora_rank": adapter["r"]}
    return LLM(
        str(base),
        dtype=str(dtype or fast_dtype()).removeprefix("torch."),
        generation_config="vllm",  # not the model's own sampling settings
        max_model_len=length,
        enforce_eager=not torch.cuda.is_available(),  # compiling takes longer than it saves on a CPU
        **lora,
    )


def generate_with_vllm(
    engine,
    folder,
    prompts,
    *,
    responses=1,
    temperature=0.0,
    top_p=1.0,
    max_new_tokens=256,
    seed=0,
    logprobs=False,
    progress=None,
):
    """As `generate`, by a vLLM engine for that folder, which writes many responses at once and has a bar of its own.

    With `logprobs`, rows also hold the log-prob of each token as vLLM computed it.
    """
    from vllm import SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    torch.manual_seed(seed)  # the engine draws in this process
    base = base_of(folder)
    ends = _end_tokens(GenerationConfig.from_pretrained(base))
    settings = SamplingParams(
        n=responses,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_new_tokens,
        stop_token_ids=sorted(ends),
        logprobs=0 if logprobs else None,
    )
    written = engine.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
        settings,
        lora_request=LoRARequest("policy", 1, str(folder)) if base != Path(folder) else None,
        use_tqdm=bool(progress),
    )
    tokenizer = load_tokenizer(folder)
    rows = [[_response(list(output.token_ids), ends, tokenizer) for output in request.outputs] for request in written]
    if logprobs:
        for row, output in zip(sum(rows, []), [output for request in written for output in request.outputs]):
            row["logprobs"] = [at[token].logprob for token, at in zip(output.token_ids, output.logprobs)]
    return rows


def _batch_size(model, tokens):
    """How many sequences of so many tokens to write at once: as many as leave half of the free memory when their keys
    and values are kept, up to 512, and on a CPU up to 256."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sequence = tokens * 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    if model.device.type == "cpu":
        free, most = psutil.virtual_memory().available, 256
    else:
        (free, _), most = torch.cuda.mem_get_info(model.device), 512
    return max(1, min(most, free // 2 // sequence))


def _end_tokens(config):
    ends = config.eos_token_id
    if ends is None:
        raise ValueError("the model names no end token: set eos_token_id in its generation_config.json")
    return set(ends) if isinstance(ends, list) else {ends}


def _left_padded(prompts, device):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
    return ids, mask.long()


def _response(tokens, ends, tokenizer):
    length = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
    tokens = tokens[:length]
    return {
        "tokens": tokens,
        "text": tokenizer.decode(tokens, skip_special_tokens=True),
        "finish_reason": "stop" if length else "length",
    }
