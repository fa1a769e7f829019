"""The loss of CREAM (paper, section 4: the consistency-regularised objective)."""

from torch.nn.functional import logsigmoid


def cream_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, consistency, beta):
    """C * L_DPO + (1 - C) * L_reverse-DPO, one loss a pair.

    The first four are log-probs of whole responses (sums over tokens, in nats), `[batch]` each; `consistency` is C
    in [0, 1], `[batch]` or a number. Returns `[batch]` losses.

    With the margin z the loss is -log sigmoid(z) + (1 - C) z. Its slope is sigmoid(z) - C, so each pair is drawn to
    z* = logit(C): C = 1 is plain DPO, C = 1/2 holds the margin at 0, and C < 1/2 trains the reversed preference.
    """
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return -consistency * logsigmoid(margin) - (1 - consistency) * logsigmoid(-margin)
