import math

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from cream.data.errors import InputError
from cream.method.consistency import calibrated
from cream.method.loss import cream_loss
from cream.method.methods import METHODS, exact

rates = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def weights_of(method, consistency, agrees=None, verdicts=None, C=0.8):
    """The C of each pair, a list."""
    count = len(consistency)
    pairs = pd.DataFrame({"consistency": consistency, "agrees": agrees or [1.0] * count})
    pairs["verdict"] = verdicts or ["right"] * count
    pairs["C"] = METHODS[method](pairs, {"C": C})
    return pairs.C.tolist()


@pytest.mark.parametrize(
    "method, weights",
    [
        ("srlm", [1, 1, 1, 1]),
        ("cream", [0.5, 0.5, 0.5, 0.5]),
        ("cream-per-prompt", [0.1, 0.4, 0.5, 1.0]),
        ("cream-drop", [math.nan, math.nan, 0.5, 1.0]),
        ("cream-exact", [0.75, 0.75, 0.75, 0.75]),  # lambda 0.5: 1.5 / 2
        ("fixed", [0.8, 0.8, 0.8, 0.8]),
        ("cream-select", [math.nan, math.nan, math.nan, 0.5]),
    ],
)
def test_weights_by_hand(method, weights):
    assert weights_of(method, [0.1, 0.4, 0.5, 1.0]) == pytest.approx(weights, nan_ok=True)


@pytest.mark.parametrize("method", METHODS)
@given(rates)
def test_every_weight_is_a_rate_or_drops_the_pair(method, consistency):
    found = weights_of(method, consistency, C=0.3)
    assert len(found) == len(consistency)
    assert all(math.isnan(C) or 0 <= C <= 1 + 1e-12 for C in found)


@given(rates)
def test_exact_and_drop_reverse_no_pair(consistency):
    for method in ("cream-exact", "cream-drop"):
        assert all(math.isnan(C) or C >= 0.5 for C in weights_of(method, consistency))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 10.0])
def test_exact_c_is_dpo_with_a_kl_to_uniform_regulariser(weight):
    z = torch.linspace(-5, 5, 21, dtype=torch.float64, requires_grad=True)
    probability = torch.sigmoid(z)
    # KL(uniform || P) over the two orders of a pair, written out; 2 log 2 is what L_Reg has over 2 KL.
    kl = 0.5 * (0.5 / probability).log() + 0.5 * (0.5 / (1 - probability)).log()
    regularised = -logsigmoid(z) + weight * (2 * kl + 2 * math.log(2))
    cream = (1 + 2 * weight) * cream_loss(z, 0 * z, 0 * z, 0 * z, exact(weight), beta=1.0)
    torch.testing.assert_close(cream, regularised)
    for loss in (cream, regularised):  # and the same slope
        (slope,) = torch.autograd.grad(loss.sum(), z, retain_graph=True)
        torch.testing.assert_close(slope, (1 + 2 * weight) * (probability - exact(weight)))


def dpo(z):
    return math.log1p(math.exp(-z))


def smoothed(z, c):
    return c * dpo(z) + (1 - c) * dpo(-z)


def regularised(z, strength):
    """DPO and `strength` times -log P(y > y') - log P(y' > y), over 1 + 2 strength."""
    return (dpo(z) + strength * (dpo(z) + dpo(-z))) / (1 + 2 * strength)


@pytest.mark.parametrize(
    "method, expected",
    [
        ("srlm", lambda z, c, mean: dpo(z)),
        ("cream", lambda z, c, mean: smoothed(z, mean)),
        ("cream-per-prompt", lambda z, c, mean: smoothed(z, c)),
        ("cream-drop", lambda z, c, mean: smoothed(z, c) if c >= 0.5 else math.nan),
        ("cream-exact", lambda z, c, mean: regularised(z, 1 - mean)),
        ("fixed", lambda z, c, mean: regularised(z, 1 / 3)),  # C = 0.8 = (1 + 1/3) / (1 + 2/3)
    ],
)
def test_the_loss_of_every_method_in_closed_form(method, expected):
    consistency = [0.2, 0.5, 0.7, 1.0]
    z = torch.tensor([-1.5, 0.3, 2.0, 4.0], dtype=torch.float64)
    losses = cream_loss(z, 0 * z, 0 * z, 0 * z, torch.tensor(weights_of(method, consistency)), beta=1.0)
    by_hand = [expected(margin, c, 0.6) for margin, c in zip(z.tolist(), consistency)]
    assert losses.tolist() == pytest.approx(by_hand, nan_ok=True)


def test_select_keeps_the_pairs_of_tau_0_2_and_more():
    found = weights_of("cream-select", [0.55, 0.6, 0.6 - 1e-9, 0.65])  # rounding may leave 0.6 short of it
    assert found == pytest.approx([math.nan, 0.6, 0.6, 0.6], nan_ok=True)


def test_its_control_leaves_out_as_many_pairs_but_others():
    consistency = [number / 99 for number in range(100)]
    ours, control = (torch.tensor(weights_of(method, consistency)) for method in ("cream-select", "cream-select-random"))
    assert ours.isnan().sum() == control.isnan().sum() == 60
    assert 15 < (ours.isnan() & control.isnan()).sum() < 55  # 36 by chance
    assert ours.nanmean() == control.nanmean() == pytest.approx(0.5)


@pytest.mark.parametrize("accuracy", [0.5, 0.6, 0.75, 0.9, 1.0])
def test_calibrated_c_is_the_accuracy_of_two_rankers_that_err_independently(accuracy):
    """Drawn, not derived: two rankers that are right with this probability, each by itself."""
    right = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(0)) < accuracy
    agreement = (right[0] == right[1]).double().mean().item()
    # Near 1/2 the root turns a small error into a large one.
    assert calibrated(agreement) == pytest.approx(accuracy, abs=0.04 if accuracy == 0.5 else 0.01)


@pytest.mark.parametrize("agrees, C", [([1, 1, 1, 1], 1.0), ([1, 0, 0.5, 1], (1 + math.sqrt(0.25)) / 2), ([0, 0, 0.5, 1], 0.5)])
def test_calibrated_c_by_hand(agrees, C):
    assert weights_of("cream-calibrated", [0.9, 0.9, 0.2, 0.2], agrees) == pytest.approx([C] * 4)


@pytest.mark.parametrize(
    "verdicts, C",
    [
        (["right", "right", "wrong", "undecided"], 3 / 5),
        (["undecided", None, None, None], 1 / 2),
        (["right"] * 4, 5 / 6),
    ],
)
def test_the_oracle_counts_the_right_pairs_of_the_decided(verdicts, C):
    assert weights_of("cream-oracle", [0.1, 0.2, 0.3, 0.4], verdicts=verdicts) == pytest.approx([C] * 4)


def test_the_oracle_needs_answers():
    with pytest.raises(InputError, match="no answer to these prompts is known"):
        weights_of("cream-oracle", [0.5, 0.5], verdicts=[None, None])
