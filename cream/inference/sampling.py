"""Responses as they were sampled: token ids, their text, and why each one ended."""

import json
import os
from functools import partial
from itertools import groupby
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil
import torch
from torch.nn.functional import pad
from tqdm import tqdm
from transformers import GenerationConfig

from cream.data.errors import InputError
from cream.data.parts import folder_for
from cream.inference.workers import work_on
from cream.models.architectures import PLAIN, attention_span, check_positions, measured, tolerance, trial
from cream.models.chat import end_of_turn
from cream.models.loading import base_of, load_model, load_tokenizer
from cream.models.precision import dtype_of, fast_dtype

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what its max_lora_rank can be


def sample(
    folder, prompts, *, engine="transformers", workers=1, seed=0, chunk=256, precision="auto", kept=None, **settings
):
    """N responses to each prompt by the model in `folder`, written by "transformers" or "vllm".

    `prompts` is a list of lists of token ids; `settings` are those of `generate`; `precision` is "fp32", or "auto" for bf16
    where that is fast. Both engines return the same rows, and draw from the same distribution, but not the same
    responses. Each `chunk` of prompts draws from a seed of its own, so that the rows do not depend on how many Ray
    `workers` there are to write them. The folder `kept` is for the chunks that are done: a killed run goes on from them.
    """
    chunks = [(prompts[start : start + chunk], start // chunk) for start in range(0, len(prompts), chunk)]
    length = max(map(len, prompts)) + settings["max_new_tokens"]
    bar = f"sampling, part {{}} of {len(chunks)}" if workers == 1 else None
    make = partial(_writer, str(Path(folder).resolve()), engine, length, seed, precision, settings, bar)
    kept = folder_for(kept, (prompts, engine, seed, chunk, str(dtype_of(precision)), settings), [base_of(folder), folder])
    apart = engine == "vllm"  # which gives its memory back only when its process ends
    return [rows for each in work_on(make, chunks, workers, "sampling", kept, apart) for rows in each]


def _writer(folder, engine, length, seed, precision, settings, bar=None):
    """Loads a model once, to write as many chunks as come. `bar` names a progress bar by the chunk's number."""
    dtype = dtype_of(precision)
    if engine == "vllm":
        write = partial(generate_with_vllm, start_vllm(folder, length, dtype), folder)
    else:
        write = partial(generate, load_model(folder, dtype=dtype), load_tokenizer(folder))

    def work(chunk):
        prompts, number = chunk
        return write(prompts, seed=seed + number, progress=bar and bar.format(number + 1), **settings)

    return work


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
    `batch_size` is the number of responses written at once (None: what the memory holds).
    `progress` names a progress bar; without it there is none.
    """
    length = max(map(len, prompts), default=0) + max_new_tokens
    check_positions(model.config, length)
    ends = _end_tokens(model.generation_config, tokenizer)
    reader = reader_for(model)
    torch.manual_seed(seed)
    size = max(1, (batch_size or _batch_size(model, length)) // responses)
    choose = partial(draw, temperature=temperature, top_p=top_p)
    rows = [[] for _ in prompts]
    with tqdm(total=len(prompts) * responses, desc=progress, unit="response", disable=not progress) as bar:
        for batch in _batches(prompts, size, mixed=reader is Padded):
            reading = reader(model, [prompts[i] for i in batch], responses)
            for k, tokens in enumerate(_write(reading, choose, max_new_tokens, ends)):
                rows[batch[k // responses]].append(_response(tokens, ends, tokenizer))
                bar.update()
    return rows


def _batches(prompts, size, mixed):
    """The numbers of the prompts in batches. Prompts of like length share one, so there is little padding; without
    `mixed`, prompts of one length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    groups = [order] if mixed else [list(group) for _, group in groupby(order, key=lambda i: len(prompts[i]))]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def _write(reading, choose, max_new_tokens, ends):
    """The tokens of each response, prompt after prompt; what follows an end token has no meaning.

    `reading` is one of the three below, `choose` draws the next tokens from logits. A response that has ended is soon
    computed no further.
    """
    logits = reading.logits
    written = [[] for _ in logits]
    running, ended = list(range(len(written))), set()  # which response each row of the batch is
    for left in reversed(range(max_new_tokens)):
        tokens = choose(logits)
        for i, token in zip(running, tokens.tolist()):
            written[i].append(token)
            if token in ends:
                ended.add(i)
        going = [row for row, i in enumerate(running) if i not in ended]
        if not going or not left:
            break
        if len(going) <= 0.9 * len(running):  # not for each: to leave rows out costs a copy of the cache
            running, going = [running[row] for row in going], torch.tensor(going, device=tokens.device)
            reading.keep(going)
            tokens = tokens[going]
        logits = reading.read(tokens)
    return written


class Padded:
    """Prompts of any lengths, each computed once for all of its responses, with pads before the shorter ones that a mask
    hides. `logits` are those of the first token of each response."""

    def __init__(self, model, prompts, responses):
        ids, mask = _left_padded(prompts, model.device)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=True)
        self.model, self.cache, self.logits = model, output.past_key_values, output.logits[:, -1]
        self.mask, self.positions = mask, positions[:, -1:]
        self.keep(torch.arange(len(ids), device=model.device).repeat_interleave(responses))
        self.logits = self.logits.repeat_interleave(responses, dim=0)

    def keep(self, rows):
        """The rows of the batch with these numbers, which may come several times."""
        self.cache.reorder_cache(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def read(self, tokens):
        """The logits after one more token for each row."""
        self.mask, self.positions = pad(self.mask, (0, 1), value=1), self.positions + 1
        inputs = {"attention_mask": self.mask, "position_ids": self.positions}
        return self.model(input_ids=tokens[:, None], **inputs, past_key_values=self.cache).logits[:, -1]


class Cached:
    """As `Padded`, for prompts of one length: no pads, no mask, no positions, for architectures that read pads."""

    def __init__(self, model, prompts, responses):
        output = model(input_ids=torch.tensor(prompts, device=model.device), use_cache=True)
        self.name = "cache_params" if "cache_params" in output else "past_key_values"  # Mamba's has a name of its own
        self.model, self.cache, self.logits = model, output[self.name], output.logits[:, -1]
        self.keep(torch.arange(len(prompts), device=model.device).repeat_interleave(responses))
        self.logits = self.logits.repeat_interleave(responses, dim=0)

    def keep(self, rows):
        self.cache.reorder_cache(rows)

    def read(self, tokens):
        return self.model(input_ids=tokens[:, None], **{self.name: self.cache}, use_cache=True).logits[:, -1]


class Anew:
    """As `Cached`, for architectures whose cache cannot be used so: each token computes the whole text again."""

    def __init__(self, model, prompts, responses):
        self.model, self.ids = model, torch.tensor(prompts, device=model.device).repeat_interleave(responses, dim=0)
        self.logits = model(input_ids=self.ids, use_cache=False).logits[:, -1]

    def keep(self, rows):
        self.ids = self.ids[rows]

    def read(self, tokens):
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        return self.model(input_ids=self.ids, use_cache=False).logits[:, -1]


_readers = WeakKeyDictionary()  # model -> the first of the three that was right for it


def reader_for(model):
    """How a model writes: as fast as it can so that the logits are those of the whole text computed at once. Tried once
    on random tokens, because a recurrent state may read pads, and a cache may not come apart by rows."""
    if model.config.model_type in PLAIN:
        return Padded
    if model not in _readers:
        with measured(model):
            _readers[model] = next((reader for reader in (Padded, Cached) if _fits(reader, model)), Anew)
    return _readers[model]


def _fits(reader, model):
    """Whether the logits of two responses to each of two prompts, of which one soon ends, are right at each step. The
    texts are longer than the window of attention, if that is short."""
    span = attention_span(model.config)
    length = 3 + (span if span < 64 else 4)
    prompts = trial(model, (length, length if reader is Cached else length - 3))
    script = torch.tensor(trial(model, (6,) * 4), device=model.device)
    script[1, 1] = end = int(next(token for token in range(7 * 4) if token not in script.flatten().tolist()))
    running, step, right = torch.arange(4, device=model.device), 0, True

    def choose(logits):
        nonlocal running, step, right
        if len(logits) < len(running):
            running = running[running != 1]
        texts = [[*prompts[i // 2], *script[i, :step].tolist()] for i in running.tolist()]
        plain = torch.cat([model(input_ids=torch.tensor([text], device=model.device)).logits[:, -1] for text in texts])
        off = logits.float().log_softmax(-1) - plain.float().log_softmax(-1)
        right = right and bool(off.abs().max() <= tolerance(model.dtype))
        step += 1
        return script[running, step - 1]

    try:
        _write(reader(model, prompts, 2), choose, script.shape[1], {end})
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    return right


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
        rank = next((rank for rank in VLLM_RANKS if rank >= adapter["r"]), None)
        if rank is None:
            raise InputError(f"vLLM serves adapters of a rank of at most {VLLM_RANKS[-1]}: lower model.lora.r in params.yaml")
        lora = {"enable_lora": True, "max_lora_rank": rank}
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
    tokenizer = load_tokenizer(folder)
    ends = _end_tokens(GenerationConfig.from_pretrained(base), tokenizer)
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
    rows = [[_response(list(output.token_ids), ends, tokenizer) for output in request.outputs] for request in written]
    if logprobs:
        for row, output in zip(sum(rows, []), [output for request in written for output in request.outputs]):
            row["logprobs"] = [at[token].logprob for token, at in zip(output.token_ids, output.logprobs)]
    return rows


def _batch_size(model, tokens):
    """How many sequences of so many tokens to write at once: as many as have their keys and values in half of the memory
    that the model leaves, up to 512, and on a CPU up to 256. What else runs does not count: another batch size draws
    other responses."""
    config = model.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None) or 1  # none: as wide as the model
    heads = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    sequence = tokens * 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    if model.device.type == "cpu":
        memory, most = psutil.virtual_memory().total, 256
    else:
        memory, most = torch.cuda.get_device_properties(model.device).total_memory, 512
    left = memory - sum(weight.nbytes for weight in model.parameters())
    return max(1, min(most, left // 2 // sequence))


def _end_tokens(config, tokenizer):
    """All that ends a response: what the model names, and the end of a turn in the chat template, which SFT teaches."""
    ends = config.eos_token_id
    if ends is None:
        raise InputError("the model names no end token: set eos_token_id in its generation_config.json")
    return {*(ends if isinstance(ends, list) else [ends]), end_of_turn(tokenizer)}


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
        "text": tokenizer.decode(tokens[:-1] if length else tokens, skip_special_tokens=True),
        "finish_reason": "stop" if length else "length",
    }
