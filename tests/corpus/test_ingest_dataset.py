"""Rows of earlier datasets, of one or of several after one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from factory.engine.errors import FactoryError
from factory.engine.manifest import Manifest
from tests.engine.build import build, check_law, content, make

SHOUT = {"use": "Shout"}


def numbers(root: Path, name: str, rows: int, *steps: dict[str, Any]) -> Manifest:
    return build(make({"use": "Numbers", "rows": rows, "shards": 2}, *steps, name=name), root)


def again(root: Path, workers: int = 0, **options: Any) -> Manifest:
    return build(make({"use": "ingest.Dataset", **options}, name="again", version="dev"), root, workers)


def rows(built: Manifest) -> list[dict[str, Any]]:
    return [row for url in built.urls() for row in pq.read_table(url).to_pylist()]


def test_datasets_follow_one_another_with_their_shards(tmp_path):
    first, second = numbers(tmp_path, "first", 30, SHOUT), numbers(tmp_path, "second", 50, SHOUT)
    both = again(tmp_path, name="second@1", also=["first@1"])
    assert rows(both) == rows(second) + rows(first)
    assert len(both.rows) == 4
    check_law(both)
    assert [one["dataset"] for one in both.inputs] == ["second@1", "first@1"]
    assert again(tmp_path, name="first@1", also=["second@1"]).key != both.key
    assert content(again(tmp_path, 2, name="second@1", also=["first@1"])) == content(both)


def test_the_named_columns_and_the_id_are_read(tmp_path):
    numbers(tmp_path, "long", 30, SHOUT)
    plain = numbers(tmp_path, "plain", 20)
    with pytest.raises(FactoryError, match=r"'plain@1' has not the columns of 'long@1' \(no 'length'\); name those"):
        again(tmp_path, name="long@1", also=["plain@1"])
    with pytest.raises(FactoryError, match=r"'long@1' has not the columns of 'plain@1' \('length' besides\)"):
        again(tmp_path, name="plain@1", also=["long@1"])
    both = again(tmp_path, name="long@1", also=["plain@1"], columns=["text"])
    assert list(both.columns) == ["id", "text"]
    assert rows(both)[30:] == rows(plain)
    with pytest.raises(FactoryError, match=r"'plain@1' has no column 'length'; it has id, text"):
        again(tmp_path, name="long@1", also=["plain@1"], columns=["length"])
    with pytest.raises(FactoryError, match=r"'long@1' has no column 'lenght' \(did you mean 'length'"):
        again(tmp_path, name="long@1", columns=["lenght"])


def test_columns_of_another_type_are_told(tmp_path):
    numbers(tmp_path, "text", 10, {"use": "Reasoned"})
    other = {"use": "ingest.Parquet", "glob": str(tmp_path / "*.parquet")}
    table = pq.read_table(str(next((tmp_path / "text@1" / "rows").iterdir())))
    pq.write_table(table.set_column(2, "reason", [list(range(table.num_rows))]), tmp_path / "one.parquet")
    build(make(other, name="number"), tmp_path)
    with pytest.raises(FactoryError, match=r"\('reason' of int64, not large_string\)"):
        again(tmp_path, name="text@1", also=["number@1"])


def test_a_dataset_that_is_not_there_or_there_already_is_told(tmp_path):
    numbers(tmp_path, "first", 10)
    numbers(tmp_path, "second", 10)
    with pytest.raises(FactoryError, match=r"step 1 .*no finished dataset 'secnod@1'.*did you mean 'second@1'"):
        again(tmp_path, name="first@1", also=["secnod@1"])
    for also in (["first@1"], ["second@1", "second@1"]):
        with pytest.raises(FactoryError, match="this dataset is read already"):
            again(tmp_path, name="first@1", also=also)
