"""Denotations beside the official evaluator of WikiTableQuestions, and on its questions."""

from __future__ import annotations

import functools
import importlib.util
import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.verify.denotation import day, denotation, items, normalized, number
from factory.verify.verifier import reward


@functools.lru_cache(maxsize=1)
def official() -> Any:
    """The data set's evaluator.py, as the package allennlp-semparse carries it. Nothing else of it runs."""
    spec = importlib.util.find_spec("allennlp_semparse")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("allennlp-semparse has the official evaluator: pip install --no-deps allennlp-semparse==0.0.4")
    path = Path(spec.submodule_search_locations[0]) / "common" / "wikitables" / "wikitables_evaluator.py"
    found = importlib.util.spec_from_file_location("wikitables_evaluator", path)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def theirs(answers: list[str], given_items: list[str]) -> bool:
    check = official()
    return check.check_denotation(check.to_value_list(answers), check.to_value_list(given_items))


def targets(data: Path) -> list[str]:
    folder = data / "wtq/WikiTableQuestions/data"
    lines = [
        line
        for name in ("training", "pristine-unseen-tables")
        for line in (folder / f"{name}.tsv").read_text("utf-8").split("\n")[1:]
    ]
    return [line.split("\t")[3] for line in lines if line]


@settings(max_examples=400, deadline=None)
@given(st.text("aé \"'’“”[]()1.•†*#+-–A\n") | st.text(max_size=12))
def test_texts_are_normalised_as_the_evaluator_does(text: str) -> None:
    assert normalized(text) == official().normalize(text)


PIECES = [
    "a",
    "A.",
    "b [1]",
    "1",
    "1.0",
    "1e0",
    "2",
    "-1",
    "1990-01-02",
    "xx-01-02",
    "1990-xx-xx",
    "1990",
    "x",
    '"a"',
    "",
    " ",
]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), st.lists(st.sampled_from(PIECES), min_size=1, max_size=3)
)
def test_what_both_read_is_judged_alike(answers: list[str], given_items: list[str]) -> None:
    assert denotation(json.dumps(given_items), answers).passed == theirs(answers, given_items)


def test_answers_of_the_data_set(data: Path) -> None:
    """Each right answer is right, and another question's is where the evaluator says so or a number is spelt apart."""
    rows = targets(data)
    assert len(rows) == 18_496
    assert all(denotation(row, row).passed for row in rows)
    rng = random.Random(0)
    apart, right = [], 0
    for _ in range(20_000):
        row, other = rng.choice(rows), rng.choice(rows)
        ours = denotation(other, row).passed
        wanted = theirs(items(row), items(other))
        right += wanted
        assert ours or not wanted
        if ours != wanted:
            apart.append((row, other))
    assert right > 100 and len(apart) < 5
    assert all(number(row) == number(other) is not None for row, other in apart)


def respelt(item: str, rng: random.Random) -> str:
    """The item in another spelling."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+", item):
        return item.replace(",", "")
    if re.fullmatch(r"\d{4,9}", item):
        return rng.choice([f"{int(item):,}", f"{item}.0", f"${item}", f"{item} [1]"])
    if re.fullmatch(r"\d{1,3}", item) and not item.startswith("0"):
        return rng.choice([f"{item}.00", f"{item}.", f"  {item}", f"{int(item):e}" if int(item) < 100 else item])
    if found := re.fullmatch(r"([A-Z][a-z]+) (\d{1,2}), (\d{4})", item):
        month, of_month, year = found.groups()
        return rng.choice([f"{of_month} {month} {year}", f"{month[:3]}. {of_month}, {year}"]) if day(item) else item
    quoted = [item.upper(), f'"{item}"', f"{item} (see notes)", f"{item}†", item.replace(" ", "  "), item + "."]
    spelt = rng.choice([*quoted, unicodedata.normalize("NFD", item), item.replace("'", "’").replace("-", "–")])
    # Not all of these undo each other: a quotation mark or a bracket within, letters whose capitals are two.
    plain = not re.search(r'["“”\[\]()ßŉ•♦†‡*#+.]', item) and item.upper().lower() == item.lower()
    return spelt if plain and item.strip() else item


def test_other_spellings_are_the_same_and_other_values_are_not(data: Path) -> None:
    rng = random.Random(1)
    changed = 0
    for row in targets(data):
        answers = items(row)
        spelt = [respelt(item, rng) for item in answers]
        rng.shuffle(spelt)
        changed += spelt != answers
        assert denotation(json.dumps(spelt), answers).passed, (answers, spelt)
        assert not denotation(json.dumps([*spelt, "something else"]), answers).passed
        assert not denotation(json.dumps([*spelt[1:], "something else"]), answers).passed
    assert changed > 14_000


def test_items() -> None:
    assert items("a|b\\pc|d\\ne|f\\\\g") == ["a", "b|c", "d\ne", "f\\g"]
    assert items("- Bangkok, Thailand\n- Paris\n") == ["Bangkok, Thailand", "Paris"]
    assert items('["a|b", 3, "c"]') == ["a|b", "3", "c"] and items("[not json]") == ["[not json]"]
    assert items("Harvard Mark I - IBM") == ["Harvard Mark I - IBM"] and items(" \n") == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("12,467", 12467), ("$5.50", 5.5), ("twelve", 12), ("−3", -3), ("1e3", 1000), ("2.0000000001", 2), ("007", 7),
     ("1,23", None), ("5%", None), ("nan", None), ("1e999", None), ("", None), ("12 km", None)],
)  # fmt: skip
def test_numbers(text: str, value: float | None) -> None:
    assert number(text) == value
    assert number("9" * 400) == int("9" * 400)


@pytest.mark.parametrize(
    ("text", "value"),
    [("January 2, 1990", (1990, 1, 2)), ("2 Jan. 1990", (1990, 1, 2)), ("Saturday, May 11", (None, 5, 11)),
     ("the 2nd", None), ("2nd of January 1990", (1990, 1, 2)), ("September 2009", (2009, 9, None)), ("May", None),
     ("1990-01-02", (1990, 1, 2)), ("xx-01-02", (None, 1, 2)), ("1990-13-02", None), ("xx-xx-xx", None)],
)  # fmt: skip
def test_dates(text: str, value: tuple[int | None, ...] | None) -> None:
    assert day(text) == value


def test_reasons_and_bounds() -> None:
    assert denotation("a|b", "a").reason == "2 values, not 1"
    assert denotation("b", "a").reason == "'a' is missing"
    assert denotation('a\nA.\n"a"', "a").passed  # a set: what is the same counts once
    assert not denotation("[" * 90_000, "a").passed and not denotation("a" * 200_000, "a").passed
    assert not denotation("[[1" * 300, "a").passed
    assert reward("denotation:denotation", {"answers": "target"})(["3.0", "4"], target=["3", ["3"]]) == [1.0, 0.0]
