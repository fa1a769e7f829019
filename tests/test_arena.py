"""The arena: verdicts in numbers, and judges that are fair, leaning, silent, broken or killed."""

import contextlib
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, stats
from test_rankers import always, joining_tokenizer
from tiny_model import tiny_model

from cream.data.comparisons import read_questions
from cream.data.errors import InputError
from cream.data.files import read_rows, write_rows
from cream.inference import judge as judging
from cream.inference.judge import AGAIN, PROMPT, ask_once, judge_named, read_verdict, verdicts
from cream.models.loading import save_model
from cream.report.arena import kind, length_controlled, outcome, position_bias, stacked, win_rate

ROOT = Path(__file__).parents[1]
KEY = "sk-a-secret-of-this-test"

# Statistics


def test_a_win_must_hold_in_both_orders():
    kinds = {
        ("A", "B"): "win",
        ("B", "A"): "loss",
        ("A", "A"): "contradictory",
        ("B", "B"): "contradictory",
        ("tie", "tie"): "tie",
        ("A", "tie"): "tie",
        ("tie", "A"): "tie",
        ("A", None): "unreadable",
        (None, None): "unreadable",
    }
    assert {pair: kind(pair) for pair in kinds} == kinds
    assert [outcome(name) for name in ("win", "tie", "contradictory", "loss")] == [1, 0.5, 0.5, 0]
    assert math.isnan(outcome("unreadable"))


def test_the_win_rate_by_hand():
    # 3 wins, 1 loss, 2 ties: 4 / 6. Bonett and Price: 4/8 - 2/8 = 1/4, half of the width 1.96 sqrt((6/8 - 1/16) / 8) = 0.5746.
    found = win_rate([1, 1, 1, 0, 0.5, 0.5, math.nan])
    assert found == pytest.approx((4 / 6, (1 + 0.25 - 0.5746) / 2, (1 + 0.25 + 0.5746) / 2), abs=1e-4)
    assert np.isnan(win_rate([math.nan])).all() and np.isnan(win_rate([])).all()


def test_the_interval_is_that_of_a_bootstrap_and_stays_open_where_all_agree():
    values = np.random.default_rng(0).choice([0, 0.5, 1], p=[0.2, 0.5, 0.3], size=400)
    oracle = stats.bootstrap([values], np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert win_rate(values) == pytest.approx((values.mean(), oracle.low, oracle.high), abs=0.004)
    assert win_rate([1.0] * 20)[0] == 1 and 0.7 < win_rate([1.0] * 20)[1] < 0.97


@pytest.mark.parametrize("chances", [(0.25, 0.5, 0.25), (0.05, 0.8, 0.15), (0.02, 0.03, 0.95)])
def test_the_intervals_hold_what_they_should(chances):
    """In 95% of 600 runs of 100 prompts, with a tenth of a point for chance; the length has no influence here."""
    rng, truth = np.random.default_rng(3), chances[2] + chances[1] / 2
    held = {win_rate: 0, length_controlled: 0}
    for _ in range(600):
        values, lengths = rng.choice([0, 0.5, 1], p=chances, size=100), rng.normal(100, 20, size=(100, 2))
        for found in held:
            _, low, high = found(values) if found is win_rate else found(values, lengths)
            held[found] += low <= truth <= high
    assert all(0.92 <= count / 600 <= 0.99 for count in held.values()), held


def test_the_win_rate_at_equal_length_is_the_fit_of_another_optimiser():
    rng = np.random.default_rng(0)
    values, lengths = rng.choice([0, 0.5, 1], size=50), rng.integers(10, 300, size=(50, 2))
    difference = lengths[:, 0] - lengths[:, 1]
    x = np.r_[np.tanh(difference / difference.std()), 0, 0, 1]
    ones, y = np.r_[np.ones(52), 0], np.r_[values, 1, 0, 0.5]

    def loss(at):
        z = at[0] * ones + at[1] * x
        return np.sum(np.logaddexp(0, z) - y * z)

    best = optimize.minimize(loss, [0, 0], tol=1e-10).x
    p = 1 / (1 + np.exp(-(best[0] * ones + best[1] * x)))
    given = np.column_stack([ones, x])
    bread, meat = (np.linalg.inv((given * (p * (1 - p))[:, None]).T @ given), (given * ((y - p) ** 2)[:, None]).T @ given)
    half = 1.959964 * np.sqrt((bread @ meat @ bread)[0, 0])
    expected = 1 / (1 + np.exp(-(best[0] + np.array([0, -half, half]))))
    assert length_controlled(values, lengths) == pytest.approx(expected, abs=1e-5)


def test_a_judge_that_likes_length_alone_finds_no_winner_at_equal_length():
    rng = np.random.default_rng(0)
    lengths = np.column_stack([rng.normal(130, 40, 500), rng.normal(100, 40, 500)])
    longer = (lengths[:, 0] > lengths[:, 1]) * 1.0
    assert win_rate(longer)[1] > 0.6
    value, low, high = length_controlled(longer, lengths)
    assert low <= 0.5 <= high and abs(value - 0.5) < 0.08
    better = rng.random(500) < 0.8  # whatever the length
    assert length_controlled(better, lengths)[0] == pytest.approx(better.mean(), abs=0.03)


def test_equal_lengths_and_verdicts_that_all_agree_have_a_finite_fit():
    value, low, high = length_controlled([1.0] * 100, [[50, 50]] * 100)
    assert value == pytest.approx(101 / 102, abs=1e-6) and 0.85 < low < value < high < 1  # (W + 1) / (n + 2)
    value, low, high = length_controlled([0.5] * 100, [[50, 40], [40, 50]] * 50)
    assert value == pytest.approx(0.5, abs=1e-6) and high - low < 0.06
    assert np.isnan(length_controlled([math.nan], [[1, 2]])).all() and np.isnan(length_controlled([], [])).all()


def test_position_bias_by_hand():
    found = position_bias([("A", "A"), ("A", "B"), ("A", "tie"), ("B", "A"), ("B", None), ("tie", "tie")])
    assert found["first"] == win_rate([1, 0.5, 0.5])  # four A of six; pairs with None or a tie are left out
    assert found["contradictory"][0] == 1 / 5
    always = position_bias([("A", "A")] * 10)
    assert always["first"][0] == always["contradictory"][0] == 1 and 0.5 < always["first"][1] < 0.9
    assert np.isnan([*position_bias([(None, "A")])["first"], *position_bias([])["contradictory"]]).all()


def test_the_bars_are_shares():
    counts = pd.DataFrame({"win": [3, 0], "tie": [1, 0], "contradictory": [0, 0], "loss": [4, 0]}, index=["all", "none"])
    widths = [patch.get_width() for patch in stacked(counts).axes[0].patches]
    assert widths == [3 / 8, 0, 1 / 8, 0, 0, 0, 4 / 8, 0]


# Reading


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Verdict: A", "A"),
        ("Both are right.\n\n**Verdict: B**.\n", "B"),
        ("[[tie]]", "tie"),
        ("final verdict: Answer b", "B"),
        ("Verdict: A\nVerdict: tie", "tie"),
        ("A", "A"),
        ("A is better", None),
        ("Verdict: A because B is wrong", None),
        ('"Verdict: A", "Verdict: B" or "Verdict: tie"', None),
        ("Verdict: C", None),
        ("", None),
        ("\n \n", None),
    ],
)
def test_a_verdict_is_the_last_line_or_none(reply, expected):
    assert read_verdict(reply) == expected


def test_questions_are_drawn_by_the_seed_and_refused_by_line(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"question": f"q{i}"} for i in range(50)])
    drawn = read_questions(tmp_path / "a.jsonl", 10, 1)
    assert drawn == read_questions(tmp_path / "a.jsonl", 10, 1) != read_questions(tmp_path / "a.jsonl", 10, 2)
    numbers = [int(row["question"][1:]) for row in drawn]
    assert numbers == sorted(set(numbers)) and [row["id"] for row in drawn] == [f"line {n + 1}" for n in numbers]
    assert len(read_questions(tmp_path / "a.jsonl", 99, 1)) == 50
    for bad in ({"question": " "}, {"question": None}, {"question": "q", "choices": "ab"}, {"question": "q", "instruction": 1}):
        write_rows(tmp_path / "b.jsonl", [{"question": "q"}, bad])
        with pytest.raises(InputError, match="b.jsonl, line 2: (question|choices|instruction) must be"):
            read_questions(tmp_path / "b.jsonl", 1, 1)
    with pytest.raises(InputError, match="there is no file"):
        read_questions(tmp_path / "c.jsonl", 1, 1)


# A judge over HTTP


@contextlib.contextmanager
def endpoint(reply, models=("tiny-judge",)):
    """An address, and what is asked there with which key. `reply(message, number)` gives the text, a status, or what a
    refusal (400) says."""
    asked, headers, lock = [], [], threading.Lock()

    class Endpoint(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({"data": [{"id": name, "root": f"made/{name}", "created": int(time.time())} for name in models]})

        def do_POST(self):
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            with lock:
                asked.append(message)
                headers.append(self.headers.get("Authorization"))
                number = len(asked)
            text = reply(message, number)
            if isinstance(text, dict):
                return self.answer(text, 400)
            if isinstance(text, int):
                return self.answer({"error": f"no, {self.headers.get('Authorization')}"}, text)
            self.answer({"model": "tiny-judge-0726", "choices": [{"message": {"content": text}}]})

        def answer(self, value, status=200):
            data = json.dumps(value).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked, headers
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(judging, "WAITS", (0, 0, 0))
    monkeypatch.setattr(judging, "TIMEOUT", 0.5)
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)


def answers_in(message):
    a, b = message.split("[Answer A]\n")[1].split("\n\n[Your verdict]")[0].split("\n\n[Answer B]\n")
    return a, b


def likes_plums(message, number):
    a, b = (("plum" in answer) for answer in answers_in(message))
    return "Verdict: tie" if a == b else "Verdict: A" if a else "Verdict: B"


def both_orders(address, firsts, seconds, kept):
    """The two verdicts of each prompt, and how the asking went."""
    n = len(firsts)
    questions = [f"question {i}" for i in range(n)]
    asked = [*zip(questions, firsts, seconds), *zip(questions, seconds, firsts)]
    found, said = verdicts(judge_named(address), asked, kept)
    return list(zip(found[:n], found[n:])), said


def test_the_planted_better_answerer_wins(tmp_path):
    firsts = [f"{i} plums" if i % 10 else "none" for i in range(40)]
    seconds = [f"{i} pears" for i in range(40)]
    with endpoint(likes_plums) as (address, asked, _):
        pairs, said = both_orders(address, firsts, seconds, tmp_path)
        judge = judge_named(address)
    assert pairs == [("A", "B") if i % 10 else ("tie", "tie") for i in range(40)]
    assert win_rate([outcome(kind(pair)) for pair in pairs])[1] > 0.8
    assert sorted(map(answers_in, asked)) == sorted([*zip(firsts, seconds), *zip(seconds, firsts)])  # both orders, once each
    assert said == {"asked_again": 0, "too_long": 0, "replies_are_of": [{"model": "tiny-judge-0726"}]}
    assert judge.about == {"name": "tiny-judge", "endpoint": address, "listed": {"root": "made/tiny-judge"}}


@pytest.mark.parametrize("leaning", [0.0, 0.5, 1.0])
def test_equal_models_win_half_whatever_the_judges_leaning(tmp_path, leaning):
    """A judge that chooses the first position with that chance, and otherwise by the alphabet."""

    def leans(message, number):
        a, b = answers_in(message)
        first = np.random.default_rng(list(message.encode())).random() < leaning
        return "Verdict: A" if first or a > b else "Verdict: B"

    words = np.random.default_rng(0).integers(97, 123, size=(2, 60, 8))
    firsts, seconds = ([bytes(letters.tolist()).decode() for letters in each] for each in words)
    with endpoint(leans) as (address, _, _):
        pairs, _ = both_orders(address, firsts, seconds, tmp_path)
    _, low, high = win_rate([outcome(kind(pair)) for pair in pairs])
    assert low <= 0.5 <= high
    first = position_bias(pairs)["first"][0]
    assert first == {0.0: 0.5, 1.0: 1.0}.get(leaning, pytest.approx(0.75, abs=0.1))


def test_nonsense_is_asked_for_once_more_and_counted(tmp_path):
    def reply(message, number):
        if "question 0" in message:
            return "I like both!"
        return "Verdict: B" if message.endswith(AGAIN) else "maybe B" if "question 1" in message else "Verdict: A"

    with endpoint(reply) as (address, asked, _):
        pairs, said = both_orders(address, ["x", "y", "z"], ["u", "v", "w"], tmp_path)
        assert pairs == [(None, None), ("B", "B"), ("A", "A")] and said["asked_again"] == 4
        assert len(asked) == 6 + 4 and sum(message.endswith(AGAIN) for message in asked) == 4
        assert both_orders(address, ["x", "y", "z"], ["u", "v", "w"], tmp_path) == (pairs, said)
        assert len(asked) == 10


@pytest.mark.parametrize("trouble", [500, 503, 429, "silent"])
def test_what_passes_is_tried_again(tmp_path, trouble):
    def reply(message, number):
        if number <= 3 and trouble == "silent":
            time.sleep(0.8)
        return "Verdict: A" if number > 3 or trouble == "silent" else trouble

    with endpoint(reply) as (address, asked, _):
        judge = judge_named(address)
        assert verdicts(judge, [("q", "a", "b")], tmp_path)[0] == ["A"]
    assert len(asked) == 4  # one and three more


@pytest.mark.parametrize(("trouble", "times"), [(500, 4), (401, 1), (400, 1)])
def test_what_does_not_pass_is_one_sentence_without_the_key(tmp_path, monkeypatch, trouble, times):
    monkeypatch.setenv("JUDGE_API_KEY", f"{KEY}\n")
    with endpoint(lambda *_: trouble) as (address, asked, headers):
        with pytest.raises(InputError, match=rf"cannot be asked \(it answers {trouble}, .*Bearer \*\*\*.*start again") as error:
            verdicts(judge_named(address), [("q", "a", "b")], tmp_path)
    assert len(asked) == times and headers == [f"Bearer {KEY}"] * times  # the endpoint has it, and nobody else
    assert KEY not in str(error.value) and "\n" not in str(error.value)


def test_an_endpoint_that_dies_midway_loses_nothing_and_is_asked_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    alive = threading.Event()
    firsts, seconds = [f"{i} plums" for i in range(20)], [f"{i} pears" for i in range(20)]
    answered = []

    def reply(message, number):
        if number > 15 and not alive.is_set():
            return 500
        answered.append(message)
        return likes_plums(message, number)

    with endpoint(reply) as (address, asked, _):
        with pytest.raises(InputError, match="what it has judged is kept"):
            both_orders(address, firsts, seconds, tmp_path)
        assert len(answered) == 15
        [path] = tmp_path.iterdir()
        assert path.read_text().count("Verdict") == 15
        with open(path, "a") as file:
            file.write('\n{"key": "half a li')  # as a run that was killed leaves it
        alive.set()
        asked.clear()
        pairs, _ = both_orders(address, firsts, seconds, tmp_path)
        assert len(asked) == 40 - 15 and len(set(answered)) == len(answered) == 40
        assert pairs == [("A", "B")] * 20
        both_orders(address, firsts, seconds, tmp_path)
        assert len(asked) == 25 and KEY not in path.read_text()


def test_answers_too_long_for_an_endpoint_are_left_out_and_asked_about_again(tmp_path):
    reads = 40

    def reply(message, number):  # as vLLM 0.32 refuses
        most = "This model's maximum context length is 40 tokens. However, your prompt contains at least 41 input tokens"
        long = max(map(len, answers_in(message))) > reads
        return {"error": {"message": most, "type": "BadRequestError", "code": 400}} if long else likes_plums(message, number)

    with endpoint(reply) as (address, asked, _):
        pairs, said = both_orders(address, ["plums", "plums" * 9], ["pears", "pears"], tmp_path)
        assert pairs == [("A", "B"), (None, None)] and len(asked) == 4
        assert said["too_long"] == 2 and said["asked_again"] == 0
        reads = 99
        pairs, said = both_orders(address, ["plums", "plums" * 9], ["pears", "pears"], tmp_path)
        assert pairs == [("A", "B")] * 2 and len(asked) == 6 and said["too_long"] == 0


def test_an_endpoint_that_is_gone_is_one_sentence(tmp_path):
    with endpoint(likes_plums) as (address, _, _):
        pass
    with pytest.raises(InputError, match=rf"the judge at {address} cannot be asked \(ConnectError"):
        judge_named(address)


def test_other_settings_and_other_judges_are_asked_anew(tmp_path):
    with endpoint(lambda *_: "tie", models=("one", "two")) as (address, asked, _):
        for model in ("one", "two", "one"):
            judge = judge_named(address, model)
            verdicts(judge, [("q", "a", "b")], tmp_path)
        assert len(asked) == 2
        ask_once(judge._replace(settings=[address, "one", {"temperature": 1}]), ["another"], tmp_path)
        ask_once(judge, ["another"], tmp_path)
        assert len(asked) == 4
        with pytest.raises(InputError, match=r"has 2 models: name one in JUDGE_MODEL \(one, two\)"):
            judge_named(address)
        with pytest.raises(InputError, match="has no model 'three'"):
            judge_named(address, "three")


@pytest.mark.parametrize("name", ["http://me:secret@host/v1", "https://host/v1?key=secret", "nowhere", "owner/name", "http://a:b/v1"])
def test_a_name_that_is_no_judge_is_refused(tmp_path, name):
    with pytest.raises(InputError) as error:
        judge_named(name, root=tmp_path)
    assert "secret" not in str(error.value)


# A judge on this machine


def local(folder, probabilities):
    tokenizer = joining_tokenizer()
    tokenizer.save_pretrained(folder)
    model = tiny_model(len(tokenizer), max_position_embeddings=2000)
    save_model(model, tokenizer, folder)
    return always(model, tokenizer, probabilities)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [({"A": 0.5, "B": 0.3, "x": 0.2}, "A"), ({"B": 0.6, "A": 0.3}, "B"), ({"A": 0.2, "B": 0.2, "x": 0.6}, None)],
)
def test_a_local_judge_gives_the_likeliest_verdict(tmp_path, monkeypatch, probabilities, expected):
    model, calls = local(tmp_path / "models" / "m1", probabilities), []
    monkeypatch.setattr(judging, "load_model", lambda *_, **__: calls.append(1) or model)
    judge = judge_named("models/m1", root=tmp_path, precision="fp32")
    assert judge.about["name"] == "models/m1" and len(judge.about["revision"]) == 16
    found, said = verdicts(judge, [("q", "a", "b"), ("q", "b", "a"), ("q", "a" * 2000, "b")], tmp_path / "kept")
    assert found == [expected, expected, None] and said["too_long"] == 1 and len(calls) == 1
    again = judge_named("models/m1", root=tmp_path, precision="fp32")
    assert verdicts(again, [("q", "a", "b"), ("q", "b", "a")], tmp_path / "kept")[0] == [expected] * 2 and len(calls) == 1


def test_a_local_judge_that_has_changed_is_another(tmp_path):
    local(tmp_path / "m1", {"A": 1.0})
    before = judge_named("m1", root=tmp_path).settings
    assert judge_named("m1", root=tmp_path).settings == before
    model = tiny_model(len(joining_tokenizer()), max_position_embeddings=2000, seed=1)
    save_model(model, joining_tokenizer(), tmp_path / "m1")
    assert judge_named("m1", root=tmp_path).settings != before


def test_the_prompt_holds_what_is_judged():
    text = PROMPT.format(question="Who {is} it?", a="{a}", b="He.")
    assert text.index("Who {is} it?") < text.index("{a}") < text.index("He.") and answers_in(text) == ("{a}", "He.")


# The page


def test_the_page_says_what_was_found_and_nowhere_is_the_key(tmp_path, monkeypatch, run_stage, model, tokenizer):
    """srlm-m2 writes aaa without end: all that it reads looks the same to it, and "a" is likely there."""
    m2 = tiny_model(len(tokenizer))
    m2.model.embed_tokens.weight.data[:] = 1
    seen = m2.model(torch.tensor([[0]])).last_hidden_state[0, 0].detach()
    m2.lm_head.weight.data[:] = 0
    m2.lm_head.weight.data[tokenizer.convert_tokens_to_ids("a")] = 100 * seen / seen.square().sum()
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    for name, one in {"m1": model, "srlm-m2": m2}.items():
        save_model(one, tokenizer, tmp_path / "models" / name)
    write_rows(tmp_path / "some.jsonl", [{"question": f"<script>{i}</script>", "task": "ab"[i % 2]} for i in range(12)])
    with endpoint(lambda *_: "Verdict: A") as (address, asked, headers):
        done, said = run_stage("17_arena", first="srlm-m2", second="m1", prompts="some.jsonl", count=10, judge=address)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results/arena/srlm-m2-m1.json").read_text())
    rows = read_rows(tmp_path / "results/arena/srlm-m2-m1.jsonl")
    assert set(headers) == {f"Bearer {KEY}"} and len(asked) == 20
    assert found["contradictory_count"] == 10 and found["win_rate"]["value"] == 0.5 and found["first_position"]["value"] == 1
    assert found["judge"]["name"] == "tiny-judge" and found["judge"]["replies_are_of"] == [{"model": "tiny-judge-0726"}]
    assert [row["verdicts"] for row in rows] == [["A", "A"]] * 10 and {row["outcome"] for row in rows} == {0.5}
    shown = {tuple(answers_in(message)) for message in asked}
    assert shown == {tuple(row["answers"][::step]) for row in rows for step in (1, -1)}
    assert found["cut_off"]["first"] == 10 and {row["answers"][0] for row in rows} == {"a" * 12}
    assert "not clearly apart" in said and "the one shown <b>first</b>" in said and "<code>some.jsonl</code>" in said
    assert "10 of <b>srlm-m2</b>'s answers" in said and "<b>contradicts itself</b>" in said
    assert "<script>" not in said and "&lt;script&gt;" in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and not any(KEY.encode() in path.read_bytes() for path in files)
