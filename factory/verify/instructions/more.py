"""Kinds of our own, beside IFEval's: exact numbers, ranges, and forms that it lacks."""

from __future__ import annotations

import csv
import io
from random import Random
from typing import Any

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from factory.verify.instructions.content import WORDS, Count, Number, Text, Texts, counted, quoted
from factory.verify.instructions.form import bullets
from factory.verify.instructions.kind import instruction
from factory.verify.instructions.text import words

_CLOSINGS = (["."], ["!"], ["?"], [".", "!", "?"], ["thanks", "thank you"], ["good luck"])


@instruction(
    "more:ends_without",
    describe=lambda endings: f"Do not end with any of these: {quoted(endings)}.",
    draw=lambda rng: {"endings": list(rng.choice(_CLOSINGS))},
)
def ends_without(response: str, *, endings: Texts) -> Check:
    """Its end is none of these, in any case, spaces aside."""
    text = response.strip().lower()
    found = [ending for ending in endings if text.endswith(ending.strip().lower())]
    return Check(not found, f"it ends with {quoted(found)}")


@instruction(
    "more:exact_words",
    describe=lambda num_words: f"Write exactly {counted(num_words, 'word')}, neither more nor fewer.",
    draw=lambda rng: {"num_words": rng.randint(10, 60)},
)
def exact_words(response: str, *, num_words: Count) -> Check:
    """Exactly so many words, as `length_constraints:number_words` counts them."""
    found = len(words(response))
    return Check(found == num_words, f"{found} words, {num_words} asked for")


def _range(rng: Random) -> dict[str, Any]:
    least = rng.randint(2, 6)
    return {"least": least, "most": least + rng.randint(1, 4)}


@instruction(
    "more:bullets_between",
    describe=lambda least, most: f"Use Markdown bullet points: no fewer than {least} and no more than {most}.",
    draw=_range,
)
def bullets_between(response: str, *, least: Count, most: Count) -> Check:
    """A number of bullet points in a range, both ends in it."""
    if least > most:
        raise FactoryError(f"instruction more:bullets_between: least = {least} is more than most = {most}")
    found = bullets(response)
    return Check(least <= found <= most, f"{found} bullet points, {least} to {most} asked for")


@instruction(
    "more:acrostic",
    describe=lambda word: f'Let the first letters of its lines spell "{word}" from top to bottom.',
    draw=lambda rng: {"word": rng.choice(WORDS)},
)
def acrostic(response: str, *, word: Text) -> Check:
    """The first letters of its lines spell a word, in any case. Blank lines and marks are skipped."""
    heads = [next((c for c in line if c.isalnum()), "") for line in response.split("\n") if line.strip()]
    found = "".join(heads)
    return Check(found.lower() == word.lower(), f'the lines spell "{found[:40]}"')


@instruction(
    "more:csv",
    describe=lambda num_columns, num_rows: (
        f"Give nothing but CSV, with commas: a line of names, then {counted(num_rows, 'row')}, each of "
        f"{counted(num_columns, 'column')}. No code block."
    ),
    draw=lambda rng: {"num_columns": rng.randint(2, 5), "num_rows": rng.randint(2, 8)},
)
def comma_separated(response: str, *, num_columns: Number, num_rows: Count) -> Check:
    """CSV (RFC 4180) and nothing else: a head and so many rows of so many columns."""
    try:
        table = list(csv.reader(io.StringIO(response.strip(), newline=""), strict=True))
    except csv.Error as error:
        return Check(False, f"not CSV: {error}")
    wide = [number for number, row in enumerate(table, 1) if len(row) != num_columns]
    if wide:
        return Check(False, f"line {wide[0]} has {counted(len(table[wide[0] - 1]), 'column')}, {num_columns} asked for")
    return Check(len(table) == num_rows + 1, f"{len(table) - 1} rows after the head, {num_rows} asked for")
