"""The answer that a response gives, read by one strict rule: what stands after the last "Answer:" marker.

A response without a marker, or with nothing readable behind it, is unparsed; nothing is guessed from its other text.
tests/graded.jsonl holds real responses with the answers that a reader takes from them.
"""

import re
from decimal import Context, Decimal, Inexact
from fractions import Fraction

# "Answer:" and "the answer is", but not what judges or denies an answer: "the answer is incorrect".
MARKER = re.compile(
    r"\banswer(?: to (?:this|the) question)?[*_\"']*\s*(?:is\b(?! (?:(?:in)?correct|right|wrong|not)\b)\s*:?|:)",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(-?\s?[€£]?\s?-?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?: ?/ ?(\d+))?")
# An option's label: a capital or a digit, or a small letter if marked as a label; so the article "a" is none.
LABEL = re.compile(
    r"(?:[\s(\[]|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)\b:?)*"
    r"(?:([A-Z1-9])(?![\w']|[.,/]\d|,? is (?:incorrect|wrong|not)\b)|([a-z])(?=\s*[)\].:]|\s*$))"
)
SEVERAL = re.compile(r"[\s(\[]*[A-Z][)\]]?\s*(?:and|or|/|&)\s*[(\[]?[A-Z]\b(?!')")
# A label that a sentence comes to: "I would choose B."
CHOSEN = re.compile(r"\b(?:choose|pick|select|option|is)\s+[\"'(]*([A-Z])(?=[)\].,:;\"']|\s*$)")
# What may stand before an option that is written out.
LEAD = re.compile(r"^(?:it(?:'s| is) )?(?:(?:an?|the) )?")
EXACT = Context(prec=1000, traps=[Inexact])


def extract(text, choices=None):
    """The answer in `text`, or None if it is unparsed.

    With `choices`, the option texts of a multiple-choice question, it is the option's letter by position ("A" for the
    first); a written-out option and labels 1, 2, ... count too. Without, it is a number in normal form: "1080" for
    "$1,080.00", and the right-hand side for "5 + 3 = 8".
    """
    markers = list(MARKER.finditer(text))
    lines = [_without_markup(line) for line in text[markers[-1].end() :].splitlines()] if markers else []
    line = next((line for line in lines if re.search(r"\w", line)), None)
    if line is None:
        return None
    return _number(line) if choices is None else _option(line, choices)


def is_correct(text, answer, choices=None):
    """Whether the answer in `text` is `answer` (a letter with `choices`, else a number); unparsed is wrong. None if
    `answer` is: then it is not known."""
    if answer is None:
        return None
    found = extract(text, choices)
    return found is not None and found == (answer.strip().upper() if choices is not None else _number(answer))


def _without_markup(line):
    """Without what Markdown and LaTeX put around an answer, dollars among it; \\frac{1}{2} is 1/2."""
    line = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", line)
    line = re.sub(r"\\(?:boxed|text\w*|math\w+)", "", line)
    return re.sub(r"[\\{}$`*_\"“”‘’]", "", line).strip()


def _number(text):
    sentence = re.split(r"(?<=\w)[.!?]\s+(?=[A-Z])", text, maxsplit=1)[0]
    found = NUMBER.search(sentence.rsplit("=", 1)[-1].replace("$", "").replace("\u2212", "-"))
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
    if SEVERAL.match(text):
        return None
    label = LABEL.match(text)
    label = label and (label.group(1) or label.group(2))
    if label is None or label in "AI" or label.isdigit():  # "A rock", "I would choose B", "2 apples"
        begun = _begun_option(text, letters, choices)
        if begun:
            return begun
    if label in (None, "I"):
        label = next((chosen.group(1) for chosen in reversed(list(CHOSEN.finditer(text)))), "")
    if label.isdigit():
        return letters[int(label) - 1] if int(label) <= len(letters) and not _is_counted(label, choices) else None
    return label.upper() if label.upper() in letters else None


def _begun_option(text, letters, choices):
    """The option that the text begins with, written out, or the only one that begins with the text's number: "A rock,
    because ...", "2" for "2 apples"."""
    text = _plain(text)
    begun = [letter for letter, choice in zip(letters, choices) if re.match(rf"{re.escape(_plain(choice))}\b", text)]
    if not begun:
        number = re.match(r"-?[\d.,]*\d", text)
        begun = [x for x, choice in zip(letters, choices) if number and _begins_with(_plain(choice), number.group())]
    return begun[0] if len(begun) == 1 else None


def _begins_with(choice, number):
    return re.match(rf"{re.escape(number)}(?![\w.,]*\d)", choice) is not None


def _is_counted(label, choices):
    """Whether a digit is a number that options are about, and so no label."""
    return sum(_begins_with(_plain(choice), label) for choice in choices) > 1


def _plain(text):
    """Lower case, without a leading article and punctuation at either end."""
    return LEAD.sub("", _without_markup(text).lower().strip(" \t.,;:!?()[]'"))
