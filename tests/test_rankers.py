import math
import string

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification, PreTrainedTokenizerFast

from cream.data.errors import InputError
from cream.data.rows import user_message
from cream.inference.rankers import JUDGE_PROMPT, chance, gold, judge, reward_model_scores, vote
from cream.models.chat import chat_ids
from cream.training.reward_model import fetch_reward_model, train_reward_model

SETTINGS = dict(learning_rate=1e-3, epochs=4, batch_size=8)
LETTERS = dict(question="Which one flies?", answer="B", choices=["a rock", "a bird"])


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the trainer writes to .cache


def row(*texts, question="What is 2 + 3?", answer="5", **others):
    return {"question": question, "answer": answer, "responses": [{"text": text} for text in texts], **others}


ROWS = [row("5", "Answer: 5", "no idea"), row("Answer: B", "It is a bird.", "?", **LETTERS)]


def test_gold_knows_right_wrong_unparsed_and_lettered_answers():
    rows = [
        row("2 + 3 = 5. Answer: 5", "Answer: 6", "It is 5."),
        row("Answer: A", "Answer: B", "Answer: a bird", **LETTERS),
    ]
    scores = gold(rows)
    assert torch.equal(scores, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    assert scores.dtype == torch.float32


def test_a_response_that_was_cut_short_is_wrong_and_has_no_vote():
    texts = row("Answer: 5", "Answer: 5")
    for response, reason in zip(texts["responses"], ("stop", "length")):
        response["finish_reason"] = reason
    assert gold([texts]).tolist() == [[1.0, 0.0]]
    assert_close(vote([texts]), torch.tensor([[0.5, math.nan]]), equal_nan=True)


def test_gold_has_no_score_where_no_answer_is_known():
    assert gold([row("Answer: 5", "Hello.", answer=None), row("Answer: 5", "5")]).isnan().tolist() == [
        [True, True],
        [False, False],
    ]


def test_the_vote_is_the_share_of_the_same_answer():
    rows = [
        row("Answer: 5", "2 + 3 = 5. Answer: 5.0", "Answer: 6", "It is 5."),
        row("Answer: B", "Answer: a bird", "Answer: A", "Answer: C", **LETTERS),
    ]
    nan = math.nan
    expected = torch.tensor([[0.5, 0.5, 0.25, nan], [0.5, 0.5, 0.25, nan]])
    assert_close(vote(rows), expected, equal_nan=True)
    assert vote([row("Answer: 5", "Answer: 5", answer=None)]).tolist() == [[1.0, 1.0]]  # no known answer is needed


def test_chance_gives_equal_texts_equal_scores_and_draws_anew_for_each_prompt():
    rows = [row("Answer: 5", "Answer: 6", "Answer: 5")] * 50
    scores = chance(rows, seed=1)
    assert torch.equal(scores, chance(rows, seed=1)) and not torch.equal(scores, chance(rows, seed=2))
    assert torch.equal(scores[:, 0], scores[:, 2]) and (scores[:, 0] != scores[:, 1]).all()
    assert scores[:, 0].unique().numel() == 50
    assert 10 < (scores[:, 0] > scores[:, 1]).sum() < 40  # 25 by chance


def joining_tokenizer():
    """A tokenizer of characters that joins a space to the digit behind it."""
    words = ["<|end|>", *string.printable, *(f" {digit}" for digit in string.digits)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" \d|[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=CHAT_TEMPLATE)


def with_head(model, bias, scale=1.0):
    """The model with `scale` times its logits, and {token id: bias} added to them."""
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight.data, head.bias.data = scale * model.lm_head.weight.data, torch.zeros(model.config.vocab_size)
    for token, value in bias.items():
        head.bias.data[token] = value
    model.lm_head = head
    return model


def always(model, tokenizer, probabilities):
    """The model with the same next characters everywhere, by {character: probability}."""
    bias = dict.fromkeys(range(model.config.vocab_size), -100.0)
    chances = {tokenizer.convert_tokens_to_ids(text): math.log(p) for text, p in probabilities.items()}
    return with_head(model, bias | chances, scale=0.0)


def sharpened(model):
    """As in conftest: far from uniform predictions, so that a wrong token or position shows."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 10
    return model.eval()


def naive_judge(model, tokenizer, row, text):
    """The expected score and the mass of the six, from one whole forward pass for each of the six texts."""
    message = {"role": "user", "content": JUDGE_PROMPT.format(question=user_message(row), response=text)}
    chat = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    p = []
    for k in range(6):
        ids = torch.tensor([tokenizer(f"{chat}Score: {k}")["input_ids"]])
        with torch.no_grad():
            p.append(model(ids).logits[0, -2].log_softmax(-1)[ids[0, -1]].exp().item())
    return sum(k * p[k] for k in range(6)) / sum(p), sum(p)


@pytest.mark.parametrize("make_tokenizer", [tiny_tokenizer, joining_tokenizer])
def test_the_judge_gives_the_expected_score(make_tokenizer):
    tokenizer = make_tokenizer()
    digits = {tokenizer("Score: " + k)["input_ids"][-1]: 20.0 for k in "012345"}
    model = with_head(sharpened(tiny_model(len(tokenizer))), digits)
    naive = [[naive_judge(model, tokenizer, row, r["text"]) for r in row["responses"]] for row in ROWS]
    expected = torch.tensor([[score for score, _ in line] for line in naive])
    assert all(mass > 0.9 for line in naive for _, mass in line)
    assert expected.unique().numel() == 6 and expected.std() > 0.05
    scores = judge(model, tokenizer, ROWS)
    assert_close(scores, expected, atol=1e-4, rtol=0)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ({"1": 0.3, "4": 0.3, "9": 0.4}, 2.5),  # (0.3 * 1 + 0.3 * 4) / 0.6: over the six alone
        ({"0": 0.26, "5": 0.26, "x": 0.48}, 2.5),
        ({"0": 0.24, "5": 0.24, "x": 0.52}, math.nan),  # something else than a score is likelier
        ({"9": 1.0}, math.nan),
    ],
)
def test_a_judge_without_a_score_is_not_guessed_for(model, tokenizer, probabilities, expected):
    scores = judge(always(model, tokenizer, probabilities), tokenizer, ROWS)
    assert_close(scores, torch.full((2, 3), expected), equal_nan=True)


def test_identical_responses_tie_exactly(model, tokenizer):
    model = with_head(model, dict.fromkeys(tokenizer.convert_tokens_to_ids(list("012345")), 100.0))
    rows = [row("5", "a longer one", "5"), row("another", "5", "5")]
    for scores in (judge(model, tokenizer, rows), reward_model_scores(reward_model(), tokenizer, rows)):
        assert scores[0, 0] == scores[0, 2] == scores[1, 1] == scores[1, 2]  # one question: one conversation
        assert scores.unique().numel() == 3


def reward_model(pad_token_id=0):
    """A random reward model for the toy tokenizer, whose pad token is its end token."""
    torch.manual_seed(0)
    config = tiny_model(len(tiny_tokenizer())).config
    config.num_labels, config.pad_token_id = 1, pad_token_id
    return sharpened(LlamaForSequenceClassification(config))


def naive_reward(model, tokenizer, row, text, pooled):
    """The head on the hidden state of the token at position `pooled`, from one conversation, spelled out as text."""
    ids = tokenizer(f"<|user|>{user_message(row)}<|end|><|assistant|>{text}<|end|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.score(model.model(ids).last_hidden_state[0, pooled]).item()


# With a pad token of its own, or none, the last token is pooled. Where the pad token is the end token, it is the one
# before; that is so in training and in scoring, as the next test shows.
@pytest.mark.parametrize(("pad_token_id", "pooled"), [(3, -1), (None, -1), (0, -2)])
def test_a_reward_model_scores_the_whole_conversation(tokenizer, pad_token_id, pooled):
    model = reward_model(pad_token_id)
    expected = [[naive_reward(model, tokenizer, row, r["text"], pooled) for r in row["responses"]] for row in ROWS]
    scores = reward_model_scores(model, tokenizer, ROWS)
    assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)
    assert scores.dtype == torch.float32 and scores.unique().numel() == 6


def test_order_and_company_do_not_matter_to_a_reward_model(tokenizer):
    model = reward_model()
    scores = reward_model_scores(model, tokenizer, ROWS)
    turned = [{**row, "responses": row["responses"][::-1]} for row in ROWS[::-1]]
    assert torch.equal(reward_model_scores(model, tokenizer, turned), scores.flip(0, 1))
    assert torch.equal(reward_model_scores(model, tokenizer, ROWS[1:]), scores[1:])


def pairs(count=16):
    """An easy preference: the sum, of one digit or of two, over a question mark or a longer evasion."""
    return [
        {"question": f"What is {i} + 1?", "chosen": f"{i + 1}", "rejected": "?" if i % 2 else "I do not know?"}
        for i in range(count)
    ]


def two_texts(pairs):
    return [{**pair, "responses": [{"text": pair["chosen"]}, {"text": pair["rejected"]}]} for pair in pairs]


def test_training_starts_at_the_loss_of_the_scores(tokenizer):
    """Pairs of mixed lengths, padded with the end token, against scores without padding: both pool the same token."""
    scores = reward_model_scores(reward_model(), tokenizer, two_texts(pairs(8)))
    expected = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean().item()
    _, curve = train_reward_model(reward_model(), tokenizer, pairs(8), SETTINGS, seed=1)
    assert curve["loss"][0] == pytest.approx(expected, rel=0.02)  # the trainer's forward pass runs in bf16
    assert list(curve["step"]) == [1, 2, 3, 4]


def test_training_learns_an_easy_preference_and_repeats_to_the_bit(tokenizer):
    (one, curve), (other, same_curve) = (
        train_reward_model(reward_model(), tokenizer, pairs(16), SETTINGS, seed=1) for _ in range(2)
    )
    before = reward_model_scores(reward_model(), tokenizer, two_texts(pairs(24)[16:]))
    after = reward_model_scores(one.eval(), tokenizer, two_texts(pairs(24)[16:]))
    assert not (before[:, 0] > before[:, 1]).all()
    assert (after[:, 0] > after[:, 1]).all()  # of questions it was not trained on
    assert curve["loss"].iloc[-1] < 0.5 * curve["loss"][0]
    assert all(weight.dtype == torch.float32 for weight in one.parameters())

    for (name, ours), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert curve.equals(same_curve)


def save(model, tokenizer, folder="judge"):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_is_fetched_as_it_is_and_scores_the_same_when_saved(tmp_path, tokenizer):
    model, texts = fetch_reward_model(save(reward_model().to(torch.bfloat16), tokenizer), root=tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not model.training
    save(model, texts, "reward")
    again = AutoModelForSequenceClassification.from_pretrained("reward", dtype=torch.float32)
    rounded = reward_model()
    for weight in rounded.parameters():
        weight.data = weight.data.to(torch.bfloat16).float()
    scores = reward_model_scores(again, texts, ROWS)
    assert torch.equal(scores, reward_model_scores(rounded, tokenizer, ROWS))


@pytest.mark.parametrize(
    ("base", "revision", "says"),
    [
        ("no-one-at-all/no-such-model", "0" * 40, "could not be loaded: .* Give a folder"),
        ("no-one-at-all/no-such-model", None, "is no folder: .*with its commit"),
        ("./no-such-folder", None, "is no folder"),
    ],
)
def test_a_reward_model_that_cannot_be_had_is_one_clear_sentence(tmp_path, base, revision, says):
    with pytest.raises(InputError, match=rf"the reward model '{base}' .*params.yaml\) {says}") as error:
        fetch_reward_model(base, revision, root=tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_a_response_that_the_reward_model_cannot_read_whole_is_named(tokenizer):
    model, text = reward_model(), "x" * 10
    rows = [{**row("?", "?"), "id": "q1"}, {**row("?", text), "id": "q2"}]
    length = len(chat_ids(tokenizer, user_message(rows[1]), text))
    model.config.max_position_embeddings = length
    assert reward_model_scores(model, tokenizer, rows).shape == (2, 2)
    model.config.max_position_embeddings = length - 1
    with pytest.raises(InputError, match=f"the prompt q2 has {length} tokens, and the reward model reads {length - 1}: "):
        reward_model_scores(model, tokenizer, rows)


def test_a_pickled_reward_model_is_refused(tmp_path, tokenizer):
    folder = tmp_path / save(reward_model(), tokenizer)
    (folder / "model.safetensors").unlink()
    torch.save(reward_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        fetch_reward_model(folder)


def test_a_model_that_gives_no_single_reward_is_refused(tmp_path, make_model, tokenizer):
    two_labels, headless = reward_model(), make_model()
    two_labels.config.num_labels, two_labels.score = 2, torch.nn.Linear(64, 2, bias=False)
    headless.config.num_labels = 1  # a language model: its reward head would be random
    for model in (two_labels, headless, make_model()):
        with pytest.raises(ValueError, match="'judge' .* is no reward model: give a sequence classifier"):
            fetch_reward_model(save(model, tokenizer), root=tmp_path)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_a_reward_model_whose_weights_do_not_fit_is_refused(tmp_path, tokenizer, prefix):
    file = tmp_path / save(reward_model(), tokenizer) / "model.safetensors"
    save_file({prefix + name: weight for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="'judge' .* is no reward model: .*do not fit its architecture: 21 missing"):
        fetch_reward_model("judge", root=tmp_path)


def test_a_reward_model_without_a_chat_template_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="'judge' .* has no chat template"):
        fetch_reward_model(save(reward_model(), tokenizer), root=tmp_path)
