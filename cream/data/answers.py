r"""The answer that a response announces, read by one strict rule: what follows its last marker with an answer.

Markers are "Answer:" and "the answer is", a heading "Answer", <answer>, \boxed{} and GSM8K's "####". A response without
one, or with nothing readable behind it, is unparsed, and so is a thought that has not ended: nothing is guessed from
other text. tests/graded.md says how often this agrees with a reader.
"""

import re

from cream.data.errors import InputError
from cream.data.numerals import leading_number, number, plain_characters, stated_number, without_markup

# The tags of a thought: <think>, <|begin_of_thought|>, [THINK], <seed:think> and the like.
THOUGHT = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratch_?pad)\|?[>\]▷]"
OPENED = re.compile(rf"[<\[◁]\|?(?:begin_of_|seed:)?{THOUGHT}", re.IGNORECASE)
CLOSED = re.compile(rf"[<\[◁]\|?(?:/|/seed:|end_of_){THOUGHT}", re.IGNORECASE)
MARKER = re.compile(
    r"""
    (?P<retracted>                                        # "Hmm, that answer is wrong": there is none, for now
      (?:\b(?:that|my|previous|above)|\b(?:wait|hmm+|oops|sorry|actually|no)\b[^.\n]{0,80})
      \ answer\ (?:is|was)\ (?:incorrect|wrong|not\ (?:correct|right))\b)
    | (?<!other\ )(?<!wrong\ )(?<!incorrect\ )\banswer(?:\ choice|\ option)?
      (?:\ (?:to|for)\ [^.:\n]{0,200}?)?                  # "the answer to the question"
      (?:\ \([^()\n]*\))?[*_"']*\s*                       # "Answer (in dollars):", "**Answer**:"
      (?:(?:\bis)?\s?[:=](?!["'](?:[.,\s]|$))             # but not: I am to end with "Answer:".
        |(?P<sentence>\b(?:is|(?:would|will|should|must)\ be|equals)\b(?!\ (?:(?:in)?correct|right|wrong)\b)))[*_"' ]*
    | ^[#*_ ]*(?:(?:the|my|final|correct)\ )*answer[*_ ]*$
    | <answer>
    | ^\#{4}\ +(?=[$(]*(?:[A-Z]|-?[\d.,]+)\)?\s*$)        # "#### 18", but not "#### Step 1"
    | \\f?box(?:ed)?\s*\{(?P<box>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
# "The answer is 12", "... therefore x = 12", "... that he has 12"; not "... found by adding 4 and 8", "... 100% right".
LEAD = r"(?:(?:about|around|just|still|then|therefore|thus|most likely|equal to|\w+ly)\b,? |≈ ?)*"
DIRECT = re.compile(rf"{LEAD}(?:that\b|(?:[a-z] ?= ?)?[(-]*\.?\d(?!00 ?% \w))", re.IGNORECASE)

# An option's label: a capital or a digit, or a small letter if marked as a label. The article "A" is none: it has a
# word behind it ("A kind person") that does not go on about the answer ("A because").
LABEL = re.compile(
    r"(?:[\s(\[]|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)\b:?)*"
    r"(?:([A-Z1-9])(?![\w']|-\w|[.,/]\d|,? is (?:incorrect|wrong|not)\b)"
    r"(?!(?<=[AI])\s+(?!(?:because|since|as|is|and|or)\b)\w)|([a-z])(?=\s*[)\].:]|\s*$))"
)
# "A and C", "(A) or (B)", "A, B": no one option.
SEVERAL = re.compile(
    r"[\s(\[]*[A-Z][)\]]?\s*(?:(?:and|or|/|&)\s*[(\[]?[A-Z]\b(?!')|,\s*[A-Z](?=[,.;)]|\s*$|\s(?:and|or)\b))"
)
# A label that a sentence comes to: "I would choose B.", "a rock (B)".
CHOSEN = re.compile(r"\b(?:choose|pick|select|option|is|with)\s+[\"'(]*([A-Z])(?=[)\].,:;\"']|\s*$)|\(([A-Z])\)\W*$")
# What may stand before an option that is written out.
ARTICLE = re.compile(r"^(?:it(?:'s| is) )?(?:(?:an?|the) )?")


def extract(text, choices=None):
    """The answer in `text`, or None if it is unparsed.

    With `choices`, the option texts of a multiple-choice question, it is the option's letter by position ("A" for the
    first); a written-out option and labels 1, 2, ... count too. Without, it is a number in normal form: "1080" for
    "$1,080.00", "1.5" for "1 1/2", and the right-hand side for "5 + 3 = 8".
    """
    text = OPENED.split(CLOSED.split(plain_characters(text))[-1])[0]
    markers = list(MARKER.finditer(text))
    found = None
    for marker, end in zip(markers, [*(marker.start() for marker in markers[1:]), len(text)]):
        behind = text[marker.end() : end] if marker["box"] is None else marker["box"]
        if marker["retracted"]:
            found = None
        elif marker["sentence"] and behind.startswith("not "):
            found = None if _read(behind[4:], choices, True) == found else found
        else:
            found = _read(behind, choices, marker["sentence"]) or found
    return found


def is_correct(text, answer, choices=None):
    """Whether the answer in `text` is `answer`: a letter with `choices`, else a `number`. Unparsed is wrong. None if
    `answer` is: then it is not known."""
    if answer is None:
        return None
    known = answer.strip().upper() if choices is not None else number(answer)
    if known is None:
        raise InputError(f"the answer {answer!r} is not a number: correct it, or give the question choices")
    return extract(text, choices) == known


def finished_text(response):
    """The text of a response, {text, finish_reason}; "" if it was cut short, because its answer is then unparsed."""
    return "" if response.get("finish_reason") == "length" else response["text"]


def _read(text, choices, sentence):
    """The answer in the first line of the text that has a word, at its start in a `sentence`, "the answer is ..."."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"\w", line)), None)
    if first is None or sentence and re.match(r"[^.!?\n]*\?(?:\s|$)", text):  # "Maybe the answer is 5?"
        return None
    line = re.sub(r"^\s*[-*•]\s+", "", lines[first]) if first else lines[0]  # the bullet of a list is no minus sign
    if choices is not None:
        return _option(without_markup(line), choices, sentence)
    return stated_number(line) if not sentence or DIRECT.match(without_markup(line)) else None


def _option(text, choices, sentence):
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    text = re.sub(rf"^{LEAD}", "", text, flags=re.IGNORECASE) if sentence else text
    written = [letter for letter, choice in zip(letters, choices) if _plain(text) == _plain(choice)]
    if written:
        return written[0]
    if SEVERAL.match(text):
        return None
    match = LABEL.match(text)
    label = match and (match.group(1) or match.group(2))
    if label is None or label in "AI" or label.isdigit():  # "A rock", "I would choose B", "2 apples"
        begun = _begun_option(text, letters, choices)
        if begun:
            return begun
    if label is None:
        chosen = [] if sentence else CHOSEN.findall(text)
        label = "".join(chosen[-1]) if chosen else ""
    if label.isdigit():
        return letters[int(label) - 1] if int(label) <= len(letters) and not _is_counted(label, choices) else None
    if label.upper() not in letters:  # "D. spring", where spring is C
        return _begun_option(text[match.end() :], letters, choices) if match else None
    return label.upper()


def _begun_option(text, letters, choices):
    """The option that the text begins with, written out, or the only one that begins with the text's number: "A rock,
    because ...", "2" for "2 apples"."""
    text = _plain(text)
    begun = [letter for letter, choice in zip(letters, choices) if re.match(rf"{re.escape(_plain(choice))}\b", text)]
    value = leading_number(text)
    if value and not begun:
        begun = [letter for letter, choice in zip(letters, choices) if leading_number(_plain(choice)) == value]
    return begun[0] if len(begun) == 1 else None


def _is_counted(label, choices):
    """Whether a digit is a number that options are about, and so no label."""
    return sum(leading_number(_plain(choice)) == label for choice in choices) > 1


def _plain(text):
    """Lower case, without a leading article and punctuation at either end."""
    return ARTICLE.sub("", without_markup(plain_characters(text)).lower().strip(" \t.,;:!?()[]'"))
