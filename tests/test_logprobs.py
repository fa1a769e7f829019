import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from cream.inference.logprobs import _score, response_logprobs, shares_prompts

END = PAD = 0
shape = dict(vocab_size=97, eos_token_id=END, pad_token_id=PAD, bos_token_id=None, initializer_range=0.2)
small = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
CONFIGS = {
    "llama": LlamaConfig(**shape, **small),
    "qwen2": Qwen2Config(**shape, **small),
    "gpt2": GPT2Config(**shape, n_embd=64, n_layer=2, n_head=4, n_positions=128),  # learned, absolute positions
}
# Mixed lengths, shared prompts that do not stand together, the end token inside a prompt, with and without it at the
# end of a response, a response that begins as another one does, and one of a single token.
PROMPTS = [[1, 2, 3], [7], [1, 2, 3], [4, END, 5, 6, 8, 9, 11, 12], [7], [1, 2, 3]]
RESPONSES = [[10, 11, END], [20, 21, 22, 23, 24, 25, 26, END], [10, 11, 12], [END], [30], [10, 11, END, END]]


def toy(family, attention="sdpa", dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation=attention, dtype=dtype).eval()


def naive(model, prompt, response):
    """One sequence, no padding, no mask, and the softmax of every position."""
    logprobs = model(torch.tensor([prompt + response])).logits[0].float().log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(response))


def naive_all(model, prompts=PROMPTS, responses=RESPONSES):
    return torch.stack([naive(model, *pair) for pair in zip(prompts, responses, strict=True)])


@pytest.mark.parametrize("max_tokens", [1, 16, 1024, None])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_equals_one_at_a_time_in_the_order_given(family, attention, max_tokens):
    model = toy(family, attention)
    sums = response_logprobs(model, PROMPTS, RESPONSES, max_tokens=max_tokens)
    torch.testing.assert_close(sums, naive_all(model), atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_architecture_that_caps_its_logits_is_scored_with_the_cap():
    torch.manual_seed(0)
    config = Gemma2Config(**shape, **small, head_dim=16, final_logit_softcapping=2.0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    torch.testing.assert_close(response_logprobs(model, PROMPTS, RESPONSES), naive_all(model), atol=1e-4, rtol=0)


@torch.no_grad()
def test_texts_longer_than_a_sliding_window_are_scored_one_by_one():
    model = AutoModelForCausalLM.from_config(MistralConfig(**shape, **small, sliding_window=6)).eval()
    short = [[1, 2, 3], [7]], [[10, 11, END], [20]]
    torch.testing.assert_close(response_logprobs(model, *short), naive_all(model, *short), atol=1e-4, rtol=0)
    sums = naive_all(model)
    torch.testing.assert_close(response_logprobs(model, PROMPTS, RESPONSES), sums, atol=1e-4, rtol=0)
    model.config.sliding_window = None
    assert (naive_all(toy_like(model)) - sums).abs().max() > 0.01  # the window shows


def toy_like(model):
    other = AutoModelForCausalLM.from_config(model.config).eval()
    other.load_state_dict(model.state_dict())
    return other


@torch.no_grad()
def test_a_row_longer_than_a_window_by_places_is_not_shared():
    """GPT-Neo's local attention counts places in the row: no text is longer than its window, but all responses together."""
    config = GPTNeoConfig(
        **shape, hidden_size=64, num_layers=2, num_heads=4, window_size=32, attention_types=[[["global", "local"], 1]]
    )
    model = sharp(AutoModelForCausalLM.from_config(config).eval())
    prompts, responses = [[1, 2, 3]] * 5, [[10 * k + i for i in range(9)] for k in range(1, 6)]
    torch.testing.assert_close(response_logprobs(model, prompts, responses), naive_all(model, prompts, responses), atol=1e-4, rtol=0)
    assert shares_prompts(model)
    rows = [(tuple(prompts[0]), [tuple(response) for response in responses])]
    assert (_score(model, rows, shared=True) - naive_all(model, prompts, responses)).abs().max() > 0.01


def sharp(model):
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(3)
    return model


@pytest.mark.parametrize("rope, most", [("dynamic", 16), ("longrope", 12)])
@torch.no_grad()
def test_texts_where_rotary_positions_change_are_refused(rope, most):
    factors = dict(short_factor=[1.0] * 8, long_factor=[2.0] * 8, original_max_position_embeddings=12)
    parameters = dict(rope_type=rope, rope_theta=1e4, factor=2.0) | (factors if rope == "longrope" else {})
    config = LlamaConfig(**shape, **small, max_position_embeddings=16, rope_parameters=parameters)
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.testing.assert_close(response_logprobs(model, PROMPTS, RESPONSES), naive_all(model), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=f"up to 23 tokens, and the model's rotary positions change at {most}"):
        response_logprobs(model, [[1, 2, 3]] * 2, [[5] * 20, [6]])


def test_a_hybrid_is_trained_and_scored_alike_and_tried_without_a_trace():
    torch.manual_seed(0)
    config = Lfm2Config(**shape, **small, layer_types=["conv", "full_attention"])
    model = AutoModelForCausalLM.from_config(config).train()
    model.model.layers[0].eval()
    random = torch.get_rng_state()
    assert not shares_prompts(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and model.model.layers[1].training and not model.model.layers[0].training
    sums = response_logprobs(model, PROMPTS, RESPONSES, max_tokens=None)
    torch.testing.assert_close(sums, naive_all(model), atol=1e-4, rtol=0)
    ours = torch.autograd.grad(sums.sum(), list(model.parameters()))
    theirs = torch.autograd.grad(naive_all(model).sum(), list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_model_that_sees_what_comes_is_refused():
    model = sharp(AutoModelForCausalLM.from_config(BertConfig(**shape, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)))
    with pytest.raises(ValueError, match="bert is no causal language model.*take another model.base"):
        response_logprobs(model.eval(), PROMPTS, RESPONSES)


def test_known_architectures_are_computed_without_a_trial(model):
    computed = []
    model.register_forward_pre_hook(lambda *_: computed.append(1))
    response_logprobs(model, PROMPTS, RESPONSES, max_tokens=None)
    assert len(computed) == 1


def test_the_output_layer_computes_response_tokens_alone_and_few_at_a_time(model):
    computed, head = [], model.get_output_embeddings()
    prompts, responses = [[1, 2, 3], [4] * 50, [1, 2, 3]], [[5] * 300, [6], [7, 8]]
    linear = head.forward
    head.forward = lambda hidden: computed.append(hidden.shape[0]) or linear(hidden)
    response_logprobs(model, prompts, responses, max_tokens=None).sum().backward()
    assert computed == [256, 47, 47, 256]  # 303 tokens, made again for the gradient
    head.forward(torch.zeros(1, head.in_features))
    assert computed[-1] == 1  # the model's own layer is back in its place


@torch.no_grad()
def test_a_response_does_not_see_the_others_to_its_prompt(model):
    alone = response_logprobs(model, [[1, 2]], [[50, 51, 52]])
    together = response_logprobs(model, [[1, 2]] * 3, [[60] * 9, [50, 51, 52], [70, END]])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_identical_responses_tie_exactly(model):
    prompts = [[1, 2], [3], [1, 2], [1, 2], [3]]
    responses = [[5, 6, END], [5, 6, END], [9] * 12, [5, 6, END], [5, 6, END]]
    for max_tokens in (1, 8, 1024):
        sums = response_logprobs(model, prompts, responses, max_tokens=max_tokens).tolist()
        assert sums[0] == sums[3] and sums[1] == sums[4]
        assert sums[0] != sums[1]  # the same response to another prompt is another one


@torch.no_grad()
def test_two_calls_give_the_same_bits(model):
    assert torch.equal(response_logprobs(model, PROMPTS, RESPONSES), response_logprobs(model, PROMPTS, RESPONSES))


@torch.no_grad()
def test_probabilities_of_all_next_tokens_sum_to_one(model):
    size = model.config.vocab_size
    sums = response_logprobs(model, [[1, 2, 3]] * size, [[token] for token in range(size)])
    assert sums.exp().sum().item() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_a_longer_response_is_less_likely_by_its_further_tokens(model):
    first, both, second = response_logprobs(model, [[1, 2], [1, 2], [1, 2, 3]], [[3], [3, 4], [4]]).tolist()
    assert both == pytest.approx(first + second, abs=1e-4)  # log p(a b) = log p(a) + log p(b | a): a sum, no mean


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_bf16_models_run_and_return_fp32_sums(attention):
    sums = response_logprobs(toy("llama", attention, torch.bfloat16), PROMPTS, RESPONSES)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, naive_all(toy("llama")), atol=1.0, rtol=0.05)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_equal_those_of_the_naive_loop(family):
    model, weights = toy(family), torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 3.0])
    parameters = list(model.parameters())
    ours = torch.autograd.grad(
        (weights * response_logprobs(model, PROMPTS, RESPONSES, max_tokens=None)).sum(), parameters
    )
    theirs = torch.autograd.grad((weights * naive_all(model)).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_token_ids_may_come_as_tuples(model):
    listed = response_logprobs(model, [[1, 2]], [[3, 4]])
    assert torch.equal(response_logprobs(model, [(1, 2)], [(3, 4)]), listed)


@pytest.mark.parametrize("prompts, responses", [([[1, 2], [3]], [[4], []]), ([[1, 2], []], [[4], [5]])])
def test_empty_prompts_and_responses_are_refused(model, prompts, responses):
    with pytest.raises(ValueError, match="no tokens"):
        response_logprobs(model, prompts, responses)


def test_a_response_without_a_prompt_is_refused(model):
    with pytest.raises(ValueError):
        response_logprobs(model, [[1, 2]], [[3], [4]])
