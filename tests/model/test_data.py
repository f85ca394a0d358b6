"""Token datasets: what is held out, what goes to which stage, any length of sequence, errors that name the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from model.config import DataConfig, ModelConfig
from model.data import IGNORE, Shard, Span, TokenDataset, allot, find, open_datasets, read
from model.objective import held_out, loss_of
from model.transformer import Transformer


def places(spans: list[Span]) -> list[tuple[str, int]]:
    """Every token's shard and place."""
    return [(span.shard.path, at) for span in spans for at in range(span.begin, span.end)]


def shard_tokens(folder: Path, name: str) -> list[int]:
    """All tokens of a shard, by pyarrow alone."""
    return [token for row in pq.read_table(folder / "rows" / name)["input_ids"].to_pylist() for token in row]


@pytest.mark.parametrize("length", [7, 16, 32, 33, 64, 100_000])
def test_a_shard_is_one_run_of_tokens_for_any_length(dataset: Path, length: int) -> None:
    data = TokenDataset(dataset, 0.0)
    assert data.row_length == 32 and len(data.training) == 3
    for span in data.training:
        tokens = shard_tokens(dataset, Path(span.shard.path).name)
        rows = read([span], length)
        assert rows.shape == (-(-len(tokens) // length), length)
        assert rows.flatten()[: len(tokens)].tolist() == tokens
        assert (rows.flatten()[len(tokens) :] == IGNORE).all()
        assert span.shard.read(5, 90).tolist() == tokens[5:90]


def test_held_out_tokens_are_not_trained_on(dataset: Path, make_dataset: Callable[..., Path]) -> None:
    for folder in (dataset, make_dataset("many", shards=12, documents_each=4)):
        data = TokenDataset(folder, 0.1)
        parts = [set(places(data.training)), set(places(data.evaluation))]
        names = [shard["path"] for shard in json.loads((folder / "manifest.json").read_text())["rows"]]
        total = sum(len(shard_tokens(folder, Path(name).name)) for name in names)
        assert parts[1] and not parts[0] & parts[1] and len(parts[0]) + len(parts[1]) == total
    shards = [{path for path, _ in part} for part in parts]
    assert len(shards[1]) == 1 and not shards[0] & shards[1], "of many shards, whole ones are held out"
    assert TokenDataset(dataset, 0.0).evaluation == []


def test_held_out_sequences_come_from_everywhere(dataset: Path) -> None:
    data = TokenDataset(dataset, 0.3)
    some = held_out(data.evaluation, 32, 6, 0)
    assert len(some) == 6
    everything = read(data.evaluation, 32)
    assert {row.tobytes() for row in some} <= {row.tobytes() for row in everything}
    assert len(held_out(data.evaluation, 32, 10_000, 0)) == len(everything)
    assert held_out([], 32, 5, 0).shape == (0, 32)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    demands=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    seed=st.integers(0, 3),
)
def test_stages_share_the_tokens(sizes: list[int], demands: list[int], seed: int) -> None:
    """Where there are enough tokens no two stages have one in common and each has what it asked for; else all."""
    spans = [Span(Shard(str(number), np.array([0, size])), 0, size) for number, size in enumerate(sizes)]
    found = allot(spans, demands, seed)
    if not any(demands):
        assert found == [[] for _ in demands]
    elif sum(demands) > sum(sizes) or len(demands) == 1:
        assert all(sorted(places(part)) == sorted(places(spans)) for part in found)
    else:
        together = [place for part in found for place in places(part)]
        assert sorted(together) == sorted(places(spans)), "each token once"
        assert all(len(places(part)) >= demand for part, demand in zip(found, demands, strict=True))


def test_empty_row_groups_are_nothing(dataset: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset, tmp_path / "groups")
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["rows"]:
        table = pq.read_table(folder / shard["path"])
        with pq.ParquetWriter(folder / shard["path"], table.schema) as writer:
            for part in (table[:0], table[:5], table[:0], table[5:], table[:0]):
                writer.write_table(part)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"recipe": {}}))  # the rows say how long they are
    found, plain = TokenDataset(folder, 0.0), TokenDataset(dataset, 0.0)
    assert found.row_length == 32
    assert np.array_equal(read(found.training, 40), read(plain.training, 40))
    assert found.training[0].shard.row_of(5 * 32) == "part-0000000.parquet group 3 row 0"


def test_datasets_of_two_tokenizers_are_refused(dataset: Path, make_dataset: Callable[..., Path]) -> None:
    same = make_dataset("same", shards=2)
    found = open_datasets(DataConfig(sets={"one": str(dataset), "two": str(same)}))
    assert list(found) == ["one", "two"]
    path = make_dataset("other", shards=2) / "tokenizer" / "tokenizer.json"
    text = json.loads(path.read_text())
    text["added_tokens"][0]["content"] = "<|another|>"
    path.write_text(json.dumps(text))
    with pytest.raises(FactoryError, match=r"other was made with another tokenizer than .*tiny@1"):
        open_datasets(DataConfig(sets={"one": str(dataset), "two": str(path.parents[1])}))


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
    data = TokenDataset(folder)
    broken = bytearray(path.read_bytes())
    broken[8:200] = bytes(192)
    path.write_bytes(broken)
    with pytest.raises(FactoryError, match=r"part-0000001\.parquet: row groups 0 to \d+ cannot be read"):
        read(data.training, 32)
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
    assert data.row_length == 4096
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
