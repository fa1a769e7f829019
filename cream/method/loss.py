"""The loss of CREAM (paper, section 4: the consistency-regularised objective)."""

from torch.nn.functional import logsigmoid


def cream_loss(
    policy_chosen,
    policy_rejected,
    reference_chosen,
    reference_rejected,
    consistency,
    beta,
    sft_weight=0.0,
    chosen_tokens=1,
    rejected_tokens=1,
):
    """C * L(chosen > rejected) + (1 - C) * L(rejected > chosen), one loss a pair.

    The first four are log-probs of whole responses (sums over tokens, in nats), `[batch]` each; `consistency` is C
    in [0, 1], `[batch]` or a number. Returns `[batch]` losses.

    L is DPO's loss, and with it the loss of the paper is, where z is the margin, -log sigmoid(z) + (1 - C) z. Its slope is
    sigmoid(z) - C, so each pair is drawn to z* = logit(C): C = 1 is plain DPO, C = 1/2 holds the margin at 0, and
    C < 1/2 trains the reversed preference.

    With `sft_weight` w > 0, L also holds w times the negative log-likelihood per token of the response that it prefers
    (IRPO, arXiv 2404.19733, and ScPO, 2411.04109), for which the lengths are needed: `chosen_tokens` and
    `rejected_tokens`, `[batch]` each. The margin alone can grow while both responses become less likely.
    """
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    prefers_chosen = -logsigmoid(margin) - sft_weight * policy_chosen / chosen_tokens
    prefers_rejected = -logsigmoid(-margin) - sft_weight * policy_rejected / rejected_tokens
    return consistency * prefers_chosen + (1 - consistency) * prefers_rejected
