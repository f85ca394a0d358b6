"""The order of the sequences depends on the seed alone, any position can be read at once, and shares are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from model.data import IGNORE, TokenDataset, read
from model.stream import CUTS, PATTERN, Mixture, Stream, _pieces, _quotas


def stream(data: TokenDataset, length: int = 32, seed: int = 0, shuffle_tokens: int = 1 << 26) -> Stream:
    return Stream(data.training, length, [seed], shuffle_tokens)


def keys(sequences: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in sequences]


@pytest.mark.parametrize("length", [32, 48, 200])
@pytest.mark.parametrize("shuffle_tokens", [1 << 26, 500, 1])
def test_an_epoch_has_every_sequence_once(dataset: Path, shuffle_tokens: int, length: int) -> None:
    data = TokenDataset(dataset)
    everything = read(data.training, length)
    one = stream(data, length, shuffle_tokens=shuffle_tokens)
    assert one.rows == len(everything)
    first, second, third = (one.batch(epoch * one.rows, one.rows) for epoch in range(3))
    assert sorted(keys(first)) == sorted(keys(second)) == sorted(keys(third)) == sorted(keys(everything))
    assert keys(first) != keys(second) != keys(third), "each epoch has an order of its own"
    assert keys(first) != keys(stream(data, length, 5, shuffle_tokens).batch(0, one.rows))


@pytest.mark.parametrize("shuffle_tokens", [1 << 26, 500])
def test_any_position_is_what_reading_from_the_start_gives(dataset: Path, shuffle_tokens: int) -> None:
    data = TokenDataset(dataset)
    through = stream(data, shuffle_tokens=shuffle_tokens).batch(0, 300)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, 290, 20):
        count = int(rng.integers(1, 300 - position + 1))
        part = stream(data, shuffle_tokens=shuffle_tokens).batch(int(position), count)
        assert np.array_equal(part, through[position : position + count])


def test_a_place_is_found_without_counting_blocks(dataset: Path) -> None:
    """There are as many of them as row groups, millions in a large dataset."""
    one = stream(TokenDataset(dataset), shuffle_tokens=500)
    one._plan(1)
    places = {position: one._number(position) for position in range(one.rows, 2 * one.rows)}
    one.counts = []
    assert {position: one._number(position) for position in places} == places
    assert len(set(places.values())) == len(one._plan(1)[0]) > 10
    assert all(start <= position for position, (_, start) in places.items())


def test_short_sequences_are_filled_and_places_are_right(dataset: Path) -> None:
    data = TokenDataset(dataset, 0.0)
    one = Mixture({"only": stream(data)})
    (batch,) = one.batch(0, one.streams[0].rows)
    short = np.flatnonzero((batch == IGNORE).any(axis=1))
    assert len(short) == 3, "the last of each shard"
    for position in [*short.tolist(), 0, 5]:
        which, name, _, group, _, row = one.places(position, 1)[0].split()
        table = pq.ParquetFile(dataset / "rows" / name).read_row_group(int(group), ["input_ids"])
        assert which == "only:"
        assert table.column(0)[int(row)].as_py() == [token for token in batch[position] if token != IGNORE]


@given(
    weights=st.lists(st.floats(0.001, 1), min_size=1, max_size=6),
    begin=st.integers(0, 3 * PATTERN),
    count=st.integers(1, 4000),
)
def test_any_stretch_of_a_mixture_has_the_shares(weights: list[float], begin: int, count: int) -> None:
    class Numbers(Stream):
        def __init__(self) -> None:
            self.rows, self.length = 10, 1

    names = [str(number) for number in range(len(weights))]
    mixture = Mixture({name: Numbers() for name in names}, dict(zip(names, weights, strict=True)))
    source, position = mixture._places(begin, count)
    for number, weight in enumerate(weights):
        mine = position[source == number]
        share = weight / sum(weights)
        # Each end of the stretch: half a sequence for this set's rounding, and its share of the other sets' halves.
        assert abs(len(mine) - share * count) <= 1 + share * len(weights) + 2 * (count + begin) / PATTERN
        assert (np.diff(mine) == 1).all(), "a stream is read from one end to the other"
    assert _quotas(np.array(weights) / sum(weights)).sum() in (1, PATTERN)


def test_a_share_too_small_to_be_kept_is_refused(dataset: Path) -> None:
    data = TokenDataset(dataset)
    with pytest.raises(FactoryError, match=r"the set two has a share of 1e-05 .* raise its weight"):
        Mixture({"one": stream(data), "two": stream(data)}, {"one": 1.0, "two": 1e-5})
    with pytest.raises(FactoryError, match="the set three has too few tokens"):
        Mixture({"one": stream(data)}, {"one": 1.0, "three": 1.0})


@given(share=st.floats(0.05, 1.0), begin=st.integers(0, 10_000))
def test_the_share_at_full_length(share: float, begin: int) -> None:
    pieces = Counter(_pieces(np.arange(begin, begin + 3000), share).tolist())
    assert abs(pieces[1] - 3000 * share) <= 1 + 1e-6
    rest = [pieces[cut] for cut in CUTS]
    assert max(rest) - min(rest) <= 2


def test_cut_sequences_hold_the_same_tokens(dataset: Path, make_dataset: Callable[..., Path]) -> None:
    """Whatever is cut: a batch holds the tokens of the sequences that it is made of, in rows of four lengths."""
    sets = {"one": stream(TokenDataset(dataset)), "two": stream(TokenDataset(make_dataset("two", shards=2)))}
    whole = Mixture(sets, {"one": 3.0, "two": 1.0})
    cut = Mixture(sets, {"one": 3.0, "two": 1.0}, 0.4)
    groups = cut.batch(7, 64)
    assert [group.shape[1] for group in groups] == [32, 16, 8, 4]
    full = Counter(whole.batch(7, 64)[0].flatten().tolist())
    found = Counter(token for group in groups for token in group.flatten().tolist())
    assert {token: found[token] for token in full if token != IGNORE} == {t: n for t, n in full.items() if t != IGNORE}
    ranks = [cut.batch(7 + 16 * rank, 16) for rank in range(4)]
    parts = Counter(row.tobytes() for groups in ranks for group in groups for row in group)
    assert parts == Counter(row.tobytes() for group in groups for row in group), "ranks share a batch"
