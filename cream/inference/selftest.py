"""Whether a base does here what it does by itself: log-probs, responses, and its chat template, on a few questions.

Everything is compared with a plain loop: one sequence, nothing masked, no cache.
"""

import torch

from cream.data.errors import InputError
from cream.data.rows import user_message
from cream.inference.logprobs import response_logprobs, shares_prompts
from cream.inference.sampling import Anew, Cached, Padded, generate, reader_for
from cream.models.architectures import measured, tolerance
from cream.models.chat import chat_text, end_of_turn, prompt_ids, response_ids, thinks, turn_of

TOKENS = 4  # of a written response
WRITTEN = {
    Padded: "with a cache",
    Cached: "with a cache, prompts of one length at a time",
    Anew: "without a cache, which is slow",
}


def check_base(model, tokenizer, rows):
    """What was found about a model and its tokenizer, {property: text}, by the first questions of `rows`. An InputError, in
    one sentence, where something is wrong. The model is moved to the GPU if there is one."""
    rows, model = rows[:2], model.to("cuda" if torch.cuda.is_available() else "cpu")
    for row in rows:
        _check_template(tokenizer, row)
    if end_of_turn(tokenizer) not in _ends(model):
        raise InputError(
            f"the model does not stop at {_token(tokenizer)}, which ends a turn in its chat template: add it to eos_token_id "
            "in generation_config.json"
        )
    prompts = [prompt_ids(tokenizer, row) for row in rows]
    with measured(model):
        _check_scoring(model, prompts, [response_ids(tokenizer, {"response": text}) for text in ("5", "Answer: 12")])
        _check_writing(model, tokenizer, prompts)
    return {
        "a turn ends with": _token(tokenizer),
        "before a response": repr(turn_of(tokenizer).lead) if turn_of(tokenizer).lead else "nothing",
        "the responses to a prompt are scored": "together" if shares_prompts(model) else "one by one",
        "responses are written": WRITTEN[reader_for(model)],
    }


def _check_template(tokenizer, row):
    """The prompt holds the question, begins with one start token, and is how the conversation with a reply begins."""
    message, ids = user_message(row), prompt_ids(tokenizer, row)
    prompt, whole = chat_text(tokenizer, message), chat_text(tokenizer, message, "Five.")
    if message.strip() not in prompt:
        raise InputError(
            f"the chat template changes what the user writes (row {row['id']}): take one that leaves it as it is"
        )
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise InputError(
            f"the chat template writes the start token {tokenizer.bos_token} twice: take one of them out of it"
        )
    if thinks(prompt + turn_of(tokenizer).lead):
        raise InputError("the chat template leaves a thought open where the response begins: end it there")
    shown = prompt.split("<think>")[0].rstrip()  # a thought that the template begins is not part of what it shows later
    if not whole.startswith(shown):
        raise InputError(
            "the chat template's prompt is not how the conversation with its reply begins, so what is taught is not what is "
            "asked: take a template whose generation prompt is the head of the assistant's turn"
        )


def _check_scoring(model, prompts, responses):
    pairs = [(prompt, response) for prompt in prompts for response in responses]
    ours = response_logprobs(model, *zip(*pairs))
    off = max(abs(sum(_plain(model, *pair)) - ours[i].item()) for i, pair in enumerate(pairs))
    if not off <= tolerance(model.dtype):
        raise InputError(
            f"the log-probs of responses are wrong by up to {off:.3f} nats for this architecture: take another"
        )


def _check_writing(model, tokenizer, prompts):
    """Greedy responses: each token is the likeliest, or as likely as it up to rounding."""
    for prompt, [row] in zip(prompts, generate(model, tokenizer, prompts, max_new_tokens=TOKENS)):
        best = [logits.max().item() for logits in _logits(model, prompt, row["tokens"])]
        off = max(a - b for a, b in zip(best, _plain(model, prompt, row["tokens"])))
        if not off <= tolerance(model.dtype):
            raise InputError(
                f"responses are not written as the model would (by {off:.3f} nats): take another architecture"
            )


def _logits(model, prompt, response):
    """The log-probs of every token at each place of the response, from one sequence."""
    ids = torch.tensor([[*prompt, *response]], device=model.device)
    return model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)


def _plain(model, prompt, response):
    return [line[token].item() for line, token in zip(_logits(model, prompt, response), response)]


def _ends(model):
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _token(tokenizer):
    return tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
