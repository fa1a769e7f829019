import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from cream.method.loss import cream_loss

zeros = torch.zeros(1, dtype=torch.float64)


def loss_at(z, consistency):
    """The loss where the margin is z: beta 1 and everything else 0."""
    return cream_loss(torch.as_tensor(z, dtype=torch.float64), zeros, zeros, zeros, consistency, beta=1.0)


def test_loss_by_hand():
    # margin = 0.5 * ((-1 + 2) - (-4 + 1)) = 2
    # 0.75 * log(1 + e^-2) + 0.25 * log(1 + e^2) = 0.75 * 0.126928 + 0.25 * 2.126928 = 0.626928
    chosen, rejected, reference_chosen, reference_rejected = torch.tensor([[-1.0], [-4.0], [-2.0], [-1.0]])
    loss = cream_loss(chosen, rejected, reference_chosen, reference_rejected, 0.75, beta=0.5)
    assert loss.tolist() == [pytest.approx(0.626928, abs=1e-6)]


def test_each_pair_has_its_own_loss_and_its_own_consistency():
    loss = loss_at([2.0, 2.0, -2.0], torch.tensor([1.0, 0.0, 0.5]))
    assert loss.tolist() == pytest.approx([0.126928, 2.126928, 1.126928], abs=1e-6)


@pytest.mark.parametrize("consistency", [0.0, 0.3, 0.5, 1.0])
def test_loss_is_log_2_where_policy_and_reference_are_equal(consistency):
    chosen, rejected = torch.tensor([-3.0, -80.0]), torch.tensor([-9.0, -2.0])
    loss = cream_loss(chosen, rejected, chosen, rejected, consistency, beta=0.1)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("consistency", [0.0, 0.39, 0.5, 0.92, 1.0])
def test_closed_form(consistency):
    z = torch.linspace(-6, 6, 25, dtype=torch.float64)
    torch.testing.assert_close(loss_at(z, consistency), -logsigmoid(z) + (1 - consistency) * z)


@pytest.mark.parametrize("consistency", [0.0, 0.39, 0.5, 0.92, 1.0])
def test_slope_is_sigmoid_minus_consistency(consistency):
    z = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss_at(z, consistency).sum(), z)
    torch.testing.assert_close(slope, torch.sigmoid(z) - consistency)


@pytest.mark.parametrize(
    "consistency, best", [(0.25, -math.log(3)), (0.5, 0.0), (0.75, math.log(3)), (0.9, math.log(9))]
)
def test_minimum_is_at_logit_of_consistency(consistency, best):
    below, at, above = loss_at([best - 0.1, best, best + 0.1], consistency)
    assert at < below and at < above
    z = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss_at(z, consistency).sum(), z)
    assert slope.item() == pytest.approx(0, abs=1e-12)


def test_gradients_pull_the_four_log_probs_the_right_way():
    inputs = [torch.zeros(1, requires_grad=True) for _ in range(4)]
    cream_loss(*inputs, 1.0, beta=0.1).sum().backward()
    assert [x.grad.item() for x in inputs] == pytest.approx([-0.05, 0.05, 0.05, -0.05])


def test_full_consistency_is_dpo():
    torch.manual_seed(0)
    chosen, rejected, reference_chosen, reference_rejected = torch.randn(4, 16)
    dpo = -logsigmoid(0.1 * (chosen - rejected - reference_chosen + reference_rejected))
    torch.testing.assert_close(cream_loss(chosen, rejected, reference_chosen, reference_rejected, 1.0, 0.1), dpo)


def test_no_consistency_is_dpo_on_the_flipped_pairs():
    torch.manual_seed(0)
    chosen, rejected, reference_chosen, reference_rejected = torch.randn(4, 16)
    flipped = cream_loss(rejected, chosen, reference_rejected, reference_chosen, 1.0, 0.1)
    torch.testing.assert_close(cream_loss(chosen, rejected, reference_chosen, reference_rejected, 0.0, 0.1), flipped)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.27, 0.5])
def test_consistency_is_label_smoothing(smoothing):
    # cDPO (Mitchell, 2023): binary cross-entropy against the label 1 - smoothing
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    target = torch.full_like(z, 1 - smoothing)
    cdpo = torch.nn.functional.binary_cross_entropy_with_logits(z, target, reduction="none")
    torch.testing.assert_close(loss_at(z, 1 - smoothing), cdpo)


@pytest.mark.parametrize("consistency", [0.0, 0.6, 1.0])
def test_large_margins_stay_finite(consistency):
    loss = loss_at([-1e4, 1e4], consistency)
    assert loss.tolist() == pytest.approx([1e4 * consistency, 1e4 * (1 - consistency)])


def test_the_nll_term_by_hand():
    # Margin 2 as above: DPO 0.126928, reversed 2.126928. NLL per token: 1 / 2 of the chosen, 4 / 4 of the rejected.
    # C 0.75, w 2: 0.75 * (0.126928 + 2 * 0.5) + 0.25 * (2.126928 + 2 * 1) = 0.845196 + 1.031732 = 1.876928
    chosen, rejected, reference_chosen, reference_rejected = torch.tensor([[-1.0], [-4.0], [-2.0], [-1.0]])
    lengths = {"chosen_tokens": torch.tensor([2]), "rejected_tokens": torch.tensor([4])}
    loss = cream_loss(chosen, rejected, reference_chosen, reference_rejected, 0.75, 0.5, sft_weight=2.0, **lengths)
    assert loss.tolist() == [pytest.approx(1.876928, abs=1e-6)]


def test_without_weight_the_lengths_do_not_matter():
    torch.manual_seed(0)
    logps = torch.randn(4, 16)
    lengths = torch.arange(1, 17)
    assert torch.equal(cream_loss(*logps, 0.3, 0.1), cream_loss(*logps, 0.3, 0.1, 0.0, lengths, lengths.flip(0)))


@pytest.mark.parametrize("consistency", [0.0, 0.2, 1.0])
def test_the_reverse_of_a_pair_has_the_other_consistency(consistency):
    """C L(c > r) + (1 - C) L(r > c) is the same with the two responses exchanged and 1 - C in place of C."""
    torch.manual_seed(0)
    chosen, rejected, reference_chosen, reference_rejected = torch.randn(4, 16)
    short, long = torch.arange(1, 17), torch.arange(16, 0, -1)
    one = cream_loss(chosen, rejected, reference_chosen, reference_rejected, consistency, 0.1, 0.7, short, long)
    other = cream_loss(rejected, chosen, reference_rejected, reference_chosen, 1 - consistency, 0.1, 0.7, long, short)
    torch.testing.assert_close(one, other)
