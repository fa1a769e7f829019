"""What a run found, as data frames, and the statistics that its pages show.

`root` is the folder of the run. What a file of an older run does not have is missing (NaN) and leaves a gap on the
page, never an error. Tables of a value with its 95% interval have the columns `value`, `low` and `high`, one row a
model: of questions or prompts by bootstrap or Wilson, of seeds by `cream.report.seeds`.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cream.data.files import read_rows
from cream.method.consistency import kendall_tau_b, spearman
from cream.method.pairs import consistency_of, pairwise_wins, rankers_for, scores_of
from cream.pipeline.parameters import label_of, models_of, round_of, settings_digest, start_of, train_row
from cream.report import seeds

DRAWS = 1000  # of the bootstrap
MISSING = (np.nan, np.nan, np.nan)
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
    the same method takes the name of its first model beside it."""
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


EVALUATED = "questions accuracy low high sampled_accuracy unparsed_share truncated_share".split()


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


def trainings(params, root=".."):
    """One row a trained model: what its training wrote."""
    return pd.DataFrame({model: _written(root, "train", model) for model in trained_of(params)}).T


def trained_pairs(params, root=".."):
    """How many of the pairs that each model was trained on are known to be right, and wrong."""
    found = {}
    for model in trained_of(params):
        pairs = read_rows(Path(root, "data", "pairs", f"{model}.jsonl"))
        verdicts = [verdict_of(pair["chosen_right"], pair["rejected_right"]) for pair in pairs]
        found[model] = {verdict: verdicts.count(verdict) for verdict in ("right", "wrong")}
    return pd.DataFrame(found).T


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
    """One row a model and question."""
    return pd.DataFrame(
        {"model": model, **row}
        for model in models_of(params)
        for row in read_rows(Path(root, "data", "answers", f"{model}.jsonl"))
    )


def greedy_accuracy(evaluations):
    """The accuracy of greedy answers with its Wilson interval, one row a model whose answers are graded."""
    return evaluations[["accuracy", "low", "high"]].set_axis(["value", "low", "high"], axis=1).dropna()


def sampled_accuracy(answers):
    """The accuracy of samples, one row a model that has them: the mean over questions of the share that is right."""
    if "sampled_correct" not in answers:
        return _table({})
    shares = answers.sampled_correct.map(lambda right: np.mean(right) if isinstance(right, list) and right else np.nan)
    groups = shares.groupby(answers.model, sort=False)
    return _table({model: mean(group, answers.id[group.index]) for model, group in groups}).dropna()


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
    return "–" if found["accuracy"] is None else f"{found['accuracy']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def divided(correct, number):
    """The questions on which the models differ most: as near as can be to half of them right."""
    right = correct.mean(axis=1)
    return list((right[(right > 0) & (right < 1)] - 0.5).abs().sort_values(kind="stable").index[:number])


def graded(answers):
    """Whether each model is right, [questions, models], of the questions whose answer is known."""
    table = answers.pivot(index="id", columns="model", values="correct")[answers.model.unique()]
    assert answers.groupby("id").model.nunique().eq(table.shape[1]).all(), "the models answered different questions"
    return table.dropna().astype(bool)


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


RANKED = ["C", "tau_auc", "reward_accuracy", "log_prob_accuracy", "vote_accuracy"]


def differences(pairs, rows=None, correct=None):
    """For each pair of models the difference of their accuracies with its 95% interval: over the seeds in `rows`, or
    over the questions in `correct`."""
    pairs = list(pairs)
    if rows is None:
        return _table({pair: paired_difference(*(correct[model] for model in pair)) for pair in pairs})
    found = seeds.differences(rows, pairs, "accuracy")
    return _table(dict(zip(pairs, found[["mean", "low", "high"]].itertuples(index=False, name=None))))


def _table(found):
    return pd.DataFrame(list(found.values()), index=list(found), columns=["value", "low", "high"], dtype=float)


# Statistics. Every share and mean comes with its 95% interval.


def verdict_of(chosen, rejected):
    """right: the chosen response is right and the rejected one wrong; wrong: the other way round; undecided: both or
    neither. None where there is no pair or the answer is not known."""
    if chosen is None or rejected is None or chosen != chosen or rejected != rejected:
        return None
    return "undecided" if bool(chosen) == bool(rejected) else "right" if chosen else "wrong"


def share(count, total):
    """A share with its Wilson interval."""
    return (count / total, *proportion_confint(count, total, method="wilson")) if total else MISSING


def ratio(numerators, denominators, prompts):
    """The sum of the numerators over that of the denominators; the interval is bootstrapped over prompts, so that what
    belongs to one prompt is drawn together."""
    sums = pd.DataFrame({"n": numerators, "d": denominators}).groupby(np.asarray(prompts)).sum().to_numpy(dtype=float)
    sums = sums[sums[:, 1] > 0]
    if len(sums) == 0:
        return MISSING
    drawn = _draws(len(sums)) @ sums
    return sums[:, 0].sum() / sums[:, 1].sum(), *np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])


def mean(values, prompts):
    """The mean of what is not missing."""
    values, prompts = np.asarray(values, dtype=float), np.asarray(prompts)
    there = ~np.isnan(values)
    return ratio(values[there], np.ones(there.sum()), prompts[there])


def auc(values, positive, weights=1.0):
    """As in cream.method.pairs, how often a positive has a higher value than a negative, a tie counting half, with
    `weights`, [..., values], that say how often each of them is there. NaN where one kind is missing."""
    values, positive = np.asarray(values, dtype=float), np.asarray(positive, dtype=bool)
    place = np.unique(values, return_inverse=True)[1]
    at = np.eye(place.max() + 1)[place] if len(values) else np.zeros((0, 1))  # [values, distinct values]
    positives, negatives = (weights * positive) @ at, (weights * ~positive) @ at
    wins = (positives * (negatives.cumsum(-1) - negatives / 2)).sum(-1)
    pairs = positives.sum(-1) * negatives.sum(-1)
    return np.divide(wins, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)[()]


def auc_with_interval(values, positive, prompts):
    found = auc(values, positive)
    if np.isnan(found):
        return MISSING
    place = np.unique(np.asarray(prompts), return_inverse=True)[1]
    drawn = auc(values, positive, _draws(place.max() + 1)[:, place])
    return found, *np.nanpercentile(drawn, [2.5, 97.5])


@lru_cache(maxsize=4)
def _draws(n):
    """How often each of n prompts is drawn in each draw of the bootstrap, [draws, n]; always the same."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)


def paired_difference(one, other):
    """The difference of two shares of the same questions, with Bonett and Price's interval (2012)."""
    n, wins, losses = len(one), int((one & ~other).sum()), int((~one & other).sum())
    if n == 0:
        return MISSING
    gained, lost = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * np.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    return (wins - losses) / n, max(gained - lost - half, -1), min(gained - lost + half, 1)


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


def pairwise_accuracy(rows, ranker):
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
    """C of the first round by each rule for what stands in for M0's reward, on the same responses of M1, and the model
    of this run that was trained with it (None: C = 1, no rule)."""
    paired = [row for row in rows[rows.policy == "m1"].to_dict("records") if row["chosen"] == row["chosen"]]
    table = {}
    for name, rule in (("like for like", "like_for_like"), ("official code", "official")):
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
    """Of the rankers that a run asks for beside those of every run: tau-b with the reward, over the prompts on which
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


# The findings in words: what the numbers say decides the sentence.


def direction(low, high, words=("below", "level with", "above"), middle=0.0):
    """Where an interval lies: the first word below the middle, the last above it, the second where it holds it."""
    return words[0] if high < middle else words[2] if low > middle else words[1]


def points(value, low, high):
    """A difference of accuracies with its interval, in points."""
    value, low, high = (f"{round(100 * number, 1) + 0.0:+.1f}".replace("-", "−") for number in (value, low, high))
    return f"{value} points, {low} to {high}"


def percent(value, low=None, high=None):
    if value != value:
        return "–"
    return f"{100 * value:.0f}%" + (f" ({100 * low:.0f} to {100 * high:.0f})" if low is not None else "")


def value_of(table, model):
    return table.value.get(model, np.nan)


def course(table, models):
    """A line of values, those that are there: 0.57, 0.62, 0.70."""
    return ", ".join(f"{table.value[model]:.2f}" for model in models if model in table.index)


def seeds_in_words(rows):
    numbers = sorted(rows.seed.unique().tolist())
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"seeds {numbers[0]} to {numbers[-1]}"
    return f"seeds {_listed([str(number) for number in numbers])}"


def rewards_in_words(params, tables, lines):
    """Whether the reward tells right from wrong responses, to begin with and at the end of each of these lines, beside
    the other rankers. `tables`: {ranker: pairwise accuracy}, the reward's first."""
    name, *others = tables

    def found(policy):
        more = [f"{other} {percent(value_of(tables[other], policy))}" for other in others]
        return percent(value_of(tables[name], policy)) + (f" ({', '.join(more)})" if more else "")

    if name != "reward" or "m1" not in tables[name].index:
        return "How well the reward does on M1's responses is not known."
    start = tables[name].loc["m1"]
    verb = direction(start.low, start.high, ("<b>mistakes</b>", "does <b>not</b> tell", "<b>tells</b>"), 0.5)
    what = "wrong responses for right ones" if "mistakes" in verb else "right from wrong responses"
    text = f"M1's reward {verb} {what}: of a right and a wrong response to one prompt it puts the right one higher in "
    text += f"{found('m1')}; chance is 50%."
    for models in lines.values():
        known = [model for model in models[1:] if model in tables[name].index]
        if known:
            end = tables[name].loc[known[-1]]
            moved = "<b>falls</b> to" if end.high < start.low else "<b>rises</b> to" if end.low > start.high else "is"
            text += f" On the responses of {called(params, known[-1])} this {moved} {found(known[-1])}."
    return text


def agreement_in_words(auc, lines):
    """Whether tau tells right pairs from wrong ones: on M1's responses, and on those of each of these lines."""
    words = (
        "the more consistent pairs are right <b>less</b> often",
        "agreement does <b>not</b> tell right pairs from wrong ones",
        "the more consistent pairs are right <b>more</b> often",
    )
    where = {row.Index: direction(row.low, row.high, words, 0.5) for row in auc.itertuples()}
    said = {}  # {what is said: of whose responses}
    for name, models in {"M1": ["m1"], **{name: models[1:] for name, models in lines.items()}}.items():
        known = [model for model in models if model in where]
        found = {where[model] for model in known}
        if known:
            text = found.pop() if len(found) == 1 else "that differs from round to round"
            who = "M1's responses" if name == "M1" else f"those of {name}'s models"
            said.setdefault(text, []).append(f"{who} (AUC {course(auc, known)})")
    sentences = [f"On {_listed(whose)} {text}." for text, whose in said.items()]
    return " ".join(sentences) or "No pair of this run is known to be right or wrong."


def last_common(params, one, other):
    """Of two lines the models of the last round that both have; None if there is none."""
    a, b = ({round_of(params, model): model for model in line[1:]} for line in (one, other))
    last = max(a.keys() & b.keys(), default=None)
    return (a[last], b[last]) if last else None


def main_comparisons(params):
    """{(method, other method or M1): (model, model)}, of what the first page speaks of, at the last common round."""
    lines = lines_of(params)
    fixed = [name for name in lines if name.startswith("fixed C")][:1]
    selves = [name for name in ("SRLM", "CREAM", *fixed, "CREAM-select") if name in lines]
    pairs = {(name, "M1"): (lines[name][-1], "m1") for name in [*CONTROLS.values(), *selves] if name in lines}
    wanted = [("CREAM", "SRLM"), *(("CREAM", name) for name in fixed), ("CREAM-select", "CREAM")]
    wanted += [("CREAM-select", name) for name in (*fixed, "CREAM-select-random")]
    common = {(a, b): last_common(params, lines[a], lines[b]) for a, b in wanted if a in lines and b in lines}
    return pairs | {pair: models for pair, models in common.items() if models}


def findings(found):
    """The first page's paragraphs from {(method, other): (value, low, high)}: what follows, whether the controls hold,
    and how the methods end against M1 and against each other. Where the controls do not hold, that comes first."""
    controls = {name: found[name, "M1"] for name in CONTROLS.values() if (name, "M1") in found}
    held = all(direction(*row[1:]) == EXPECTED[name] for name, row in controls.items())
    versus_m1 = [pair for pair in found if pair[1] == "M1" and pair[0] not in controls]
    versus = {pair: row for pair, row in found.items() if pair[1] != "M1"}
    ends = [
        _listed(f"{one} ends {WHERE[direction(*found[one, other][1:])]} {other} ({points(*found[one, other])})"
                for one, other in pairs) + "."
        for pairs in (versus_m1, versus)
        if pairs
    ]  # fmt: skip
    controls, conclusion = _controls(controls, held), " ".join(_conclusion(versus))
    paragraphs = [conclusion, controls, *ends] if held else [controls, conclusion, *ends]
    return [paragraph for paragraph in paragraphs if paragraph]


EXPECTED = dict(zip(CONTROLS.values(), ("above", "below")))
WHERE = {"above": "<b>above</b>", "below": "<b>below</b>", "level with": "<b>not clearly apart</b> from"}


def _controls(controls, held):
    if not controls:
        return "This run has no controls: nothing was trained on the answer key's pairs or on random ones."
    named = dict(zip(CONTROLS.values(), ("the answer key's pairs", "random pairs")))
    ends = (f"{named[name]} ends {WHERE[direction(*row[1:])]} M1 ({points(*row)})" for name, row in controls.items())
    opening = "The controls hold" if held else "The controls do <b>not</b> hold, so the rest is to be read with care"
    missing = "" if len(controls) == 2 else " The other control is not part of this run."
    return f"{opening}: training on {_listed(ends)}.{missing}"


def _conclusion(versus):
    where = {pair: direction(*row[1:]) for pair, row in versus.items()}
    plain = where.get(("CREAM", "SRLM"))
    fixed = next((word for (one, other), word in where.items() if one == "CREAM" and other != "SRLM"), None)
    if plain == "above":
        yield "CREAM did <b>better</b> than plain self-rewarding (SRLM) here, " + {
            None: "and a fixed C was not run.",
            "above": "and better than a fixed C: measuring the consistency was worth it.",
            "level with": "but <b>no clear difference from a fixed C</b> shows: it can be the smaller weight that "
            "helps, and not that it is measured.",
            "below": "but <b>a fixed C did better still</b>.",
        }[fixed]
    elif plain:
        yield {
            "level with": "CREAM made <b>no clear difference</b> to plain self-rewarding (SRLM) here.",
            "below": "CREAM did <b>worse</b> than plain self-rewarding (SRLM) here.",
        }[plain]
    select = where.get(("CREAM-select", "CREAM"))
    if select:
        yield {
            "above": "Agreement helped where it was used pair by pair (CREAM-select).",
            "level with": "Using agreement pair by pair (CREAM-select) made no clear difference to CREAM.",
            "below": "Using agreement pair by pair (CREAM-select) did worse than CREAM.",
        }[select]


def _listed(parts):
    """a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
