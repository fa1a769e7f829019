"""The last words of `make repro`: the accuracy of every method by round, and where to read on.

python -m cream.report.summary
"""

import json
import sys
from pathlib import Path

from cream.data.errors import InputError
from cream.pipeline.parameters import label_of, load_parameters, models_of, round_of
from cream.report.results import CONTROLS


def main():
    try:
        print(summary(load_parameters("params.yaml"), "."))
    except InputError as error:
        sys.exit(str(error))


def summary(params, root):
    """The table as text, greedy accuracy in per cent. M0 and M1 are the same for all methods."""
    rounds = range(round_of(params, models_of(params)[-1]) + 1)
    rows = {}
    for model in models_of(params):
        path = Path(root, "results", "evaluate", f"{model}.json")
        accuracy = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
        method = label_of(params, model)
        method = CONTROLS.get(method, method)
        rows.setdefault(method, {})[round_of(params, model)] = f"{100 * accuracy:.1f}"
    start = {**rows.pop("M0", {}), **rows.pop("M1", {})}
    width = max(map(len, rows), default=0)
    lines = [" ".join([" " * width, *(f"{f'M{n}':>6}" for n in rounds)])]
    for method, found in rows.items():
        lines.append(" ".join([f"{method:{width}}", *(f"{({**start, **found}).get(n, ''):>6}" for n in rounds)]))
    return "\n".join(["Accuracy on the test questions, %, by method and round:", *lines, "See reports/index.html"])


if __name__ == "__main__":
    main()
