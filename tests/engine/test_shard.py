"""Shards: the bytes of a file depend on its rows alone, and every reader opens it."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import datasets
import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.engine import shard
from factory.engine.errors import FactoryError

SCHEMA = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("n", pa.list_(pa.int32()))])
ROWS = st.lists(st.tuples(st.text(max_size=8), st.text(max_size=60), st.lists(st.integers(0, 9), max_size=5)))


def batch_of(rows: list[tuple[str, str, list[int]]], small: bool = False) -> pa.RecordBatch:
    text = pa.string() if small else pa.large_string()
    columns = list(zip(*rows, strict=True)) or [[], [], []]
    types = [text, text, pa.list_(pa.int32())]
    arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=["id", "text", "n"])


def written(path: Path, batches: list[pa.RecordBatch]) -> str:
    writer = shard.ShardWriter(str(path), SCHEMA)
    for batch in batches:
        writer.write(batch)
    writer.close()
    return hashlib.sha256(path.read_bytes()).hexdigest()


@given(rows=ROWS, cuts=st.lists(st.integers(0, 100)), small=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_bytes_do_not_depend_on_how_rows_arrive(tmp_path, monkeypatch, rows, cuts, small):
    monkeypatch.setattr(shard, "ROW_GROUP_BYTES", 200)
    whole = batch_of(rows)
    edges = sorted({0, len(rows), *(c for c in cuts if c < len(rows))})
    sliced = [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    built = [batch_of(rows[a:b], small) for a, b in itertools.pairwise(edges)]
    first = written(tmp_path / "a", [whole])
    assert first == written(tmp_path / "b", sliced) == written(tmp_path / "c", built)
    back = pa.Table.from_batches(list(shard.read_batches(str(tmp_path / "a"), SCHEMA)), SCHEMA)
    assert back.to_pylist() == whole.to_pylist()


@given(rows=ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_rebatch_keeps_rows_and_bounds_batches(rows):
    whole = batch_of(rows)
    parts = list(shard.rebatch(iter([whole]), 100))
    assert [row for part in parts for row in part.to_pylist()] == whole.to_pylist()
    assert all(part.num_rows <= 1 or shard.row_bytes(part).sum() <= 100 for part in parts)


@pytest.mark.parametrize("rows", [1, 3000])
def test_duckdb_polars_and_datasets_open_shards_one_of_them_empty(tmp_path, rows):
    for number, count in enumerate([0, rows]):
        written(tmp_path / f"part-{number}.parquet", [batch_of([(f"i{n}", "text " * 50, [n]) for n in range(count)])])
    glob = str(tmp_path / "*.parquet")
    assert duckdb.sql(f"select count(*) from '{glob}'").fetchall() == [(rows,)]
    assert polars.read_parquet(glob).height == rows
    loaded = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == rows
    assert pq.ParquetFile(tmp_path / "part-0.parquet").num_row_groups == 0


def test_row_groups_are_cut_by_bytes(tmp_path):
    path = tmp_path / "a.parquet"
    written(path, [batch_of([(f"i{n}", "x" * (1 << 20), []) for n in range(20)])])
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [8, 8, 4]


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(FactoryError, match=r"a\.parquet: not a readable Parquet shard"):
        list(shard.read_batches(str(path), SCHEMA))
