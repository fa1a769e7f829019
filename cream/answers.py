r"""The answer that a response announces, read by one strict rule: what stands behind its last marker with an answer.

Markers are "Answer:" and "the answer is", a heading "Answer", <answer>, \boxed{} and GSM8K's "####". A response without
one, or with nothing readable behind it, is unparsed, and so is a thought that has not ended: nothing is guessed from
other text. tests/graded.md says how often this agrees with a reader.
"""

import re
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from unicodedata import normalize

# The tags of a thought: <think>, <|begin_of_thought|>, [THINK], <seed:think> and the like.
THOUGHT = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratch_?pad)\|?[>\]▷]"
OPENED = re.compile(rf"[<\[◁]\|?(?:begin_of_|seed:)?{THOUGHT}", re.IGNORECASE)
CLOSED = re.compile(rf"[<\[◁]\|?(?:/|/seed:|end_of_){THOUGHT}", re.IGNORECASE)
MARKER = re.compile(
    r"""
    (?P<retracted>                                        # "Hmm, that answer is wrong": there is none, for now
      (?:\b(?:that|my|previous|above)|\b(?:wait|hmm+|oops|sorry|actually|no)\b[^.\n]*)
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

# What LaTeX and Markdown write, in plain characters. A product of numbers gets a ×, because other * are markup.
MARKUP = {
    r"</?[a-z]+>": "",
    r"\{,\}": ",",
    r"\^\{([^{}]*)\}": r"^\1",
    r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))": r" \1\2/\3\4",
    r"\\(?:times|cdot)\b|(?<=[\d)])\s*(?:(?<!\*)\*(?!\*)|x)\s*(?=[\d($\\])": "×",
    r"\\div\b": "÷",
    r"\\sqrt\b": "√",
    r"\\pi\b": "π",
    r"\\approx\b|~": "≈",
    r"\^\s*\\circ|°": "",
    r"\\!|\\(?:left|right|f?box(?:ed)?|text\w*|math\w+|[()\[\]])": "",
    r"\\[,;: ]": " ",
    r"[\\{}$€£¥₹`*_\"“”‘’]": "",
    r"\b(?:minus|negative) (?=\d)": "-",
    r"(?<![\d.×^]) ?(?<!× )\b10\^(?=-?\d)": " 1×10^",
}
# 1,234.5, 1 234, 1,00,000 (India); 1 1/2, 3/4; 1.5e3, 1.5 × 10^3; 6 million. No part of a time, a range, a date, a
# name (x2) or a formula (x + 1, 2x, 3 × 4).
NUMBER = re.compile(
    r"""
    (?<![\w.,/^×÷+-])(?<!\d:)(?<![×÷+/^-]\ )(?P<sign>(?<![\w)%])(?<![\d)]\ )[-+](?=[\d.])|^[-+]\ ?)?
    (?:(?P<whole>\d+)\ (?:and\ )?(?=\d+/\d))?
    (?P<digits>(?:\d{1,3}(?:(?:,\d{2,3})*,\d{3}|(?:[ ']\d{3})+)|\d+)(?:\.\d+)?|\.\d+)
    (?:\ ?/\ ?(?P<divisor>\d+))?
    (?:e(?P<e>[-+]?\d\d?)|\ ?×\ ?10\^\(?(?P<power>-?\d\d?)\)?)?
    (?:\ (?P<scale>hundred|thousand|million|billion|trillion)\b)?
    (?![.,:/'^]?\d|\ ?[-+×÷/^]\ ?(?:[\d(]|[xyz]\b)|\ ?[xyznπ√]\b|(?:st|nd|rd|th)\b)
    """,
    re.IGNORECASE | re.VERBOSE,
)
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# The end of a sentence, but not behind "Mr." or an initial.
END = re.compile(r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\bProf)(?<!\b[A-Z])(?<=[\w)%])[.!?]\s+(?=[A-Z])")
# The reasons behind an answer: "18 (16 - 3 - 4 = 9 eggs)", "72 because 48 + 24 = 72".
REASON = re.compile(r"(?<=\d)([^()]{0,200}?)(?:\s\([^()]*\)(?!\s*[-+×÷/=])|(?:;|[,;]?\s(?:because|since)\b).*)", re.I)
# What gives no answer, though a number may follow: "cannot be known, since 29 got off".
NONE = re.compile(r"^not\b|\b(?:cannot be|can't be|not enough|insufficient|unknown|undetermined|impossible to)\b", re.I)
# The end of a clause, but not of "3, 4 and 5"; or where a small model runs on, "90Answer: 13".
CLAUSE = re.compile(r", (?!(?:and |or )?[-.\d])| -+ (?![\d(])|—|(?<=\d)(?=[A-Z][a-z]|\)\d)")
# "5 + 3 = 8", "50 / 8 = 6.25, which rounds up to 7": the last side.
EQUALS = re.compile(r"[=≈]|\brounds (?:up |down )?to\b")
# "25% of 80 is 16", "the shirt costs $34", "3 cats and 2 dogs, so he has 5": the last part with a number.
PART = re.compile(r"[=≈]|\b(?:is|are|was|were|equals?|costs?|gets?|has|have|makes?|pays?|so|therefore)\b", re.I)
# What a number that is not the answer may stand behind: "in 5 days", "for each of the 3 friends", "The 3 friends".
ASIDE = re.compile(
    r"(?:\b(?:in|on|at|by|for|per|from|after|over|than|with|(?<!total )of)(?: (?:the|all|each|these|those|next|last))*"
    r"|^\W*(?:the|all|these|those))\s*$",
    re.IGNORECASE,
)
FORMULA = re.compile(r"[×÷+√]|\d ?\^")
EXACT = Context(prec=1000, traps=[Inexact])

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
    text = OPENED.split(CLOSED.split(_plain_characters(text))[-1])[0]
    found = None
    for marker in MARKER.finditer(text):
        behind = text[marker.end() :] if marker["box"] is None else marker["box"]
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
        raise ValueError(f"the answer {answer!r} is not a number: correct it, or give the question choices")
    return extract(text, choices) == known


def finished_text(response):
    """The text of a response, {text, finish_reason}; "" if it was cut short, because its answer is then unparsed."""
    return "" if response.get("finish_reason") == "length" else response["text"]


def number(text):
    """The normal form of a text that is one number and nothing else, else None: "12", "-3.5", "1,080", "3/4", "1 1/2",
    "1.5e3", also in LaTeX; a currency's sign or a percent sign does not count."""
    match = NUMBER.fullmatch(re.sub(r" ?%$", "", _without_markup(_plain_characters(text))))
    return _value(match) if match and int(match["divisor"] or 1) else None


def _plain_characters(text):
    """Without typographic variants: full-width digits, thin spaces, minus signs, 1½ (as 1 1/2) and 10³ (as 10^3)."""
    text = re.sub(r"[⁻⁺]?[⁰¹²³⁴-⁹]+", r"^\g<0>", re.sub(r"(?<=\d)(?=[¼½¾⅐-⅞])", " ", text))
    return normalize("NFKC", text).translate({0x2212: "-", 0x2013: "-", 0x2044: "/"})


def _without_markup(text):
    for pattern, plain in MARKUP.items():
        text = re.sub(pattern, plain, text)
    return text.strip()


def _read(text, choices, sentence):
    """The answer in the first line of the text that has a word, at its start in a `sentence`, "the answer is ..."."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"\w", line)), None)
    if first is None or sentence and re.match(r"[^.!?\n]*\?(?:\s|$)", text):  # "Maybe the answer is 5?"
        return None
    line = re.sub(r"^\s*[-*•]\s+", "", lines[first]) if first else lines[0]  # the bullet of a list is no minus sign
    return _number(line, sentence) if choices is None else _option(_without_markup(line), choices, sentence)


def _number(line, sentence):
    text = REASON.sub(r"\1", END.split(_without_markup(line), maxsplit=1)[0])
    if sentence and not DIRECT.match(text) or NONE.search(text) or re.search(r"=\W*$", text):
        return None
    clause = CLAUSE.split(text)[0]
    if re.match(r"\W*\d", clause) and len(clause.split()) < 7 and not PART.search(clause) and _only_number(clause):
        return _only_number(clause)
    bold = [_only_number(_without_markup(span)) for span in re.findall(r"\*\*(\W*\d.*?)\*\*", line)]
    if len(bold) == 1 and bold[0]:
        return bold[0]
    *formula, result = EQUALS.split(text)
    if formula and NUMBER.match(result.lstrip(" (")) and not FORMULA.search(NUMBER.sub("", result)):
        return _value(NUMBER.match(result.lstrip(" (")))
    parts = PART.split(text)[::-1]
    found = [_only_number(part) for part in parts] + [_only_number(part, asides=True) for part in parts]
    return next(filter(None, found), None)


def _only_number(text, asides=False):
    """The one number of a text that is not a formula; those behind an ASIDE count only where they are asked for."""
    found = [match for match in NUMBER.finditer(text) if asides or not ASIDE.search(text[: match.start()])]
    return _value(found[0]) if len(found) == 1 and not FORMULA.search(NUMBER.sub("", text)) else None


def _value(match):
    """The normal form of a NUMBER: an exact decimal without superfluous zeros, or n/d where its decimals do not end;
    None for one of more than 1,000 characters, which a small model may run into."""
    if len(match[0]) > EXACT.prec:
        return None
    value = Fraction(re.sub("[, ']", "", match["digits"])) / (int(match["divisor"] or 1) or 1)
    value = (value + int(match["whole"] or 0)) * SCALES.get((match["scale"] or "").lower(), 1)
    value *= Fraction(10) ** int(match["e"] or match["power"] or 0)
    value = -value if "-" in (match["sign"] or "") else value
    try:
        decimal = EXACT.divide(Decimal(value.numerator), Decimal(value.denominator))
    except Inexact:
        return str(value)
    return f"{decimal.normalize(EXACT):f}"


def _option(text, choices, sentence):
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    text = re.sub(rf"^{LEAD}", "", text, flags=re.IGNORECASE) if sentence else text
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
    if label is None:
        chosen = [] if sentence else CHOSEN.findall(text)
        label = "".join(chosen[-1]) if chosen else ""
    if label.isdigit():
        return letters[int(label) - 1] if int(label) <= len(letters) and not _is_counted(label, choices) else None
    if label.upper() not in letters:
        return _begun_option(text[LABEL.match(text).end() :], letters, choices) if label else None
    return label.upper()


def _begun_option(text, letters, choices):
    """The option that the text begins with, written out, or the only one that begins with the text's number: "A rock,
    because ...", "2" for "2 apples"."""
    text = _plain(text)
    begun = [letter for letter, choice in zip(letters, choices) if re.match(rf"{re.escape(_plain(choice))}\b", text)]
    if not begun and _leading(text):
        begun = [letter for letter, choice in zip(letters, choices) if _leading(text) == _leading(_plain(choice))]
    return begun[0] if len(begun) == 1 else None


def _is_counted(label, choices):
    """Whether a digit is a number that options are about, and so no label."""
    return sum(_leading(_plain(choice)) == label for choice in choices) > 1


def _leading(text):
    """The number that a text begins with, or None."""
    match = NUMBER.match(text)
    return match and _value(match)


def _plain(text):
    """Lower case, without a leading article and punctuation at either end."""
    return ARTICLE.sub("", _without_markup(_plain_characters(text)).lower().strip(" \t.,;:!?()[]'"))
