import math
import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from cream.method.consistency import (
    MEASURES,
    consistency_rate,
    kendall_tau,
    kendall_tau_b,
    spearman,
    top_order,
    top_order_official,
)
from cream.pipeline.parameters import SCHEMA

small = st.integers(-3, 3).map(float)  # a narrow range, so that ties are common


@st.composite
def two_scorings(draw, values=small, unique=False):
    n = draw(st.integers(2, 7))
    return tuple([draw(st.lists(values, min_size=n, max_size=n, unique=unique))] for _ in range(2))


def naive_tau(a, b):
    total = 0
    for i in range(len(a)):
        for k in range(i + 1, len(a)):
            product = (a[i] - a[k]) * (b[i] - b[k])
            total += (product > 0) - (product < 0)
    return 2 * total / (len(a) * (len(a) - 1))


@pytest.mark.parametrize(
    "a, b, tau",
    [
        ([1, 2, 3], [10, 20, 30], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 2, 3], [1, 3, 2], 1 / 3),  # 2 pairs agree, 1 does not
        ([1, 2, 3, 4], [2, 1, 4, 3], 1 / 3),  # 4 agree, 2 do not
        ([1, 2, 3, 4, 5], [3, 1, 4, 2, 5], 0.4),  # 7 agree, 3 do not
        ([1, 1, 2], [1, 2, 3], 2 / 3),  # the tied pair adds 0 but counts in the denominator
        ([1, 2], [5, 5], 0),
    ],
)
def test_kendall_by_hand(a, b, tau):
    assert kendall_tau([a], [b]).tolist() == [pytest.approx(tau)]


def test_ties_add_nothing_as_in_the_paper():
    # Of the 10 pairs 3 are tied, 6 agree and 1 does not. The official code's ordinal ranks make it (9 - 1) / 10.
    tau = kendall_tau([[1, 1, 1, 0.2, 0.1]], [[2, 2, 2, 0.1, 0.2]])
    assert tau.tolist() == [0.5]
    assert consistency_rate(tau).tolist() == [0.75]


def test_every_prompt_has_its_own_value():
    a = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    b = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 2.0, 2.0]])
    assert kendall_tau(a, b).tolist() == [1, -1, 0]
    assert spearman(a, b).tolist() == pytest.approx([1, -1, 0])
    assert top_order(a, b).tolist() == [1, 0, 0]


def test_rate_maps_tau_to_the_unit_interval():
    assert consistency_rate(torch.tensor([-1.0, -0.22, 0.0, 0.84, 1.0])).tolist() == pytest.approx(
        [0, 0.39, 0.5, 0.92, 1]
    )


@pytest.mark.parametrize(
    "a, b, rho",
    [
        ([1, 2, 3, 4], [1, 2, 4, 3], 0.8),  # 1 - 6 * 2 / (4 * 15)
        ([1, 2, 3, 4, 5], [5, 1, 2, 3, 4], 0.0),  # 1 - 6 * 20 / (5 * 24)
        ([1, 2, 2], [1, 2, 3], math.sqrt(3) / 2),  # ranks 1, 2.5, 2.5
    ],
)
def test_spearman_by_hand(a, b, rho):
    assert spearman([a], [b]).tolist() == [pytest.approx(rho)]


@pytest.mark.parametrize(
    "a, b, agrees",
    [
        ([3, 1, 2, 0], [9, 5, 4, 1], 1),  # best and worst agree, the middle need not
        ([3, 1, 2, 0], [9, 0, 4, 1], 0),  # another worst
        ([3, 1, 2, 0], [5, 4, 9, 1], 0),  # another best
        ([0, 2, 1], [1, 3, 2], 1),  # the first and last item are neither
        ([2, 2, 1], [3, 3, 0], 1),  # the same tie for best
        ([2, 2, 1], [3, 2, 0], 0),
        ([1, 1, 1], [1, 1, 1], 0),
    ],
)
def test_top_order_compares_the_best_and_the_worst_item(a, b, agrees):
    assert top_order([a], [b]).tolist() == [agrees]
    assert top_order([b], [a]).tolist() == [agrees]


@pytest.mark.parametrize(
    "a, b, agrees",
    [
        ([0, 2, 1], [0, 1, 2], 0),  # the last has rank 1 and rank 2
        ([1, 0, 2, 3], [1, 3, 0, 2], 0),
        ([1, 3, 0, 2], [5, 9, 2, 7], 1),  # first and last keep their ranks; best and worst are not looked at
        ([1, 3, 0, 2], [1, 0, 3, 2], 1),  # even where best and worst change places
        ([1, 1, 1], [7, 8, 9], 1),  # equal scores count as ordered by position
    ],
)
def test_the_official_top_order_compares_the_first_and_the_last_item(a, b, agrees):
    assert top_order_official([a], [b]).tolist() == [agrees]


def test_measures_are_rates():
    a, b = [[1, 2, 3, 3]], [[1, 2, 4, 3]]
    assert {name: measure(a, b).item() for name, measure in MEASURES.items()} == {
        "kendall": pytest.approx((5 / 6 + 1) / 2),
        "kendall_b": pytest.approx((5 / math.sqrt(5 * 6) + 1) / 2),
        "spearman": pytest.approx(
            (4.5 / math.sqrt(4.5 * 5) + 1) / 2
        ),  # centred ranks -1.5, -.5, 1, 1 and -1.5, -.5, 1.5, .5
        "top_order": 0,
        "top_order_official": 0,
    }


def test_the_parameters_know_every_measure():
    assert re.search(r"measure: {enum: \[(.*)\]}", SCHEMA.read_text()).group(1).split(", ") == list(MEASURES)


def test_a_model_that_ties_all_responses_is_neither_consistent_nor_inconsistent():
    tied, ordered = [[7.0] * 5], [[1.0, 2.0, 3.0, 4.0, 5.0]]
    assert kendall_tau(tied, ordered).tolist() == kendall_tau(tied, tied).tolist() == [0]
    assert kendall_tau_b(tied, ordered).tolist() == kendall_tau_b(tied, tied).tolist() == [0]
    assert spearman(tied, ordered).tolist() == spearman(tied, tied).tolist() == [0]
    assert top_order(tied, ordered).tolist() == top_order(tied, tied).tolist() == [0]


def test_duplicates_cannot_reach_full_consistency():
    # Two of five responses are identical: 9 of the 10 pairs agree and 1 is tied in both rankings.
    rewards = [[1.0, 1.0, 2.0, 3.0, 4.0]]
    assert kendall_tau(rewards, rewards).tolist() == [pytest.approx(0.9)]
    assert kendall_tau_b(rewards, rewards).tolist() == [pytest.approx(1)]
    assert spearman(rewards, rewards).tolist() == [pytest.approx(1)]


def test_infinite_rewards_are_ordered_and_tie_with_themselves():
    a = [[-math.inf, -math.inf, 0.0, math.inf]]
    assert kendall_tau(a, [[1, 2, 3, 4]]).tolist() == [pytest.approx(5 / 6)]
    assert spearman(a, [[1, 1, 2, 3]]).tolist() == [pytest.approx(1)]
    assert top_order(a, [[1, 1, 2, 3]]).tolist() == [1]


def test_rewards_closer_than_fp32_can_tell_are_still_ordered():
    assert kendall_tau([[1.0, 1.0 + 1e-12]], [[1.0, 2.0]]).tolist() == [1]


@pytest.mark.parametrize("measure", [kendall_tau, kendall_tau_b, spearman, top_order, top_order_official])
@pytest.mark.parametrize(
    "a, b, message",
    [
        ([[1.0, math.nan, 2.0]], [[1.0, 2.0, 3.0]], "NaN"),
        ([[1.0, 2.0, 3.0]], [[1.0, math.nan, 2.0]], "NaN"),
        ([[1.0]], [[1.0]], r"\[1, 1\]"),
        ([[1.0, 2.0]], [[1.0, 2.0, 3.0]], r"\[1, 2\] and \[1, 3\]"),
        ([[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], r"\[1, 2\] and \[2, 2\]"),
        ([1.0, 2.0], [1.0, 2.0], r"\[2\]"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(measure, a, b, message):
    with pytest.raises(ValueError, match=message):
        measure(a, b)


@given(two_scorings())
def test_kendall_equals_a_double_loop(scores):
    a, b = scores
    assert kendall_tau(a, b).item() == pytest.approx(naive_tau(a[0], b[0]))


@given(two_scorings(st.floats(-1e3, 1e3), unique=True))
def test_kendall_equals_scipy_without_ties(scores):
    a, b = scores
    assert kendall_tau(a, b).item() == pytest.approx(stats.kendalltau(a[0], b[0]).statistic)


@given(two_scorings())
def test_spearman_and_tau_b_equal_scipy_with_ties(scores):
    a, b = scores
    assume(len(set(a[0])) > 1 and len(set(b[0])) > 1)
    assert spearman(a, b).item() == pytest.approx(stats.spearmanr(a[0], b[0]).statistic)
    assert kendall_tau_b(a, b).item() == pytest.approx(stats.kendalltau(a[0], b[0], variant="b").statistic)


@given(two_scorings())
def test_measures_stay_in_range_and_are_symmetric(scores):
    a, b = scores
    for measure in MEASURES.values():
        assert -1e-9 <= measure(a, b).item() <= 1 + 1e-9
        assert measure(a, b).item() == pytest.approx(measure(b, a).item())


@given(two_scorings())
def test_only_the_order_of_the_scores_matters(scores):
    a, b = scores
    stretched = [[math.exp(score) - 100 for score in a[0]]]
    for measure in MEASURES.values():
        assert measure(stretched, b).item() == pytest.approx(measure(a, b).item())


@given(two_scorings(), st.randoms())
def test_the_order_of_the_responses_does_not_matter(scores, chance):
    a, b = scores
    order = list(range(len(a[0])))
    chance.shuffle(order)
    for measure in (kendall_tau, kendall_tau_b, spearman, top_order):
        shuffled = measure([[a[0][i] for i in order]], [[b[0][i] for i in order]])
        assert shuffled.item() == pytest.approx(measure(a, b).item())


@given(two_scorings())
def test_reversing_one_ranking_flips_the_sign(scores):
    a, b = scores
    for measure in (kendall_tau, kendall_tau_b, spearman):
        assert measure([[-score for score in a[0]]], b).item() == pytest.approx(-measure(a, b).item())
