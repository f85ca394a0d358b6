"""Answers that are looked up in a table, judged as WikiTableQuestions judges them.

Pasupat and Liang 2015 (arXiv 1508.00305) and the comments of their evaluator, version 1.0.2: an answer is a set of
values, and each value is a text, a number or a date.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from json import JSONDecodeError, loads

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from factory.verify.structure import shown

ITEM, ANSWER = 1000, 100_000
"""Characters of an item, and of an answer, that are read at most."""
NEAR = 1e-6
"""Numbers that are nearer than this are equal."""
_PLAIN = {ord(mark): plain for marks, plain in (("‘’´`", "'"), ("“”", '"'), ("‐‑‒–—−", "-")) for mark in marks}
# Trailing citations, [1] or any […] that is not the whole, marks of notes, and details in brackets.
_TAIL = re.compile(r"(?:\s*(?:(?<!\A)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+]|(?<= )\([^)]*\)))+\Z")
_QUOTED = re.compile(r'"([^"]*)"')
_MONTHS = {
    **{"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6},
    **{"jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12},
}
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,? )?"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_DATES = (  # month, day and year, by the groups that hold them
    (re.compile(rf"{_WEEKDAY}{_MONTH} {_DAY}(?:,? (\d{{4}}))?"), (1, 2, 3)),
    (re.compile(rf"{_WEEKDAY}{_DAY} (?:of )?{_MONTH}(?:,? (\d{{4}}))?"), (2, 1, 3)),
    (re.compile(rf"{_MONTH},?()(?: of)? (\d{{4}})"), (1, 2, 3)),
)
_ISO = re.compile(r"(\d{1,4}|xx|xxxx)-(\d{1,2}|xx)-(\d{1,2}|xx)")
_WORDS = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6},
    **{"seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12},
}
_GROUPED = re.compile(r"([-+]?)[$£€¥]? ?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)")
_BULLET = re.compile(r"\A[-*•] +(?=\S)")


@dataclass(frozen=True)
class Value:
    """An item of a denotation: its normalised text, and the number or the date (year, month, day; None: open)."""

    text: str
    number: int | float | None = None
    date: tuple[int | None, int | None, int | None] | None = None

    def identity(self) -> object:
        """What makes two items of one answer the same item."""
        if self.number is not None:
            return self.number
        return self.date or self.text

    def matches(self, other: Value) -> bool:
        if self.text == other.text or (self.date is not None and self.date == other.date):
            return True
        return self.number is not None and other.number is not None and near(self.number, other.number, NEAR)


def near(one: int | float, other: int | float, tolerance: float) -> bool:
    """Whether two numbers differ by less than `tolerance`; beyond 1e15 they must be equal."""
    return one == other or (abs(one) < 1e15 and abs(other) < 1e15 and abs(one - other) < tolerance)


def normalized(text: str) -> str:
    """A text without diacritics, trailing citations and details in brackets, outer quotation marks, a last full stop;
    with plain quotes and dashes, in lower case, with single spaces."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
    text, before = text.translate(_PLAIN).strip(), ""
    while text != before:
        before = text
        text = _TAIL.sub("", text).strip()
        if quoted := _QUOTED.fullmatch(text):
            text = quoted[1].strip()
    return " ".join(text.removesuffix(".").lower().split())


def number(text: str) -> int | float | None:
    """The number that a text is: 12467, 12,467, $5, 1.5e3, twelve; None where it is none or not finite."""
    text = text.strip().translate(_PLAIN)
    if grouped := _GROUPED.fullmatch(text):
        text = grouped[1] + grouped[2].replace(",", "")
    try:
        return int(text)
    except ValueError:
        try:
            found = float(text)
        except ValueError:
            return _WORDS.get(text.lower())
    if not math.isfinite(found):
        return None
    return round(found) if abs(found) < 1e15 and abs(found - round(found)) < NEAR else found


def day(text: str) -> tuple[int | None, int | None, int | None] | None:
    """The date that a text is: 1990-01-02, xx-01-02, January 2, 1990, 2 Jan 1990, January 1990, May 11."""
    text = " ".join(text.lower().split())
    if iso := _ISO.fullmatch(text):
        year, month, of_month = (None if part.startswith("x") else int(part) for part in iso.groups())
    else:
        for pattern, (m, d, y) in _DATES:
            if found := pattern.fullmatch(text):
                month, of_month = _MONTHS[found[m][:3]], int(found[d]) if found[d] else None
                year = int(found[y]) if found[y] else None
                break
        else:
            return None
    good = (month is None or 1 <= month <= 12) and (of_month is None or 1 <= of_month <= 31)
    return (year, month, of_month) if good and (year, month, of_month) != (None, None, None) else None


def value(text: str) -> Value:
    """The item that a text stands for. A date of which only the year is known is a number."""
    if (amount := number(text)) is not None:
        return Value(normalized(text), amount)
    if (date_ := day(text)) is not None:
        return Value(normalized(text), date_[0]) if date_[1:] == (None, None) else Value(normalized(text), None, date_)
    return Value(normalized(text))


def items(answer: str) -> list[str]:
    """The items of an answer: a JSON list, or one a line (bullets do not count), or between bars or tabs.

    Within an item `\\p` is a bar, `\\n` the end of a line and `\\\\` a backslash, as in the data set's files.
    """
    text = answer.strip()
    if text.startswith("["):
        try:
            found = loads(text)
            if isinstance(found, list) and all(isinstance(one, str | int | float) for one in found):
                return [str(one) for one in found]
        except (JSONDecodeError, RecursionError):
            pass  # no list, but a text that begins with a bracket
    parts = [part.strip() for part in re.split(r"[|\t\r\n]+", text)]
    escaped = {"p": "|", "n": "\n", "\\": "\\"}
    return [re.sub(r"\\([pn\\])", lambda m: escaped[m[1]], _BULLET.sub("", part, 1)) for part in parts if part]


def denotation(response: str, answers: Sequence[str] | str) -> Check:
    """Whether an answer denotes the same set of values as the right one: as many, and each matched.

    Two values match where their normalised texts, their numbers or their dates are equal. Both sides are read in
    all spellings of `number` and `day`, as the data set's own targets were by a tagger. Text for `answers` is read as
    `items` reads it. Raises `FactoryError` where there is no right answer: an empty one would be right.
    """
    right = items(answers) if isinstance(answers, str) else answers
    if not right:
        raise FactoryError("denotation: the right answer is empty")
    wanted = {one.identity(): one for one in map(value, right)}
    if len(response) > ANSWER:
        return Check(False, f"{len(response):,} characters: more than {ANSWER:,} are no answer")
    given = items(response)
    if any(len(item) > ITEM for item in given):
        return Check(False, f"an item of more than {ITEM:,} characters")
    found = {v.identity(): v for v in map(value, given)}
    if len(found) != len(wanted):
        return Check(False, f"{len(found)} values, not {len(wanted)}")
    for one in wanted.values():
        if not any(one.matches(other) for other in found.values()):
            return Check(False, f"{shown(one.text)} is missing")
    return Check(True)
