"""Samples as Parquet files, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.manifest import Manifest

Row = dict[str, Any]


def source(folder: Path, rows: Sequence[Row], columns: dict[str, pa.DataType], files: int = 1) -> Row:
    """A step that reads the rows, shared out in order over some files: `r{n}` is the id of the n-th without one."""
    schema = pa.schema({"id": pa.large_string(), "text": pa.large_string(), **columns})
    folder.mkdir(parents=True, exist_ok=True)
    whole = [{"id": f"r{n}", "text": "", **row} for n, row in enumerate(rows)]
    for number in range(files):
        part = whole[len(whole) * number // files : len(whole) * (number + 1) // files]
        pq.write_table(pa.Table.from_pylist(part, schema), folder / f"{number}.parquet")
    return {"use": "ingest.Parquet", "glob": str(folder / "*.parquet")}


def read(built: Manifest, sql: str) -> list[tuple[Any, ...]]:
    """A query of `rows` and `dropped`."""
    for name in ("rows", "dropped"):
        sql = sql.replace(f"from {name}", f"from '{built.folder}/{name}/*.parquet'")
    return duckdb.sql(sql).fetchall()
