"""The last words of `make repro`: by method and round, the accuracy, the model to keep, and the gap before each training.

python -m cream.report.summary
"""

import sys

from cream.data.errors import InputError
from cream.pipeline.parameters import lineage_of, load_parameters, round_of
from cream.report import results


def main():
    try:
        print(summary(load_parameters("params.yaml"), "."))
    except InputError as error:
        sys.exit(str(error))


def summary(params, root):
    """The tables as text, greedy accuracy in per cent and gaps in points. M0 and M1 are the same for all methods."""
    accuracy, kept = results.evaluations(params, root).accuracy, results.kept_models(params, root)
    lines = {name: lineage_of(params, models[-1]) for name, models in results.lines_of(params).items()}
    said = ["Accuracy on the test questions, %, by method and round:"]
    said += _table(params, {
        name: {model: f"{100 * accuracy[model]:.1f}{'*' if kept.get(name) == model else ' '}" for model in models}
        for name, models in lines.items()
    })  # fmt: skip
    if kept:
        said += ["* of its line, the model whose sampled answers agree most: the one to keep where no answer is known."]
    pairs = results.trained_pairs(params, root)
    gaps = pairs.gap.dropna() if "gap" in pairs else {}
    if len(gaps):
        n = params["sampling"]["responses"]
        said += [f"The gap before each training, points: how much more often the best of {n} by its ranker was right than the greedy answer."]
        said += _table(params, {
            name: {model: f"{100 * gaps[model]:+.1f} " for model in models if model in gaps} for name, models in lines.items()
        })  # fmt: skip
        said += ["Where it is below 0 a round does harm."]
    return "\n".join([*said, "See reports/index.html"])


def _table(params, rows):
    """The lines of a table: a row a method, a column a round from M0 or the first that has a value."""
    rounds = sorted({round_of(params, model) for found in rows.values() for model in found})
    width = max(map(len, rows), default=0)
    lines = [" ".join([" " * width, *(f"{f'M{n} ':>7}" for n in rounds)]).rstrip()]
    for name, found in rows.items():
        cells = {round_of(params, model): text for model, text in found.items()}
        lines.append(" ".join([f"{name:{width}}", *(f"{cells.get(n, ''):>7}" for n in rounds)]).rstrip())
    return lines


if __name__ == "__main__":
    main()
