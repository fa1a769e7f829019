import copy
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, Phi3Config
from trl import DPOConfig, DPOTrainer

from cream.inference.logprobs import response_logprobs, score
from cream.models.loading import load_model, load_models, save_model
from cream.models.precision import fast_dtype
from cream.training.trainers import adapter_config, fine_tune, preference_trainer, train_preferences

END = 0
SETTINGS = dict(learning_rate=1e-3, epochs=1, batch_size=4, beta=0.1)
LORA = dict(r=4, alpha=8, dropout=0.0)
EXAMPLES = [
    {"prompt_ids": [1, 2, 3], "response_ids": [10, 11, END]},
    {"prompt_ids": [4, END, 5, 6, 7], "response_ids": [12, 13, 14, 15, 16, END]},
    {"prompt_ids": [8], "response_ids": [17, END]},
    {"prompt_ids": [9, 8, 7], "response_ids": [18, 19, 20, 21]},
]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the trainers write to .cache


def pairs_of(model, count=8, consistency=1.0):
    """Preference pairs of mixed lengths, the references scored as the rank stage does, all responses at once."""
    pairs = [
        {
            "prompt_ids": list(range(1, 3 + i % 3)) + [i],
            "chosen_ids": [20 + i, 30, 31, END][: 2 + i % 3],
            "rejected_ids": [40 + i, 50, END, 51, 52, END][: 1 + i % 6],
        }
        for i in range(count)
    ]
    for kind in ("chosen", "rejected"):
        with torch.no_grad():
            logps = response_logprobs(model, [p["prompt_ids"] for p in pairs], [p[f"{kind}_ids"] for p in pairs])
        for pair, logp in zip(pairs, logps.tolist(), strict=True):
            pair[f"ref_{kind}_logps"] = logp
    values = consistency if isinstance(consistency, list) else [consistency] * count
    return [pair | {"consistency": value} for pair, value in zip(pairs, values, strict=True)]


def margin_of(model, pair, beta=0.1):
    with torch.no_grad():
        chosen, rejected = response_logprobs(
            model, [pair["prompt_ids"]] * 2, [pair["chosen_ids"], pair["rejected_ids"]]
        )
    return beta * (chosen - pair["ref_chosen_logps"] - rejected + pair["ref_rejected_logps"]).item()


def naive_logp(model, prompt, response):
    logprobs = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(response)[:, None]).sum()


def naive_training(model, pairs, learning_rates, beta):
    """One step a learning rate, each on all pairs at once: AdamW, no decay of norms, clipping, the loss spelled out."""
    model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups)
    for rate in learning_rates:
        total = 0
        for pair in pairs:
            chosen = naive_logp(model, pair["prompt_ids"], pair["chosen_ids"]) - pair["ref_chosen_logps"]
            rejected = naive_logp(model, pair["prompt_ids"], pair["rejected_ids"]) - pair["ref_rejected_logps"]
            z = beta * (chosen - rejected)
            total = total - logsigmoid(z) + (1 - pair["consistency"]) * z
        optimiser.zero_grad()
        (total / len(pairs)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    return model


def assert_same_weights(one, other, atol=0.0):
    for (name, ours), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("consistency", [0.0, 0.5, 0.73, 1.0])
def test_training_starts_at_margin_0_and_loss_log_2(model, tokenizer, consistency):
    _, curve = train_preferences(model, tokenizer, pairs_of(model, consistency=consistency), SETTINGS, seed=1)
    assert curve["margin"][0] == pytest.approx(0, abs=1e-5)
    assert curve["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert list(curve["step"]) == [1, 2]


def trl_training(make_model, tokenizer, pairs, **loss):
    """TRL's own trainer on the pairs, two epochs; only the data is shared with ours."""
    config = DPOConfig(
        output_dir=".cache/oracle",
        **loss,
        beta=0.1,
        learning_rate=1e-3,
        num_train_epochs=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        seed=3,
    )

    class TokenIds(DPOTrainer):
        def _prepare_dataset(self, dataset, *args):
            return dataset

    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    data = Dataset.from_list([{column: pair[column] for column in columns} for pair in pairs])
    oracle = TokenIds(make_model(), ref_model=make_model(), args=config, train_dataset=data, processing_class=tokenizer)
    oracle.train()
    return oracle


@pytest.mark.parametrize("consistency", [0.3, 0.73, 1.0])
def test_loss_curve_equals_that_of_trl(make_model, tokenizer, consistency):
    # TRL's "aot" loss on single pairs is the loss of CREAM with label_smoothing = 1 - C.
    pairs = pairs_of(make_model(), count=16, consistency=consistency)
    ours, curve = train_preferences(make_model(), tokenizer, pairs, SETTINGS | {"epochs": 2}, seed=3)

    oracle = trl_training(make_model, tokenizer, pairs, loss_type=["aot"], label_smoothing=1 - consistency)
    losses = [entry["loss"] for entry in oracle.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert abs(losses[-1] - losses[0]) > 0.01  # it has learned something by then
    assert list(curve["loss"]) == pytest.approx(losses, abs=1e-4)
    assert_same_weights(ours, oracle.model, atol=1e-4)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_loss_curve_with_the_nll_term_equals_that_of_trl(make_model, tokenizer, weight):
    """loss_type ["sigmoid", "sft"], a pair at a time: TRL's mean over the tokens of a batch is then that of one pair."""
    pairs = pairs_of(make_model(), count=16)
    settings = SETTINGS | {"epochs": 2, "sft_weight": weight}
    ours, curve = train_preferences(make_model(), tokenizer, pairs, settings, seed=3)
    oracle = trl_training(make_model, tokenizer, pairs, loss_type=["sigmoid", "sft"], loss_weights=[1.0, weight])
    losses = [entry["loss"] for entry in oracle.state.log_history if "loss" in entry]
    assert abs(losses[-1] - losses[0]) > 0.1
    assert list(curve["loss"]) == pytest.approx(losses, abs=1e-4)
    assert_same_weights(ours, oracle.model, atol=1e-4)


def test_the_nll_term_keeps_the_chosen_response_likely(make_model, tokenizer):
    moved = {}
    for weight in (0.0, 1.0):
        pairs = pairs_of(make_model(), count=16)
        settings = SETTINGS | {"epochs": 8, "sft_weight": weight}
        _, curve = train_preferences(make_model(), tokenizer, pairs, settings, seed=3)
        assert curve["chosen"][0] == pytest.approx(0, abs=1e-5) and curve["rejected"][0] == pytest.approx(0, abs=1e-5)
        last = curve.iloc[-1]
        assert last.margin == pytest.approx(0.1 * (last.chosen - last.rejected), abs=1e-5)
        moved[weight] = last.chosen
    assert moved[1.0] > moved[0.0] and moved[1.0] > 1


@pytest.mark.parametrize(("batch_size", "count"), [(8, 8), (2, 2), (8, 5)])
def test_global_batch_is_reached_by_accumulation(make_model, tokenizer, batch_size, count):
    """Three steps of one batch against a plain loop; each pair has a C of its own and weighs the same."""
    pairs = pairs_of(make_model(), count, consistency=[0.0, 0.9, 0.3, 1.0, 0.4, 0.6, 0.2, 0.8][:count])
    settings = SETTINGS | {"epochs": 3, "batch_size": batch_size}
    trained, curve = train_preferences(make_model(), tokenizer, pairs, settings, seed=1)
    assert curve["loss"][0] == pytest.approx(math.log(2), abs=1e-5)  # AdamW hides a loss that is off by a factor
    assert list(curve["learning_rate"]) == pytest.approx([0, 1e-3, 5e-4])  # one step of warm-up, then the cosine
    # AdamW makes a full step of a gradient that is 0 but for rounding, hence the tolerance on a path of 1.5e-3.
    assert_same_weights(trained, naive_training(make_model(), pairs, [0, 1e-3, 5e-4], beta=0.1), atol=3e-4)


def test_weights_decay(make_model, tokenizer):
    # No pair holds token 99, so nothing but the decay of 0.01 moves its embedding, by 0.01 * (0 + 1e-3 + 5e-4) in all.
    base = make_model()
    settings = SETTINGS | {"epochs": 3, "batch_size": 8}
    trained, _ = train_preferences(make_model(), tokenizer, pairs_of(base), settings, seed=1)
    before, after = (model.model.embed_tokens.weight[99] for model in (base, trained))
    torch.testing.assert_close(after, before * (1 - 1.5e-5), atol=1e-7, rtol=0)


def test_two_runs_give_the_same_bits(make_model, tokenizer):
    pairs = pairs_of(make_model(), consistency=0.8)
    settings = SETTINGS | {"epochs": 2}
    (one, curve), (other, same_curve) = (
        train_preferences(make_model(), tokenizer, pairs, settings, 1) for _ in range(2)
    )
    assert_same_weights(one, other)
    assert curve.equals(same_curve)


def test_the_seed_decides_the_order_of_the_pairs(make_model, tokenizer):
    pairs = pairs_of(make_model(), count=16)
    _, curve = train_preferences(make_model(), tokenizer, pairs, SETTINGS, seed=1)
    _, other = train_preferences(make_model(), tokenizer, pairs, SETTINGS, seed=2)
    assert list(curve["loss"]) != list(other["loss"])


def test_the_order_of_the_pairs_does_not_depend_on_their_consistency(make_model, tokenizer):
    model, settings = make_model(), SETTINGS | {"epochs": 2}
    trained = (
        list(preference_trainer(model, tokenizer, pairs_of(model, consistency=consistency), settings, 1).train_dataset)
        for consistency in (1.0, [i / 8 for i in range(8)])
    )
    for one, other in zip(*trained, strict=True):
        assert one | {"consistency": None} == other | {"consistency": None}


def test_each_pair_is_trained_by_its_own_consistency(make_model, tokenizer):
    base = make_model()
    pairs = pairs_of(base, count=2, consistency=[1.0, 0.0])
    trained, _ = train_preferences(make_model(), tokenizer, pairs, SETTINGS | {"epochs": 4, "batch_size": 2}, seed=1)
    assert margin_of(trained, pairs[0]) > 0.05
    assert margin_of(trained, pairs[1]) < -0.05


def test_margin_grows_with_full_consistency_and_stays_at_half(make_model, tokenizer):
    margins = {}
    for consistency in (0.0, 0.5, 1.0):
        pairs = pairs_of(make_model(), consistency=consistency)
        _, curve = train_preferences(make_model(), tokenizer, pairs, SETTINGS | {"epochs": 4}, seed=1)
        margins[consistency] = curve["margin"].iloc[-1]
    assert margins[1.0] > 1
    assert margins[0.0] < -1
    assert abs(margins[0.5]) < 0.2  # AdamW makes full steps of what is left of the gradient, so not quite 0


def test_the_first_margin_is_zero_where_ranking_and_training_share_a_precision(make_model, tokenizer, tmp_path):
    save_model(make_model(), tokenizer, tmp_path / "m1")
    rows = pairs_of(make_model(), consistency=1.0)

    def first_margin(scored, trained):
        for which in ("chosen", "rejected"):
            prompts, responses = [row["prompt_ids"] for row in rows], [row[f"{which}_ids"] for row in rows]
            (sums,) = score([tmp_path / "m1"], prompts, responses, precision=scored)
            for row, value in zip(rows, sums.tolist()):
                row[f"ref_{which}_logps"] = value
        _, curve = train_preferences(make_model(), tokenizer, rows, SETTINGS | {"batch_size": 8}, 1, precision=trained)
        return abs(curve.margin[0])

    assert first_margin("fp32", "fp32") < 1e-6
    # Where the processor has no bf16 products, ranking and training round a little differently: thousandths of a nat.
    assert first_margin("bf16", "bf16") < (1e-4 if fast_dtype() == torch.bfloat16 else 1e-3)
    assert first_margin("fp32", "bf16") > 1e-4


def test_fine_tuning_starts_at_the_nll_of_the_response_tokens(make_model):
    model = make_model()
    tokens, nll = 0, 0.0
    for row in EXAMPLES:
        ids = row["prompt_ids"] + row["response_ids"]
        labels = [-100] * len(row["prompt_ids"]) + row["response_ids"]
        with torch.no_grad():
            nll += model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item() * len(row["response_ids"])
        tokens += len(row["response_ids"])
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.01)):
        _, curve = fine_tune(make_model(), EXAMPLES, SETTINGS, seed=1, precision=precision)
        assert curve["loss"][0] == pytest.approx(nll / tokens, rel=tolerance)
        assert (abs(curve["loss"][0] - nll / tokens) > 1e-6) == (precision == "bf16")


def test_training_in_bf16_follows_that_in_fp32(make_model, tokenizer):
    for train_it in (
        lambda precision: fine_tune(make_model(), EXAMPLES, SETTINGS | {"epochs": 12}, 1, precision=precision),
        lambda precision: train_preferences(
            make_model(), tokenizer, pairs_of(make_model()), SETTINGS | {"epochs": 4}, 1, precision=precision
        ),
    ):
        exact, rounded = (train_it(precision)[1].loss for precision in ("fp32", "bf16"))
        assert exact.iloc[-1] < 0.8 * exact.iloc[0]
        assert (rounded - exact).abs().max() < 0.02 * exact.iloc[0]


def test_fine_tuning_teaches_the_responses_and_not_the_prompts(make_model):
    def loss(model, text):
        with torch.no_grad():
            return -naive_logp(model, text[:1], text[1:]).item()

    model = make_model()
    prompt_before = sum(loss(model, row["prompt_ids"]) for row in EXAMPLES if len(row["prompt_ids"]) > 1)
    trained, curve = fine_tune(make_model(), EXAMPLES, SETTINGS | {"epochs": 12}, seed=1)
    prompt_after = sum(loss(trained.eval(), row["prompt_ids"]) for row in EXAMPLES if len(row["prompt_ids"]) > 1)
    assert curve["loss"].iloc[-1] < 0.5 * curve["loss"][0]
    assert prompt_after > 0.8 * prompt_before
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())


def test_fine_tuning_twice_gives_the_same_bits(make_model):
    one, other = (fine_tune(make_model(), EXAMPLES, SETTINGS | {"epochs": 2}, seed=1)[0] for _ in range(2))
    assert_same_weights(one, other)


def test_an_adapter_survives_saving(make_model, tokenizer):
    def logps(model):
        with torch.no_grad():
            prompts, responses = ([row[key] for row in EXAMPLES] for key in ("prompt_ids", "response_ids"))
            return response_logprobs(model, prompts, responses)

    save_model(make_model(), tokenizer, "m0")
    m1, _ = fine_tune(load_model("m0"), EXAMPLES, SETTINGS | {"epochs": 4}, seed=1, lora=LORA)
    save_model(m1, tokenizer, "m1")
    loaded = load_model("m1")
    assert_same_weights(loaded, m1)
    assert (logps(loaded) - logps(load_model("m0"))).abs().max() > 0.1  # it has learned something to be saved
    save_model(loaded, tokenizer, "again")
    assert torch.equal(logps(load_model("again")), logps(loaded))


def test_adapters_are_scored_together_over_one_base(make_model, tokenizer):
    save_model(make_model(), tokenizer, "m0")
    for name, epochs in (("m1", 4), ("m2", 8)):
        model, _ = fine_tune(load_model("m0"), EXAMPLES, SETTINGS | {"epochs": epochs}, seed=1, lora=LORA)
        save_model(model, tokenizer, name)
    prompts, responses = ([row[key] for row in EXAMPLES] for key in ("prompt_ids", "response_ids"))
    folders = ["m2", "m0", "m1", "m0"]
    together = score(folders, prompts, responses)
    assert together.shape == (4, len(EXAMPLES))
    for sums, folder in zip(together, folders):
        with torch.no_grad():
            assert torch.equal(sums, response_logprobs(load_model(folder), prompts, responses))
    assert (together[0] - together[2]).abs().max() > 0.01 and (together[1] - together[2]).abs().max() > 0.01

    m2, m0 = load_models([Path("m2"), Path("m0")])
    assert m2.get_output_embeddings().weight.data_ptr() == m0.get_output_embeddings().weight.data_ptr()
    own = {weight.data_ptr() for weight in m2.parameters()} - {weight.data_ptr() for weight in m0.parameters()}
    assert len(own) == sum("lora_" in name for name, _ in m2.named_parameters())  # all else is M0's


def test_whole_models_are_scored_one_after_another(make_model, tokenizer):
    save_model(make_model(), tokenizer, "m0")
    save_model(fine_tune(make_model(), EXAMPLES, SETTINGS | {"epochs": 8}, seed=1)[0], tokenizer, "m1")
    m1, m0 = score(["m1", "m0"], [[1, 2]], [[3, 4, 5, END]])
    assert (m1 - m0).abs() > 0.01
    assert m1 == score(["m1"], [[1, 2]], [[3, 4, 5, END]])[0]


def test_a_fine_tuned_model_scores_as_its_saved_copy(make_model, tokenizer):
    trained, _ = fine_tune(make_model(), EXAMPLES, SETTINGS, seed=1)
    save_model(trained, tokenizer, "m1")
    with torch.no_grad():
        here, saved = (response_logprobs(m.eval(), [[1, 2]], [[3, 4, 5, END]]) for m in (trained, load_model("m1")))
    torch.testing.assert_close(here, saved, atol=1e-4, rtol=0)


def test_preference_training_of_an_adapter_leaves_its_base_alone(make_model, tokenizer):
    save_model(make_model(), tokenizer, "m0")
    m1, _ = fine_tune(load_model("m0"), EXAMPLES, SETTINGS, seed=1, lora=LORA)
    save_model(m1, tokenizer, "m1")
    pairs = pairs_of(load_model("m1"))
    m2, curve = train_preferences(load_model("m1", trainable=True), tokenizer, pairs, SETTINGS, seed=1)
    save_model(m2, tokenizer, "m2")
    assert curve["margin"][0] == pytest.approx(0, abs=1e-5)

    start, trained = load_model("m1").state_dict(), load_model("m2").state_dict()
    changed = {name for name in start if not torch.equal(start[name], trained[name])}
    assert changed and all("lora_" in name for name in changed)
    assert margin_of(load_model("m2"), pairs[0]) == margin_of(m2.eval(), pairs[0]) > 0

    # Only the policy: TRL keeps a frozen copy of the adapter beside it.
    weights = [path.name for path in Path("m2").rglob("*.safetensors")]
    assert weights == ["adapter_model.safetensors"]
    assert not [path for path in Path("m2").iterdir() if path.is_dir()]


def test_an_architecture_without_default_adapters_gets_them_on_its_linear_layers(tokenizer):
    config = Phi3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    save_model(AutoModelForCausalLM.from_config(config), tokenizer, "m0")
    m1, curve = fine_tune(load_model("m0"), EXAMPLES, SETTINGS | {"epochs": 8}, seed=1, lora=LORA)
    assert curve["loss"].iloc[-1] < curve["loss"][0]
    trained = {name.split(".")[-4] for name, weight in m1.named_parameters() if weight.requires_grad}
    assert trained == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    save_model(m1, tokenizer, "m1")
    prompts, responses = ([row[key] for row in EXAMPLES] for key in ("prompt_ids", "response_ids"))
    with torch.no_grad():
        assert torch.equal(response_logprobs(load_model("m1"), prompts, responses), response_logprobs(m1.eval(), prompts, responses))


def test_an_architecture_with_default_adapters_keeps_them(model):
    assert adapter_config(model, LORA).target_modules == {"q_proj", "v_proj"}


def test_a_copy_of_a_trained_model_computes_with_its_own_weights(model, tokenizer):
    """TRL's forward would have computed with those of the model that was copied."""
    trained, _ = train_preferences(model, tokenizer, pairs_of(model), SETTINGS, seed=3)
    again = copy.deepcopy(trained)
    with torch.no_grad():
        for weights in again.parameters():
            weights.zero_()
        assert again(torch.tensor([[1, 2, 3]], device=again.device)).logits.abs().max() == 0
