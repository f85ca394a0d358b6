"""Word problems: the gold answer is what the words say, splits share no problem, the shares of noise are as asked."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.engine.step import Context
from factory.synth.problems import Problems, split_of
from factory.verify.mathematics import correct, steps

TOLD = {
    r"(?:gets (\d+) more|(\d+) are added|Plus (\d+))": lambda value, number: value + number,
    r"(?:gives away (\d+)|(\d+) are lost|Minus (\d+))": lambda value, number: value - number,
    r"(?:doubles|twice as many|Times (2))": lambda value, _: 2 * value,
    r"(?:triples|three times as many|Times (3))": lambda value, _: 3 * value,
}


def rows(**options):
    source = Problems(**options)
    return [row for split in source.splits(Context(), 0) for batch in source.read(split) for row in batch.to_pylist()]


def read(prompt: str) -> int:
    """The answer, read from the words alone."""
    first, *sentences = re.split(r"\.\s", prompt.rstrip("\n"))
    value = int(re.search(r"\d+", first)[0])
    for sentence in sentences[:-1]:
        ((found, does),) = [
            (match, does) for pattern, does in TOLD.items() if (match := re.search(pattern, sentence + "."))
        ]
        value = does(value, int(next((group for group in found.groups() if group), 0)))
    return value


def test_the_gold_answer_is_what_the_words_say():
    found = rows(count=3000, top=29)
    assert {row["wording"] for row in found} == {"person", "box", "number"}
    assert {row["steps"] for row in found} == {1, 2, 3}
    for row in found:
        assert read(row["prompt"]) == int(row["gold"])
        assert row["text"] == row["prompt"] + row["chain"]
        assert correct(row["chain"], row["gold"]).passed and steps(row["chain"], least=row["steps"]).passed


def test_noise_is_what_it_is_called():
    found = rows(count=4000, slips=0.2, operations=0.2, garbage=0.1)
    shares = {kind: number / len(found) for kind, number in Counter(row["kind"] for row in found).items()}
    assert shares == pytest.approx({"right": 0.5, "slip": 0.2, "operation": 0.2, "garbage": 0.1}, abs=0.03)
    for row in found:
        if row["kind"] == "garbage":
            assert row["gold"] is None and not steps(row["text"], least=1).passed
            continue
        assert read(row["prompt"]) == int(row["gold"])
        # A slip shows in the arithmetic, a wrong operation only beside the answer.
        assert correct(row["chain"], row["gold"]).passed == (row["kind"] == "right")
        assert steps(row["chain"]).passed == (row["kind"] != "slip")


def test_splits_share_no_numbers_and_seeds_share_the_splits():
    held = {row["chain"] for split in ("validation", "test") for row in rows(count=1500, split=split, top=9)}
    learnt = {row["chain"] for seed in (0, 1) for row in rows(count=6000, seed=seed, top=9)}
    assert held and not held & learnt
    test, validation = (
        {row["chain"] for row in rows(count=1500, split=split, top=9)} for split in ("test", "validation")
    )
    assert not test & validation


def test_no_wrong_chain_is_that_of_a_problem_held_out():
    found = rows(count=1500, operations=1.0, top=9)
    assert sum(row["kind"] == "operation" for row in found) > 1200
    for row in found:
        assert split_of(row["chain"].split("\n")[:-1]) == "train"  # by what stands on its lines


@given(st.lists(st.tuples(st.integers(20, 23), st.integers(2, 3), st.integers(0, 1)), min_size=2, max_size=3))
@settings(max_examples=20, deadline=None)
def test_of_an_id_there_is_one_problem(options):
    prompts: dict[str, str] = {}
    for top, most, seed in options:
        for row in rows(count=3, top=top, steps=most, seed=seed):
            assert prompts.setdefault(row["id"], row["prompt"]) == row["prompt"]


def test_the_same_seed_gives_the_same_rows_however_they_are_cut():
    many, few = rows(count=5000, seed=3), rows(count=700, seed=3)
    assert many[:700] == few
    assert rows(count=700, seed=4) != few
    assert len({row["id"] for row in many}) == 5000


def test_a_split_without_such_problems_is_told():
    with pytest.raises(FactoryError, match="split 'test' with 1 operations on numbers up to 2 is found: raise top"):
        rows(count=1, top=2, steps=1, split="test")


def test_many_problems_are_cut_by_the_size_of_a_shard():
    cuts = Problems(count=10_000_000).splits(Context(), 64 << 20)
    assert max(split.bytes for split in cuts) <= 70e6
    assert (cuts[0].start, cuts[-1].end) == (0, 10_000_000)
    assert len(Problems(count=40_000).splits(Context(), 4_000_000)) == 16


def test_more_noise_than_documents_is_refused():
    with pytest.raises(FactoryError, match="above 1"):
        Problems(slips=0.6, operations=0.5)
