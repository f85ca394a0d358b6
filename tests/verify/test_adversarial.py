r"""Responses made to be taken for right though they are not, and their like that are: `response ~ reference`."""

from __future__ import annotations

import resource

import pytest

from factory.engine.errors import FactoryError
from factory.verify import tables
from factory.verify.check import Check
from factory.verify.code import extract
from factory.verify.denotation import denotation
from factory.verify.instructions import follows
from factory.verify.language import length, not_degenerate, not_mixed
from factory.verify.mathematics import choice, correct, numeric, steps
from factory.verify.verifier import Verifier
from tests.verify.test_mathematics import pairs

WRONG = r"""
The answer is anything but 5. ~ 5
The answer is never 5 ~ 5
The answer is 5? ~ 5
Is the answer 5? ~ 5
Could the answer be 5? ~ 5
What is 4 + 5? ~ 5
It could be 5? ~ 5
I doubt the answer is 5. ~ 5
I don't think the answer is 5. ~ 5
It is false that the answer is 5. ~ 5
Suppose the answer is 5. ~ 5
If the answer is 5, then ~ 5
The wrong answer is 5. ~ 5
The answer is unlikely to be 5. ~ 5
The answer is under 5 ~ 5
The answer is over 5 ~ 5
The answer is up to 5 ~ 5
The answer is half of 5 ~ 5
The answer is twice 5 ~ 5
The answer is double 5 ~ 5
The answer is the square root of 5 ~ 5
The answer is the negative of 5 ~ 5
The answer is minus 5 ~ 5
The answer is negative 5 ~ 5
The answer is sqrt(5) ~ 5
The answer is log 5 ~ 5
The answer is sin 5 ~ 5
The answer is 5 squared ~ 5
The answer is 5th ~ 5
The answer is 5 and a half ~ 5
The result is 5 factorial ~ 5
The result is 5 million ~ 5
It is twice 5 ~ 5
The result is minus 5 ~ 5
maybe 5, maybe 6 ~ 6
5 and 6 ~ 6
It is 5 or it is 6 ~ 6
Candidates: 4 5 6 ~ 6
Options: 1 2 3 4 5 ~ 5
All of 1, 2, 3, 4, 5 are possible answers. ~ 5
\boxed{4 = 3} ~ 3
\boxed{x = 4 = 3} ~ 3
\boxed{4 \approx 3} ~ 4
\boxed{4 \text{th}} ~ 4
\boxed{5 mph} ~ 5 km/h
\boxed{5 \text{ m/s}} ~ 5 \text{ mph}
"""

RIGHT = r"""
The answer is negative 7. ~ -7
The answer is minus 7 ~ -7
The answer is 7 square feet ~ 7
The result is half of 14, which is 7 ~ 7
The cube root of 343 is 7 ~ 7
Is it 5? No. It is 7. ~ 7
I don't think the answer is 5.5. It is 7 ~ 7
The wrong answer is 5. The right answer is 7. ~ 7
He has 3 and she has 4. They have 7. ~ 7
He sold 7 clips. Does that help? ~ 7
What is 3 + 4? It is 7. ~ 7
\boxed{7 = 14/2} ~ 7
\boxed{36 \text{ km/h}} ~ 10 m/s
The answer is 7 mph. ~ 7 mph
"""


@pytest.mark.parametrize(("response", "answer"), pairs(WRONG))
def test_what_only_looks_right_is_wrong(response, answer):
    assert not correct(response, answer).passed


@pytest.mark.parametrize(("response", "answer"), pairs(RIGHT))
def test_and_its_like_is_right(response, answer):
    assert correct(response, answer).passed


def test_an_empty_answer_is_not_the_right_one_for_want_of_any():
    for none in ([], "", "[]", " \n"):
        with pytest.raises(FactoryError, match="is empty"):
            denotation("", none)


def test_digits_of_other_scripts_are_no_numbers_of_a_table():
    for cell in ("１", "٣"):
        for kind in ("integer", "number"):
            assert not tables.csv(f"a\n{cell}", columns={"a": kind}).passed
            assert tables.csv("a\n3", columns={"a": kind}).passed


def test_the_text_of_an_empty_list_item_heads_no_table():
    assert not tables.markdown_table("-\n   |a|b|\n|-|-|\n").passed
    for before in ("", "-\n", "A heading\n-\n"):
        assert tables.markdown_table(f"{before}|a|b|\n|-|-|\n").passed


@pytest.mark.parametrize("delimiter", ["", ",,", "\n", '"'])
def test_what_is_no_delimiter_is_told(delimiter):
    with pytest.raises(FactoryError, match="give one character"):
        tables.csv("a,b\n1,2", delimiter=delimiter)


def test_a_length_that_nothing_has_and_a_tokenizer_that_is_none_are_told(tmp_path):
    with pytest.raises(FactoryError, match="is more than maximum"):
        length("one two", minimum=3, maximum=2)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FactoryError, match="no tokenizer"):
        length("one two", tokenizer=str(tmp_path))


def test_a_thousand_dots_or_empty_lines_are_degenerate_and_a_rule_is_not():
    for mark in ".-\n ":
        assert not not_degenerate("It goes on" + mark * 1000 + "and on.").passed
        assert not_degenerate("It goes on\n" + mark * 100 + "\nand on.").passed


def test_a_program_keeps_the_signs_that_unicode_calls_ends_of_lines():
    program = "def f():\n    return 'a\x0cb\u2028c\x85'\n"
    assert extract(f"Here:\n```python\n{program}```") == program
    assert extract(f"~~~~py {{.numbered}}\n{program}~~~~\n```\nmuch longer than that\n```" + "x" * 99) == program


def verdict(response: str) -> bool:
    return bool(response)


def test_a_function_that_gives_no_check_is_told():
    (told,) = Verifier("tests.verify.test_adversarial:verdict")(["x"], {})
    assert isinstance(told, FactoryError) and "return a Check" in str(told)
    (check,) = Verifier("mathematics:correct", values={"answer": "5"})(["5"], {})
    assert check == Check(True)


def test_a_null_is_told_and_costs_its_row_alone():
    verifier = Verifier("mathematics:correct", {"answer": "gold"})
    found = verifier(["5", None, "5"], {"gold": [None, "5", "5"]})  # type: ignore[list-item]
    assert [str(one) for one in found[:2]] == [
        f"mathematics:correct: {what} is null" for what in ("gold", "the response")
    ]
    assert found[2] == Check(True)
    (check,) = Verifier("structure:json", {"schema": "schema"})(["5"], {"schema": [None]})
    assert check == Check(True)


def test_a_fraction_alone_is_a_calculation():
    assert not steps(r"So \frac{6}{2} = 4.").passed and steps(r"So \frac{6}{2} = 3.").reason == "1 equations hold"


def test_an_option_that_is_called_wrong_is_not_chosen():
    options = ["a fish", "a whale"]
    for response in ("B is wrong", "B is incorrect.", "The answer is B or A", "A. a fish B. a whale"):
        assert not choice(response, "B", options).passed
    for response in ("B. a whale", "B) a whale", "B is right", "The answer is B because whales swim."):
        assert choice(response, "B", options).passed


def test_a_number_has_its_scale_within_a_tolerance_too():
    assert not numeric("5 million", "5").passed
    assert numeric("5 million dollars", "5000000").passed and numeric("$5", "5 dollars").passed


def test_nothing_asked_is_nothing_followed():
    with pytest.raises(FactoryError, match="no instruction"):
        follows("Yes.", [], [])


@pytest.mark.parametrize(
    "text", ["\n" * 200_000, "\\boxed{5}\nQ" + " " * 150_000 + "x", "\n " * 100_000, "\\[ \\" * 50_000]
)
def test_time_grows_with_the_length_alone(text):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    correct(text, "5")
    not_mixed(text, "en")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 10  # it took minutes, and takes 0.1 s
