"""What was found, in words: the numbers decide the sentence."""

import numpy as np
import pandas as pd

from cream.report.results import CONTROLS, called

EXPECTED = dict(zip(CONTROLS.values(), ("above", "below")))
WHERE = {
    "above": "ends <b>above</b>",
    "below": "ends <b>below</b>",
    "level with": "is <b>not clearly different</b> from",
}

PLURAL = {where: text.replace("ends", "end").replace("is ", "are ") for where, text in WHERE.items()}


def direction(low, high, words=("below", "level with", "above"), middle=0.0):
    """Where an interval lies: the first word below the middle, the last above it, the second where it holds it."""
    return words[0] if high < middle else words[2] if low > middle else words[1]


def points(value, low, high, unit=" points"):
    """A difference of accuracies with its interval, in points."""
    value, low, high = (f"{round(100 * number, 1) + 0.0:+.1f}".replace("-", "−") for number in (value, low, high))
    return f"{value}{unit} ({low} to {high})"


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


def paragraphs(found, sampled=()):
    """The first page's paragraphs from {(method, other): (value, low, high)}, the differences in greedy accuracy: what
    follows, and whether the controls hold. Where they do not, that comes first. `sampled` are the same differences in
    the accuracy of samples, if there are any."""
    controls = {name: found[name, "M1"] for name in CONTROLS.values() if (name, "M1") in found}
    held = all(direction(*row[1:]) == EXPECTED[name] for name, row in controls.items())
    versus_m1 = {pair: row for pair, row in found.items() if pair[1] == "M1" and pair[0] not in controls}
    versus = {pair: row for pair, row in found.items() if pair[1] != "M1"}
    conclusion = " ".join([*_against_m1(versus_m1), *_conclusion(versus), *_by_samples(found, dict(sampled))])
    controls = _controls(controls, held)
    return [paragraph for paragraph in ([conclusion, controls] if held else [controls, conclusion]) if paragraph]


def table_in_points(found):
    """A table of {kind of accuracy: {(method, other): (value, low, high)}}, in points, a row a comparison."""
    return pd.DataFrame(
        {
            kind: {f"{one} less {other}": points(*row, unit="") for (one, other), row in pairs.items()}
            for kind, pairs in found.items()
        }
    )


def _controls(controls, held):
    if not controls:
        return "This run has no controls: nothing was trained on the answer key's pairs or on random ones."
    named = dict(zip(CONTROLS.values(), ("the answer key's pairs", "random pairs")))
    ends = (f"on {named[name]} {WHERE[direction(*row[1:])]} M1, {points(*row)}" for name, row in controls.items())
    opening = "The controls hold" if held else "The controls do <b>not</b> hold, so the rest is to be read with care"
    missing = "" if len(controls) == 2 else " The other control is not part of this run."
    return f"{opening}: training {_listed(ends)}.{missing}"


def _against_m1(versus_m1):
    """Whether self-rewarding helped at all."""
    names = {"above": [], "level with": [], "below": []}
    for (name, _), row in versus_m1.items():
        names[direction(*row[1:])].append(name)
    there = {where: _listed(found) for where, found in names.items() if found}
    if list(there) == ["below"]:
        yield f"Self-rewarding did <b>not</b> help here. Below M1, the model that it starts from: {there['below']}."
    elif list(there) == ["above"]:
        yield f"Self-rewarding <b>helped</b> here. Above M1, the model that it starts from: {there['above']}."
    elif there:
        words = {"above": "above", "level with": "not clearly apart", "below": "below"}
        ends = (f"<b>{words[where]}</b>: {found}" for where, found in there.items())
        yield f"Against M1, the model that self-rewarding starts from, these methods end {'; '.join(ends)}."


def _conclusion(versus):
    where = {pair: direction(*row[1:]) for pair, row in versus.items()}
    plain, chance = where.get(("CREAM", "SRLM")), where.get(("CREAM", CONTROLS["SRLM by random"]))
    fixed = next((word for (one, other), word in where.items() if one == "CREAM" and other.startswith("fixed C")), None)
    if plain == "above":
        yield "CREAM ends <b>above</b> plain self-rewarding (SRLM), " + {
            None: "and a fixed C was not run.",
            "above": "and above the same loss with a fixed C: measuring the agreement was worth it.",
            "level with": "but is <b>not clearly different from a fixed C</b>: the gain may come from the smaller weight "
            "of the pairs, not from measuring the agreement.",
            "below": "but <b>a fixed C does better still</b>.",
        }[fixed]
    elif plain:
        yield f"CREAM {WHERE[plain]} plain self-rewarding (SRLM)."
    if chance and chance != "above":  # a method that uses its pairs is above
        yield f"CREAM {WHERE[chance]} training on random pairs."
    select = where.get(("CREAM-select", "CREAM"))
    if select:
        yield {
            "above": "To leave out the pairs with little agreement (CREAM-select) helped.",
            "level with": "To leave out the pairs with little agreement (CREAM-select) made no clear difference.",
            "below": "To leave out the pairs with little agreement (CREAM-select) did harm.",
        }[select]


def _by_samples(found, sampled):
    """Where the accuracy of samples says something else than that of greedy answers."""
    unlike = {}
    for (one, other), row in sampled.items():
        where = direction(*row[1:])
        if where != direction(*found[one, other][1:]):
            unlike.setdefault((where, other), []).append(one)
    if unlike:
        ends = (
            f"{_listed(names)} {WHERE[where] if len(names) == 1 else PLURAL[where]} {other}"
            for (where, other), names in unlike.items()
        )
        yield f"All this is about greedy answers. By the mean accuracy of sampled ones, {'; '.join(ends)}."
    elif sampled:
        yield "That is the accuracy of greedy answers; the mean accuracy of sampled ones says the same."


def _listed(parts):
    """a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
