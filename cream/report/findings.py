"""What was found, in words: the numbers decide the sentence."""

import numpy as np

from cream.report.results import CONTROLS, called

EXPECTED = dict(zip(CONTROLS.values(), ("above", "below")))
WHERE = {"above": "<b>above</b>", "below": "<b>below</b>", "level with": "<b>not clearly apart</b> from"}


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


def paragraphs(found):
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
