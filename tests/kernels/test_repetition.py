"""Repeated n-grams, lines and paragraphs against counts by hand."""

from __future__ import annotations

import re
import time
from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.step import Memo
from factory.kernels.lines import BLANK, REPEATED, line_counts, lines, repeats
from factory.kernels.repetition import ALL, TOP, ngrams

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=60)
LINES = st.text("ab \n\n\x0b\u2003é", max_size=60)


def batch(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def of(text: str, rule: str = "unicode") -> list[int]:
    return ngrams(Memo(1), batch([text]), rule)[0].tolist()


def top(words: list[str], n: int) -> int:
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    if not grams:
        return 0
    gram, count = grams.most_common(1)[0]  # the first of those that are equally frequent
    return len(" ".join(gram)) * count


def repeated(words: list[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    size = i = 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            size += len("".join(gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return size


@settings(deadline=None, max_examples=300)
@given(WORDS)
def test_ngrams_are_counted_exactly(words: list[str]) -> None:
    expected = [top(words, n) for n in TOP] + [repeated(words, n) for n in ALL]
    assert of(" ".join(words)) == expected
    assert of(" ".join(words), "spacy") == expected


@settings(deadline=None)
@given(st.lists(WORDS, max_size=5), st.data())
def test_rows_are_independent(rows: list[list[str]], choose: st.DataObject) -> None:
    texts = [" ".join(words) for words in rows]
    memo = Memo(len(texts))
    memo.alive[:] = choose.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    found = ngrams(memo, batch(texts), "unicode")
    for row, text in enumerate(texts):
        assert found[row].tolist() == (of(text) if memo.alive[row] else [0] * 9)


def test_no_spaces_are_counted_where_there_are_none() -> None:
    assert of("中国中国中国")[0] == 2 * 3
    assert of("ab cd ab cd ab cd")[0] == 5 * 3


def again(items: list[str]) -> tuple[int, int, int]:
    """(items, those that repeat an earlier one, their characters)."""
    seen: set[str] = set()
    size = count = 0
    for item in items:
        if item in seen:
            count, size = count + 1, size + len(item)
        seen.add(item)
    return len(items), count, size


@settings(deadline=None, max_examples=300)
@given(LINES)
def test_repeated_lines_and_paragraphs(text: str) -> None:
    found = repeats(Memo(1), batch([text]))[0].tolist()
    if text:
        assert found == [*again(re.split(r"\n+", text)), *again(re.split(r"\n{2,}", text.strip()))]


@settings(deadline=None)
@given(st.lists(LINES, max_size=5), st.data())
def test_lines(texts: list[str], choose: st.DataObject) -> None:
    array = batch(texts)
    memo = Memo(len(texts))
    memo.alive[:] = choose.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    found = lines(memo, array)
    for row, text in enumerate(texts):
        here = slice(found.doc[row], found.doc[row + 1])
        expected = [line for line in text.split("\n") if line] if memo.alive[row] else []
        assert found.chars[here].tolist() == [len(line) for line in expected]
        assert found.length[here].tolist() == [len(line.encode()) for line in expected]
        assert [chr(code) for code in found.last[here]] == [line[-1] for line in expected]
        assert (found.kind[here] & BLANK > 0).tolist() == [not line.strip() for line in expected]
        assert (found.kind[here] & REPEATED > 0).tolist() == [x in expected[:i] for i, x in enumerate(expected)]
        assert found.points[row] == (len(text) if memo.alive[row] else 0)
        assert found.breaks[row] == (text.count("\n") if memo.alive[row] else 0)


def test_stops_of_lines() -> None:
    array = batch(["One.\nTwo\n三。\n \nOne.\nwhy?"])
    assert line_counts(Memo(1), array, "", 4).tolist() == [[5, 4, 5, 4]]
    assert line_counts(Memo(1), array, "?", 3).tolist() == [[5, 1, 2, 4]]


def test_time_is_linear_in_one_document() -> None:
    of("a b")
    for text in ("a " * 2_000_000, "a b c d e f g " * 300_000, "\n" * 4_000_000, "a\n\n" * 1_300_000):
        array = batch([text])
        start = time.process_time()
        counts = ngrams(Memo(1), array, "unicode")
        repeats(Memo(1), array)
        assert time.process_time() - start < 5
        assert np.all(counts >= 0)
