import math

import numpy as np
import pytest
import torch
from scipy import stats

from cream.report.statistics import auc, auc_with_interval, is_far, mean, p_in_words, pairwise_accuracy, pairwise_wins


@pytest.mark.parametrize(
    "scores, correct, wins, pairs",
    [
        ([3.0, 1.0, 2.0], [True, False, False], 2, 2),
        ([1.0, 2.0, 2.0, 0.0], [True, False, True, False], 2.5, 4),  # 1>0, 2=2 counts half, 2>0, and 1<2 is lost
        ([1.0, None, 0.0], [True, False, False], 1, 1),  # no score: the pair does not count
        ([math.nan, 1.0], [True, False], 0, 0),
        ([1.0, 2.0], [True, True], 0, 0),
    ],
)
def test_pairwise_wins_by_hand(scores, correct, wins, pairs):
    assert pairwise_wins(scores, correct) == (wins, pairs)


def test_pairwise_accuracy_by_hand():
    nan = math.nan
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [5.0, nan, 4.0], [9.0, 8.0, 7.0]])
    correct = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [nan, nan, nan]])
    # Of (right, wrong): 2 of 2, then a tie and a win, then one lost and one without a score: 3.5 of 5.
    assert pairwise_accuracy(scores, correct) == 0.7
    assert pairwise_accuracy(scores[3:], correct[3:]) is None


def test_auc_counts_ties_half():
    # Positives 3 and 2, negatives 2 and 1: three wins and a tie of four.
    assert auc([3, 2, 2, 1], [True, True, False, False]) == 3.5 / 4
    assert auc([1, 1], [True, False]) == 0.5
    assert math.isnan(auc([1, 2], [True, True])) and math.isnan(auc([], []))


def test_auc_is_the_mann_whitney_statistic_and_weights_are_repetitions():
    rng = np.random.default_rng(3)
    values, positive = rng.integers(0, 6, 80), rng.random(80) < 0.4
    right, wrong = values[positive], values[~positive]
    expected = stats.mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong))
    assert auc(values, positive) == pytest.approx(expected)
    weights = rng.integers(0, 4, 80)
    repeated = auc(values.repeat(weights), positive.repeat(weights))
    assert auc(values, positive, weights) == pytest.approx(repeated)


def test_the_bootstrap_draws_what_belongs_to_a_prompt_together():
    values, positive = [1, 2, 3, 4] * 20, [False, False, True, True] * 20
    assert auc_with_interval(values, positive, range(80)) == (1, 1, 1)
    # One prompt holds all positives, the other all negatives: a draw of one of them alone says nothing.
    found, low, high = auc_with_interval([1, 2, 1, 1], [True, True, False, False], ["a", "a", "b", "b"])
    assert found == low == high == 0.75
    assert mean([1.0, 0.0, math.nan], ["a", "b", "c"])[0] == 0.5
    assert np.isnan(mean([math.nan], ["a"])).all()


@pytest.mark.parametrize(
    "values, far",
    [
        ([1, 2, 3, 4, 5, 19], [False] * 6),  # quartiles 2.25 and 4.75, median 3.5: far is more than 20 from it
        ([1, 2, 3, 4, 5, 24], [False] * 5 + [True]),
        ([-30, 1, 2, 3, 4, 5], [True] + [False] * 5),
        ([0.0, 0.0, 0.0, 9.0], [False] * 4),
        ([math.nan, 1, 2, 3, 4, 5, 99], [False] * 6 + [True]),
        ([7.0], [False]),
        ([], []),
    ],
)
def test_what_is_far_from_all_else(values, far):
    assert is_far(values).tolist() == far


def test_p_in_words():
    assert [p_in_words(p) for p in (0.04999, 0.001, 0.0009, 0.0, math.nan)] == ["0.050", "0.001", "< 0.001", "< 0.001", "–"]
