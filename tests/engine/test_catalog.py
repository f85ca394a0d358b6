"""The catalog: views from manifests, that DuckDB reads while a run writes."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from factory.engine import catalog, manifest
from factory.engine.errors import FactoryError
from tests.engine.build import build, make

SOURCE = {"use": "Numbers", "rows": 40, "shards": 2, "bad": True}
COLUMNS = (
    "dataset, stage, shard, rows_in, rows_made, rows_kept, rows_dropped, rows_failed, rows_consumed, bytes_in, "
    "bytes_out, wall_seconds, cpu_seconds, peak_memory_bytes"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    build(make(SOURCE, {"use": "DropOdd"}, name="a", version="2026.11.9"), folder)
    build(make({**SOURCE, "rows": 60}, {"use": "DropOdd"}, name="a", version="2026.11.20"), folder)
    build(make({**SOURCE, "rows": 0, "bad": False}, name="b"), folder)
    return str(folder)


def rows(root: str, query: str) -> list[tuple]:
    return catalog.query(root, query).fetchall()


def test_views_of_the_newest_and_of_each_version(root):
    assert rows(root, "select count(*) from a union all select count(*) from a_dropped") == rows(
        root, 'select count(*) from "a@2026.11.20" union all select count(*) from "a@2026.11.20_dropped"'
    )
    assert rows(root, "select count(*) from a_failed") == [(6,)]
    assert rows(root, 'select count(*) from "a@2026.11.9_failed"') == [(4,)]
    assert rows(root, "select count(*) from b union all select count(*) from b_dropped") == [(0,), (0,)]
    found = rows(root, f"select {COLUMNS} from receipts where dataset = 'a@2026.11.20' order by shard")
    assert [r[3] for r in found] == [30, 30]
    assert all(r[13] > 1 << 20 for r in found)
    assert rows(root, "select reason, count(*) from a_dropped group by 1")[0][0] == "odd"


@pytest.mark.parametrize("statement", ["summarize a", "describe a", "explain select 1", "with x as (select 1) from x"])
def test_reading_statements_are_allowed(root, statement):
    assert rows(root, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "drop view a",
        "create table x (i int)",
        "copy a to 'x.csv'",
        "delete from a",
        "select 1; drop view a",
        "attach 'x'",
    ],
)
def test_factory_sql_changes_nothing(root, statement, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FactoryError):
        catalog.query(root, statement)
    assert not list(tmp_path.iterdir())


def test_a_wrong_name_is_answered_with_the_nearest(root):
    with pytest.raises(FactoryError, match=r"a_droped.*did you mean 'a_dropped'"):
        catalog.query(root, "select * from a_droped")
    with pytest.raises(FactoryError, match="no such finished dataset"):
        manifest.load(root, "c@1")
    with pytest.raises(FactoryError, match="no finished dataset there"):
        catalog.query(root + "/nothing", "select 1")


def test_the_export_opens_in_plain_duckdb_and_is_replaced_while_it_is_open(root):
    left = Path(root, ".catalog.duckdb.0123.tmp")
    left.write_bytes(b"of a killed export")
    catalog.export(root)
    assert not left.exists()
    reader = duckdb.connect(f"{root}/catalog.duckdb", read_only=True)
    expected = rows(root, "select count(*) from a")
    assert reader.execute("select count(*) from a").fetchall() == expected
    catalog.export(root)
    assert reader.execute("select count(*) from a").fetchall() == expected


def test_newest_counts_numbers_as_numbers():
    versions = ["dev", "2026.11.9", "2026.11.20", "2026.2.28", "1", "1.10", "1.9"]
    ordered = sorted(versions, key=manifest.version_order)
    assert ordered == ["dev", "1", "1.9", "1.10", "2026.2.28", "2026.11.9", "2026.11.20"]


def test_datasets_on_another_file_system_are_queried_too(root, tmp_path):
    """fsspec's memory file system stands for a remote one: no path of it exists on this machine's disk."""
    from factory.engine import run

    elsewhere = "memory://factory/runs"
    made = make(SOURCE, {"use": "DropOdd"}, {"use": "Once"}, name="far")
    far = run.run(made, run.Options(root=elsewhere, quiet=True))
    assert rows(elsewhere, "select count(*) from far") == [(far.counts["rows_kept"],)]
    near = build(made, tmp_path)
    assert rows(elsewhere, "select * from far order by id") == rows(str(tmp_path), "select * from far order by id")
    assert run.run(made, run.Options(root=elsewhere, quiet=True)).key == near.key


def test_a_dataset_that_lost_its_files_does_not_hide_the_others(tmp_path, capsys):
    lost = build(make(SOURCE, name="lost"), tmp_path)
    build(make(SOURCE, name="there"), tmp_path)
    for url in lost.urls():
        Path(url).unlink()
    assert rows(str(tmp_path), "select count(*) from there") == [(36,)]
    assert "lost: no view, its files cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("statement", ["selec 1", "select 'x'::int", "select 1 +", ""])
def test_a_wrong_statement_is_one_line(root, statement):
    with pytest.raises(FactoryError) as raised:
        catalog.show(root, statement, 10, 80)
    assert "\n" not in str(raised.value)
