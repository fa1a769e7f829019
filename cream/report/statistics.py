"""The statistics of the pages: shares, means, differences and areas under the curve, each with its 95% interval."""

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

DRAWS = 1000  # of the bootstrap
FAR = 8  # interquartile ranges
MISSING = (np.nan, np.nan, np.nan)


def share(count, total):
    """A share with its Wilson interval."""
    return (count / total, *proportion_confint(count, total, method="wilson")) if total else MISSING


def ratio(numerators, denominators, prompts):
    """The sum of the numerators over that of the denominators; the interval is bootstrapped over prompts, so that what
    belongs to one prompt is drawn together."""
    sums = pd.DataFrame({"n": numerators, "d": denominators}).groupby(np.asarray(prompts)).sum().to_numpy(dtype=float)
    sums = sums[sums[:, 1] > 0]
    if len(sums) == 0:
        return MISSING
    drawn = _draws(len(sums)) @ sums
    return sums[:, 0].sum() / sums[:, 1].sum(), *np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])


def mean(values, prompts):
    """The mean of what is not missing."""
    values, prompts = np.asarray(values, dtype=float), np.asarray(prompts)
    there = ~np.isnan(values)
    return ratio(values[there], np.ones(there.sum()), prompts[there])


def pairwise_wins(scores, correct):
    """Of the (right, wrong) pairs among one prompt's responses, how many `scores` puts in order, and how many there
    are. A tie counts half; a pair of which one has no score (NaN or None) does not count.

    `scores` and `correct` are lists of N. The first number over the second is the pairwise accuracy.
    """
    scores, correct = np.array(scores, dtype=float), np.array(correct, dtype=bool)
    difference = scores[correct][:, None] - scores[~correct]
    return (difference > 0).sum() + (difference == 0).sum() / 2, int((~np.isnan(difference)).sum())


def pairwise_accuracy(scores, correct):
    """How often a ranker puts a right response above a wrong one to the same prompt, in [0, 1]; None if there are none.

    `scores` and `correct` are `[prompts, N]`; NaN where a score is missing or the answer is not known.
    """
    known = ~correct.isnan().any(dim=1)
    found = [pairwise_wins(*row) for row in zip(scores[known].tolist(), (correct[known] == 1).tolist())]
    pairs = sum(pairs for _, pairs in found)
    return float(sum(wins for wins, _ in found) / pairs) if pairs else None


def auc(values, positive, weights=1.0):
    """How often a positive has a higher value than a negative, in [0, 1]; a tie counts half. NaN where one kind is missing.

    `values` and `positive` are `[items]`, numbers and booleans; `weights`, `[..., items]`, say how often each is there.
    """
    values, positive = np.asarray(values, dtype=float), np.asarray(positive, dtype=bool)
    place = np.unique(values, return_inverse=True)[1]
    at = np.eye(place.max() + 1)[place] if len(values) else np.zeros((0, 1))  # [values, distinct values]
    positives, negatives = (weights * positive) @ at, (weights * ~positive) @ at
    wins = (positives * (negatives.cumsum(-1) - negatives / 2)).sum(-1)
    pairs = positives.sum(-1) * negatives.sum(-1)
    return np.divide(wins, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)[()]


def auc_with_interval(values, positive, prompts):
    found = auc(values, positive)
    if np.isnan(found):
        return MISSING
    place = np.unique(np.asarray(prompts), return_inverse=True)[1]
    drawn = auc(values, positive, _draws(place.max() + 1)[:, place])
    return found, *np.nanpercentile(drawn, [2.5, 97.5])


@lru_cache(maxsize=4)
def _draws(n):
    """How often each of n prompts is drawn in each draw of the bootstrap, [draws, n]; always the same."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)


def paired_difference(one, other):
    """The difference of two shares of the same questions, with Bonett and Price's interval (2012)."""
    n, wins, losses = len(one), int((one & ~other).sum()), int((~one & other).sum())
    if n == 0:
        return MISSING
    gained, lost = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * np.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    return (wins - losses) / n, max(gained - lost - half, -1), min(gained - lost + half, 1)


def is_far(values):
    """Which of the values are so far from their median that on an axis that holds them the others look alike: `[values]`,
    booleans. None are where half of the values are the same."""
    values = np.asarray(values, dtype=float)
    low, middle, high = np.nanpercentile(values, [25, 50, 75]) if len(values) else MISSING
    return (np.abs(values - middle) > FAR * (high - low)) & (high > low)


def p_in_words(p):
    return "–" if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"
