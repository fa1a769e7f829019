from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cream.data.answers import extract, finished_text, is_correct
from cream.data.files import read_rows
from cream.data.numerals import number

GRADED = read_rows(Path(__file__).with_name("graded.jsonl"))
WRITTEN = read_rows(Path(__file__).with_name("graded_written.jsonl"))
ROCKS = ["water", "rock", "wood", "air"]
FEELINGS = ["grateful", "angry", "bored"]


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Answer: 8", "8"),
        ("Answer: 5 + 3 = 8", "8"),
        ("Answer: 5 + 3 = 4 + 4 = 8", "8"),
        ("Answer: $1,080.00", "1080"),
        ("Answer: 1,234,567 people", "1234567"),
        ("Answer: €3.50", "3.5"),
        ("Answer: 0.500", "0.5"),
        ("Answer: 100", "100"),
        ("Answer: 0", "0"),
        ("Answer: -0.0", "0"),
        ("Answer: 007", "7"),
        ("Answer: -12", "-12"),
        ("Answer: - 12", "-12"),
        ("Answer: -$12", "-12"),
        ("Answer: $-12", "-12"),
        ("Answer: \u221212", "-12"),  # the minus sign of typesetting
        ("Answer: 3 - 15 = \u221212", "-12"),
        ("Answer: **42**", "42"),
        ("**Answer:** 42.", "42"),
        ("Answer: 42. That is all.", "42"),
        ("Answer: 62,000 boxes. In all 4,800 x 62 = 30,400 boxes.", "62000"),
        ("Answer: \\boxed{42}", "42"),
        ("Answer:42", "42"),
        ("Answer:\n\n42\n", "42"),
        ("ANSWER : 42", "42"),
        ("So the answer is 42.", "42"),
        ("The answer is: 42", "42"),
        ("9 + 9 = 18; 18 + 3 = 21. Answer: 21", "21"),
        ("Answer: 5. No, wait. Answer: 7", "7"),  # the last marked one counts
        ("Answer: 7\nAnswer: 8\nI used 2 steps.", "8"),
        ("Answer: the answer is 12", "12"),
        ("Answer: 7\n12", "7"),
        ("Answer: 1/2", "0.5"),
        ("Answer: 10 / 4 litres", "2.5"),
        ("Answer: 1/3", "1/3"),
        ("Answer: 2 / 6", "1/3"),
        ("Answer: 20 / 5 = 4", "4"),
        ("Answer: 4/0", "4"),
        ('"Answer": 1000', "1000"),
        ("Answer:\n\\[\n42\n\\]", "42"),
        ("Answer: $\\frac{3}{4}$", "0.75"),
        ("Answer: 42. The answer is right.", "42"),
        ("Answer: 7. The answer is not 5.", "7"),
        ("The answer to this question is 12.", "12"),
        ("The answer is 8. The other answer is incorrect.", "8"),
        ("Answer: " + "1" * 40, "1" * 40),  # what a small model may run into
    ],
)
def test_numbers(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Answer: B", "B"),
        ("Answer: (B) because a rock", "B"),
        ("Answer: B. A rock is hard.", "B"),
        ("Answer: **B**", "B"),
        ("Answer: [b]", "B"),
        ("Answer: b", "B"),
        ("Answer: b) rock", "B"),
        ("Answer: 2", "B"),
        ("Answer: (4)", "D"),
        ("Answer: rock", "B"),
        ("Answer: A rock, because it sinks", "B"),
        ("Answer: a rock", "B"),
        ("Answer: the wood.", "C"),
        ("Answer: A", "A"),
        ("Answer: A, because it is wet", "A"),
        ("A is wrong. Answer: C", "C"),
        ("Answer: \\boxed{C}", "C"),
        ("Final answer: $\\boxed{\\text{(D)}}$", "D"),
        ("Answer: \\(B\\)", "B"),
        ("Answer: $\\mathrm{B}$", "B"),
        ("Answer: `B`", "B"),
        ("Answer: _B_", "B"),
        ("Answer: “B”", "B"),
        ("Answer:\n```\nB\n```", "B"),
        ("Answer: Option: B", "B"),
        ("Answer: B, not A", "B"),
        ("Answer: A is wrong, so I choose C.", "C"),
        ("Answer: option B, the rock", "B"),
        ("Answer: Option (b)", "B"),
        ("Answer: I would choose D.", "D"),
        ("Answer: not A, B or D, so it is C.", "C"),
        ("Answer: It is wood, not rock.", "C"),
        ("Answer: It's a rock", "B"),
        ('"Answer": "B"', "B"),
        ("Answer: A. On second thought, the answer is D", "D"),
    ],
)
def test_options(text, answer):
    assert extract(text, ROCKS) == answer


@pytest.mark.parametrize(
    "text",
    [
        "a rock",
        "B",
        "",
        "Answer:",
        "Answer: ",
        "Answer: a hard one",
        "Answer: E",
        "Answer: 5",
        "Answer: 10",
        "Answer: Because",
        "Answer: I do not know",
        "Answer: A and C",
        "Answer: (A) or (B)",
        "Answer: A is incorrect.",
        "The answer is not B.",
        "The answer is wrong.",
        "Answer: A kind person feels hard.",
        "The answer is A matter of taste.",
        "Answer: B, C, D",
        "Answer: I would choose E.",
        "<think>Answer: B",
        "Answer: B. Hmm, that answer is wrong.",
        "Answer: B\nThe answer is not B.",
    ],
)
def test_options_that_are_not_there(text):
    assert extract(text, ROCKS) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "5 + 3 = 8",
        "Answer",
        "Answer:",
        "Answer: \n",
        "Answer: none",
        "unanswer: 4",
        "answers 3",
        "Answer: 4 =",
    ],
)
def test_numbers_that_are_not_there(text):
    assert extract(text) is None


@pytest.mark.parametrize(
    "text, answer",
    [
        # a later marker without an answer behind it displaces nothing
        ("Answer: 18\n\nThis answer is obtained by taking 3 and 4 from 16.", "18"),
        ("Answer: 18\n\nThe answer is rounded to 2 decimals.", "18"),
        ("Answer: 18\n\nThe answer is consistent with the 16 eggs.", "18"),
        ("Answer: 18\n\nThe answer is 100% correct.", "18"),
        ("Answer: 18\n\nFinal answer:", "18"),
        ('Answer: 18\nI was asked to end with "Answer:".\n3 steps.', "18"),
        # but a denial or a correction does
        ("Answer: 62. Hmm, that answer is wrong.", None),
        ("Answer: 62\n\nWait, the answer is incorrect. Let me see.", None),
        ("Answer: 62. No, my answer was wrong. The answer should be 72.", "72"),
        ("Answer: 5. The answer is not 5.", None),
        ("Answer: 5. The answer is not 6.", "5"),
        ("Maybe the answer is 5? Let me see.", None),
        # the reasons behind an answer, and sentences around it
        ("Answer: 18 (16 - 3 - 4 = 9 eggs)", "18"),
        ("Answer: 72 because 48+24 = 72", "72"),
        ("Answer: 12; 5 × 12 = 60.", "12"),
        ("Answer: 12 - each gets as many", "12"),
        ("Answer: Mr. Diaz has 12 apples.", "12"),
        ("Answer: J. Smith has 12 apples. He had 4.", "12"),
        ("Answer: The cost of 3 shirts is $45.", "45"),
        ("Answer: 25% of 80 is 16.", "16"),
        ("Answer: Tom reads 18 pages on Monday and 36 on Tuesday, so he reads 54 pages.", "54"),
        ("Answer: He reads **54** pages, 18 of them on Monday.", "54"),
        ("Answer: 96/5 = 19.2, which rounds up to 20", "20"),
        ("The answer is that the 3 friends get 12 sweets.", "12"),
        ("The answer is therefore x = 12", "12"),
        ("Answer: three (3)", "3"),
        ("Answer:\n- 18 eggs", "18"),
        # mixed numbers and fractions
        ("Answer: 1 1/2", "1.5"),
        ("Answer: 1 and 1/2 cups", "1.5"),
        ("Answer: -1 1/2", "-1.5"),
        ("Answer: 1½", "1.5"),
        ("Answer: ½", "0.5"),
        ("Answer: \\frac12", "0.5"),
        ("Answer: $-\\dfrac{3}{4}$", "-0.75"),
        ("Answer: \\(2\\tfrac{1}{4}\\) cups", "2.25"),
        # powers of ten, and words for them
        ("Answer: 1.5e3", "1500"),
        ("Answer: 1.5 × 10³", "1500"),
        ("Answer: 1.5 \\times 10^{-3}", "0.0015"),
        ("Answer: 10^6", "1000000"),
        ("Answer: 1.2 million people", "1200000"),
        # thousands
        ("Answer: 12\u202f500", "12500"),
        ("Answer: 12\u2009500", "12500"),
        ("Answer: 12\u00a0500 people", "12500"),
        ("Answer: $12{,}500$", "12500"),
        ("Answer: $12\\,500$", "12500"),
        ("Answer: 12'500", "12500"),
        ("Answer: 1,00,000", "100000"),
        # signs, units, other characters
        ("Answer: minus 7 degrees", "-7"),
        ("Answer: $-7^\\circ$C", "-7"),
        ("Answer: ≈ 3.14", "3.14"),
        ("Answer: 10/3 m ≈ 3.33 m", "3.33"),
        ("Answer: 25\\%", "25"),
        ("Answer: 60 km/h", "60"),
        ("Answer：１２", "12"),
        ("<b>Answer:</b> 12", "12"),
        # other markers
        ("### Answer\n\n**12**", "12"),
        ("<answer>12</answer>", "12"),
        ("so \\(\\boxed{12}\\) of the 20", "12"),
        ("\\boxed{\\boxed{\\frac{1}{2}}}", "0.5"),
        ("12 = 3 * 4\n#### 12", "12"),
        ("#### Step 1\n3 * 4 = 12", None),
        # what is not one number
        ("Answer: 5 + 3", None),
        ("Answer: x + 1", None),
        ("Answer: 2x", None),
        ("Answer: 2\\pi", None),
        ("Answer: (3, 4)", None),
        ("Answer: 3 or 4", None),
        ("Answer: 3 to 5", None),
        ("Answer: 3-5", None),
        ("Answer: 10:30", None),
        ("Answer: 5 apples and 3 pears", None),
        ("Answer: 3,5", None),
        ("Answer: not 5", None),
        ("Answer: It cannot be known, since 29 got off.", None),
        ("Answer: 1" + 5000 * "0", None),
    ],
)
def test_numbers_as_chat_models_write_them(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Answer: C\n\nThe answer is supported by the text.", "C"),
        ("Answer: C\n\nThis answer is better than option A.", "C"),
        ("Answer: B, since a rock sinks", "B"),
        ("Answer: A because it is wet", "A"),
        ("Answer: A is correct", "A"),
        ("The answer is most likely B.", "B"),
        ("The correct answer is:\n\n**B. rock**", "B"),
        ("\\[\\boxed{\\text{B. rock}}\\]", "B"),
        ("Answer: a hard thing (B)", "B"),
        ("Answer: F. wood", "C"),
        ("#### B", "B"),
        ("<answer>\nB\n</answer>", "B"),
    ],
)
def test_options_as_chat_models_write_them(text, answer):
    assert extract(text, ROCKS) == answer


def test_the_article_is_no_option():
    assert extract("Answer: A kind person feels grateful.", FEELINGS) is None
    assert extract("Answer: A happy one.", FEELINGS) is None
    assert extract("Answer: A", FEELINGS) == extract("Answer: A grateful", FEELINGS) == "A"


def test_an_option_that_is_a_number_is_found_by_its_value():
    choices = ["600 kg", "1,200 kg", "1/2"]
    for text in ("1200", "1,200", "1{,}200 \\text{ kg}", "1.2e3 kg"):
        assert extract(f"Answer: {text}", choices) == "B"
    assert extract("Answer: $\\frac{1}{2}$", choices) == extract("Answer: 0.5", choices) == "C"


@pytest.mark.parametrize(
    "opened, closed",
    [
        ("<think>", "</think>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("[THINK]", "[/THINK]"),
        ("", "</think>"),  # the chat template has opened it
    ],
)
def test_what_is_thought_is_no_answer(opened, closed):
    assert extract(f"{opened}Is the answer 5? Answer: 6.{closed}\n\nAnswer: 7") == "7"
    assert extract(f"{opened}Answer: 6.{closed}\n\nIt is 7.") is None
    if opened:
        assert extract(f"{opened}Maybe the answer is 5? Answer: 6") is None


def test_what_is_cut_short_is_unparsed():
    assert finished_text({"text": "Answer: 12", "finish_reason": "stop"}) == "Answer: 12"
    assert extract(finished_text({"text": "Answer: 12", "finish_reason": "length"})) is None


@pytest.mark.parametrize(
    "text, normal",
    [
        ("12", "12"),
        (" -3.50 ", "-3.5"),
        ("\u22125", "-5"),
        ("$1,080.00", "1080"),
        ("3/4", "0.75"),
        ("2/6", "1/3"),
        ("1 1/2", "1.5"),
        ("½", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("1.5e3", "1500"),
        ("50%", "50"),
        ("x + 1", None),
        ("5 + 3 = 8", None),
        ("(3, 4)", None),
        ("3 or 4", None),
        ("3,5", None),
        ("1/0", None),
        ("12 apples", None),
        ("yes", None),
        ("twelve", None),
        ("nan", None),
        ("", None),
    ],
)
def test_a_known_answer_is_one_number_and_nothing_else(text, normal):
    assert number(text) == normal


def test_a_known_answer_is_graded_by_its_value():
    assert is_correct("Answer: 0.5", "\\frac{1}{2}") and not is_correct("Answer: 1", "\\frac{1}{2}")
    assert is_correct("Answer: 3/2", "1 1/2") and not is_correct("Answer: 1", "1 1/2")
    with pytest.raises(ValueError, match=r"the answer 'x \+ 1' is not a number"):
        is_correct("Answer: 1", "x + 1")


def test_labels_go_on_beyond_d():
    choices = ["red", "green", "blue", "black", "white", "grey"]
    assert [extract(f"Answer: {label}", choices) for label in "EF56"] == ["E", "F", "E", "F"]
    assert [extract(f"Answer: ({label}) x", choices) for label in "abcdef"] == list("ABCDEF")


def test_an_option_that_is_a_number_counts_before_a_position():
    assert extract("Answer: 2", ["4", "3", "2", "1"]) == "C"


@pytest.mark.parametrize(
    "text, choices, answer",
    [
        ("1,800", ["10 kg", "1,800 kg", "2,200 kg"], "B"),
        ("1.28", ["0.128 mm", "1.28 mm", "12.8 mm"], "B"),
        ("2 apples", ["4", "3", "2", "1"], "C"),
        ("$2", ["$4", "$3", "$2", "$1"], "C"),
        ("3 meters", ["1 m", "3 m", "5 m"], "B"),
        ("3/4", ["1/4", "3/4", "1/2"], "B"),
        ("-9", ["9", "-9"], "B"),
        ("2", ["2 cats", "2 dogs"], None),  # which one?
        ("2", ["cats", "dogs"], "B"),
        ("2.5", ["cats", "dogs"], None),
    ],
)
def test_a_number_is_an_option_before_it_is_a_position(text, choices, answer):
    assert extract(f"Answer: {text}", choices) == answer


def test_where_no_answer_is_known_none_is_right_or_wrong():
    assert is_correct("Answer: 5", None) is None and is_correct("Answer: A", None, ROCKS) is None


@pytest.mark.parametrize(
    "text, answer, choices, right",
    [
        ("Answer: 1080", "$1,080.00", None, True),
        ("Answer: 1080.0", "1080", None, True),
        ("Answer: 1081", "1080", None, False),
        ("Answer: -4", "4", None, False),
        ("1080", "1080", None, False),  # unparsed is wrong
        ("Answer: (b)", "B", ROCKS, True),
        ("Answer: rock", " b ", ROCKS, True),
        ("Answer: C", "B", ROCKS, False),
        ("rock", "B", ROCKS, False),
    ],
)
def test_is_correct(text, answer, choices, right):
    assert is_correct(text, answer, choices) is right


def agreement(rows, what):
    """The share of the responses that the parser reads as the reader does."""

    def read(row):
        text, choices = row["response"], row.get("choices")
        return extract(text, choices) if what == "given" else is_correct(text, row["answer"], choices)

    return sum(read(row) == row[what] for row in rows) / len(rows)


@pytest.mark.parametrize("held_out", [False, True])
def test_responses_of_a_real_model_are_graded_as_a_reader_grades_them(held_out):
    """The parser was amended on the first set; the second was written and graded after that, and used to measure."""
    rows = [row for row in GRADED if row["id"].startswith("held-") == held_out]
    assert len(rows) == (160 if held_out else 387)
    assert agreement(rows, "right") >= 0.99 and agreement(rows, "given") >= 0.95
    right = [row for row in rows if row["right"]]  # few, so their share of the agreement is small
    assert agreement(right, "right") >= 0.95


@pytest.mark.parametrize("held_out", [False, True])
def test_responses_in_the_manner_of_chat_models_are_graded_as_a_reader_grades_them(held_out):
    """The held-out third was written and graded before the rules were mended, and used to measure."""
    rows = [row for row in WRITTEN if row["id"].startswith("held-") == held_out]
    assert len(rows) == (70 if held_out else 142)
    assert agreement(rows, "right") >= 0.97 and agreement(rows, "given") >= 0.97


def test_no_response_gets_credit_that_a_reader_does_not_give():
    for row in GRADED + WRITTEN:
        assert row["right"] or not is_correct(row["response"], row["answer"], row.get("choices")), row["id"]


@given(st.integers())
def test_every_integer_is_read_back(n):
    assert extract(f"Answer: {n}") == str(n)
    assert extract(f"Answer: {n:,}") == str(n)
    assert extract(f"1 + 1 = 2. Answer: 9 = {n}.") == str(n)


@given(st.decimals(-(10**6), 10**6, places=3))
def test_every_decimal_is_read_back(x):
    assert is_correct(f"Answer: {x}", str(x))
    assert float(extract(f"Answer: {x}")) == float(x)


@given(st.integers(), st.integers(2, 99), st.integers(1, 98))
def test_every_mixed_number_and_fraction_is_read_exactly(whole, divisor, dividend):
    exact = Fraction(dividend, divisor)
    for text in (f"{dividend}/{divisor}", rf"$\frac{{{dividend}}}{{{divisor}}}$", rf"\boxed{{\dfrac{{{dividend}}}{{{divisor}}}}}"):
        assert Fraction(extract(f"Answer: {text}")) == exact
    mixed = abs(whole) + exact
    for text in (f"{abs(whole)} {dividend}/{divisor} cups", rf"{abs(whole)}\frac{{{dividend}}}{{{divisor}}}"):
        assert Fraction(extract(f"Answer: {text}")) == mixed


@given(st.integers(), st.text("abcdefg .,\n", max_size=60))
def test_a_marker_without_a_number_behind_it_displaces_none(n, words):
    assert extract(f"Answer: {n}\nThe answer is {words}\n**Answer:** {words}") == str(n)


@given(st.integers(), st.text("abc 0123456789=\n", max_size=60))
def test_what_is_thought_changes_nothing(n, thought):
    assert extract(f"<think>Answer: {thought}</think>Answer: {n}") == str(n)
    assert extract(f"<think>{thought}\nAnswer: {n}") is None


@given(st.text("0123456789,./-+ e$%x(", max_size=12))
def test_a_number_is_read_alike_as_a_known_answer_and_behind_the_marker(text):
    if number(text) is not None:
        assert extract(f"Answer: {text}") == number(text)


@given(st.text() | st.text("0123456789,.-=$ ()ABEab\u2212\n", max_size=50))
def test_any_text_behind_the_marker_is_read_without_an_error(text):
    assert extract(f"Answer: {text}", ROCKS) in (None, *"ABCD")
    found = extract(f"Answer: {text}")
    assert found is None or extract(f"Answer: {found}") == found
