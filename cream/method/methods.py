"""What each training method makes of a round's pairs: C, the weight of each pair in the loss.

A method maps the pairs and its row of `train` in params.yaml to C in [0, 1]: one number for all pairs, or one for each
(NaN leaves the pair out). `pairs` is a data frame, one row a pair:

- consistency: C_j in [0, 1], how far the rankings J and K agree on all N responses to the prompt;
- agrees: whether K, too, puts the chosen response above the rejected one: 1 or 0, and 1/2 for a tie;
- verdict: right, wrong or undecided by the answer key (None: not known), for "cream-oracle" alone.
"""

import random

from cream.data.errors import InputError
from cream.method.consistency import calibrated

METHODS = {
    # Plain self-rewarding: every pair is trusted, so the loss is DPO.
    "srlm": lambda pairs, row: 1.0,
    # The paper's CREAM (section 4): one C for the whole set.
    "cream": lambda pairs, row: pairs.consistency.mean(),
    # The official code's "dynamic" variant: each prompt has its own C.
    "cream-per-prompt": lambda pairs, row: pairs.consistency,
    # As before, but a pair with C below 1/2 is left out, where the former would train the reversed preference.
    "cream-drop": lambda pairs, row: pairs.consistency.where(pairs.consistency >= 0.5),
    # The set's C, on the pairs alone whose own consistency is at least 0.6, which is a tau of 0.2.
    "cream-select": lambda pairs, row: select(pairs.consistency, pairs.consistency),
    # Its control: as many pairs, but left out at random.
    "cream-select-random": lambda pairs, row: select(pairs.consistency, shuffled(pairs.consistency)),
    # The paper's derivation before its last step, which takes C for 1 - lambda: with lambda = 1 - C,
    # (1 + lambda) / (1 + 2 lambda) is never below 1/2.
    "cream-exact": lambda pairs, row: exact(1 - pairs.consistency.mean()),
    # How often the pairs are right, if the two rankers err independently of each other.
    "cream-calibrated": lambda pairs, row: calibrated(pairs.agrees.mean()),
    # How often they are right by the answer key: what a C that knew would be.
    "cream-oracle": lambda pairs, row: share_right(pairs.verdict),
    # The paper's "w/o RC": C is the number in the row. Up to its scale the same loss as DPO with a KL-to-uniform
    # regulariser of fixed weight lambda, where C = exact(lambda).
    "fixed": lambda pairs, row: row["C"],
}


def exact(weight):
    """The C with which CREAM's loss is, up to the scale 1 + 2 lambda, L_DPO + lambda * L_Reg (paper, section 4).

    `weight` is lambda >= 0; L_Reg = -log P(y > y') - log P(y' > y) is 2 KL(uniform || P) and a constant.
    """
    return (1 + weight) / (1 + 2 * weight)


def share_right(verdicts):
    """The share of right pairs among the decided ones, counted with one more of each kind, so that few pairs say little."""
    if verdicts.isna().all():
        raise InputError("cream-oracle takes C from the answer key, and no answer to these prompts is known: take another method")
    right, wrong = (verdicts == "right").sum(), (verdicts == "wrong").sum()
    return (right + 1) / (right + wrong + 2)


def select(consistency, judged, least=0.6):
    """The mean consistency for each pair whose `judged` value is at least `least`; NaN for the others."""
    return (0 * consistency + consistency.mean()).where(judged > least - 1e-6)


def shuffled(values):
    """The same values, each at another pair; always in the same new order, since the pairs come in a random one."""
    order = list(range(len(values)))
    random.Random(0).shuffle(order)
    return values.iloc[order].set_axis(values.index)
