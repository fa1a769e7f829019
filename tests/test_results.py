"""The statistics of the pages on numbers found by hand and by scipy and statsmodels, and the pages on made-up runs."""

import copy
import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from cream.data.errors import InputError
from cream.data.files import read_rows, write_json, write_rows
from cream.pipeline.parameters import label_of, settings_digest
from cream.report import figures, findings, results, statistics

ROOT = Path(__file__).parents[1]

# Statistics


def test_an_interval_of_a_mean_is_that_of_scipys_bootstrap():
    values = np.random.default_rng(0).random(300)
    found, low, high = statistics.mean(values, range(300))
    oracle = stats.bootstrap([values], np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert found == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((oracle.low, oracle.high), abs=0.004)
    assert statistics.mean(values, range(300)) == (found, low, high)  # the same seed each time


def test_a_share_has_wilsons_interval():
    assert statistics.share(3, 4) == (0.75, *proportion_confint(3, 4, method="wilson"))
    assert np.isnan(statistics.share(0, 0)).all()


def test_paired_differences():
    one, other = pd.Series([True] * 6), pd.Series([False] * 6)
    # Bonett and Price by hand: 7/8 - 1/8 = 3/4, sd sqrt((1 - 9/16) / 8) = 0.2339, 3/4 - 1.96 * 0.2339 = 0.2916.
    assert statistics.paired_difference(one, other) == pytest.approx((1, 0.2916, 1), abs=1e-4)
    difference, low, high = statistics.paired_difference(other, one)
    assert (difference, low, high) == pytest.approx((-1, -1, -0.2916), abs=1e-4)
    rng = np.random.default_rng(0)
    one, other = (pd.Series(rng.random(5000) < p) for p in (0.6, 0.5))
    wald = stats.norm.interval(0.95, (one * 1 - other).mean(), (one * 1 - other).std() / 5000**0.5)
    assert statistics.paired_difference(one, other)[1:] == pytest.approx(wald, abs=1e-4)


def test_mcnemar_and_holm():
    correct = pd.DataFrame({"a": [True] * 6, "b": [False] * 6, "c": [True, True, True, False, False, False]})
    table = results.compare(correct, [("a", "b"), ("a", "c"), ("a", "a")])
    # 2 / 2^6 times three comparisons; 2 / 2^3 times two; no question differs.
    assert table.p.tolist() == [0.03125, 0.25, 1.0]
    assert table["p, Holm"].tolist() == [0.09375, 0.5, 1.0]
    assert table.p[1] == mcnemar([[0, 3], [0, 0]], exact=True).pvalue
    assert table[["only it is right", "only the other is right"]].values.tolist() == [[6, 0], [3, 0], [0, 0]]


def test_a_run_that_is_not_complete_is_told(tmp_path):
    params = {"rank": {"m1": {}}, "train": {"cream-m2": {"start": "m1", "method": "cream"}}}
    write_rows(tmp_path / "data/answers/m0.jsonl", [{"id": "1"}])
    with pytest.raises(InputError, match="not complete, the answers of m1, cream-m2 are missing: run `make repro`"):
        results.answers(params, tmp_path)


def test_newly_answered_and_failed():
    correct = pd.DataFrame({"m1": [True, True, False, False], "m2": [True, False, True, True]})
    assert results.newly_answered_and_failed(correct, "m2", "m1") == (2, 1)


@pytest.mark.parametrize(
    "pair, verdict",
    [
        ((True, False), "right"),
        ((False, True), "wrong"),
        ((True, True), "undecided"),
        ((False, False), "undecided"),
        ((None, True), None),
        ((math.nan, False), None),
    ],
)
def test_verdicts(pair, verdict):
    assert results.verdict_of(*pair) == verdict


ROWS = pd.DataFrame(
    {
        "policy": ["m1"] * 4,
        "round": 1,
        "id": list("abcd"),
        "correct": [[True, False, False], [True, False, True], [True] * 3, [None] * 3],
        "scores": [
            {"reward": [2, 1, 2], "judge": [1, None, 0]},
            {"reward": [1, 2, 3], "judge": [None] * 3},
            {"reward": [1, 2, 3], "judge": [1, 2, 3]},
            {"reward": [1, 2, 3], "judge": [1, 2, 3]},
        ],
        "policy_logps": [[-1, -2, -3]] * 4,
        "chosen": [0, 2, 2, math.nan],
        "consistency": [1.0, 0.5, 0.0, 0.9],
        "tau": [1.0, 0.2, 0.6, 0.2],
        "verdict": ["right", "right", "wrong", None],
    }
)


def test_pairwise_accuracy_by_hand():
    # a: 2 > 1 a win, 2 = 2 a half; b: 1 < 2 a loss, 3 > 2 a win.
    assert results.ranker_accuracy(ROWS, "reward").value.to_dict() == {"m1": 2.5 / 4}
    assert results.ranker_accuracy(ROWS, "judge").value.to_dict() == {"m1": 1.0}  # the one pair with two scores
    assert results.ranker_accuracy(ROWS, "log_prob").value.to_dict() == {"m1": 3 / 4}
    assert results.ranker_accuracy(ROWS, "vote").empty


def test_consistency_and_right_pairs_by_hand():
    assert results.consistency(ROWS).value["m1"] == 0.5  # the last prompt has no pair
    assert results.tau_auc(ROWS).value["m1"] == 0.5  # 1.0 beats 0.6, 0.2 does not
    assert tuple(results.right_pairs(ROWS).loc["m1"]) == statistics.share(2, 3)
    bins = results.right_pairs_by_tau(ROWS)
    assert bins.value.fillna(-1).tolist() == [-1, 1, 0, 1] and bins.pairs.tolist() == [0, 1, 1, 1]


def test_length_bias_is_spearman_within_a_prompt():
    rng = np.random.default_rng(0)
    pairs = [(rng.random(5).round(1).tolist(), rng.integers(3, 6, 5).tolist()) for _ in range(10)]
    rows = pd.DataFrame(
        {"policy": "m1", "scores": [{"reward": reward} for reward, _ in pairs] + [{"reward": [1] * 5}],
         "lengths": [length for _, length in pairs] + [[1, 2, 3, 4, 5]]}
    )  # fmt: skip
    expected = np.mean([stats.spearmanr(*pair).statistic for pair in pairs])
    assert results.length_bias(rows)["m1"] == pytest.approx(expected)  # the prompt with equal rewards says nothing


def test_samples_are_averaged_question_by_question():
    answers = pd.DataFrame(
        {"model": ["m1", "m1", "m0"], "id": ["a", "b", "a"], "sampled_correct": [[True, False], [True, True], []]}
    )
    assert results.sampled_accuracy(results.sampled_shares(answers)).value.to_dict() == {"m1": 0.75}
    assert results.sampled_shares(answers.drop(columns="sampled_correct")).empty


def test_differences_of_samples_are_paired_by_question():
    shares = pd.DataFrame({"m1": [0.25, 0.5, 1.0], "m2": [0.5, 0.75, 1.0]}, index=list("abc"))
    found = results.differences([("m2", "m1")], right=shares, value="sampled_accuracy").iloc[0]
    assert found.value == pytest.approx(0.5 / 3) and 0 <= found.low < found.value < found.high == pytest.approx(0.25)


def test_the_ceiling_of_c_is_that_of_a_ranking_with_itself():
    rewards = [[1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [0.0, 0.0, 0.0]]  # of 3 pairs 3, 2 and none are in an order
    rows = pd.DataFrame({"policy": "m1", "scores": [{"reward": r} for r in rewards], "chosen": [2, 2, np.nan]})
    ceiling = results.consistency_ceiling({"ranking": {"measure": "kendall"}}, rows)
    assert ceiling.to_dict() == {"m1": pytest.approx((1 + 5 / 6) / 2)}


def test_transcripts_are_of_questions_on_which_models_differ_most():
    correct = pd.DataFrame({"a": [True, True, True, False], "b": [True, True, False, False], "c": [True, False, False, False],
                            "d": [True, True, False, False]}, index=list("wxyz"))  # fmt: skip
    assert results.divided(correct, 4) == ["x", "y"] and results.divided(correct, 0) == []


# What the pages say


def test_a_direction_is_that_of_the_whole_interval():
    assert [findings.direction(*interval) for interval in ((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1))] == [
        "above",
        "level with",
        "below",
    ]


def test_agreement_in_words():
    auc = pd.DataFrame(
        {"value": [0.51, 0.77, 0.6, 0.7], "low": [0.45, 0.7, 0.5, 0.65], "high": [0.55, 0.8, 0.7, 0.75]},
        index=["m1", "a-m2", "a-m3", "b-m2"],
    )
    text = findings.agreement_in_words(auc, {"A": ["m1", "a-m2", "a-m3"], "B": ["m1", "b-m2", "b-m3"]})
    assert text == (
        "On M1's responses (AUC 0.51) agreement does <b>not</b> tell right pairs from wrong ones. "
        "On those of A's models (AUC 0.77, 0.60) that differs from round to round. "
        "On those of B's models (AUC 0.70) the more consistent pairs are right <b>more</b> often."
    )


def test_rewards_in_words():
    def table(**values):
        return pd.DataFrame({"value": values, "low": {k: v - 0.05 for k, v in values.items()},
                             "high": {k: v + 0.05 for k, v in values.items()}}).rename(index=lambda k: k.replace("_", "-"))  # fmt: skip

    params = {"train": {f"{name}-m2": {"start": "m1", "method": name} for name in ("srlm", "cream")},
              "ranking": {"measure": "kendall", "first_round": "official"}, "dpo": {}}  # fmt: skip
    lines = {"SRLM": ["m1", "srlm-m2"], "CREAM": ["m1", "cream-m2"]}
    tables = {"reward": table(m1=0.8, srlm_m2=0.6, cream_m2=0.75), "vote": table(m1=0.7, srlm_m2=0.7, cream_m2=0.7)}
    text = findings.rewards_in_words(params, tables, lines)
    assert "M1's reward <b>tells</b> right from wrong" in text and "higher in 80% (vote 70%); chance is 50%." in text
    assert "On the responses of SRLM's M2 this <b>falls</b> to 60% (vote 70%)." in text
    assert "On the responses of CREAM's M2 this is 75% (vote 70%)." in text
    assert "ranks better than the reward" not in text
    tables = {"reward": tables["reward"], "log p": table(m1=0.85, srlm_m2=0.7, cream_m2=0.8)}
    assert findings.rewards_in_words(params, tables, lines).endswith("ranks better than the reward on all of these.")
    assert "does <b>not</b> tell" in findings.rewards_in_words(params, {"reward": table(m1=0.5)}, lines)


@pytest.mark.parametrize(
    "expected, interval, found",
    [
        ("above", (0.1, 0.05, 0.15), "yes"),
        ("above", (0.1, -0.05, 0.25), "not clear"),
        ("above", (-0.1, -0.15, -0.05), "no, the opposite"),
        ("above", (0.1, 0.1, 0.1), "not clear"),  # an interval without a width
        ("above", (0.1, math.nan, math.nan), "not clear"),  # of one seed
        ("below", (-0.1, -0.15, -0.05), "yes"),
        ("not above", (0.0, -0.05, 0.05), "yes"),
        ("not above", (0.1, 0.05, 0.15), "no, they do"),
    ],
)
def test_a_claim_is_answered_by_its_whole_interval(expected, interval, found):
    claim = {"text": "A claim", "expected": expected, "paper": ""} | dict(zip(("value", "low", "high"), interval))
    table = findings.answered(pd.DataFrame([claim]))
    assert table.loc["A claim", "found"] == found and table.loc["A claim", "the paper"] == "–"


def test_the_claims_are_differences_of_first_and_last_models(tmp_path):
    params = make_run(tmp_path, FULL)
    right = results.graded(results.answers(params, tmp_path))
    paper = pd.read_csv(ROOT / "data" / "paper" / "accuracy.csv")
    claims = results.claims(params, right, paper=paper).set_index("text")
    pairs = {
        "Control: the answer key's pairs raise the accuracy": ("gold-m4", "m1"),
        "Control: random pairs do not": ("random-m4", "m1"),
        "Self-rewarding (SRLM) helps in its first round": ("srlm-m2", "m1"),
        "With more rounds it does harm": ("srlm-m4", "srlm-m2"),
        "In the end it is below M1": ("srlm-m4", "m1"),
        "CREAM ends above M1": ("cream-m4", "m1"),
        "CREAM ends above SRLM": ("cream-m4", "srlm-m4"),
        "Measuring C is what helps: CREAM ends above a fixed C": ("cream-m4", "fixed-m4"),
    }
    assert claims.models.to_dict() == pairs
    for text, (one, other) in pairs.items():
        assert claims.value[text] == pytest.approx(right[one].mean() - right[other].mean())
    # 83.37 - 80.24; Llama-2's M1 is not in the file.
    assert claims.paper["CREAM ends above M1"] == "Llama-3 +3.1"
    assert claims.paper["CREAM ends above SRLM"] == "Llama-2 +10.4, Llama-3 +2.7"
    one_round = {"train": {"srlm-m2": {"start": "m1", "method": "srlm"}}, "ranking": params["ranking"], "dpo": {}}
    assert results.claims(one_round, right).text.tolist() == ["Self-rewarding (SRLM) helps in its first round"]


# Figures and tables


def table_of(models):
    return pd.DataFrame({"value": 0.5, "low": 0.4, "high": 0.6}, index=models)


def test_names_at_the_ends_of_lines_do_not_cover_each_other():
    lines = {name: ["m1", f"{name}-m2"] for name in "abcde"}
    rounds = {"m1": 1, **{models[1]: 2 for models in lines.values()}}
    figure = figures.by_round(lines, rounds, table_of(rounds), "accuracy")
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 5 and all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))


def test_many_lines_are_drawn_a_panel_each():
    lines = {name: ["m1", f"{name}-m2"] for name in "abcdefghi"}
    rounds = {"m1": 1, **{models[1]: 2 for models in lines.values()}}
    figure = figures.by_round(lines, rounds, table_of(rounds), "accuracy")
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == list(lines)
    assert len(figure.axes[0].lines) == 9  # its own, and the others in grey
    assert len(figures.by_round(lines, rounds, table_of(["m1"]), "accuracy").axes) == 1  # nothing but M1 is known


def test_a_line_that_leaves_the_axes_has_its_end_in_words():
    lines = {name: ["m1", f"{name}-m2"] for name in "abcdefghi"}
    rounds = {"m1": 1, **{models[1]: 2 for models in lines.values()}}
    values = [0.6, 0.58, 0.59, 0.59, 0.6, 0.6, 0.61, 0.61, 0.62, 0.0]  # of M1, then of a to i
    table = pd.DataFrame({"value": values}, index=rounds).eval("low = value - 0.1").eval("high = value + 0.1")
    figure = figures.by_round(lines, rounds, table, "accuracy", level=0.6)
    assert figure.axes[0].get_ylim() == pytest.approx((0.48 - 0.012, 0.72 + 0.012))
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes[:9]] == [[]] * 8 + [["↓ 0.00"]]
    few = figures.by_round({name: lines[name] for name in "aehi"}, rounds, table, "accuracy").axes[0]  # one pair of axes
    low = few.get_ylim()[0]
    assert [text.get_text() for text in few.texts] == ["↓ 0.00", "i", "a", "e", "h"]
    assert few.texts[0].get_position() == few.texts[1].xy == (2, low)


def test_a_forest_has_a_point_and_an_interval_a_row_and_a_panel_a_table():
    first = pd.DataFrame({"value": [1.0, -2.0], "low": [0.5, -3.0], "high": [1.5, -1.0]}, index=["a", "b"])
    second = pd.DataFrame({"value": [4.0], "low": [3.0], "high": [5.0]}, index=["b"])
    figure = figures.forest({"minus M1's": first, "minus CREAM's": second}, ["C0", "C1"])
    left, right = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["minus M1's", "minus CREAM's"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    drawn = [[line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes]
    assert drawn[0][1:] == [[[0.5, 0], [1.5, 0]], [[1.0, 0]], [[-3.0, 1], [-1.0, 1]], [[-2.0, 1]]]
    assert drawn[1][1:] == [[[3.0, 1], [5.0, 1]], [[4.0, 1]]]
    assert [axes.lines[0].get_xdata()[0] for axes in figure.axes] == [0, 0]  # the line at 0


def test_a_row_of_a_forest_that_is_far_from_all_else_is_an_arrow():
    value = pd.Series([1.0, 2.0, 3.0, 4.0, 5.0, -65.4], index=list("abcdef"))
    table = pd.DataFrame({"value": value, "low": value - 1, "high": value + 1})
    axes = figures.forest({"points": table}, ["C0"] * 6).axes[0]
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("← −65.4 (−66.4 to −64.4)", 5)]
    assert axes.get_xlim() == pytest.approx((-0.3, 6.3)) and len(axes.lines) == 1 + 2 * 5


def test_a_slope_chart_crosses_the_lines_of_a_discordant_pair():
    texts = ["Answer: 1", "Answer: 2", "Answer: 1", "long " * 20 + "\x1b Answer: 3"]
    figure = figures.slope_chart(texts, [3.0, 2.0, 3.0, 1.0], [0.1, 0.9, 0.1, 0.0], [1, 0, 1, np.nan], ("J", "K"))
    axes = figure.axes[0]
    lines = [(line.get_ydata().tolist(), line.get_color()) for line in axes.lines if len(line.get_ydata())]
    assert lines == [([1.5, 2.5], "C2"), ([3.0, 1.0], "C3"), ([4.0, 4.0], "0.5")]  # ties share their mean rank
    assert axes.yaxis_inverted() and [label.get_text() for label in axes.get_xticklabels()] == ["J", "K"]
    names = [text.get_text() for text in axes.texts]
    assert names == ["2: Answer: 2", "1: Answer: 1 (× 2)", "4: … long long long long Answer: 3"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["right", "wrong", "not known"]


def test_the_names_of_a_slope_chart_do_not_cover_each_other():
    figure = figures.slope_chart(list("abc"), [3, 2, 1], [1, 1, 1], [np.nan] * 3, ("J", "K"))  # all tied in K
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 3 and all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))


def test_tables_show_what_models_wrote_as_it_is(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda html: shown.append(html.data))
    table = pd.DataFrame({"<i>": ["<b>&"]}, index=["<u>"])
    figures.show_table(table, "a <caption>", 2)
    figures.show_table(table, "a <caption>", 2, folded=True)
    figures.show_table(table, "a <caption>", 2, texts=["<i>"])
    for html in shown:
        assert "&lt;b&gt;&amp;" in html and "&lt;i&gt;" in html and "a &lt;caption&gt;" in html
        assert not re.search("<b>|<i>|<u>|<caption>a <", html)
    assert shown[1].startswith("<details><summary>") and "white-space: pre-wrap" in shown[2]


# Made-up runs


def lineage(*methods, last=4):
    """`rank` and `train` of these methods from M1 on: {name: what its rows say}."""
    rank, train = {"m1": {"previous": "m0"}}, {}
    for name, row in methods:
        for number in range(2, last + 1):
            start, previous = (f"{name}-m{number - 1}" if number > 2 else "m1"), f"{name}-m{number - 2}"
            train[f"{name}-m{number}"] = {"start": start, **row}
            if number > 2:
                rank[start] = {"previous": previous if number > 3 else "m1"}
    return {"rank": rank, "train": train}


FULL = lineage(
    ("gold", {"method": "srlm", "by": "gold"}),
    ("random", {"method": "srlm", "by": "random"}),
    ("srlm", {"method": "srlm"}),
    ("cream", {"method": "cream"}),
    ("fixed", {"method": "fixed", "C": 0.7}),
)
ACCURACY = {"m0": 0.1, "m1": 0.8, "gold": 0.9, "random": 0.5, "srlm": 0.55, "cream": 0.7, "fixed": 0.7}


def make_run(folder, rows, questions=200, prompts=60, tasks=("sums",), known=True, older=False):
    """What a run of these rows of `rank` and `train` leaves for the pages, made up: its params are returned. `known`:
    whether the answers to the prompts are; `older`: without what runs have written only since this file is there."""
    params = {**yaml.safe_load((ROOT / "params.yaml").read_text()), **copy.deepcopy(rows)}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    write_json(folder / "results" / "base.json", {"base": params["model"]["base"], "parameters": 1234})
    rng, models = np.random.default_rng(0), ["m0", "m1", *params["train"]]
    for model in models:
        right = rng.random(questions) < ACCURACY.get(model.split("-")[0], 0.5)
        asked = [
            {
                "id": f"q{i}",
                "task": tasks[i % len(tasks)],
                "question": f"{i}<b>+{i} & $1$",
                "choices": None,
                "answer": str(2 * i),
                "response": f"<script>alert(1)</script> **Answer: {2 * i + (not right[i])}**",
                "finish_reason": "stop",
                "extracted": str(i),
                "correct": bool(right[i]),
                "sampled_correct": (rng.random(4) < right[i] * 0.8).tolist(),
            }
            for i in range(questions)
        ]
        summary = {**accuracy(right), "unparsed_share": 0.0, "truncated_share": 0.0}
        summary |= {"mean_over_tasks": summary["accuracy"], "samples": 4, "sampled_accuracy": 0.5, "self_agreement": 0.7}
        summary["tasks"] = {task: accuracy(right[k :: len(tasks)]) for k, task in enumerate(tasks)}
        if older:
            asked = [{key: value for key, value in row.items() if key != "sampled_correct"} for row in asked]
            del summary["samples"], summary["sampled_accuracy"], summary["self_agreement"]
        write_rows(folder / "data" / "answers" / f"{model}.jsonl", asked)
        write_json(folder / "results" / "evaluate" / f"{model}.json", summary)
    for policy in params["rank"]:
        ranked = [ranking(rng, f"p{i}", tasks[i % len(tasks)], known, older) for i in range(prompts)]
        write_rows(folder / "data" / "rankings" / f"{policy}.jsonl", ranked)
        measures = dict.fromkeys("tau_mean tau_sd tau_b_mean spearman_mean top_order_mean top_order_official_mean "
                                 "tau_ceiling noise_floor noise_floor_bf16 noise_ceiling".split(), 0.5)  # fmt: skip
        measures |= {"previous": params["rank"][policy]["previous"], "prompts": prompts, "pairs": prompts - 1, "C": 0.6}
        write_json(folder / "results" / "rank" / f"{policy}.json", {**measures, "noise_prompts": 16})
        shares = dict.fromkeys(("tokens_mean", "truncated_share", "distinct_mean", "right_share", "mixed_share"), 0.5)
        write_json(folder / "results" / "sample" / f"{policy}.json", {"prompts": prompts, "responses": 5 * prompts, **shares})
    for model in params["train"]:
        pairs = {"rankers": ["reward", "previous"], "pairs": prompts - 1, "prompts_tied": 1, "prompts_unscored": 0,
                 "dropped": 0, "right": 40 if known else 0, "wrong": 20 if known else 0, "C": 0.6, "reversed_share": 0.0}  # fmt: skip
        if known and not older:
            pairs["gap"] = 0.05
        write_json(folder / "results" / "pairs" / f"{model}.json", pairs)
        trained = {} if older else {"chosen_moved": -2.0 if "srlm" in model else 1.0, "rejected_moved": -5.0}
        write_json(folder / "results" / "train" / f"{model}.json", trained)
        curve = pd.DataFrame({"step": [1, 2, 3], "loss": [0.69, 0.6, 0.5], "learning_rate": 0.1, "margin": [0, 0.5, 1.0]})
        curve = curve if older else curve.assign(chosen=[0, 0.5, 1], rejected=[0, -2, -5])
        (folder / "results" / "curves").mkdir(exist_ok=True)
        curve.to_csv(folder / "results" / "curves" / f"{model}.csv", index=False)
    return params


def accuracy(right):
    value, low, high = statistics.share(int(sum(right)), len(right))
    return {"questions": len(right), "accuracy": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def ranking(rng, name, task, known, older):
    correct, scores = rng.random(5) < 0.5, {}
    for ranker in ("reward", "previous", "halfway", "policy_token", "previous_token", "log_prob", "vote"):
        scores[ranker] = (rng.normal(size=5) + correct).round(3).tolist()
    tied, order = rng.random() < 0.1, np.argsort(scores["reward"])
    if older:
        del scores["log_prob"], scores["vote"], scores["halfway"]
    tau = float(rng.integers(-10, 11) / 10)
    return {
        "id": name, "task": task, "scores": scores, "lengths": rng.integers(3, 9, 5).tolist(),
        "correct": correct.tolist() if known else [None] * 5,
        "tau": tau, "tau_b": tau, "consistency": (tau + 1) / 2,
        "chosen": None if tied else int(order[-1]), "rejected": None if tied else int(order[0]),
        **{key: rng.normal(size=5).tolist() for key in ("policy_logps", "previous_logps", "base_logps")},
    }  # fmt: skip


def write_seeds(folder, params, seeds=(1, 2, 3), **changes):
    """results/seeds.csv of this run and two seeds that differ from it by a point."""
    rows = []
    for seed, model in itertools.product(seeds, ["m0", "m1", *params["train"]]):
        found = json.loads((folder / "results" / "evaluate" / f"{model}.json").read_text())
        row = {"profile": "params", "settings": settings_digest(params), "seed": seed, "model": model,
               "method": label_of(params, model), "round": 1, "questions": 200,
               "accuracy": found["accuracy"] + 0.01 * (seed - 1) * (1 if model == "m1" else 2),
               "sampled_accuracy": 0.5, "self_agreement": 0.7, "gap": 0.05, **changes}  # fmt: skip
        if model in params["rank"]:
            row |= {"C": 0.6 + seed / 100, "tau_auc": 0.7 + seed / 100, "reward_accuracy": 0.8 + seed / 100,
                    "log_prob_accuracy": 0.7 + seed / 100, "vote_accuracy": 0.75}  # fmt: skip
        rows += [row, row]  # a model that two profiles share is there twice
    pd.DataFrame(rows).to_csv(folder / "results" / "seeds.csv", index=False)


NOTEBOOKS = {"consistency": "08_consistency", "benchmark": "09_benchmark", "index": "10_index"}


@pytest.fixture
def page(tmp_path, run_stage):
    """A function that makes one of these pages of the run in tmp_path."""
    shutil.copytree(ROOT / "data" / "paper", tmp_path / "data" / "paper")

    def make(name):
        done, text = run_stage(NOTEBOOKS[name], name)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Warning" not in done.stderr + text and "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()
        return text

    return make


class Tags(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found, self.attributes = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.attributes |= {name for name, _ in attributes}


def words(text):
    return " ".join(re.sub(r"<[^>]+>", "", re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)).split())


def test_lines_run_from_the_model_that_a_method_started_from(tmp_path):
    params = {"train": {
        "a-m2": {"start": "m1", "method": "cream"}, "a-m3": {"start": "a-m2", "method": "cream"},
        "s-m3": {"start": "a-m2", "method": "cream-drop"}, "s-m4": {"start": "s-m3", "method": "cream-drop"},
        "b-m2": {"start": "m1", "method": "cream"},
    }, "ranking": {"measure": "kendall", "first_round": "official"}, "dpo": {}}  # fmt: skip
    lines = results.lines_of(params)
    assert lines == {
        "CREAM": ["m1", "a-m2", "a-m3"], "CREAM (b-m2)": ["m1", "b-m2"], "CREAM-drop": ["a-m2", "s-m3", "s-m4"]
    }  # fmt: skip
    assert results.last_common(params, lines["CREAM-drop"], lines["CREAM"]) == ("s-m3", "a-m3")
    assert results.last_common(params, lines["CREAM"], lines["CREAM (b-m2)"]) == ("a-m2", "b-m2")
    assert results.last_common(params, lines["CREAM-drop"], lines["CREAM (b-m2)"]) is None


def test_the_last_models_are_compared_with_m1_and_with_creams_of_the_same_round():
    def rows(name, *rounds, method="cream"):
        return {f"{name}-m{r}": {"start": f"{name}-m{r - 1}" if r > 2 else "m1", "method": method} for r in rounds}

    params = {"ranking": {"measure": "kendall", "first_round": "official"}, "dpo": {}}
    params["train"] = {**rows("c", 2, 3), **rows("s", 2, 3, method="srlm"), **rows("d", 2, method="cream-drop")}
    with_m1 = {"CREAM": ("c-m3", "m1"), "SRLM": ("s-m3", "m1"), "CREAM-drop (M2)": ("d-m2", "m1")}
    with_cream = {"SRLM": ("s-m3", "c-m3"), "CREAM-drop (M2)": ("d-m2", "c-m2")}
    assert results.last_comparisons(params) == {"M1": with_m1, "CREAM": with_cream}
    assert list(results.few_lines(params, 3)) == ["CREAM", "SRLM", "CREAM-drop"]
    assert list(results.few_lines(params, 2)) == ["CREAM", "SRLM"]


def test_a_transcript_has_a_row_for_all_models_that_wrote_the_same():
    rows = pd.DataFrame({"model": ["m0", "m1", "a-m2"], "question": "Why?", "choices": [["x", "y"]] * 3, "answer": "B",
                         "response": ["B", "A", "B"], "correct": [True, False, True]})  # fmt: skip
    asked, written = results.transcript(rows)
    assert asked == "Why? A. x B. y (answer: B)"
    assert written.to_numpy().tolist() == [["B", "yes", "m0, a-m2"], ["A", "no", "m1"]]
    rows["choices"] = None
    assert results.transcript(rows)[0] == "Why? (answer: B)"


def test_seeds_are_taken_only_if_they_are_of_this_run(tmp_path):
    params = make_run(tmp_path, FULL)
    assert results.seed_rows(params, tmp_path) is None
    write_seeds(tmp_path, params)
    rows = results.seed_rows(params, tmp_path)
    assert sorted(rows.seed.unique()) == [1, 2, 3] and len(rows) == 3 * (2 + len(params["train"]))
    found = results.differences([("gold-m2", "m1")], rows).loc[[("gold-m2", "m1")]].iloc[0]
    gold, m1 = (rows[(rows.model == model) & (rows.seed == 1)].accuracy.item() for model in ("gold-m2", "m1"))
    by_seed = gold - m1 + np.array([0, 0.01, 0.02])
    assert found.value == pytest.approx(by_seed.mean())
    interval = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
    assert (found.low, found.high) == pytest.approx(interval)
    for changes in ({"settings": "another run's"}, {"method": "by another method"}):
        write_seeds(tmp_path, params, **changes)
        assert results.seed_rows(params, tmp_path) is None
    write_seeds(tmp_path, params, seeds=(1,))
    assert results.seed_rows(params, tmp_path) is None


def test_the_first_page_answers_the_question_with_and_without_seeds(tmp_path, page):
    params = make_run(tmp_path, FULL)
    text = words(page("index"))
    assert "CREAM ends above SRLM" in text and "Llama-2 +10.4" in text and "One seed (1)" in text
    write_seeds(tmp_path, params)
    first = page("index")
    assert "mean of the seeds 1 to 3" in words(first) and page("index") == first


HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)><think>$x$ | `y` & [z](javascript:w)"


def test_the_pages_of_a_full_run_take_no_text_of_a_model_or_a_user_for_html(tmp_path, page):
    """Questions, options, responses, tasks, the name of the base model, and those of other runs' pages."""
    params = make_run(tmp_path, FULL, questions=20, prompts=20, tasks=("sums", HOSTILE))
    for path in (tmp_path / "data" / "answers").glob("*.jsonl"):
        rows = [{**row, "question": HOSTILE, "choices": [HOSTILE, "b"], "response": HOSTILE + str(row["correct"])}
                for row in read_rows(path)]  # fmt: skip
        write_rows(path, rows)
    base = tmp_path / HOSTILE.replace("/", "\\")  # a folder's name may hold all but a slash
    write_json(base / "config.json", {"model_type": "llama"})
    save_file({"w": torch.zeros(2)}, base / "model.safetensors")
    params["model"] = {**params["model"], "base": f"./{base.name}"}
    write_json(tmp_path / "results" / "base.json", {"base": params["model"]["base"], "parameters": 1234})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    other = tmp_path / "reports" / HOSTILE.replace("/", "\\")
    other.mkdir(parents=True)
    for name in ("benchmark", "consistency"):
        (other / f"{name}.html").write_text("")
    pages = {name: page(name) for name in NOTEBOOKS}
    for text in pages.values():
        tags = Tags(text)
        assert not {"script", "think", "td><script"} & {*tags.found}
        assert not [name for name in tags.attributes if name.startswith("on")]
        assert "&lt;think&gt;$x$ | `y` &amp; [z]" in text and text.count("<math") == 0
        assert 'href="javascript' not in text
        assert all('alt="' in image for image in re.findall(r"<img[^>]*>", text))
    assert "On M1's responses" in words(pages["consistency"])
    assert "in 3 of 15 trainings: SRLM, M2; SRLM, M3; SRLM, M4." in words(pages["benchmark"])
    assert (tmp_path / "reports" / "accuracy.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize("case", ["older", "unknown", "tiny"])
def test_the_pages_of_other_runs(tmp_path, page, case):
    few = lineage(("srlm", {"method": "srlm"}), last=2 if case == "tiny" else 3)
    if case == "older":
        make_run(tmp_path, few, tasks=("sums", "words"), older=True)
    elif case == "unknown":
        make_run(tmp_path, few, known=False)
    else:
        make_run(tmp_path, few, questions=2, prompts=2)
    pages = {name: words(page(name)) for name in NOTEBOOKS}
    assert ("Accuracy by task" in pages["benchmark"]) == (case == "older")  # which has two
    if case == "unknown":
        assert "not known" in pages["index"]
