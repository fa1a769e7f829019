"""What a judge's verdicts say of two models: win rates with 95% intervals, the same at equal length, and how far the judge
goes by the position of an answer."""

import matplotlib.pyplot as plt
import numpy as np
import statsmodels.api as sm
from scipy import stats

from cream.report.statistics import MISSING, paired_difference, share

# Of a prompt's two verdicts, with the first model's answer shown as A and then as B.
WIN, LOSS, CONTRADICTIONS = ("A", "B"), ("B", "A"), (("A", "A"), ("B", "B"))
COLOURS = {"win": "C2", "tie": "0.65", "contradictory": "0.85", "loss": "C3"}


def kind(verdicts):
    """A prompt's two verdicts in one word; "unreadable" where one of them is None.

    A win or a loss must hold in both orders, and all else is a tie (Zheng et al. 2023, arXiv 2306.05685). A contradictory
    pair is the tie whose two verdicts choose the same position.
    """
    if None in verdicts:
        return "unreadable"
    if tuple(verdicts) in CONTRADICTIONS:
        return "contradictory"
    return {WIN: "win", LOSS: "loss"}.get(tuple(verdicts), "tie")


def outcome(kind):
    """1 for a win of the first model, 0 for a loss, 1/2 for a tie; NaN where it is not known."""
    return {"win": 1.0, "tie": 0.5, "contradictory": 0.5, "loss": 0.0}.get(kind, np.nan)


def win_rate(outcomes):
    """The mean of outcomes in {0, 1/2, 1}, (wins + ties / 2) / n, with its 95% interval; NaN ones do not count.

    The mean is (1 + d) / 2, where d is the share of wins less that of losses: a difference of paired shares, whose
    interval (Bonett and Price 2012) knows that ties vary less than wins and losses, and stays open where all agree.
    """
    outcomes = np.asarray(outcomes, dtype=float)
    outcomes = outcomes[~np.isnan(outcomes)]
    return tuple((1 + difference) / 2 for difference in paired_difference(outcomes == 1, outcomes == 0))


def length_controlled(outcomes, lengths):
    """The win rate that is to be expected of answers of equal length, with its 95% interval; `lengths` is `[n, 2]`.

    As in AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475): a logistic regression of the outcome on
    tanh(difference in length / its standard deviation), and the win rate where that is 0. A tie is half a win. So that
    the fit is finite, a win and a loss at equal length are added, as Bonett and Price add them, and a tie for the
    slope (Greenland and Mansournia 2015). The variance is the robust one: ties vary less than a coin.
    """
    outcomes, lengths = np.asarray(outcomes, dtype=float), np.asarray(lengths, dtype=float).reshape(-1, 2)
    known = ~np.isnan(outcomes)
    if not known.any():
        return MISSING
    difference = (lengths[:, 0] - lengths[:, 1])[known]
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 0 else np.zeros(len(difference))
    given = np.r_[np.column_stack([np.ones(len(x)), x]), [[1, 0], [1, 0], [0, 1]]]
    fit = sm.GLM(np.r_[outcomes[known], 1, 0, 0.5], given, family=sm.families.Binomial()).fit(cov_type="HC0")
    middle, half = fit.params[0], stats.norm.ppf(0.975) * fit.bse[0]
    return tuple(1 / (1 + np.exp(-np.array([middle, middle - half, middle + half]))))


def position_bias(verdicts):
    """How far the judge goes by position, from the two verdicts of each prompt: {what: share with its 95% interval}.

    "first": of the verdicts on prompts where both choose an answer, those for the one shown first; 1/2 without a leaning.
    "contradictory": of the prompts with two verdicts that could be read, those whose verdicts choose the same position.
    """
    read = [pair for pair in verdicts if None not in pair]
    firsts = [pair.count("A") / 2 for pair in map(tuple, read) if "tie" not in pair]
    return {
        "first": win_rate(firsts),
        "contradictory": share(sum(kind(pair) == "contradictory" for pair in read), len(read)),
    }


def stacked(counts, width=5.6):
    """A figure with a row for each row of `counts` (columns win, tie, contradictory, loss): its shares in one bar."""
    figure, axes = plt.subplots(figsize=(width, 1.3 + 0.3 * len(counts)))
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    left = np.zeros(len(counts))
    for name, colour in COLOURS.items():
        bars = axes.barh(range(len(counts)), shares[name], left=left, color=colour, height=0.7, label=name)
        texts = [f"{count}" if part > 0.04 else "" for count, part in zip(counts[name], shares[name])]
        axes.bar_label(bars, texts, label_type="center", fontsize=8)
        left += shares[name].to_numpy()
    axes.axvline(0.5, color="0.3", linestyle=":", linewidth=1)
    axes.set(yticks=range(len(counts)), yticklabels=counts.index, xlim=(0, 1), ylim=(len(counts) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines["left"].set_visible(False)
    figure.supxlabel("share of the prompts", fontsize="medium")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure
