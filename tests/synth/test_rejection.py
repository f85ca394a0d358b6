"""Rejection sampling: only what is right stays, never more than `keep` of a prompt, and those differ."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.synth.rejection import DUPLICATE, SURPLUS, _ranks, choose
from factory.teacher.samples import normalised
from tests.engine.build import build, check_law, content, make
from tests.prefer.samples import read, source

COLUMNS = {
    "prompt": pa.large_string(),
    "response": pa.large_string(),
    "verdict": pa.bool_(),
    "process": pa.bool_(),
    "score": pa.float64(),
}


def jaccard(one: str, other: str, size: int) -> float:
    """Of the sets of token n-grams, written out."""
    sets = []
    for text in (one, other):
        tokens = text.lower().split()
        sets.append({tuple(tokens[n : n + size]) for n in range(max(1, len(tokens) - size + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def greedy(texts: list[str], keep: int, size: int) -> list[str]:
    """What is to be taken, by the definition: every likeness computed anew in each turn."""
    left = list(dict.fromkeys(texts))
    taken = [left.pop(0)]
    while left and len(taken) < keep:
        taken.append(min(left, key=lambda t: (max(jaccard(t, other, size) for other in taken), left.index(t))))
        left.remove(taken[-1])
    return taken


@given(
    texts=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=12),
    keep=st.integers(1, 5),
    size=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_what_is_taken_is_by_the_definition(texts, keep, size):
    left = {one.text: one for one in choose(texts, keep, size)}
    taken = [text for place, text in enumerate(texts) if place not in left]
    assert sorted(taken) == sorted(greedy(texts, keep, size))
    for one in left.values():
        assert texts[one.kept] in taken and one.kept not in left
        if one.reason == DUPLICATE:
            assert texts[one.text] == texts[one.pair] and one.pair < one.text
        else:
            assert one.reason == SURPLUS
            most = max(jaccard(texts[one.text], text, size) for text in taken)
            assert one.similarity == most == jaccard(texts[one.text], texts[one.kept], size)


def rejected(**options: Any) -> dict[str, Any]:
    return {"use": "rejection.RejectionSample", **options}


def test_what_is_wrong_goes_with_its_verdict_and_the_rest_by_likeness(tmp_path):
    said = [
        ("one and two is three", True, 0.1),
        ("four", False, 0.9),
        ("One  and two\nis three", True, 0.3),  # the same, and preferred
        ("one and two is three so", True, 0.2),
        ("three", True, None),
        ("nothing", None, 1.0),
    ]
    rows = [{"prompt": "1+2?", "response": text, "verdict": right, "score": score} for text, right, score in said]
    built = build(make(source(tmp_path, rows, COLUMNS), rejected(keep=2, rank="score")), tmp_path / "runs")
    check_law(built)
    assert read(built, "select id from rows order by id") == [("r2",), ("r4",)]
    dropped = read(built, "select id, reason, verdict, kept_id, pair_id, round(similarity, 4) from dropped order by id")
    assert dropped == [
        ("r0", "duplicate", True, "r2", "r2", 1.0),
        ("r1", "wrong", False, None, None, None),
        ("r3", "surplus", True, "r2", "r2", 0.75),
        ("r5", "wrong", None, None, None, None),
    ]


def test_all_verdicts_that_are_there_must_be_true_and_none_asks_for_none(tmp_path):
    verdicts = [(True, True), (True, None), (True, False), (None, None), (None, True), (False, True)]
    rows = [{"prompt": str(n), "response": "x", "verdict": a, "process": b} for n, (a, b) in enumerate(verdicts)]
    read_ = source(tmp_path, rows, COLUMNS)
    both = build(make(read_, rejected(verdicts=["verdict", "process"]), name="both"), tmp_path / "runs")
    assert read(both, "select id from rows order by id") == [("r0",), ("r1",), ("r4",)]
    control = build(make(read_, rejected(verdicts=[]), name="control"), tmp_path / "runs")
    assert control.counts["rows_kept"] == 6


SAMPLES = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["p", "q", "r?"]),
            "response": st.lists(st.sampled_from(["a", "B", "b", "c", " "]), max_size=6).map(" ".join),
            "verdict": st.sampled_from([True, True, False, None]),
            "score": st.sampled_from([None, 0.0, 0.5, 1.0]),
        }
    ),
    max_size=30,
)


@given(rows=SAMPLES, keep=st.integers(1, 4), files=st.integers(1, 3), ranked=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_laws_hold_of_any_samples(tmp_path_factory, rows, keep, files, ranked):
    folder = tmp_path_factory.mktemp("rejection")
    built = build(
        make(source(folder, rows, COLUMNS, files), rejected(keep=keep, rank="score" if ranked else "")), folder / "a"
    )
    check_law(built)
    kept = read(built, "select prompt, response, verdict, score from rows")
    assert all(row[2] is True for row in kept)
    for prompt in {row["prompt"] for row in rows}:
        mine = [row for row in kept if row[0] == prompt]
        right = [row for row in rows if row["prompt"] == prompt and row["verdict"]]
        distinct = {normalised(row["response"]) for row in right}
        assert len(mine) == min(keep, len(distinct))
        assert all(normalised(a[1]) != normalised(b[1]) for a, b in combinations(mine, 2))
        if ranked and right:
            assert max(row["score"] or 0.0 for row in right) in {row[3] or 0.0 for row in mine}


def test_the_same_bytes_with_any_workers(tmp_path):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    rows = [
        {"prompt": f"p{n % 17}", "response": " ".join(words[(n * k) % 8] for k in range(1, 6)), "verdict": n % 3 > 0}
        for n in range(200)
    ]
    recipe = make(source(tmp_path, rows, COLUMNS, 4), rejected(keep=3))
    built = [build(recipe, tmp_path / str(workers), workers) for workers in (0, 2)]
    assert content(built[0], "rows", "dropped") == content(built[1], "rows", "dropped")
    check_law(built[0])
    assert {reason for (reason,) in read(built[0], "select distinct reason from dropped")} == {
        "wrong",
        "duplicate",
        "surplus",
    }


def test_mistakes_show_before_any_work(tmp_path):
    read_ = source(tmp_path, [{"prompt": "p", "response": "x", "verdict": True}], COLUMNS)
    with pytest.raises(FactoryError, match="holds double: a verdict is true or false"):
        build(make(read_, rejected(verdicts=["score"])), tmp_path / "runs")
    with pytest.raises(FactoryError, match="ranked by numbers"):
        build(make(read_, rejected(rank="response")), tmp_path / "runs")
    with pytest.raises(FactoryError, match="needs the column 'judged'"):
        build(make(read_, rejected(verdicts=["judged"])), tmp_path / "runs")


def test_a_sample_without_a_prompt_or_a_response_fails_alone(tmp_path):
    said = [("p", "x"), ("p", None), (None, "x"), (None, "x"), ("q", "y")]
    rows = [{"prompt": prompt, "response": text, "verdict": True} for prompt, text in said]
    built = build(make(source(tmp_path, rows, COLUMNS), rejected()), tmp_path / "runs")
    check_law(built)
    assert read(built, "select id from rows order by id") == [("r0",), ("r4",)]
    assert built.counts["rows_failed"] == 3


@pytest.mark.parametrize(
    "texts",
    [
        ["他有三个苹果再买两个所以一共有五个", "他有三个苹果再买两个所以共有五个", "五减二得三再倒过来算答案是五"],
        ["りんごがみっつありますふたつかいます", "りんごがみっつあるふたつかいます", "ごひくにはさんこたえはごです"],
        ["มีแอปเปิลสามผลซื้ออีกสองผล", "มีแอปเปิลสามผลซื้อสองผล", "ห้าลบสองได้สามคำตอบคือห้า"],
        ["abc he has three 他有三个苹果", "abc he has three 他有三个果", "five less two"],
    ],
)
def test_likeness_is_seen_without_spaces_between_words(texts):
    (left,) = choose(texts, 2, 3)
    assert (left.text, left.kept, left.reason) == (1, 0, SURPLUS) and left.similarity > 0.3


@given(
    type_=st.sampled_from([pa.int64(), pa.uint64(), pa.int32(), pa.float64(), pa.float32()]),
    numbers=st.lists(st.none() | st.integers(0, 40).map(lambda n: 2**60 + n) | st.integers(-3, 3), max_size=9),
)
@settings(deadline=None)
def test_ranks_are_in_the_order_of_the_numbers(type_, numbers):
    wide = 2**64 if type_.bit_width == 64 else 2**31
    given_ = [None if n is None or (type_ == pa.uint64() and n < 0) or abs(n) >= wide else n for n in numbers]
    given_ = [float(n) if n is not None and pa.types.is_floating(type_) else n for n in given_]
    ranks = [tuple(one) for one in _ranks(pa.array(given_, type_)).T.tolist()]
    for a, one in zip(given_, ranks, strict=True):
        for b, other in zip(given_, ranks, strict=True):
            assert (one < other) == (b is not None and (a is None or a < b))


def test_what_has_no_rank_comes_after_all_that_have_one(tmp_path):
    said = [("one", None), ("two", float("nan")), ("three", -5.0)]
    rows = [{"prompt": "p", "response": text, "verdict": True, "score": score} for text, score in said]
    built = build(make(source(tmp_path, rows, COLUMNS), rejected(keep=1, rank="score")), tmp_path / "runs")
    assert read(built, "select response from rows") == [("three",)]
