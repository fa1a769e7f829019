from collections import Counter
from types import SimpleNamespace

import psutil
import pytest
import torch
from scipy import stats
from templates import template_tokenizer
from tiny_model import tiny_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    TopPLogitsWarper,
)

from cream.inference.sampling import Cached, _batch_size, draw, generate, reader_for

END = 0
PROMPTS = [[9, 8, 7, 6, 5, 4, 3], [20], [30, 31, 32], [40, 41], [9, 8]]  # of mixed lengths, not in their order


def naive_greedy(model, prompt, max_new_tokens):
    """Argmax after argmax, one prompt at a time, without padding or a cache."""
    tokens = []
    while len(tokens) < max_new_tokens and tokens[-1:] != [END]:
        with torch.no_grad():
            tokens.append(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax().item())
    return tokens


def likely_to_stop(model):
    """The model with its end token among the likely ones."""
    linear = model.lm_head.forward
    model.lm_head.forward = lambda hidden: linear(hidden) + 3.0 * torch.nn.functional.one_hot(torch.tensor(END), 104)
    return model


def tokens_of(rows):
    return [[row["tokens"] for row in responses] for responses in rows]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_greedy_equals_a_plain_argmax_loop_in_the_order_given(model, tokenizer, batch_size):
    rows = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size)
    assert tokens_of(rows) == [[naive_greedy(model, prompt, 12)] for prompt in PROMPTS]


def test_greedy_stops_where_the_argmax_is_the_end(model, tokenizer):
    model = likely_to_stop(model)
    rows = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    assert tokens_of(rows) == [[naive_greedy(model, prompt, 12)] for prompt in PROMPTS]
    assert {row["finish_reason"] for (row,) in rows} == {"stop", "length"}


def test_every_response_ends_for_the_reason_it_gives(model, tokenizer):
    rows = generate(likely_to_stop(model), tokenizer, PROMPTS, responses=20, temperature=1.0, max_new_tokens=6, seed=1)
    assert [len(responses) for responses in rows] == [20] * 5
    for row in sum(rows, []):
        if row["finish_reason"] == "stop":
            assert row["tokens"].index(END) == len(row["tokens"]) - 1  # the first end token is the last token
        else:
            assert row["finish_reason"] == "length" and len(row["tokens"]) == 6 and END not in row["tokens"]
    reasons = Counter((row["finish_reason"], len(row["tokens"])) for row in sum(rows, []))
    assert reasons["length", 6] and reasons["stop", 1] and reasons["stop", 6]  # also an end token in the last place


def test_text_is_what_the_tokens_say_without_the_end(model, tokenizer):
    for row in sum(
        generate(likely_to_stop(model), tokenizer, PROMPTS, responses=4, temperature=1.0, max_new_tokens=6), []
    ):
        assert row["text"] == tokenizer.decode([token for token in row["tokens"] if token > 3])  # 0 to 3 are special


def test_any_of_several_end_tokens_ends_a_response(model, tokenizer):
    greedy = naive_greedy(model, [20], 12)
    model.generation_config.eos_token_id = [END, greedy[3]]
    ((row,),) = generate(model, tokenizer, [[20]], max_new_tokens=12)
    assert (row["tokens"], row["finish_reason"]) == (greedy[: greedy.index(greedy[3]) + 1], "stop")


def test_a_model_without_an_end_token_is_refused(model, tokenizer):
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id"):
        generate(model, tokenizer, [[20]])


def test_the_seed_decides_the_responses(model, tokenizer):
    settings = dict(responses=3, temperature=1.0, max_new_tokens=8, batch_size=6)
    first = generate(model, tokenizer, PROMPTS, seed=1, **settings)
    assert generate(model, tokenizer, PROMPTS, seed=1, **settings) == first
    assert generate(model, tokenizer, PROMPTS, seed=2, **settings) != first


def test_responses_to_one_prompt_differ(model, tokenizer):
    (responses,) = generate(model, tokenizer, [[20]], responses=5, temperature=1.0, max_new_tokens=8, seed=1)
    assert len({tuple(row["tokens"]) for row in responses}) == 5


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.8, 0.95), (2.0, 0.9), (2.0, 0.5)])
def test_tokens_are_drawn_from_the_tempered_nucleus(model, tokenizer, temperature, top_p):
    prompt, count = [30, 31, 32], 4000
    with torch.no_grad():
        probabilities = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    likeliest_first = probabilities.argsort(descending=True)
    before = probabilities[likeliest_first].cumsum(0) - probabilities[likeliest_first]
    nucleus = likeliest_first[before < top_p]  # the fewest tokens that together reach top_p
    expected = count * probabilities[nucleus] / probabilities[nucleus].sum()

    settings = dict(temperature=temperature, top_p=top_p, max_new_tokens=1, seed=7)
    (rows,) = generate(model, tokenizer, [prompt], responses=count, **settings)
    drawn = Counter(row["tokens"][0] for row in rows)
    assert set(drawn) <= set(nucleus.tolist())

    observed = torch.tensor([drawn[token] for token in nucleus.tolist()], dtype=torch.float64)
    common = expected >= 5  # rarer ones are counted as one class
    classes = [torch.cat([x[common], x[~common].sum(0, keepdim=True)]) for x in (observed, expected.double())]
    observed, expected = (x[classes[1] > 0].numpy() for x in classes)
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("spread", [1.0, 5.0])  # a nucleus of thousands of tokens, and of a few
def test_a_draw_from_a_large_vocabulary_is_from_the_nucleus_of_transformers(spread):
    torch.manual_seed(0)
    scores = spread * torch.randn(1, 2000)
    nucleus = TopPLogitsWarper(0.9)(None, scores / 0.8).softmax(-1)[0].double()
    drawn = draw(scores.expand(20_000, -1), 0.8, 0.9)
    assert (nucleus[drawn] > 0).all()
    # Tokens of like probability share a class.
    classes = (nucleus.log().nan_to_num(neginf=-99.0) - nucleus.max().log()).clamp(min=-8).round().long().abs()
    observed, expected = torch.bincount(classes[drawn], minlength=9), torch.bincount(classes, nucleus, minlength=9)
    common = expected * 20_000 >= 5
    assert stats.chisquare(observed[common], 20_000 * expected[common], sum_check=False).pvalue > 1e-4


def test_rows_that_need_the_whole_vocabulary_stand_beside_rows_that_do_not():
    torch.manual_seed(0)
    wide, narrow = torch.zeros(1, 5000), 50 * torch.eye(5000)[[7]]  # every token alike; one token alone
    drawn = draw(torch.cat([wide, narrow, wide, narrow]).repeat(500, 1), 1.0, 0.95)
    assert (drawn[1::2] == 7).all()
    assert drawn[::2].unique().numel() > 800  # of 1000 drawn, far more than the 256 that are looked at first
    assert 1500 < drawn[::2].double().mean() < 3500


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_other_architectures_write_what_a_plain_loop_writes(family, tokenizer):
    shape = dict(vocab_size=len(tokenizer), eos_token_id=END, bos_token_id=None, initializer_range=0.5)
    small = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    configs = {
        "gpt2": GPT2Config(**shape, n_embd=64, n_layer=2, n_head=4, n_positions=128),  # learned, absolute positions
        "mistral": MistralConfig(**shape, **small, num_key_value_heads=2, sliding_window=6),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[family]).eval()
    model.generation_config.eos_token_id = END
    rows = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    assert tokens_of(rows) == [[naive_greedy(model, prompt, 12)] for prompt in PROMPTS]


def test_a_prompt_is_computed_once_and_an_ended_response_no_further(model, tokenizer):
    computed = []
    model.register_forward_pre_hook(
        lambda module, args, inputs: computed.append(inputs["input_ids"].shape), with_kwargs=True
    )
    settings = dict(responses=20, temperature=1.0, max_new_tokens=6, seed=1)
    rows = sum(generate(likely_to_stop(model), tokenizer, PROMPTS, **settings, batch_size=100), [])
    assert computed[0] == (5, 7) and computed[1][1] == 1  # the prompts, then a token at a time
    lengths = torch.tensor([len(row["tokens"]) for row in rows])
    for step, (batch, _) in enumerate(computed[1:], start=1):
        assert (lengths > step).sum() <= batch <= (lengths > step).sum() / 0.9 + 1


def test_an_architecture_that_reads_pads_writes_one_length_at_a_time(tokenizer):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, state_size=8, initializer_range=0.5)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = END
    random = torch.get_rng_state()
    assert reader_for(model) is Cached and torch.equal(torch.get_rng_state(), random)
    prompts = [*PROMPTS, [50, 51]]  # three of two tokens
    rows = generate(model, tokenizer, prompts, responses=2, max_new_tokens=12, batch_size=4)
    assert tokens_of(rows) == [[naive_greedy(model, prompt, 12)] * 2 for prompt in prompts]
    drawn = generate(model, tokenizer, prompts, responses=8, temperature=1.0, max_new_tokens=6, seed=1)
    assert all(len({tuple(row["tokens"]) for row in responses}) > 1 for responses in drawn)


def test_the_end_of_a_turn_ends_a_response_too(model):
    """Gemma's model names one end and its template another: a response stops at both."""
    tokenizer = template_tokenizer("gemma", eos="<eos>")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    model = tiny_model(len(tokenizer)).eval()
    linear = model.lm_head.forward
    model.lm_head.forward = lambda hidden: linear(hidden) + 99.0 * torch.nn.functional.one_hot(torch.tensor(end), len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    ((row,),) = generate(model, tokenizer, [[20]], max_new_tokens=5)
    assert row == {"tokens": [end], "text": "", "finish_reason": "stop"}


LLAMA_3 = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)


@pytest.mark.parametrize(
    "config, device, size",
    [
        (LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3), "cpu", 256),
        # Keys and values, 32 layers, 8 heads of 128, 2 bytes: 131,072 bytes a token; 10 GB over 1000 such.
        (LLAMA_3, "cpu", 76),
        (LLAMA_3, "cuda", 228),  # 30 GB over the same
        (GPT2Config(n_embd=768, n_layer=12, n_head=12), "cuda", 512),
        (Gemma3Config(text_config=LLAMA_3.to_dict() | {"head_dim": 128}), "cuda", 228),  # the text model of one with images
        (MambaConfig(hidden_size=4096, num_hidden_layers=32), "cuda", 57),  # no heads: as wide as the model
        (LlamaConfig(hidden_size=65536, num_hidden_layers=512, num_attention_heads=512), "cuda", 1),
    ],
)
def test_as_many_are_written_at_once_as_half_of_what_the_model_leaves_holds(monkeypatch, config, device, size):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80_000_000_000))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=40_000_000_000))
    model = SimpleNamespace(config=config, device=torch.device(device), dtype=torch.bfloat16)
    model.parameters = lambda: [SimpleNamespace(nbytes=10_000_000_000)] * 2
    assert _batch_size(model, 1000) == size
