"""What each training method makes of the consistency found in ranking: its weight C for every pair.

A method maps the consistency of the pairs (`[pairs]`, one in [0, 1] for each prompt) and its row of `train` in
params.yaml to the C of the loss for each pair (`[pairs]`; NaN drops the pair).
"""

import math
import random

METHODS = {
    # Plain self-rewarding: every pair is trusted, so the loss is DPO.
    "srlm": lambda consistency, row: consistency.new_ones(len(consistency)),
    # The paper's CREAM (section 4): one C for the whole set.
    "cream": lambda consistency, row: consistency.mean().expand(len(consistency)),
    # The official code's "dynamic" variant: each prompt has its own C.
    "cream-per-prompt": lambda consistency, row: consistency,
    # As before, but a pair with C below 1/2 is left out, where the former would train the reversed preference.
    "cream-drop": lambda consistency, row: consistency.where(consistency >= 0.5, math.nan),
    # The set's C, on the pairs alone whose own consistency is at least 0.6, which is a tau of 0.2. For the second round and
    # later: in the first one, agreement with M0 does not say which pairs are right.
    "cream-select": lambda consistency, row: select(consistency, consistency),
    # Its control: as many pairs, but left out at random.
    "cream-select-random": lambda consistency, row: select(consistency, shuffled(consistency)),
    # The paper's derivation before its last step, which takes C for 1 - lambda: with lambda = 1 - C,
    # (1 + lambda) / (1 + 2 lambda) is never below 1/2.
    "cream-exact": lambda consistency, row: exact(1 - consistency.mean()).expand(len(consistency)),
    # The paper's "w/o RC": C is the number in the row. Up to its scale the same loss as DPO with a KL-to-uniform
    # regulariser of fixed weight lambda, where C = exact(lambda).
    "fixed": lambda consistency, row: consistency.new_full((len(consistency),), row["C"]),
}


def exact(weight):
    """The C with which CREAM's loss is, up to the scale 1 + 2 lambda, L_DPO + lambda * L_Reg (paper, section 4).

    `weight` is lambda >= 0; L_Reg = -log P(y > y') - log P(y' > y) is 2 KL(uniform || P) and a constant.
    """
    return (1 + weight) / (1 + 2 * weight)


def select(consistency, judged, least=0.6):
    """The mean consistency for each pair whose `judged` value is at least `least`; NaN for the others."""
    return consistency.mean().expand(len(consistency)).where(judged > least - 1e-6, math.nan)


def shuffled(values):
    """The same values, each at another pair; always in the same new order, since the pairs come in a random one."""
    order = list(range(len(values)))
    random.Random(0).shuffle(order)
    return values[order]
