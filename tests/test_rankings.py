import math

import pytest
import torch

from cream.method.pairs import agrees, best_and_worst, best_of_n, consistency_of, rankers_for, scores_of

ROWS = [
    {"scores": {"reward": [3.0, 1.0, 2.0], "gold": [1.0, 0.0, 0.0], "judge": [4.0, 2.0, 3.0]}},
    {"scores": {"reward": [1.0, 2.0, 3.0], "gold": [0.0, 0.0, 0.0], "judge": [2.0, None, 1.0]}},
    {"scores": {"reward": [5.0, 5.0, 5.0], "gold": [0.0, 1.0, 1.0], "judge": [1.0, 1.0, 0.0]}},
]


def test_scores_come_by_name_and_a_missing_one_is_nan():
    assert scores_of(ROWS, "reward").tolist() == [[3, 1, 2], [1, 2, 3], [5, 5, 5]]
    assert scores_of(ROWS, "judge").flatten().tolist() == pytest.approx([4, 2, 3, 2, math.nan, 1, 1, 1, 0], nan_ok=True)


@pytest.mark.parametrize(
    "by, against, previous, first_round, found",
    [
        ("reward", "previous", "m1", "like_for_like", ("reward", "previous")),
        ("reward", "previous", "m1", "official", ("reward", "previous")),
        ("reward", "previous", "m0", "like_for_like", ("policy_token", "previous_token")),
        ("reward", "previous", "m0", "official", ("reward", "previous_token")),
        ("reward", "previous", "m0", "halfway", ("reward", "halfway")),
        ("reward", "previous", "m1", "halfway", ("reward", "previous")),
        ("gold", "previous", "m0", "halfway", ("gold", "halfway")),
        ("gold", "previous", "m0", "like_for_like", ("gold", "previous_token")),
        ("reward", "reward_model", "m0", "like_for_like", ("reward", "reward_model")),
        ("judge", "reward", "m1", "official", ("judge", "reward")),
    ],
)
def test_who_is_j_and_who_is_k(by, against, previous, first_round, found):
    assert rankers_for(by, against, previous, first_round) == found


@pytest.mark.parametrize(
    "ranker_k, measure, rates",
    [
        # Prompt 1: all 3 pairs agree; 2: a score is missing; 3: the reward ties all.
        ("judge", "kendall", [1, math.nan, 0.5]),
        # Prompt 1: response 1 over 2 and over 3 agree, 2 against 3 is tied: tau 2/3. Prompts 2, 3: all tied.
        ("gold", "kendall", [5 / 6, 0.5, 0.5]),
        ("gold", "kendall_b", [(2 / math.sqrt(6) + 1) / 2, 0.5, 0.5]),
        ("gold", "top_order", [0, 0, 0]),
    ],
)
def test_consistency_of_two_rankers_by_hand(ranker_k, measure, rates):
    found = consistency_of(ROWS, "reward", ranker_k, measure)
    assert found.tolist() == pytest.approx(rates, nan_ok=True)


def test_consistency_where_no_prompt_is_scored():
    assert consistency_of(ROWS[1:2], "judge", "reward").isnan().tolist() == [True]


@pytest.mark.parametrize(
    "scores, pair",
    [
        ([1.0, 3.0, 2.0], (1, 0)),
        ([2.0, 2.0, 1.0, 1.0], (0, 2)),  # duplicates: the first of the best, the first of the worst
        ([-math.inf, 0.0], (1, 0)),
        ([4.0, 4.0, 4.0], None),
        ([1.0, math.nan, 3.0], None),
        ([math.nan, math.nan], None),
    ],
)
def test_best_and_worst_make_a_pair(scores, pair):
    best, worst, has_pair = best_and_worst(torch.tensor([scores]))
    assert has_pair.tolist() == [pair is not None]
    if pair:
        assert (best.item(), worst.item()) == pair


def test_whether_the_other_ranker_prefers_the_same_of_the_two():
    scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [2.0, 2.0, 9.0], [1.0, math.nan, 2.0]])
    found = agrees(scores, torch.tensor([1, 0, 0, 0]), torch.tensor([0, 2, 1, 1]))
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.5, math.nan], nan_ok=True)


@pytest.mark.parametrize(
    "scores, correct, found",
    [
        ([1.0, 3.0, 2.0], [0.0, 1.0, 0.0], 1.0),
        ([1.0, 3.0, 3.0], [0.0, 1.0, 0.0], 0.5),  # two share the highest score, one of them is right
        ([1.0, math.nan, 2.0], [0.0, 1.0, 0.0], 0.0),  # a response without a score is not the best
        ([math.nan, math.nan, math.nan], [1.0, 1.0, 1.0], math.nan),
        ([1.0, 3.0, 2.0], [math.nan] * 3, math.nan),
    ],
)
def test_best_of_n_by_hand(scores, correct, found):
    assert best_of_n(torch.tensor([scores]), torch.tensor([correct])).tolist() == [pytest.approx(found, nan_ok=True)]
