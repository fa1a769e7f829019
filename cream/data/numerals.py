"""Numbers as people and models write them, read exactly: with units and reasons, in LaTeX, in several alphabets.

A number's normal form is an exact decimal without superfluous zeros, "1080" for "$1,080.00" and "1.5" for "1 1/2", or
n/d where its decimals do not end.
"""

import re
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from functools import lru_cache
from unicodedata import normalize

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


@lru_cache(10_000)  # the rows of a run repeat their answers
def number(text):
    """The normal form of a text that is one number and nothing else, else None: "12", "-3.5", "1,080", "3/4", "1 1/2",
    "1.5e3", also in LaTeX; a currency's sign or a percent sign does not count."""
    match = NUMBER.fullmatch(re.sub(r" ?%$", "", without_markup(plain_characters(text))))
    return _value(match) if match and int(match["divisor"] or 1) else None


def plain_characters(text):
    """Without typographic variants: full-width digits, thin spaces, minus signs, 1½ (as 1 1/2) and 10³ (as 10^3)."""
    text = re.sub(r"[⁻⁺]?[⁰¹²³⁴-⁹]+", r"^\g<0>", re.sub(r"(?<=\d)(?=[¼½¾⅐-⅞])", " ", text))
    return normalize("NFKC", text).translate({0x2212: "-", 0x2013: "-", 0x2044: "/"})


def without_markup(text):
    """Without what Markdown and LaTeX put around an answer, currencies' signs among it; \\frac{1}{2} is 1/2."""
    for pattern, plain in MARKUP.items():
        text = re.sub(pattern, plain, text)
    return text.strip()


def leading_number(text):
    """The number that a text begins with, or None."""
    match = NUMBER.match(text)
    return match and _value(match)


@lru_cache(10_000)  # and its responses their short lines
def stated_number(line):
    """The number that a line gives as its result, 8 for "5 + 3 = 8" and 12 for "Mr. Diaz has 12 apples (4 are red)"; None
    if it gives none or several."""
    text = REASON.sub(r"\1", END.split(without_markup(line), maxsplit=1)[0])
    if NONE.search(text) or re.search(r"=\W*$", text):
        return None
    clause = CLAUSE.split(text)[0]
    if re.match(r"\W*\d", clause) and len(clause.split()) < 7 and not PART.search(clause) and _only_number(clause):
        return _only_number(clause)
    bold = [_only_number(without_markup(span)) for span in re.findall(r"\*\*(\W*\d.*?)\*\*", line)]
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
    found = [
        match for match in NUMBER.finditer(text) if asides or not ASIDE.search(text[: match.start()][-40:])
    ]
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
