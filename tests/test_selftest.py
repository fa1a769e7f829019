import pytest
import torch
from templates import template_tokenizer, tokenizer_with
from tiny_model import tiny_model

from cream.inference import selftest
from cream.inference.selftest import check_base
from cream.models.chat import end_of_turn

ROWS = [{"id": f"q{n}", "question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(3)]


def sharp(tokenizer, **settings):
    model = tiny_model(len(tokenizer), **settings).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 5
    return model


def test_a_base_that_is_right_is_described(model, tokenizer):
    assert check_base(model, tokenizer, ROWS) == {
        "a turn ends with": "<|end|>",
        "before a response": "nothing",
        "the responses to a prompt are scored": "together",
        "responses are written": "with a cache",
    }


def test_a_model_that_does_not_stop_where_a_turn_ends_is_refused():
    tokenizer = template_tokenizer("gemma", eos="<eos>")
    with pytest.raises(ValueError, match="does not stop at <end_of_turn>"):
        check_base(sharp(tokenizer, eos_token_id=tokenizer.eos_token_id), tokenizer, ROWS)
    check_base(sharp(tokenizer, eos_token_id=end_of_turn(tokenizer)), tokenizer, ROWS)


LOOP = "{% for m in messages %}"
FAULTS = {
    "writes the start token <s> twice": "{{ bos_token }}"
    + LOOP
    + "{{ bos_token if loop.first }}{{ m['content'] }}<|endoftext|>{% endfor %}",
    "changes what the user writes": LOOP
    + "{{ m['content'] | replace(' ', '_') if '2 + 3' not in m['content'] else m['content'] }}<|endoftext|>{% endfor %}",
    "is not how the conversation with its reply begins": LOOP
    + "{{ m['content'] }}<|endoftext|>{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    "leaves the user's message out": "Hello",
    "leaves the assistant's reply out": "{{ messages[0]['content'] }}",
}


@pytest.mark.parametrize("says", FAULTS)
def test_what_is_wrong_with_a_template_is_said(says):
    tokenizer = tokenizer_with(FAULTS[says])
    with pytest.raises(ValueError, match=says):
        check_base(sharp(tokenizer, eos_token_id=tokenizer.eos_token_id), tokenizer, ROWS)


def test_wrong_log_probs_and_responses_are_seen(model, tokenizer, monkeypatch):
    scored, written = selftest.response_logprobs, selftest.generate
    monkeypatch.setattr(
        selftest, "response_logprobs", lambda *pairs: scored(*pairs) + torch.tensor([0.0, 0.01, 0.0, 0.0])
    )
    with pytest.raises(ValueError, match="log-probs of responses are wrong by up to 0.010 nats"):
        check_base(model, tokenizer, ROWS)
    monkeypatch.setattr(selftest, "response_logprobs", scored)
    monkeypatch.setattr(selftest, "generate", lambda *given, **settings: written(*given, temperature=5.0, **settings))
    with pytest.raises(ValueError, match="not written as the model would"):
        check_base(model, tokenizer, ROWS)
