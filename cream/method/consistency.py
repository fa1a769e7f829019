"""How far two models agree on the order of the same responses (paper, section 4).

Every function takes the scores that two models gave to the same N responses of each prompt, `[prompts, N]` twice,
and returns one value a prompt, `[prompts]`. Scores are compared, never ranked first, so equal scores stay ties.
"""

import math

import torch
from scipy import stats


def kendall_tau(a, b):
    """Kendall's tau by the paper's formula, in [-1, 1]: a pair that is tied in either ranking adds nothing.

    tau_j = 2 / (N (N - 1)) * sum over pairs i < i' of sign(a_i - a_i') * sign(b_i - b_i')
    """
    a, b = _as_scores(a, b)
    return (_pair_signs(a) * _pair_signs(b)).mean(dim=-1)


def kendall_tau_b(a, b):
    """Kendall's tau-b in [-1, 1]: the same sum over the pairs tied in neither; 0 where one model ties all responses."""
    a, b = _as_scores(a, b)
    return _cosine(_pair_signs(a), _pair_signs(b))


def spearman(a, b):
    """Spearman's rank correlation in [-1, 1], ties sharing their mean rank; 0 where one model ties all responses."""
    a, b = _as_scores(a, b)
    return _cosine(_centred_ranks(a), _centred_ranks(b))


def top_order(a, b):
    """1.0 where both models have the same best and the same worst response (ties: the same set of them), else 0.0.

    A model that ties all its responses has no best one and agrees with nobody.
    """
    a, b = _as_scores(a, b)
    same_best = (_is_best(a) == _is_best(b)).all(dim=-1)
    same_worst = (_is_best(-a) == _is_best(-b)).all(dim=-1)
    has_order = ~_is_best(a).all(dim=-1)
    return (same_best & same_worst & has_order).to(a.dtype)


def top_order_official(a, b):
    """What the official code computes under the name TopOrder, for comparison with the paper's column: 1.0 where the
    first and the last response, in the order they were sampled, have the same two ranks for both models; ties are
    ordered by position."""
    a, b = (scores.argsort(dim=-1, stable=True).argsort(dim=-1) for scores in _as_scores(a, b))
    return ((a[:, 0] == b[:, 0]) & (a[:, -1] == b[:, -1])).to(torch.float64)


def consistency_rate(tau):
    """C_j = (tau_j + 1) / 2, from [-1, 1] to [0, 1]. The paper's C is the mean over the prompts."""
    return (tau + 1) / 2


def calibrated(agreement):
    """The accuracy p of two rankers that agree on this share of the pairs, if both are right with the same probability
    p >= 1/2 and err independently: A = p^2 + (1 - p)^2, so p = (1 + sqrt(2A - 1)) / 2. With A <= 1/2 it is 1/2."""
    return (1 + math.sqrt(max(2 * agreement - 1, 0))) / 2


# `ranking.measure` in params.yaml: the scores of two models -> consistency in [0, 1], one a prompt.
MEASURES = {
    "kendall": lambda a, b: consistency_rate(kendall_tau(a, b)),
    "kendall_b": lambda a, b: consistency_rate(kendall_tau_b(a, b)),
    "spearman": lambda a, b: consistency_rate(spearman(a, b)),
    "top_order": top_order,
    "top_order_official": top_order_official,
}


def _as_scores(a, b):
    a, b = (torch.as_tensor(scores, dtype=torch.float64, device="cpu") for scores in (a, b))
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] < 2:
        raise ValueError(f"two [prompts, N >= 2] arrays of scores are needed, not {list(a.shape)} and {list(b.shape)}")
    if a.isnan().any() or b.isnan().any():
        raise ValueError("a score is NaN: the ranking it belongs to is undefined")
    return a, b


def _pair_signs(scores):
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    # Compared, not subtracted: inf - inf is NaN.
    better, worse = scores[:, first] > scores[:, second], scores[:, first] < scores[:, second]
    return better.to(scores.dtype) - worse.to(scores.dtype)


def _centred_ranks(scores):
    ranks = torch.as_tensor(stats.rankdata(scores.numpy(), axis=-1))
    return ranks - ranks.mean(dim=-1, keepdim=True)


def _cosine(a, b):
    spread = a.norm(dim=-1) * b.norm(dim=-1)
    return (a * b).sum(dim=-1) / spread.where(spread > 0, 1.0)


def _is_best(scores):
    return scores == scores.max(dim=-1, keepdim=True).values
