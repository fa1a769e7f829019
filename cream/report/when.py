"""When a round of self-rewarding helps, and where to stop: what the runs of several seeds and settings say together.

`rows` are those of results/seeds.csv and results/sweeps/: one model of one run, with its accuracy and, of a trained one, the
gap before its training (see notebooks/05_rank.ipynb). Runs have a name in the column `run`.
"""

from pathlib import Path

import pandas as pd

from cream.report.results import CONTROLS
from cream.report.statistics import ratio, share

COLUMNS = "settings seed model method start round accuracy self_agreement gap reversed_share kind run".split()


def all_rows(results):
    """The rows of all seeds and sweeps that are kept in the folder `results`, each model of each run once; `kind` says what
    they are rows of: a profile, or a sweep."""
    files = [Path(results, "seeds.csv"), *sorted(Path(results, "sweeps").glob("*.csv"))]
    tables = [pd.read_csv(path) for path in files if path.exists()]
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.concat([table.assign(kind=_kind(table)) for table in tables], ignore_index=True)
    rows = rows.reindex(columns=list(dict.fromkeys([*rows.columns, *COLUMNS])))  # a file may be older than a column
    rows = rows.drop_duplicates(["settings", "seed", "model", "method"]).replace({"method": CONTROLS})
    return rows.assign(run=rows.settings + " " + rows.seed.astype(str)).reset_index(drop=True)


def _kind(table):
    keys = [name for name in table.columns[2 : table.columns.get_loc("model")] if name != "seed"]
    return table.profile.astype(str) + "".join(f", {key}" for key in keys)


def trainings(rows):
    """One row a training whose gap is known and whose pairs are not reversed: the `gap` and the `change` of the greedy
    accuracy from the start model to the trained one, and whether they have the same sign (`agrees`)."""
    accuracy = rows.set_index(["run", "model"]).accuracy
    accuracy = accuracy[~accuracy.index.duplicated()]
    trained = rows[rows.gap.notna() & ~(rows.reversed_share > 0.5)].copy()
    before = accuracy.reindex(pd.MultiIndex.from_frame(trained[["run", "start"]])).to_numpy()
    trained["change"] = trained.accuracy - before
    trained = trained[trained.change.notna()]
    return trained.assign(agrees=(trained.gap > 0) == (trained.change > 0))


def signs(trained):
    """How often gap and change have the same sign, with its 95% interval over runs, since trainings of one run share their M1:
    by bootstrap, or, where all agree and a bootstrap would have no width, Wilson's for that many runs."""
    if trained.agrees.all():
        return share(trained.run.nunique(), trained.run.nunique())
    return ratio(trained.agrees, [1] * len(trained), trained.run)


def kept(rows):
    """One row a run and method: the accuracies of M1, of the last model, of the best one, and of the model that is kept if
    one keeps that of the highest self-agreement, M1 among them."""
    found = []
    known = rows[rows.self_agreement.notna()]
    for run, models in known.groupby("run", sort=False):
        m1 = models[models.model == "m1"]
        for method, line in models[models["round"] > 1].groupby("method", sort=False):
            line = pd.concat([m1, line.sort_values("round")])
            choice = line.loc[line.self_agreement.idxmax()]
            found.append({
                "run": run, "kind": choice.kind, "seed": choice.seed, "method": method, "kept": choice["round"],
                "M1": line.accuracy.iloc[0], "last": line.accuracy.iloc[-1], "best": line.accuracy.max(),
                "accuracy": choice.accuracy,
            })  # fmt: skip
    return pd.DataFrame(found, columns=["run", "kind", "seed", "method", "kept", "M1", "last", "best", "accuracy"])
