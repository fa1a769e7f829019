import datetime

import pytest
from templates import FOLDER, template_tokenizer, tokenizer_with
from tiny_model import llama3_tokenizer

from cream.data.rows import user_message
from cream.models.chat import (
    chat_ids,
    chat_text,
    check_context,
    end_of_turn,
    prompt_ids,
    response_ids,
    set_thinking,
    turn_of,
)

ROW = {"id": "q1", "task": "sums", "question": "What is 1 + 1?", "answer": "2"}
SEED = {**ROW, "response": "Answer: 2"}
IMAGES = "idefics3", "llava_next", "smolvlm"  # templates that take a message as a list of parts
PUBLISHED = [path.stem for path in sorted(FOLDER.glob("*.jinja")) if "training" not in path.stem]


def spoken(tokenizer, row=SEED):
    return tokenizer.decode(prompt_ids(tokenizer, row) + response_ids(tokenizer, row))


def test_prompts_are_the_chat_template_up_to_the_assistant(tokenizer):
    ids = prompt_ids(tokenizer, ROW)
    assert tokenizer.decode(ids) == f"<|user|>{user_message(ROW)}<|end|><|assistant|>"
    assert all(type(token) is int for token in ids)


def test_a_conversation_with_its_reply_ends_with_it(tokenizer):
    assert tokenizer.decode(chat_ids(tokenizer, "Hi", "Hello")) == "<|user|>Hi<|end|><|assistant|>Hello<|end|>"


def test_a_worked_response_ends_with_the_end_token(tokenizer):
    ids = response_ids(tokenizer, {**ROW, "response": "Answer: 2"})
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "Answer: 2"


def test_a_prompt_that_leaves_too_little_context_is_named(tokenizer):
    length = len(prompt_ids(tokenizer, ROW))
    check_context(tokenizer, [ROW], 10, length + 10)
    check_context(tokenizer, [ROW], 10**9, None)
    with pytest.raises(
        ValueError, match=rf"the prompt q1 has {length} tokens; with 10 of a response .* context of {length + 9}"
    ):
        check_context(tokenizer, [{**ROW, "id": "q0", "question": "?"}, ROW], 10, length + 9)


def test_a_seed_response_that_does_not_fit_the_context_is_named(tokenizer):
    row = {**ROW, "response": "x" * 50}
    length = len(prompt_ids(tokenizer, row))
    check_context(tokenizer, [row], 10, length + 51)
    with pytest.raises(ValueError, match="with 51 of a response"):
        check_context(tokenizer, [row], 10, length + 50)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_are_taught_as_they_show_a_conversation(name):
    """Prompt and response are the rendered conversation up to the end of the turn, but for an empty thought that a template
    adds to one of them only."""
    tokenizer = template_tokenizer(name)
    shown = chat_text(tokenizer, user_message(ROW), SEED["response"])
    taught = spoken(tokenizer).removesuffix(tokenizer.eos_token)
    for thought in ("<think>\n\n</think>\n\n", "<think>\n\n\n</think>\n\n"):
        if thought in taught and thought not in shown:
            taught = taught.replace(thought, "")
    assert shown.startswith(taught) and taught.count(SEED["response"]) == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_answer_is_never_taught_inside_a_thought(name):
    for thinking in (None, False, True):
        tokenizer = template_tokenizer(name)
        try:
            if thinking is not None:
                set_thinking(tokenizer, thinking)
        except ValueError:
            continue
        before = spoken(tokenizer).split(SEED["response"])[0]
        assert before.count("<think>") <= before.count("</think>"), thinking


@pytest.mark.parametrize("name", IMAGES)
def test_a_template_that_takes_parts_gets_the_whole_message(name):
    assert user_message(ROW) in chat_text(template_tokenizer(name), user_message(ROW))


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("gemma", "<end_of_turn>"),
        ("gemma3", "<end_of_turn>"),
        ("phi3", "<|end|>"),
        ("llama3", "<|eot_id|>"),
        ("llama3_2", "<|eot_id|>"),
        ("qwen2_5", "<|im_end|>"),
        ("gptoss", "<|return|>"),
        ("deepseek_r1_distill", "<｜end▁of▁sentence｜>"),
        ("glm4moe", "<|endoftext|>"),  # the template ends no turn: the tokenizer's end token does
    ],
)
def test_a_response_ends_with_what_ends_a_turn_in_the_template(name, end):
    tokenizer = template_tokenizer(name)
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == end
    assert response_ids(tokenizer, SEED)[-1] == end_of_turn(tokenizer)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_end_of_turn_that_is_no_token_is_not_taught():
    tokenizer = tokenizer_with(CHATML)  # the template of a chat model on a base model's tokenizer
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == "<|endoftext|>"
    assert tokenizer.decode(response_ids(tokenizer, SEED)) == "Answer: 2<|endoftext|>"


def test_a_tokenizer_without_an_end_token_may_have_one_in_its_template():
    named = tokenizer_with(CHATML, eos=None, special=["<|im_start|>", "<|im_end|>"])
    assert named.convert_ids_to_tokens(end_of_turn(named)) == "<|im_end|>"
    with pytest.raises(ValueError, match="names no end token.*set eos_token in its tokenizer_config.json"):
        response_ids(tokenizer_with(CHATML, eos=None), SEED)


def test_a_space_before_the_reply_is_taught():
    llama2 = "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    tokenizer = tokenizer_with(llama2, eos="</s>")
    assert spoken(tokenizer) == f"[INST] {user_message(ROW)} [/INST] Answer: 2</s>"


def test_a_changed_template_is_read_anew(tokenizer):
    assert turn_of(tokenizer).lead == ""
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ '>' + message['content'] }}"
    )
    assert tokenizer.decode(response_ids(tokenizer, SEED)).startswith(">Answer: 2")


@pytest.mark.parametrize("name", ["llama3_2", "gptoss"])
def test_a_prompt_is_the_same_on_any_day(name, monkeypatch):
    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, *args):
            return cls(2031, 3, 14)

    tokenizer = template_tokenizer(name)
    today = prompt_ids(tokenizer, ROW)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert prompt_ids(template_tokenizer(name), ROW) == today
    text = tokenizer.decode(today)
    assert ("26 Jul 2024" in text or "2024-07-26" in text) and "2031" not in text
    assert "2031" in tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


@pytest.mark.parametrize(
    ("name", "off", "on"),
    [
        ("qwen3", "assistant\n<think>\n\n</think>\n\n", "assistant\n"),  # by its switch; the model opens the thought
        ("qwen3_5_think", "assistant\n<think>\n\n</think>\n\n", "assistant\n<think>\n"),
        ("deepseek_r1_distill", "<｜Assistant｜><think>\n\n</think>\n\n", "<｜Assistant｜><think>\n"),  # no switch
        ("glm4moe", "<|assistant|>\n<think></think>", "<|assistant|>"),
    ],
)
def test_thinking_is_off_unless_it_is_asked_for(name, off, on, tmp_path):
    for thinking, ending in ((False, off), (True, on)):
        tokenizer = template_tokenizer(name)
        set_thinking(tokenizer, thinking)
        tokenizer.save_pretrained(tmp_path / str(thinking))
        saved = type(tokenizer).from_pretrained(
            tmp_path / str(thinking)
        )  # every later stage, and other programs, agree
        for each in (tokenizer, saved):
            assert tokenizer.decode(prompt_ids(each, ROW)).endswith(ending)
            plain = each.apply_chat_template(
                [{"role": "user", "content": user_message(ROW)}], tokenize=False, add_generation_prompt=True
            )
            assert plain.endswith(ending)


def test_a_template_that_knows_no_thoughts_is_left_alone_and_cannot_think():
    tokenizer = llama3_tokenizer()
    before = tokenizer.chat_template
    set_thinking(tokenizer, False)
    assert tokenizer.chat_template == before
    with pytest.raises(ValueError, match="no switch for thinking: set model.thinking to false"):
        set_thinking(tokenizer, True)


def test_a_thought_of_a_worked_response_is_kept():
    tokenizer = template_tokenizer("qwen3")
    set_thinking(tokenizer, True)
    thought = {**ROW, "response": "<think>\n1 + 1\n</think>\n\nAnswer: 2"}
    assert tokenizer.decode(response_ids(tokenizer, thought)) == thought["response"] + "<|im_end|>"


def test_a_thought_that_the_prompt_opens_is_not_opened_twice():
    tokenizer = template_tokenizer("deepseek_r1_distill")
    set_thinking(tokenizer, True)
    text = spoken(tokenizer, {**ROW, "response": "<think>\n1 + 1\n</think>\n\nAnswer: 2"})
    assert text.endswith("<｜Assistant｜><think>\n1 + 1\n</think>\n\nAnswer: 2<｜end▁of▁sentence｜>")


def test_a_template_that_needs_a_system_message_is_refused():
    tokenizer = tokenizer_with("{{ raise_exception('a system message comes first') }}")
    with pytest.raises(ValueError, match="fails on one without a system message"):
        prompt_ids(tokenizer, ROW)
