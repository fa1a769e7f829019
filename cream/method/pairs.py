"""Two rankings of the same responses, and the preference pairs that one of them makes (paper, section 4).

A ranking is a score for each response. `rows` are those of data/rankings/<policy>.jsonl, one a prompt; their `scores`
hold one list a ranker: reward and previous (the implicit rewards of the policy and of the previous model),
policy_token and previous_token (the mean log-prob of a token under either), in round 1 halfway (the implicit reward of the
SFT's model at half of its steps), and the other rankers of the row.
"""

import numpy as np
import torch

from cream.method.consistency import MEASURES


def scores_of(rows, ranker):
    """The scores that one ranker gave, `[prompts, N]`; NaN where it gave none."""
    return torch.from_numpy(np.array([row["scores"][ranker] for row in rows], dtype=np.float64))


def rankers_for(by, against, previous, first_round):
    """The names of the rankers behind J and K, whose agreement is the consistency.

    They are `by` (who picks the pairs) and `against`, but in round 1 the previous model is M0, whose reward against
    itself is 0 for every response. With `first_round` "halfway" K is then the reward of the SFT's model at half of its
    steps, the model before M1. Else K is the mean log-prob of a token under M0: with "like_for_like" J is the same under
    the policy; with "official", as in the official code, J stays the reward.
    """
    if against != "previous" or previous != "m0":
        return by, against
    if first_round == "halfway":
        return by, "halfway"
    like_for_like = by == "reward" and first_round == "like_for_like"
    return ("policy_token" if like_for_like else by), "previous_token"


def consistency_of(rows, ranker_j, ranker_k, measure="kendall"):
    """C_j, one in [0, 1] a prompt, `[prompts]`; NaN where a ranker left a response without a score."""
    scores_j, scores_k = scores_of(rows, ranker_j), scores_of(rows, ranker_k)
    scored = ~(scores_j.isnan() | scores_k.isnan()).any(dim=1)
    found = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    if scored.any():
        found[scored] = MEASURES[measure](scores_j[scored], scores_k[scored])
    return found


def best_and_worst(scores):
    """The response with the highest and the one with the lowest score, `[prompts]` each, and whether they make a pair.

    There is no pair where all scores are equal or one is missing. Among equals the first counts.
    """
    best, worst = scores.argmax(dim=1), scores.argmin(dim=1)
    return best, worst, scores.gather(1, best[:, None])[:, 0] > scores.gather(1, worst[:, None])[:, 0]


def agrees(scores, best, worst):
    """Whether these scores, too, put the best response above the worst one, `[prompts]`: 1 or 0, and 1/2 for a tie. NaN where
    a score is missing."""
    difference = scores.gather(1, best[:, None])[:, 0] - scores.gather(1, worst[:, None])[:, 0]
    return ((difference.sign() + 1) / 2).where(~difference.isnan(), torch.nan)


def best_of_n(scores, correct):
    """How often the response with the highest score is right, `[prompts]` in [0, 1]: where several share it, the mean over
    them. NaN where no response has a score or the answer is not known.

    `scores` and `correct` (1.0, 0.0, NaN) are `[prompts, N]`. Its mean less the accuracy of greedy answers is the gap: what
    a round could teach.
    """
    highest = scores == scores.where(~scores.isnan(), -torch.inf).max(dim=1, keepdim=True).values
    return torch.where(highest, correct, 0.0).sum(dim=1) / highest.sum(dim=1)
