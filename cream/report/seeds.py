"""What runs with several seeds say: their rows, the mean over seeds with its interval, and paired differences.

A row is one model of one run. All intervals are 95% t-intervals of a mean over seeds; they take the seeds for a normal
sample.
"""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from cream.data.errors import InputError
from cream.data.files import atomic_write
from cream.pipeline.parameters import label_of, models_of, round_of, settings_digest, start_of
from cream.pipeline.sweep import finished_runs
from cream.report.statistics import p_in_words

# Which columns come from which file of results/.
METRICS = {
    "evaluate": ["questions", "accuracy", "sampled_accuracy", "self_agreement"],
    "rank": [
        *"reward_accuracy log_prob_accuracy vote_accuracy tau_auc C chosen_right rejected_right".split(),
        *"C_halfway C_like_for_like C_official pair_agreement calibrated_C right_of_decided reward_gap".split(),
    ],
    "pairs": ["gap", "gap_low", "gap_high", "reversed_share"],
    "train": ["chosen_moved", "rejected_moved"],
}
NAMES = [name for names in METRICS.values() for name in names]


def collect(runs, profile, keys=("seed",)):
    """The rows of a profile's finished runs that set just these keys (see cream/pipeline/sweep.py), in the order of the keys'
    values. What a model has no number for is NaN."""
    rows, common = [], None
    for run, settings in finished_runs(Path(runs, profile), keys).items():
        settings = {key: "null" if value is None else value for key, value in settings.items()}
        params = yaml.safe_load((run / "params.yaml").read_text(encoding="utf-8"))
        common = common or _without(params, keys)
        if _without(params, keys) != common:
            raise InputError(f"{run} differs from the other runs in more than {', '.join(keys)}: run them all again")
        for model in models_of(params):
            row = {"profile": profile, **settings, "seed": params["seed"], "model": model}
            row |= {"method": label_of(params, model), "start": start_of(params, model), "round": round_of(params, model)}
            row["settings"] = settings_digest(params)
            rows.append(row | _metrics(run / "results", params, model))
    columns = ["profile", "settings", *dict.fromkeys([*keys, "seed"]), "model", "method", "start", "round", *NAMES]
    rows = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(NAMES[1:], float))
    # A column of numbers and words ("null") is put in the order of its words.
    order = rows[list(keys)].apply(lambda column: column.map(str) if column.dtype == object else column)
    return rows.loc[order.sort_values(list(keys), kind="stable").index].reset_index(drop=True)


def enough_seeds(rows, command):
    """The seeds of these rows; an InputError where they are fewer than two."""
    seeds = sorted(rows.seed.unique().tolist())
    if len(seeds) < 2:
        raise InputError(
            f"this page needs two seeds at least, and {len(seeds)} of this commit finished: run `{command}`"
        )
    return seeds


def mean_interval(values):
    """The mean over seeds, the standard deviation from seed to seed, and the mean's 95% t-interval (low, high), which
    fewer than two values do not have. NaN counts as no value."""
    values = pd.Series(values, dtype=float).dropna()
    mean = values.mean()
    low, high = DescrStatsW(values).tconfint_mean() if len(values) > 1 else (np.nan, np.nan)
    return pd.Series({"mean": mean, "sd": values.std(ddof=1), "low": low, "high": high})


def intervals(rows, value, by="model"):
    """The mean over seeds of a column with its interval, as `value`, `low` and `high`: one row for each model, or for
    each group of `by`, that has the number in any seed."""
    groups = rows.dropna(subset=value).groupby(by, sort=False)[value]
    table = pd.DataFrame({key: mean_interval(values) for key, values in groups}, index=["mean", "low", "high"]).T
    return table.set_axis(["value", "low", "high"], axis=1)


def intervals_from_m1(rows, value):
    """As `intervals`, but low and high are those of the difference from M1, drawn about M1's mean: the models of one seed
    share their M1, and seeds differ more by it than by what comes after."""
    moved = rows.assign(**{value: less_m1(rows, value)})
    return intervals(moved[moved.model != "m0"], value) + rows[rows.model == "m1"][value].mean()


def less_m1(rows, value, run=("seed",)):
    """A column less its value for M1 in the same run, which the columns `run` name."""
    of_m1 = rows[value].where(rows.model == "m1")
    return rows[value] - of_m1.groupby([rows[key] for key in run]).transform("first")


def differences(rows, pairs, value="accuracy"):
    """The first model of each pair less the second, seed by seed: mean, sd and interval of the difference, in how many
    of the seeds it is above 0, and p of the paired t-test (NaN where the difference is the same in every seed)."""
    table = rows.pivot(index="seed", columns="model", values=value)
    found = []
    for model, against in pairs:
        difference = (table[model] - table[against]).dropna()
        changes = len(difference) > 1 and np.ptp(difference) > 1e-9
        p = stats.ttest_1samp(difference, 0).pvalue if changes else np.nan
        count = {"in_favour": int((difference > 0).sum()), "seeds": len(difference), "p": p}
        found.append({"model": model, "against": against, **mean_interval(difference), **count})
    return pd.DataFrame(found, columns=["model", "against", "mean", "sd", "low", "high", "in_favour", "seeds", "p"])


def differences_in_words(rows, against, kinds):
    """The differences in points, as text: for each of `kinds` ({kind of accuracy: column}) and each model or method of
    `against` ({it: {method: pair}}) a row a method."""
    tables = []
    for kind, other in itertools.product(kinds, against):
        found = differences(rows, against[other].values(), kinds[kind])
        found.insert(0, "accuracy", kind)
        found[["mean", "sd", "low", "high"]] *= 100
        found["in_favour"] = [f"{count} of {of}" for count, of in zip(found.in_favour, found.seeds)]
        tables.append(found.assign(p=found.p.map(p_in_words)).set_axis(list(against[other])))
    table = pd.concat(tables).drop(columns="seeds").rename(columns={"in_favour": "seeds in favour", "mean": "points"})
    table.index = [f"{name}{' ' * k}" for name, k in zip(table.index, table.groupby(level=0).cumcount())]  # unique
    return table


def means_in_words(rows, columns):
    """Each model's mean over seeds ± half of the 95% interval, as text; `columns` says what the table calls them."""

    def in_words(values):
        mean, _, low, high = mean_interval(values)
        return "–" if np.isnan(mean) else f"{mean:.3f}" + ("" if np.isnan(low) else f" ± {(high - low) / 2:.3f}")

    return rows.groupby("model", sort=False)[list(columns)].agg(in_words).rename(columns=columns)


def keep(rows, path):
    """Writes the rows to a CSV file in place of those that it has of the same profile; others' stay as they are."""
    path, ours = Path(path), pd.read_csv(io.StringIO(rows.to_csv(index=False)), dtype=str, keep_default_na=False)
    if path.exists():
        there = pd.read_csv(path, dtype=str, keep_default_na=False)
        others = ~there.get("profile", pd.Series("", index=there.index)).isin(["", *ours.profile])
        ours = pd.concat([there[others], ours])[ours.columns].fillna("").sort_values("profile", kind="stable")
    with atomic_write(path) as temporary:
        ours.to_csv(temporary, index=False)


def _metrics(results, params, model):
    """The numbers of one model. Only of what its own run makes: a clone may hold another's file, out of the commit."""
    found = {}
    for kind, names in METRICS.items():
        made = kind == "evaluate" or model in params["rank" if kind == "rank" else "train"]
        path = results / kind / f"{model}.json"
        metrics = json.loads(path.read_text(encoding="utf-8")) if made else {}
        found |= {name: metrics.get(name) for name in names}
    return found


def _without(params, keys):
    """The parameters without these keys."""
    params = json.loads(json.dumps(params))
    for key in ("seed", *keys):
        *above, last = key.split(".")
        place = params
        for part in above:
            place = place[part]
        place.pop(last, None)
    return params
