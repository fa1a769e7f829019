"""A conversation as token ids, by the model's own chat template: the prompt, the response, and where a turn ends."""

from contextlib import suppress
from datetime import datetime
from typing import NamedTuple
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from cream.data.errors import InputError
from cream.data.rows import user_message

# The date for templates that write one, so that a prompt is the same on any day: that in Llama-3.2's own template.
DAY = datetime(2024, 7, 26)
THINKING = ("enable_thinking", "thinking")  # what published templates call the switch that turns thinking on
QUESTION, REPLY = "What is 2 + 3?", "Five."
NO_END = "the tokenizer names no end token, so no response would end: set eos_token in its tokenizer_config.json"


class Turn(NamedTuple):
    """What the template puts around a reply: `lead` (text, mostly empty) between the prompt and the reply, such as the
    end of a thought, and the token `end` behind it."""

    lead: str
    end: int | None


def _once_a_template(find):
    """`find(tokenizer)`, done once for as long as the tokenizer has the same template."""
    found = WeakKeyDictionary()

    def look_up(tokenizer):
        template, value = found.get(tokenizer, (None, None))
        if value is None or template != tokenizer.chat_template:
            value = find(tokenizer)
            found[tokenizer] = tokenizer.chat_template, value
        return value

    return look_up


def prompt_ids(tokenizer, row):
    """The token ids of the chat prompt, up to where the assistant begins to write."""
    return chat_ids(tokenizer, user_message(row))


def response_ids(tokenizer, row):
    """The token ids of a worked example's response, as the model is to write it behind the prompt: the end of the turn
    included, and an empty thought before it where the prompt leaves one to be written."""
    lead, text = turn_of(tokenizer).lead, row["response"]
    if text.lstrip().startswith("<think>"):  # it has a thought of its own, which the prompt may have opened
        begun = lead.lstrip().startswith("</think>")
        lead, text = "", text.lstrip().removeprefix("<think>").lstrip("\n") if begun else text
    return _ids(tokenizer, lead + text) + [end_of_turn(tokenizer)]


def chat_ids(tokenizer, message, reply=None):
    """The token ids of a user's message by the model's own template, with the reply or up to where it begins."""
    return list(_apply(tokenizer, message, reply, return_dict=True)["input_ids"])


def chat_text(tokenizer, message, reply=None, **switches):
    """What `chat_ids` are the ids of."""
    return _apply(tokenizer, message, reply, tokenize=False, **switches)


def turn_ids(tokenizer, turns):
    """The token ids of a conversation ({role, content} a turn) of which the last turn is the user's."""
    return list(_apply_to(tokenizer, turns, add_generation_prompt=True, return_dict=True)["input_ids"])


def end_of_turn(tokenizer):
    """The id of the token that ends a reply, for SFT, sampling and evaluation alike: the one that the template puts behind
    it, or the tokenizer's end token where that is none. An InputError where there is neither."""
    end = turn_of(tokenizer).end
    if end is None:
        raise InputError(NO_END)
    return end


@_once_a_template
def turn_of(tokenizer):
    if tokenizer.chat_template is None:
        return Turn("", tokenizer.eos_token_id)
    prompt, whole = chat_text(tokenizer, QUESTION), chat_text(tokenizer, QUESTION, REPLY)
    before, reply, after = whole.rpartition(REPLY)
    if not reply:
        raise InputError("the chat template leaves the assistant's reply out: mend it in the model's folder")
    behind = _ids(tokenizer, after.lstrip())[:1]
    known = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    end = behind[0] if behind and behind[0] in known else tokenizer.eos_token_id
    if before.startswith(prompt):
        return Turn(_as_in_context(tokenizer, prompt, before[len(prompt) :]), end)
    return Turn("\n</think>\n\n" if thinks(prompt) else "", end)


def thinks(text):
    """Whether a text ends inside a thought."""
    return text.rfind("<think>") > text.rfind("</think>")


def set_thinking(tokenizer, thinking):
    """Turns thinking on or off in the tokenizer's template, so that it stays so wherever that is used.

    Off where the template can: by its switch, or else, where the prompt begins a thought, by ending it there. An InputError
    where it is to be on and the template knows no thoughts.
    """
    switch = next((name for name in THINKING if _answers_to(tokenizer, name)), None)
    begun = thinks(chat_text(tokenizer, QUESTION, **dict.fromkeys(THINKING, thinking)))
    if thinking and switch is None and not begun:
        raise InputError(
            "the chat template has no switch for thinking: set model.thinking to false in params.yaml, or take a model "
            "that thinks"
        )
    before = f"{{%- set {switch} = {str(thinking).lower()} -%}}\n" if switch else ""
    behind = '{%- if add_generation_prompt -%}{{ "\\n</think>\\n\\n" }}{%- endif -%}' if begun and not thinking else ""
    if before or behind:
        tokenizer.chat_template = before + tokenizer.get_chat_template() + behind


def check_context(tokenizer, rows, max_new_tokens, context):
    """An InputError if a prompt and its response may not fit the model's context (None: unlimited)."""
    for row in rows:
        length = len(prompt_ids(tokenizer, row))
        response = max(max_new_tokens, len(response_ids(tokenizer, row)) if "response" in row else 0)
        if context is not None and length + response > context:
            raise InputError(
                f"the prompt {row['id']} has {length} tokens; with {response} of a response it exceeds the model's "
                f"context of {context}: shorten or remove it, or lower max_new_tokens in params.yaml"
            )


def _apply(tokenizer, message, reply, **settings):
    turns = [{"role": "user", "content": message}]
    if reply is not None:
        turns.append({"role": "assistant", "content": reply})
    return _apply_to(tokenizer, turns, add_generation_prompt=reply is None, **settings)


def _apply_to(tokenizer, turns, **settings):
    if _takes_parts(tokenizer):
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    settings = {**dict.fromkeys(THINKING, False), "strftime_now": DAY.strftime, **settings}
    return tokenizer.apply_chat_template(turns, **settings)


@_once_a_template
def _takes_parts(tokenizer):
    """Whether the template takes a message as a list of texts and images alone, as some of models with images do."""
    for parts in (False, True):
        content = [{"type": "text", "text": QUESTION}] if parts else QUESTION
        with suppress(TemplateError, TypeError):
            if QUESTION in tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False):
                return parts
    raise InputError(
        "the chat template leaves the user's message out, or fails on one without a system message: mend it"
    )


def _answers_to(tokenizer, switch):
    """Whether the prompt depends on a switch of that name."""
    on, off = (chat_text(tokenizer, QUESTION, **{switch: value}) for value in (True, False))
    return on != off


def _as_in_context(tokenizer, prompt, lead):
    """The lead; or nothing where the tokenizer itself puts it there, as one that begins each text with a space does."""
    whole = _ids(tokenizer, prompt + lead + REPLY)
    leads = [text for text in (lead, "") if whole == _ids(tokenizer, prompt) + _ids(tokenizer, text + REPLY)]
    return leads[0] if leads else lead if lead.strip() else ""


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]
