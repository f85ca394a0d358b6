"""Signatures against a plain implementation, and as estimates of the Jaccard similarity."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.engine.step import Memo
from factory.kernels.minhash import NONE, _random, agreement, band_keys, signatures
from factory.kernels.words import words

MASK = 2**64 - 1


def ours(
    texts: list[str], ngram: int = 5, count: int = 112, seed: int = 1, alive: np.ndarray | None = None
) -> np.ndarray:
    memo = Memo(len(texts))
    if alive is not None:
        memo.alive &= alive
    return memo(signatures, pa.array(texts, pa.large_string()), "unicode", ngram, count, seed)


def plain(texts: list[str], ngram: int, count: int, seed: int) -> np.ndarray:
    """The same with Python's integers, a shingle at a time."""
    found = words(Memo(len(texts)), pa.array(texts, pa.large_string()), "unicode")
    numbers = [int(x) for x in _random(seed, ngram + 2 * count)]
    factors = [x | 1 for x in numbers[:ngram]]
    a = [x >> 32 | 1 for x in numbers[ngram : ngram + count]]
    b = [x >> 32 for x in numbers[ngram + count :]]
    out = np.full((len(texts), count), NONE)
    for row in range(len(texts)):
        lower = [int(x) for x in found.lower[found.doc[row] : found.doc[row + 1]] if x]
        size = min(ngram, len(lower))
        for k in range(len(lower) - size + 1 if lower else 0):
            h = (ngram - size + sum(x * f for x, f in zip(lower[k : k + size], factors, strict=False))) & MASK
            h ^= h >> 29
            x = (h * 0xBF58476D1CE4E5B9 & MASK) >> 32
            for p in range(count):
                out[row, p] = min(out[row, p], (a[p] * x + b[p]) & 0xFFFFFFFF)
    return out


TEXTS = [
    "",
    "...!?",
    "one",
    "one two",
    "one two three four",
    "one two three four five",
    "One, two; three - four? FIVE",
    "one two three four five six",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3,
    "語はとても長い 文 ほかにも",
    "a\0b\0c\0d\0e\0f",
]


@pytest.mark.parametrize(("ngram", "count", "seed"), [(5, 112, 1), (1, 8, 0), (3, 20, 99), (13, 3, 2**40)])
def test_as_a_plain_implementation(ngram: int, count: int, seed: int) -> None:
    assert (ours(TEXTS, ngram, count, seed) == plain(TEXTS, ngram, count, seed)).all()


def test_what_counts_as_the_same() -> None:
    made = ours(TEXTS)
    assert (made[:2] == NONE).all(), "no words"
    assert (made[5] == made[6]).all(), "case and punctuation do not matter"
    # Shorter texts are one shingle each, unlike the others and unlike the beginning of longer ones.
    assert len({row.tobytes() for row in made[[2, 3, 4, 5, 7]]}) == 5


def test_seeds_differ_and_are_stable() -> None:
    assert (ours(TEXTS[5:6], seed=1) != ours(TEXTS[5:6], seed=2)).mean() > 0.9
    # SplitMix64's published first outputs for seed 1234567.
    assert _random(1234567, 3).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_dead_rows_slices_and_no_rows() -> None:
    made = ours(TEXTS)
    alive = np.arange(len(TEXTS)) % 2 == 0
    got = ours(TEXTS, alive=alive)
    assert (got[alive] == made[alive]).all() and (got[~alive] == NONE).all()
    array = pa.array(["before", *TEXTS, "after"], pa.large_string()).slice(1, len(TEXTS))
    assert (signatures(Memo(len(TEXTS)), array, "unicode", 5, 112, 1) == made).all()
    assert ours([]).shape == (0, 112)


def test_fifty_megabytes_in_a_document() -> None:
    sentence = "the rain in Spain stays mainly in the plain and nowhere else\n"
    made = ours([sentence * (50_000_000 // len(sentence)), sentence * 2])
    assert (made[0] == made[1]).all()


def test_agreement_estimates_jaccard(data: object) -> None:
    texts = pq.read_table(f"{data}/webtext/00000.parquet").column("text").to_pylist()[:400]
    random = np.random.default_rng(3)
    left, right, exact = [], [], []
    for text in texts:
        # The \w+ of the exact measure and our words agree where scripts have spaces.
        spaced = re.findall(r"[a-z0-9]+", text.lower())
        rate = random.uniform(0, 0.15)
        changed = [f"new{random.integers(10**9)}" if random.random() < rate else word for word in spaced]
        sets = [{tuple(ws[k : k + 5]) for k in range(len(ws) - 4)} for ws in (spaced, changed)]
        if min(map(len, sets)) < 20:
            continue
        left.append(" ".join(spaced))
        right.append(" ".join(changed))
        exact.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    error = agreement(ours(left), ours(right)) - np.array(exact)
    assert len(error) > 300
    assert abs(error.mean()) < 0.006
    # The standard error of 112 independent positions, with a little slack.
    expected = np.sqrt(np.mean(np.array(exact) * (1 - np.array(exact))) / 112)
    assert 0.8 * expected < error.std() < 1.25 * expected


def test_bands_meet_as_often_as_theory_says() -> None:
    random = np.random.default_rng(5)
    likeness = 0.8
    base = random.integers(0, 2**32, (4000, 112), dtype=np.uint32)
    other = np.where(random.random(base.shape) < likeness, base, random.integers(0, 2**32, base.shape, dtype=np.uint32))
    salt = np.zeros(len(base), np.uint64)
    met = (band_keys(base, 14, salt) == band_keys(other, 14, salt)).any(axis=1).mean()
    assert abs(met - (1 - (1 - likeness**8) ** 14)) < 0.02
    assert len(np.unique(band_keys(base[:1].repeat(9, 0), 14, np.arange(9, dtype=np.uint64)))) == 9 * 14
