"""The log-prob of a response: one definition, called by fine-tuning, ranking and preference training alike."""

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from cream.data.errors import InputError
from cream.data.parts import folder_for
from cream.inference.workers import work_on
from cream.models.architectures import PLAIN, attention_span, check_positions, measured, tolerance, trial
from cream.models.loading import base_of, load_models
from cream.models.precision import computing_in, in_effect


def score(
    folders, prompts, responses, *, precision="fp32", workers=1, chunk=None, progress=False, kept=None, **settings
):
    """`response_logprobs` under the model in each folder, without gradients, on the CPU: fp32, `[models, responses]`.

    `precision` is that of the matrix products (see `computing_in`). M0 and the adapters over it are loaded together, with
    one M0 in memory; whole models one after another. A `chunk` of prompts is scored at a time, with all of its responses:
    256 by each of several Ray `workers`, and 2048 by this process, which packs its batches better the more there are.
    The folder `kept` is for the chunks that are done: a killed run goes on from them. With `progress` there are bars.
    """
    folders = [Path(folder).resolve() for folder in folders]
    chunks, order = _whole_prompts(prompts, responses, chunk or (256 if workers > 1 else 2048))
    groups, sums = {}, {}
    for folder in dict.fromkeys(folders):
        groups.setdefault(base_of(folder), []).append(folder)
    for base, group in groups.items():
        make = partial(_scorer, group, precision, settings, progress and workers == 1)
        parts = folder_for(kept and Path(kept, group[0].name), (chunks, in_effect(precision), settings), [base, *group])
        scored = work_on(make, chunks, workers, "scoring", parts)
        sums |= zip(group, torch.cat([torch.tensor(each) for each in scored], dim=1)[:, order])
    return torch.stack([sums[folder] for folder in folders])


def _scorer(folders, precision, settings, progress=False):
    """Loads models that share a base, to score as many chunks as come under each of them."""
    models = load_models(folders)

    def work(chunk):
        with torch.inference_mode(), computing_in(precision):
            bars = [progress and f"scoring under {folder.name}" for folder in folders]
            return [
                response_logprobs(model, *chunk, progress=bar, **settings).tolist() for model, bar in zip(models, bars)
            ]

    return work


def _whole_prompts(prompts, responses, chunk):
    """(prompts, responses) of `chunk` different prompts each, and where each response is in them one after another."""
    number = {prompt: i // chunk for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    places = [[] for _ in range(max(number.values()) + 1)]
    for place, prompt in enumerate(prompts):
        places[number[tuple(prompt)]].append(place)
    chunks = [([prompts[i] for i in each], [responses[i] for i in each]) for each in places]
    return chunks, torch.tensor(sum(places, [])).argsort()


# Padded tokens in one forward pass: a processor has enough to do with few, a GPU with many.
MAX_TOKENS = 16384 if torch.cuda.is_available() else 1024


def response_logprobs(model, prompts, responses, max_tokens=MAX_TOKENS, progress=None):
    """log p(response | prompt), summed over the response's tokens, in nats.

    `prompts` and `responses` are lists of lists of token ids, one prompt a response. Returns fp32 sums, `[responses]`,
    in the order given, with gradients where they are enabled. `max_tokens` bounds the padded tokens of one forward
    pass (None: all in one). `progress` names a progress bar; without it there is none.

    The responses to one prompt share it: they follow it in one row, each seeing the prompt and itself, each with
    its own positions. Where the architecture mixes tokens in a way that knows no mask, or sees less than the longest
    text at a time, each has a row of its own (see `shares_prompts`). A (prompt, response) that occurs twice is
    scored once, so identical responses tie exactly. Pads are found by lengths, so a pad token that is also the end token
    does no harm.
    """
    wanted = list(zip(map(tuple, prompts), map(tuple, responses), strict=True))
    if not all(prompt and response for prompt, response in wanted):
        raise ValueError("a prompt or a response has no tokens, so it has no log-prob")
    rows, shared = _rows_of(model, wanted)

    index, sums = {}, []
    with tqdm(
        total=sum(len(distinct) for _, distinct in rows), desc=progress, unit="response", disable=not progress
    ) as bar:
        for batch in _batches_by_length(rows, max_tokens):
            sums.append(_score(model, batch, shared))
            for pair in [(prompt, response) for prompt, distinct in batch for response in distinct]:
                index[pair] = len(index)
                bar.update()
    return torch.cat(sums)[[index[pair] for pair in wanted]]


def _rows_of(model, wanted):
    """Each prompt with its different responses, in the order given, and whether these can stand in one row behind it. If
    not, a prompt comes once for each of its responses."""
    config = getattr(model, "module", model).config  # out of what trains it in several processes
    together = {}
    for prompt, response in wanted:
        together.setdefault(prompt, {})[response] = None  # a dict keeps the order and drops repeats
    rows = [(prompt, list(distinct)) for prompt, distinct in together.items()]
    alone = [(prompt, [response]) for prompt, distinct in rows for response in distinct]
    check_positions(config, max(map(_length, alone), default=0))
    # Some count the tokens that they see at a time by places in the row, so a whole row must be in sight.
    longest = max(map(_length, alone if config.model_type in PLAIN else rows), default=0)
    shared = longest <= attention_span(config) and shares_prompts(model)
    return (rows, True) if shared else (alone, False)


def _batches_by_length(rows, max_tokens):
    """Rows of like length, the longest first, at most `max_tokens` padded tokens a batch but at least one row."""
    rows = sorted(rows, key=_length, reverse=True)
    while rows:
        size = max(1, max_tokens // _length(rows[0])) if max_tokens else len(rows)
        yield rows[:size]
        rows = rows[size:]


def _length(row):
    prompt, responses = row
    return len(prompt) + sum(map(len, responses))


_shares = WeakKeyDictionary()  # model -> whether it was found to share prompts


def shares_prompts(model):
    """Whether the responses to a prompt can stand in one row behind it.

    A mask and positions keep them apart in attention. Recurrent states, convolutions, attention by the place in the row
    (ALiBi) and other ways know neither, so a model is tried once on random tokens: it must give what it gives to one
    sequence at a time. A ValueError where it does not do so for one response a row either: then what comes behind a
    token changes its log-prob.
    """
    inner = getattr(model, "module", model)
    if inner.config.model_type in PLAIN:
        return True
    if inner not in _shares:
        _shares[inner] = _try_sharing(model, inner)
    return _shares[inner]


def _try_sharing(model, inner):
    prompts, responses = trial(inner, (6, 3)), trial(inner, (8, 5, 8))
    rows = [(prompts[0], responses), (prompts[1], responses[:2])]
    alone = [(prompt, [response]) for prompt, several in rows for response in several]
    with measured(model):
        sums = torch.stack([_plain_sum(model, prompt, response) for prompt, [response] in alone])
        rounding = (_score(model, alone, shared=False) - sums).abs().max()
        if not rounding <= tolerance(inner.dtype):  # NaN too
            raise InputError(
                f"{inner.config.model_type} is no causal language model: a token's log-prob changes by what comes after "
                "it: take another model.base"
            )
        try:
            off = (_score(model, rows, shared=True) - sums).abs().max()
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # it does not take such a mask
            return False
    return bool(off <= max(tolerance(inner.dtype) / 10, 8 * rounding))


def _plain_sum(model, prompt, response):
    """The log-prob of one response as anyone would compute it: one sequence, nothing masked, no pads."""
    ids = torch.tensor([[*prompt, *response]], device=next(model.parameters()).device)
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).sum()


def _score(model, rows, shared, fused=True):
    """The sums of one forward pass, row by row, response by response. Without `shared`, a row holds one response, and
    needs neither mask nor positions: pads come behind it."""
    ids, positions, segments, predictors = zip(*(_lay_out(*row) for row in rows))
    ids, positions = (pad_sequence(list(x), batch_first=True) for x in (ids, positions))
    segments = pad_sequence(list(segments), batch_first=True, padding_value=-1)
    predictors = pad_sequence(list(predictors), batch_first=True)
    device = next(model.parameters()).device
    inner = getattr(model, "module", model)  # out of what trains it in several processes

    row, token = (segments > 0).nonzero(as_tuple=True)
    row, predictor, target = (x.to(device) for x in (row, predictors[row, token], ids[row, token]))
    head = inner.get_output_embeddings()
    linear, made = head.forward, []

    def log_probs(hidden):
        hidden = hidden[row, predictor]
        made.append(_log_probs(linear, hidden, target) if fused else linear(hidden))
        return made[-1]

    inputs = {"input_ids": ids.to(device), "use_cache": False}
    if shared:
        inputs |= {"position_ids": positions.to(device), "attention_mask": _visible(segments.to(device), inner)}
    with _in_place_of(head, log_probs):
        output = model(**inputs).logits
    if fused and not torch.equal(output, made[0]):  # this architecture scales or caps its logits afterwards
        return _score(model, rows, shared, fused=False)
    logprobs = output if fused else _log_probs(torch.nn.Identity(), output, target)

    lengths = torch.tensor([len(response) for _, responses in rows for response in responses], device=device)
    which = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    return torch.zeros(len(lengths), device=device).index_add(0, which, logprobs)


@contextmanager
def _in_place_of(head, forward):
    """While it lasts, the model's output layer is `forward`, also where the model is called through what wraps it."""
    before = vars(head).get("forward")
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if before:
            head.forward = before


def _log_probs(linear, hidden, targets, chunk=256):
    """log p of each target in fp32, `[tokens]`. The logits of a chunk of tokens are made, used and forgotten, and made
    again for the gradient, so that memory does not grow with the vocabulary times the tokens."""

    def of_chunk(hidden, targets):
        logits = linear(hidden).float()
        return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)

    chunks = zip(hidden.split(chunk), targets.split(chunk))
    return torch.cat([checkpoint(of_chunk, *each, use_reentrant=False) for each in chunks])


def _lay_out(prompt, responses):
    """One row's token ids, positions, segments (0: the prompt, k: response k), and which token predicts each."""
    n = len(prompt)
    ids, positions, segments, predictors = list(prompt), list(range(n)), [0] * n, [0] * n
    for k, response in enumerate(responses, start=1):
        predictors += [n - 1, *range(len(ids), len(ids) + len(response) - 1)]
        ids += response
        positions += range(n, n + len(response))
        segments += [k] * len(response)
    return tuple(map(torch.tensor, (ids, positions, segments, predictors)))


def _visible(segments, model):
    """`[rows, 1, tokens, tokens]`: a token sees what came before it in the prompt and in its own segment."""
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    seen, by = segments[:, None, None, :], segments[:, None, :, None]
    visible = causal & ((seen == 0) | (seen == by))
    if model.config._attn_implementation == "eager":  # adds its mask instead of choosing by it
        visible = torch.where(visible, 0.0, torch.finfo(model.dtype).min).to(model.dtype)
    return visible
