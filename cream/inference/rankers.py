"""Who else can rank the responses of a prompt, besides the implicit reward: the answer key, a vote, chance, a judge, a
reward model.

`rows` are those of data/samples: id, task, question, perhaps answer and choices, and N responses with their text. Each
ranker returns `[prompts, N]` scores, fp32 on the CPU, higher is better; identical texts get identical scores.
"""

import math
import random

import torch
from tqdm import tqdm

from cream.data.answers import extract, finished_text, is_correct
from cream.data.errors import InputError
from cream.data.rows import user_message
from cream.inference.logprobs import response_logprobs
from cream.models.architectures import context_of
from cream.models.chat import chat_ids

# The additive scale of Self-Rewarding Language Models (Yuan et al. 2024, arXiv 2401.10020), in our words. The score
# comes at once, without the paper's written reasons before it: one forward pass a response, and nothing is sampled.
JUDGE_PROMPT = """\
Review a response to a user's question on a scale that adds up to 5 points. Add 1 point for each that holds:
- The response is relevant to the question.
- It addresses a good part of what is asked, if not all of it.
- It answers the main question in a useful way.
- It is complete, clear and to the point, and every step follows from the one before.
- It is flawless: every statement in it is correct, and so is its final answer.

Question:
{question}

Response:
{response}

Give the total as "Score: <0 to 5>"."""
SCORES = range(6)


def gold(rows):
    """1.0 for a right answer, 0.0 for any other, NaN where the answer is not known: the most that a ranker can know."""
    score = {True: 1.0, False: 0.0, None: math.nan}

    def right(row, response):
        return is_correct(finished_text(response), row.get("answer"), row.get("choices"))

    return torch.tensor([[score[right(row, response)] for response in row["responses"]] for row in rows])


def vote(rows):
    """The share of the N responses that give the same answer (self-consistency); NaN for one without a readable answer."""

    def shares(row):
        answers = [extract(finished_text(response), row.get("choices")) for response in row["responses"]]
        return [math.nan if answer is None else answers.count(answer) / len(answers) for answer in answers]

    return torch.tensor([shares(row) for row in rows])


def chance(rows, seed):
    """A score between 0 and 1 drawn for each different text of a prompt: the control that knows nothing."""
    draw = random.Random(seed)

    def drawn(row):
        scores = {text: draw.random() for text in dict.fromkeys(response["text"] for response in row["responses"])}
        return [scores[response["text"]] for response in row["responses"]]

    return torch.tensor([drawn(row) for row in rows])


def judge(model, tokenizer, rows):
    """LLM-as-a-judge: the expected score, sum_k k p_k / sum_k p_k in [0, 5], of "Score: k" as the model's next words.

    p_k is the probability of the digit k. Where the six have less than 1/2 together, the model would have written
    something else: it has given no score, and the result is NaN, to be counted and not guessed.
    """
    messages = [
        JUDGE_PROMPT.format(question=user_message(row), response=response["text"])
        for row in rows
        for response in row["responses"]
    ]
    p = next_words(model, tokenizer, messages, [f"Score: {k}" for k in SCORES], progress="judging")
    p = p.view(len(rows), -1, len(SCORES))
    given = p.sum(dim=-1)
    expected = (p * torch.tensor(SCORES)).sum(dim=-1) / given
    return expected.where(given >= 0.5, math.nan)


@torch.inference_mode()
def next_words(model, tokenizer, messages, texts, progress=None):
    """The probability that the model's reply to each message goes on with each of the texts, once it has written what they
    begin with alike, `[messages, texts]`, fp32 on the CPU: one forward pass a message, and nothing is sampled."""
    lead, ends = _beginning_and_ends(tokenizer, texts)
    prompts = [chat_ids(tokenizer, message) + lead for message in messages]
    logps = response_logprobs(
        model, [prompt for prompt in prompts for _ in ends], ends * len(prompts), progress=progress
    )
    return logps.cpu().exp().view(len(messages), len(texts))


@torch.inference_mode()
def reward_model_scores(model, tokenizer, rows):
    """The scores of a sequence classifier with one label and a tokenizer of its own, in the model's own unit.

    One conversation at a time: no padding, so no pad token to be taken for an end token, and no other row can matter.
    """
    conversations = [
        tuple(chat_ids(tokenizer, user_message(row), response["text"])) for row in rows for response in row["responses"]
    ]
    context = context_of(model.config)
    longest = max(conversations, key=len)
    if context is not None and len(longest) > context:
        row = rows[conversations.index(longest) * len(rows) // len(conversations)]
        raise InputError(
            f"with a response to it, the prompt {row['id']} has {len(longest)} tokens, and the reward model reads {context}"
            ": shorten or remove that prompt, lower sampling.max_new_tokens, or take another reward model"
        )
    scores = dict.fromkeys(conversations)  # a text that occurs twice is scored once
    for ids in tqdm(scores, desc="scoring under the reward model", unit="response"):
        scores[ids] = model(input_ids=torch.tensor([ids], device=model.device)).logits.item()
    return torch.tensor([scores[ids] for ids in conversations]).view(len(rows), -1)


def _beginning_and_ends(tokenizer, texts):
    """The tokens that texts such as "Score: 0" ... "Score: 5" begin with alike, and their different ends.

    Tokenised as a whole and then compared, because a tokenizer may join the space to the digit.
    """
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    alike = next(i for i, tokens in enumerate(zip(*whole)) if len(set(tokens)) > 1)
    return whole[0][:alike], [ids[alike:] for ids in whole]
