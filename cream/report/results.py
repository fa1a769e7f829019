"""What a run found, as data frames, and the statistics that its pages show.

`root` is the folder of the run. What a file of an older run does not have is missing (NaN) and leaves a gap on the
page, never an error. Tables of a value with its 95% interval have the columns `value`, `low` and `high`, one row a
model: of questions or prompts by bootstrap or Wilson, of seeds by `cream.report.seeds`.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from cream.data.errors import InputError
from cream.data.files import read_rows
from cream.method.consistency import kendall_tau_b, spearman
from cream.method.pairs import consistency_of, rankers_for, scores_of
from cream.pipeline.parameters import label_of, lineage_of, models_of, round_of, settings_digest, start_of, train_row
from cream.report import seeds
from cream.report.statistics import auc_with_interval, mean, paired_difference, pairwise_wins, ratio, share

CONTROLS = {"SRLM by gold": "answer key (control)", "SRLM by random": "random pairs (control)"}


# The lineage, as the pages draw it.


def method_of(params, model):
    """What made a model, without the model that it started from. The controls are called by what they are."""
    name = label_of(params, model).split(" from ")[0]
    return CONTROLS.get(name, name)


def trained_of(params):
    return [model for model in models_of(params) if model in params["train"]]


def policies_of(params):
    """The models whose responses were ranked, in the order of their rounds."""
    return [model for model in models_of(params) if model in params["rank"]]


def lines_of(params):
    """{method: its models, round by round, behind the model that the first of them started from}. A second lineage by
    the same method takes the name of its first model too."""
    lines, line_of = {}, {}
    for model in trained_of(params):
        start, name = start_of(params, model), method_of(params, model)
        line = line_of.get(start)
        if line is None or lines[line][-1] != start or method_of(params, start) != name:
            line = name if name not in lines else f"{name} ({model})"
            lines[line] = [start]
        lines[line].append(model)
        line_of[model] = line
    return lines


def kept_models(params, root=".."):
    """{method: the model of its line, M1 among them, whose sampled answers agree most}, where that was measured."""
    agreement = evaluations(params, root).self_agreement.dropna()
    found = {}
    for name, models in lines_of(params).items():
        ours = agreement[agreement.index.isin([*lineage_of(params, models[-1])[1:]])]
        if len(ours):
            found[name] = ours.idxmax()
    return found


def main_lines(params, shown):
    """The lines of SRLM and CREAM as far as their models are in `shown`; of a run without them, its first two."""
    lines = {name: [model for model in models if model in shown] for name, models in lines_of(params).items()}
    lines = {name: models for name, models in lines.items() if len(models) > 1}
    main = [name for name in ("SRLM", "CREAM") if name in lines] or list(lines)[:2]
    return {name: lines[name] for name in main} or {"M1": [model for model in ("m1",) if model in shown]}


def called(params, model):
    """A model in a sentence: M1, SRLM's M3."""
    return model.upper() if model in ("m0", "m1") else f"{method_of(params, model)}'s M{round_of(params, model)}"


# What the stages wrote.


EVALUATED = "questions accuracy low high sampled_accuracy self_agreement unparsed_share truncated_share".split()


def evaluations(params, root=".."):
    """One row a model: its round, method and start, and what its evaluation wrote."""
    found = pd.DataFrame({model: _written(root, "evaluate", model) for model in models_of(params)}).T
    found = found.reindex(columns=EVALUATED).astype(float)
    found.insert(0, "round", [round_of(params, model) for model in found.index])
    found.insert(1, "method", ["M0", "M1", *(method_of(params, model) for model in found.index[2:])])
    found.insert(2, "start", [start_of(params, model) for model in found.index])
    return found


def rank_results(params, root=".."):
    """One row a policy: what its ranking and its sampling wrote."""
    return pd.DataFrame(
        {
            policy: {**_written(root, "sample", policy), **_written(root, "rank", policy)}
            for policy in policies_of(params)
        }
    ).T


def trained_pairs(params, root=".."):
    """One row a trained model: the pairs that it was trained on, by number and weight."""
    return pd.DataFrame({model: _written(root, "pairs", model) for model in trained_of(params)}).T


def rankings(params, root=".."):
    """One row a prompt and policy, with the verdict on the pair that the reward makes."""
    rows = pd.DataFrame(
        {"policy": policy, "round": round_of(params, policy), **row}
        for policy in policies_of(params)
        for row in read_rows(Path(root, "data", "rankings", f"{policy}.jsonl"))
    )
    ends = [
        [None, None] if np.isnan(chosen) else [correct[int(chosen)], correct[int(rejected)]]
        for correct, chosen, rejected in zip(rows.correct, rows.chosen.astype(float), rows.rejected.astype(float))
    ]
    rows["verdict"] = [verdict_of(*pair) for pair in ends]
    rows["chosen"], rows["rejected"] = rows.chosen.astype(float), rows.rejected.astype(float)
    return rows


def answers(params, root=".."):
    """One row a model and question; an InputError where models of the run have no answers yet."""
    missing = [model for model in models_of(params) if not Path(root, "data", "answers", f"{model}.jsonl").exists()]
    if missing:
        raise InputError(f"the run is not complete, the answers of {', '.join(missing)} are missing: run `make repro`")
    return pd.DataFrame(
        {"model": model, **row}
        for model in models_of(params)
        for row in read_rows(Path(root, "data", "answers", f"{model}.jsonl"))
    )


def greedy_accuracy(evaluations):
    """The accuracy of greedy answers with its Wilson interval, one row a model."""
    return evaluations[["accuracy", "low", "high"]].set_axis(["value", "low", "high"], axis=1)


def sampled_shares(answers):
    """The share of each model's samples that is right, [questions, models]; NaN where there are none."""
    if "sampled_correct" not in answers:
        return pd.DataFrame()
    shares = answers.sampled_correct.map(lambda right: np.mean(right) if isinstance(right, list) and right else np.nan)
    table = answers.assign(share=shares).pivot(index="id", columns="model", values="share")
    return table[answers.model.unique()].dropna(how="all")


def sampled_accuracy(shares):
    """The mean over questions of `sampled_shares`, one row a model that has samples."""
    return _table({model: mean(shares[model], shares.index) for model in shares}).dropna()


def by_task(params, answers, root=".."):
    """Accuracy by task with its interval, as text, their mean, and what guessing an option comes to."""
    found = {model: _written(root, "evaluate", model) for model in models_of(params)}
    tasks = {task: values["questions"] for task, values in found["m1"].get("tasks", {}).items()}
    table = pd.DataFrame(
        {
            f"{task}, {number} questions": {model: _with_interval(found[model]["tasks"][task]) for model in found}
            for task, number in tasks.items()
        }
    )
    table["mean over tasks"] = {model: found[model].get("mean_over_tasks") for model in found}
    asked = answers[answers.model == "m1"]
    chance = asked.choices.map(lambda choices: 1 / len(choices) if choices else 0.0).groupby(asked.task).mean()
    table.loc["guessing"] = [*(f"{chance[task]:.3f}" for task in tasks), chance.mean()]
    return table


def _with_interval(found):
    return f"{found['accuracy']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def divided(correct, number):
    """The questions on which the models differ most: as near as can be to half of them right."""
    right = correct.mean(axis=1)
    return list((right[(right > 0) & (right < 1)] - 0.5).abs().sort_values(kind="stable").index[:number])


def graded(answers):
    """Whether each model is right, [questions, models]."""
    table = answers.pivot(index="id", columns="model", values="correct")[answers.model.unique()]
    assert answers.groupby("id").model.nunique().eq(table.shape[1]).all(), "the models answered different questions"
    return table.astype(bool)


def transcript(rows):
    """A question with its options and answer, and what each model wrote to it: models that wrote the same share a row."""
    first = rows.iloc[0]
    options = [f"{chr(65 + i)}. {choice}" for i, choice in enumerate(first.choices or [])]
    written = rows.groupby("response", sort=False).agg(right=("correct", "first"), models=("model", ", ".join))
    written = written.reset_index().replace({"right": {True: "yes", False: "no"}})
    return " ".join([str(first.question), *options, f"(answer: {first.answer})"]), written


def moved_log_probs(params, models, root=".."):
    """How far the log-probs of chosen and rejected responses moved in each training, in nats a response."""
    found = {model: _written(root, "train", model) for model in models}
    moved = {model: {end: row.get(f"{end}_moved") for end in ("chosen", "rejected")} for model, row in found.items()}
    return pd.DataFrame(moved).T.astype(float)


def curves(params, root=".."):
    """The preference trainings' curves below each other: model, step, loss, margin, and chosen and rejected, the
    change of their log-probs since the start model."""
    found = [
        pd.read_csv(Path(root, "results", "curves", f"{model}.csv")).assign(model=model)
        for model in trained_of(params)
    ]
    return pd.concat(found, ignore_index=True).reindex(
        columns=["model", "step", "loss", "margin", "chosen", "rejected"]
    )


def _written(root, stage, name):
    path = Path(root, "results", stage, f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# Several seeds.


def seed_rows(params, root=".."):
    """The rows of results/seeds.csv for the models of this lineage, or None where it has no two seeds with all of them.
    Other settings and other profiles may have models of the same names: settings and labels must be the same too."""
    path, labels = Path(root, "results", "seeds.csv"), {model: label_of(params, model) for model in models_of(params)}
    if not path.exists():
        return None
    rows = pd.read_csv(path)
    rows = rows.reindex(columns=list(dict.fromkeys([*rows.columns, "settings", *RANKED])))
    rows = rows[(rows.settings == settings_digest(params)) & (rows.method == rows.model.map(labels))]
    rows = rows.drop_duplicates(["seed", "model"])
    rows = rows[rows.groupby("seed").model.transform("nunique") == len(labels)]
    return rows if rows.seed.nunique() > 1 else None


RANKED = ["self_agreement", "gap", "C", "tau_auc", "reward_accuracy", "log_prob_accuracy", "vote_accuracy"]


def differences(pairs, rows=None, right=None, value="accuracy"):
    """For each pair of models the difference of their accuracies with its 95% interval: over the seeds in `rows`, in the
    column `value`; or over the questions in `right`, which holds booleans, or shares of samples."""
    pairs = list(pairs)
    if rows is None:
        if value == "accuracy":
            return _table({(one, other): paired_difference(right[one], right[other]) for one, other in pairs})
        return _table({(one, other): mean(right[one] - right[other], right.index) for one, other in pairs})
    found = seeds.differences(rows, pairs, value)
    return _table(dict(zip(pairs, found[["mean", "low", "high"]].itertuples(index=False, name=None))))


def _table(found):
    return pd.DataFrame(list(found.values()), index=list(found), columns=["value", "low", "high"], dtype=float)


# Pairs and answers, compared.


def verdict_of(chosen, rejected):
    """right: the chosen response is right and the rejected one wrong; wrong: the other way round; undecided: both or
    neither. None where there is no pair or the answer is not known."""
    if chosen is None or rejected is None or chosen != chosen or rejected != rejected:
        return None
    return "undecided" if bool(chosen) == bool(rejected) else "right" if chosen else "wrong"


def compare(correct, pairs):
    """Pairs of models on the same questions: those that just one of them answers, the exact McNemar test, and its p
    corrected for the number of pairs (Holm)."""
    rows = []
    for one, other in pairs:
        wins, losses = newly_answered_and_failed(correct, one, other)
        p = mcnemar([[0, wins], [losses, 0]], exact=True).pvalue if wins + losses else 1.0
        difference = paired_difference(correct[one], correct[other])[0]
        rows.append({"model": one, "against": other, "difference": difference, "only it is right": wins,
                     "only the other is right": losses, "p": p})  # fmt: skip
    table = pd.DataFrame(rows)
    table["p, Holm"] = multipletests(table.p, method="holm")[1]
    return table


def pairs_to_test(params):
    """M1 with M0, each trained model with M1, and with plain SRLM of its round."""
    trained, plain = trained_of(params), lines_of(params).get("SRLM", [])
    srlm = {round_of(params, model): model for model in plain[1:]}
    pairs = [(model, srlm.get(round_of(params, model), model)) for model in trained]
    return [("m1", "m0"), *((model, "m1") for model in trained), *(pair for pair in pairs if pair[0] != pair[1])]


def newly_answered_and_failed(correct, model, start):
    """How many questions `model` answers that `start` failed, and how many it fails that `start` answered."""
    return int((correct[model] & ~correct[start]).sum()), int((~correct[model] & correct[start]).sum())


# What the rankings know, a row a policy.

LOG_PROBS = {"log_prob": "policy_logps", "base": "base_logps"}  # rankers that are columns of their own in every run


def ranker_accuracy(rows, ranker):
    """Of every right and wrong response to one prompt, how often the ranker puts the right one higher (ties half)."""
    found = {}
    for policy, group in rows[[set(correct) == {True, False} for correct in rows.correct]].groupby("policy", sort=False):
        values = group[LOG_PROBS[ranker]] if ranker in LOG_PROBS else [scores.get(ranker) for scores in group.scores]
        pairs = [pairwise_wins(of, correct) if of else (0, 0) for of, correct in zip(values, group.correct)]
        if sum(number for _, number in pairs):
            found[policy] = ratio(*zip(*pairs), group.id)
    return _table(found)


def consistency(rows):
    """C, the mean consistency of the prompts that make a pair."""
    paired = rows[rows.chosen.notna()]
    return _table({policy: mean(group.consistency, group.id) for policy, group in paired.groupby("policy", sort=False)})


def consistency_ceiling(params, rows):
    """The largest C that the responses allow, one value a policy: that of the reward's ranking with itself. Identical
    responses tie, and ties add nothing to tau."""
    paired = rows[rows.chosen.notna()].groupby("policy", sort=False)
    measure = params["ranking"]["measure"]
    return pd.Series(
        {
            policy: consistency_of(group.to_dict("records"), "reward", "reward", measure).mean().item()
            for policy, group in paired
        },
        dtype=float,
    )


def tau_auc(rows):
    """Of a right and a wrong pair, how often the right one has the higher tau (ties half)."""
    found = {
        policy: auc_with_interval(group.tau, group.verdict == "right", group.id)
        for policy, group in rows[rows.verdict.isin(["right", "wrong"])].groupby("policy", sort=False)
    }
    return _table(found).dropna()


def right_pairs(rows):
    """The share of right pairs among the decided ones."""
    decided = rows[rows.verdict.isin(["right", "wrong"])].groupby("policy", sort=False)
    return _table({policy: share((group.verdict == "right").sum(), len(group)) for policy, group in decided})


TAU_BINS = {"−1 to −0.2": (-1.01, -0.2), "−0.2 to 0.2": (-0.2, 0.2), "0.2 to 0.6": (0.2, 0.6), "0.6 to 1": (0.6, 1.01)}


def right_pairs_by_tau(rows):
    """The share of right pairs among the decided ones, a row a bin of tau; each bin holds its upper end. A prompt that
    several policies answered counts once."""
    decided = rows[rows.verdict.isin(["right", "wrong"])]
    groups = {name: decided[(decided.tau > low) & (decided.tau <= high)] for name, (low, high) in TAU_BINS.items()}
    by_prompt = {name: (group.verdict == "right").groupby(group.id).mean() for name, group in groups.items()}
    table = _table({name: share(values.sum(), len(values)) for name, values in by_prompt.items()})
    table["pairs"] = [len(group) for group in groups.values()]
    return table


def first_round_rules(params, rows):
    """C of the first round by each rule for what replaces M0's reward, on the same responses of M1, and the model
    of this run that was trained with it (None: C = 1, no rule)."""
    paired = [row for row in rows[rows.policy == "m1"].to_dict("records") if row["chosen"] == row["chosen"]]
    table = {}
    for name, rule in (("halfway", "halfway"), ("like for like", "like_for_like"), ("official code", "official")):
        if rule == "halfway" and paired and "halfway" not in paired[0]["scores"]:
            continue  # of an older run
        ranker_j, ranker_k = rankers_for("reward", "previous", "m0", rule)
        c = consistency_of(paired, ranker_j, ranker_k, params["ranking"]["measure"]).mean().item() if paired else np.nan
        table[name] = {"J": ranker_j, "K": ranker_k, "C": c, "trained": _trained_by(params, rule)}
    table["none"] = {"J": "reward", "K": "none", "C": 1.0, "trained": _trained_by(params, None)}
    return pd.DataFrame(table).T


def _trained_by(params, rule):
    """The first M2 whose pairs are the reward's and whose C, CREAM's by the run's measure, is of this rule."""
    for model in trained_of(params):
        row = train_row(params, model)
        if (row["start"], row["by"]) == ("m1", "reward"):
            if rule is None and row["method"] == "srlm":
                return model
            wanted = ("cream", "previous", rule, params["ranking"]["measure"])
            if tuple(row[key] for key in ("method", "against", "first_round", "measure")) == wanted:
                return model
    return None


def agreement_with_reward(rows):
    """Of the rankers that a run asks for besides those of every run: tau-b with the reward, over the prompts on which
    both have an order."""
    found = {}
    for policy, group in rows.groupby("policy", sort=False):
        ranked = group.to_dict("records")
        for ranker in ("judge", "reward_model"):
            if all(ranker in scores for scores in group.scores):
                values, reward = scores_of(ranked, ranker), scores_of(ranked, "reward")
                spread = [scores.max(dim=1).values - scores.min(dim=1).values for scores in (values, reward)]
                ordered = (spread[0] > 0) & (spread[1] > 0)  # False where a score is NaN
                tau = kendall_tau_b(reward[ordered], values[ordered]).mean().item() if ordered.any() else np.nan
                found[f"{ranker.replace('_', ' ')}, {policy}"] = {
                    "tau-b": tau,
                    "prompts": int(ordered.sum()),
                    "without a score": int(values.isnan().sum()),
                }
    return pd.DataFrame(found).T.astype({"prompts": int, "without a score": int}) if found else pd.DataFrame()


def length_bias(rows):
    """Spearman's correlation of reward and length within a prompt, the mean over prompts, one value a policy."""
    found = {}
    for policy, group in rows.groupby("policy", sort=False):
        reward, length = (np.array(list(values), float) for values in (group.scores.str["reward"], group.lengths))
        known = (np.ptp(reward, axis=1) > 0) & (np.ptp(length, axis=1) > 0)
        found[policy] = spearman(reward[known], length[known]).mean().item() if known.any() else np.nan
    return pd.Series(found, dtype=float)


def last_common(params, one, other):
    """Of two lines the models of the last round that both have; None if there is none."""
    a, b = ({round_of(params, model): model for model in line[1:]} for line in (one, other))
    last = max(a.keys() & b.keys(), default=None)
    return (a[last], b[last]) if last else None


def last_comparisons(params):
    """{what a method is compared with: {method: (its model, the other's)}}: the last models with M1, and with CREAM's of
    the last round that both have. A method that ends before the others has its last model with its name."""
    lines, found = lines_of(params), {"M1": {}, "CREAM": {}}
    last = max(round_of(params, line[-1]) for line in lines.values())
    for name, line in lines.items():
        end = round_of(params, line[-1])
        label = name if end == last else f"{name} (M{end})"
        found["M1"][label] = line[-1], "m1"
        common = None if name == "CREAM" else last_common(params, line, lines.get("CREAM", []))
        found["CREAM"] |= {label: common} if common else {}
    return {other: pairs for other, pairs in found.items() if pairs}


def few_lines(params, most):
    """The lines, and where they are more than `most` only those that the first page speaks of, if there are any."""
    lines = lines_of(params)
    main = [name for name in lines if name in (*CONTROLS.values(), "SRLM", "CREAM") or name.startswith("fixed C")]
    return lines if len(lines) <= most or not main else {name: lines[name] for name in main}


def claims(params, right, rows=None, value="accuracy", paper=None):
    """What the paper says of self-rewarding and CREAM, and the controls of the experiment, as far as this run has their
    models: a row a claim with its `text`, which way the difference of two models is `expected` to lie, the difference itself
    (`value`, `low`, `high`; see `differences`), and the same difference in the `paper`.

    `paper` is data/paper/accuracy.csv, of which some differences can be read.
    """
    lines = lines_of(params)
    key, chance = CONTROLS.values()
    fixed = next((name for name in lines if name.startswith("fixed C")), "")
    first = {name: line[1] for name, line in lines.items()}
    last = {name: line[-1] for name, line in lines.items()}
    both = {name: last_common(params, lines["CREAM"], lines[name]) for name in ("SRLM", fixed, chance)
            if name in lines and "CREAM" in lines}  # fmt: skip
    asked = [
        ("Control: the answer key's pairs raise the accuracy", "above", (last.get(key), "m1"), None),
        ("Control: random pairs do not", "not above", (last.get(chance), "m1"), None),
        ("Self-rewarding (SRLM) helps in its first round", "above", (first.get("SRLM"), "m1"), None),
        ("With more rounds it does harm", "below", (last.get("SRLM"), first.get("SRLM")), None),
        ("In the end it is below M1", "below", (last.get("SRLM"), "m1"), ("SRLM", "M1")),
        ("CREAM ends above M1", "above", (last.get("CREAM"), "m1"), ("CREAM", "M1")),
        ("CREAM ends above SRLM", "above", both.get("SRLM"), ("CREAM", "SRLM")),
        ("Measuring C is what helps: CREAM ends above a fixed C", "above", both.get(fixed), None),
    ]
    asked = [claim for claim in asked if claim[2] and None not in claim[2] and claim[2][0] != claim[2][1]]
    asked = list({claim[2]: claim for claim in reversed(asked)}.values())[::-1]  # after one round the first is the last
    table = pd.DataFrame(asked, columns=["text", "expected", "models", "paper"])
    table["paper"] = [_of_paper(paper, pair) for pair in table.paper]
    found = differences(table.models, rows, right, value)
    return table.join(found.reset_index(drop=True))


def _of_paper(paper, pair):
    """The difference of two methods' last models in the paper, by base model, as far as it is known."""
    if paper is None or pair is None:
        return ""
    last = paper.sort_values("stage").groupby(["model", "method"]).average.last().unstack("method")
    found = (last[pair[0]] - last[pair[1]]).dropna().map("{:+.1f}".format).str.replace("-", "−")
    return ", ".join(f"{model} {value}" for model, value in found.items())
