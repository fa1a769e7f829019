"""The answer that a response gives, read by one strict rule: what stands after the last "Answer:" marker.

A response without a marker, or with nothing readable behind it, is unparsed; nothing is guessed from its other text.
"""

import re

MARKER = re.compile(r"\banswer[*_]*\s*(?:is\b\s*:?|:)[*_]*\s*", re.IGNORECASE)
NUMBER = re.compile(r"-?\s?[$€£]?\s?-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")
# An option's label: a capital or a digit, or a small letter if marked as a label; so the article "a" is none.
LABEL = re.compile(r"[\s*(\[\"']*(?:([A-Z1-9])(?![\w'])|([a-z])(?=\s*[)\].:*]|\s*$))")


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
    """Whether the answer in `text` is `answer` (a letter with `choices`, else a number); unparsed is wrong."""
    found = extract(text, choices)
    return found is not None and found == (answer.strip().upper() if choices is not None else _number(answer))


def _number(text):
    found = NUMBER.search(text.rsplit("=", 1)[-1].replace("\u2212", "-"))
    if not found:
        return None
    whole, _, fraction = re.sub(r"[^\d.]", "", found.group()).partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return f"-{value}" if "-" in found.group() and value != "0" else value


def _option(text, choices):
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    written = [letter for letter, choice in zip(letters, choices) if _plain(text) == _plain(choice)]
    if written:
        return written[0]
    label = LABEL.match(text)
    if label and label.group(1) == "A" and (begun := _begun_option(text, letters, choices)):
        return begun
    if not label:
        return _begun_option(text, letters, choices)
    name = (label.group(1) or label.group(2)).upper()
    name = letters[int(name) - 1] if name.isdigit() and int(name) <= len(letters) else name
    return name if name in letters else None


def _begun_option(text, letters, choices):
    """The option that the text begins with, written out: "A rock, because ..."."""
    begun = [
        letter for letter, choice in zip(letters, choices) if re.match(rf"{re.escape(_plain(choice))}\b", _plain(text))
    ]
    return begun[0] if len(begun) == 1 else None


def _plain(text):
    """Lower case, without a leading article and punctuation at either end."""
    return re.sub(r"^(?:an?|the)\s+", "", text.lower().strip(" \t.,;:!?*()[]\"'"))
