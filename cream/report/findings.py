"""What was found, in words: the numbers decide the sentence."""

import numpy as np
import pandas as pd

from cream.report.results import called


def direction(low, high, words=("below", "level with", "above"), middle=0.0):
    """Where an interval lies: the first word below the middle, the last above it, the second where it holds it, or has no
    width and so says nothing."""
    if not low < high:
        return words[1]
    return words[0] if high < middle else words[2] if low > middle else words[1]


def points(value, low, high, unit=" points"):
    """A difference of accuracies with its interval, if it has one, in points."""
    value, low, high = (f"{round(100 * number, 1) + 0.0:+.1f}".replace("-", "−") for number in (value, low, high))
    return f"{value}{unit}" + (f" ({low} to {high})" if "nan" not in low else "")


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
    """Whether the reward tells right from wrong responses, to begin with and at the end of each of these lines, with
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
    known = [[model for model in models[1:] if model in tables[name].index] for models in lines.values()]
    ends = [models[-1] for models in known if models]
    for model in ends:
        end = tables[name].loc[model]
        moved = "<b>falls</b> to" if end.high < start.low else "<b>rises</b> to" if end.low > start.high else "is"
        text += f" On the responses of {called(params, model)} this {moved} {found(model)}."
    if "log p" in tables and all(value_of(tables["log p"], m) > value_of(tables[name], m) for m in ("m1", *ends)):
        text += " Log p, which does without M0, ranks better than the reward on all of these."
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


def answered(claims):
    """The claims of `results.claims` with their differences (value, low, high), as a table: what was found in points, and
    whether that is what the claim says. An interval that holds 0 answers nothing."""
    rows = {}
    for claim in claims.itertuples():
        where = direction(claim.low, claim.high)
        if claim.expected == "not above":
            found = "no, they do" if where == "above" else "yes"
        else:
            found = {claim.expected: "yes", "level with": "not clear"}.get(where, "no, the opposite")
        rows[claim.text] = {
            "the paper": claim.paper or "–",
            "here, points": points(claim.value, claim.low, claim.high, unit=""),
            "found": found,
        }
    return pd.DataFrame(rows).T


def _listed(parts):
    """a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
