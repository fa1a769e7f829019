"""The answer that a response gives, read by one strict rule: what stands after the last "Answer:" marker.

A response without a marker, or with nothing readable behind it, is unparsed; nothing is guessed from its other text.
tests/graded.jsonl holds real responses with the answers that a reader takes from them.
"""

import re
from decimal import Context, Decimal, Inexact
from fractions import Fraction

# "Answer:" and "the answer is", but not what only judges an answer: "the answer is incorrect".
MARKER = re.compile(
    r"\banswer(?: to (?:this|the) question)?[*_\"']*\s*(?:is\b(?! (?:in)?correct\b| wrong\b)\s*:?|:)[*_]*\s*",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(-?\s?[$€£]?\s?-?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?: ?/ ?(\d+))?")
# An option's label: a capital or a digit, or a small letter if marked as a label; so the article "a" is none.
LABEL = re.compile(
    r"(?:[\s*$(\[{\"']|\\boxed|\\text|[Oo]ption\b|[Cc]hoice\b)*"
    r"(?:([A-Z1-9])(?![\w'])|([a-z])(?=\s*[)\].:*}]|\s*$))"
)
# A label that a sentence comes to: "I would choose B."
CHOSEN = re.compile(r"\b(?:choose|pick|select|option|is)\s+[\"'(*]*([A-Z])(?=[)\].,:;*\"']|\s*$)")
# What may stand before an option that is written out.
LEAD = re.compile(r"^(?:it(?:'s| is) )?(?:(?:an?|the) )?")
EXACT = Context(prec=1000, traps=[Inexact])


def extract(text, choices=None):
    """The answer in `text`, or None if it is unparsed.

    With `choices`, the option texts of a multiple-choice question, it is the option's letter by position ("A" for the
    first); labels 1, 2, ... and a written-out option count too. Without, it is a number in normal form: "1080" for
    "$1,080.00", and the right-hand side for "5 + 3 = 8".
    """
    markers = list(MARKER.finditer(text))
    if not markers:
        return None
    lines = text[markers[-1].end() :].strip().splitlines()
    if not lines:
        return None
    return _number(lines[0]) if choices is None else _option(lines[0], choices)


def is_correct(text, answer, choices=None):
    """Whether the answer in `text` is `answer` (a letter with `choices`, else a number); unparsed is wrong. None if
    `answer` is: then it is not known."""
    if answer is None:
        return None
    found = extract(text, choices)
    return found is not None and found == (answer.strip().upper() if choices is not None else _number(answer))


def _number(text):
    sentence = re.split(r"(?<=\w)[.!?]\s+(?=[A-Z])", text, maxsplit=1)[0]
    found = NUMBER.search(sentence.rsplit("=", 1)[-1].replace("\u2212", "-"))
    if not found:
        return None
    sign, digits, divisor = found.groups()
    value = Fraction(digits.replace(",", "")) / (int(divisor or 1) or 1)
    return _normal(-value if "-" in sign else value)


def _normal(value):
    """As an exact decimal without superfluous zeros; as n/d where its decimals do not end."""
    try:
        decimal = EXACT.divide(Decimal(value.numerator), Decimal(value.denominator))
    except Inexact:
        return str(value)
    return f"{decimal.normalize(EXACT):f}"


def _option(text, choices):
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    written = [letter for letter, choice in zip(letters, choices) if _plain(text) == _plain(choice)]
    if written:
        return written[0]
    label = LABEL.match(text)
    label = label and (label.group(1) or label.group(2))
    if label in (None, "A", "I"):  # "A rock", "I would choose B"
        begun = _begun_option(text, letters, choices)
        if begun:
            return begun
    if label in (None, "I"):
        label = next((chosen.group(1) for chosen in reversed(list(CHOSEN.finditer(text)))), "")
    if label.isdigit():
        return letters[int(label) - 1] if int(label) <= len(letters) else None
    return label.upper() if label.upper() in letters else None


def _begun_option(text, letters, choices):
    """The option that the text begins with, written out: "A rock, because ..."."""
    begun = [
        letter for letter, choice in zip(letters, choices) if re.match(rf"{re.escape(_plain(choice))}\b", _plain(text))
    ]
    return begun[0] if len(begun) == 1 else None


def _plain(text):
    """Lower case, without a leading article and punctuation at either end."""
    return LEAD.sub("", text.lower().strip(" \t.,;:!?*()[]\"'"))
