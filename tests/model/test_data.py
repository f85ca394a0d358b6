"""The order of the sequences depends on the seed alone, and any position can be read at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.engine.errors import FactoryError
from model.config import DataConfig, ModelConfig
from model.data import IGNORE, Stream, TokenDataset, find, read
from model.pretrain import held_out, loss_of
from model.transformer import Transformer


def stream(data: TokenDataset, **options: int) -> Stream:
    return Stream(data.training, data.sequence_length, DataConfig(**options))  # type: ignore[arg-type]


def keys(sequences: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in sequences]


@pytest.mark.parametrize("shuffle_tokens", [1 << 26, 500, 1])
def test_an_epoch_has_every_sequence_once(dataset: Path, shuffle_tokens: int) -> None:
    data = TokenDataset(dataset)
    everything = read(data.training, data.sequence_length)
    one = stream(data, shuffle_tokens=shuffle_tokens)
    assert one.rows == len(everything)
    first, second = one.batch(0, one.rows), one.batch(one.rows, one.rows)
    assert sorted(keys(first)) == sorted(keys(second)) == sorted(keys(everything))
    assert keys(first) != keys(second), "each epoch has an order of its own"
    assert keys(first) != keys(stream(data, seed=5, shuffle_tokens=shuffle_tokens).batch(0, one.rows))


@pytest.mark.parametrize("shuffle_tokens", [1 << 26, 500])
def test_any_position_is_what_reading_from_the_start_gives(dataset: Path, shuffle_tokens: int) -> None:
    data = TokenDataset(dataset)
    through = stream(data, shuffle_tokens=shuffle_tokens).batch(0, 300)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, 290, 20):
        count = int(rng.integers(1, 300 - position + 1))
        part = stream(data, shuffle_tokens=shuffle_tokens).batch(int(position), count)
        assert np.array_equal(part, through[position : position + count])


def test_held_out_sequences_are_not_trained_on(dataset: Path, make_dataset: Callable[..., Path]) -> None:
    for folder in (dataset, make_dataset("many", shards=12, documents_each=4)):
        data = TokenDataset(folder, 0.1)
        rows = [set(), set()]
        for number, blocks in enumerate((data.training, data.evaluation)):
            for block in blocks:
                rows[number] |= {(block.path, block.group, block.start + row) for row in range(block.rows)}
        total = sum(shard["rows"] for shard in json.loads((folder / "manifest.json").read_text())["rows"])
        assert rows[1] and not rows[0] & rows[1] and len(rows[0]) + len(rows[1]) == total
    shards = [{path for path, _, _ in part} for part in rows]
    assert len(shards[1]) == 1 and not shards[0] & shards[1], "of many shards, whole ones are held out"
    assert TokenDataset(dataset, 0.0).evaluation == []


def test_held_out_sequences_come_from_everywhere(dataset: Path) -> None:
    data = TokenDataset(dataset, 0.3)
    some = held_out(data.evaluation, data.sequence_length, 6, 0)
    assert len(some) == 6
    everything = read(data.evaluation, data.sequence_length)
    assert set(keys(some)) <= set(keys(everything))
    assert len(held_out(data.evaluation, data.sequence_length, 10_000, 0)) == len(everything)


def test_short_sequences_are_filled_and_places_are_right(dataset: Path) -> None:
    data = TokenDataset(dataset, 0.0)
    one = stream(data)
    batch = one.batch(0, one.rows)
    short = np.flatnonzero((batch == IGNORE).any(axis=1))
    assert len(short) == 3, "the last of each shard"
    for position in [*short.tolist(), 0, 5]:
        name, _, group, _, row = one.places(position, 1)[0].split()
        table = pq.ParquetFile(dataset / "rows" / name).read_row_group(int(group), ["input_ids"])
        assert table.column(0)[int(row)].as_py() == [token for token in batch[position] if token != IGNORE]


def test_bad_datasets_are_refused(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_RUNS", str(tmp_path))
    folder = tmp_path / "tiny@1"
    shutil.copytree(dataset, folder)
    assert find("tiny@1") == folder
    with pytest.raises(FactoryError, match=r"did you mean .*tiny@1"):
        TokenDataset(tmp_path / "tinny@1")
    with pytest.raises(FactoryError, match="data=FOLDER"):
        TokenDataset("")
    manifest = json.loads((folder / "manifest.json").read_text())

    def change(**values: object) -> None:
        (folder / "manifest.json").write_text(json.dumps(manifest | values))

    change(columns={"id": "large_string", "text": "large_string"})
    with pytest.raises(FactoryError, match=r"holds text, not tokens: .*tokens\.Pack"):
        TokenDataset(folder)
    change(rows=[])
    with pytest.raises(FactoryError, match="no rows"):
        TokenDataset(folder)
    change(rows=[manifest["rows"][0] | {"rows": 3}])
    with pytest.raises(FactoryError, match="the manifest says 3"):
        TokenDataset(folder)
    change(rows=[manifest["rows"][0] | {"path": "rows/none.parquet"}])
    with pytest.raises(FactoryError, match="missing"):
        TokenDataset(folder)
    change(artifacts={})
    shutil.move(folder / "tokenizer", folder / "other")
    with pytest.raises(FactoryError, match="needs the tokenizer"):
        TokenDataset(folder)
    shutil.move(folder / "other", folder / "tokenizer")
    change()
    path = folder / manifest["rows"][1]["path"]
    table = pq.read_table(path)
    long = table.set_column(1, "input_ids", pa.array([[1] * 40] * len(table), pa.list_(pa.int32())))
    pq.write_table(long, path)
    data = TokenDataset(folder)
    with pytest.raises(FactoryError, match="40 tokens among sequences of 32"):
        read(data.training, data.sequence_length)
    path.write_bytes(b"not parquet at all")
    with pytest.raises(FactoryError, match="not a Parquet file"):
        TokenDataset(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(FactoryError, match="not valid JSON"):
        TokenDataset(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FactoryError, match=r"no manifest\.json"):
        TokenDataset(folder)


def test_shards_shorter_than_a_sequence_and_batches_without_a_target(make_dataset: Callable[..., Path]) -> None:
    """A shard may hold less than one sequence, and a sequence of one token has nothing to predict."""
    folder = make_dataset("short@1", shards=2, documents_each=1, length=4096)
    data = TokenDataset(folder, evaluation_share=0)
    assert data.sequence_length == 4096
    config = ModelConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    alone = np.full((2, 8), IGNORE, np.int32)
    alone[:, 0] = 5
    assert loss_of(Transformer(config), alone).item() == 0.0
