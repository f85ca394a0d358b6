"""What goes wrong around the rows: seams, dying workers, broken steps, kills at the end, stages that are used again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from factory.engine import files, finish, manifest, shard
from factory.engine.errors import FactoryError
from factory.engine.local import Events, Job, Local, TaskFailed
from tests.engine.build import build, check_law, content, make

SOURCE = {"use": "Numbers", "rows": 200, "shards": 4, "distinct": 100}


def ids(built: manifest.Manifest, kind: str = "rows") -> list[str]:
    return sorted(i for (i,) in duckdb.sql(f"select id from '{built.folder}/{kind}/*.parquet'").fetchall())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_that_began_in_the_wrong_place_is_redone(tmp_path, workers):
    built = build(make({"use": "Searched", "rows": 100, "shards": 5}, {"use": "Once"}), tmp_path, workers)
    assert ids(built) == sorted(f"n{n}" for n in range(100))
    check_law(built)


def test_a_crash_after_a_regroup_costs_its_row_only(tmp_path):
    steps = [{"use": "Numbers", "rows": 64, "shards": 1}, {"use": "Pairs"}, {"use": "Trouble", "crashes": ["n20+n21"]}]
    built = build(make(*steps), tmp_path, workers=1)
    assert ids(built, "failed") == ["n20+n21"] and len(ids(built)) == 31


def test_workers_that_die_while_idle_are_replaced(tmp_path):
    made = make(SOURCE)
    build(made, tmp_path / "a", workers=2)
    stage = build(make(SOURCE, version="dev"), tmp_path / "b").stages[0]["key"]
    folder = str(tmp_path / "b" / ".stages" / stage)
    jobs = [Job(("stage", folder, n), f"shard {n}") for n in range(4)]
    with Local(2, 1 << 40, 60) as executor:
        executor.run(jobs, Events())
        for worker in executor.workers:
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
        finished: list[Job] = []
        executor.run(jobs, Events(finished=finished.append))
    assert len(finished) == 4


def test_one_kill_from_outside_condemns_no_document(tmp_path):
    source = {"use": "Numbers", "rows": 8, "shards": 1, "batch": 1}
    built = build(make(source, {"use": "Unlucky", "at": "n5", "flag": str(tmp_path / "flag")}), tmp_path, workers=1)
    assert (tmp_path / "flag").exists()
    assert built.counts["rows_failed"] == 0 and built.counts["rows_kept"] == 8


def test_a_memory_too_small_for_the_step_is_said_so(tmp_path):
    with pytest.raises(TaskFailed, match=r"shard 0: the worker held more than 250 MiB .*raise --memory"):
        build(make({"use": "Numbers", "rows": 5, "shards": 1}, {"use": "Heavy"}), tmp_path, workers=1, memory=250 << 20)


def test_a_step_that_fails_every_row_is_broken(tmp_path):
    everything = [f"n{n}" for n in range(300)]
    steps = [{"use": "Numbers", "rows": 300, "shards": 1, "batch": 300}, {"use": "Trouble", "raises": everything}]
    with pytest.raises(RuntimeError, match=r"Trouble: all of its first 300 rows failed, .*ValueError: cannot do"):
        build(make(*steps), tmp_path)


def test_rows_that_one_gather_cannot_take_come_back_for_another(tmp_path):
    def of(refuses: list[str]) -> manifest.Manifest:
        return build(make(SOURCE, {"use": "Picky", "refuses": refuses}, version="dev"), tmp_path)

    fresh = build(make(SOURCE, {"use": "Picky"}, version="dev"), tmp_path / "fresh")
    refused = of(["n5", "n60"])
    assert ids(refused, "failed") == ["n5", "n60"]
    check_law(refused)
    mended = of([])
    assert content(mended) == content(fresh)
    check_law(mended)
    again = of(["n7"])  # the rows are there, what they contribute has to be made anew, and one refuses
    assert ids(again, "failed") == ["n7"]
    check_law(again)


def test_a_column_of_the_users_named_reason_loses_to_that_of_dropped(tmp_path):
    built = build(make(SOURCE, {"use": "Reasoned"}, {"use": "DropOdd"}), tmp_path)
    assert duckdb.sql(f"select distinct reason from '{built.folder}/dropped/*.parquet'").fetchall() == [("odd",)]
    check_law(built)


def test_the_manifest_says_how_the_dropped_rows_of_a_reused_stage_were_kept(tmp_path):
    steps = [SOURCE, {"use": "DropOdd", "keep_rows": True}, {"use": "Once"}]
    build(make(*steps, version="1"), tmp_path, dropped="ids")
    second = build(make(*steps, version="2"), tmp_path, dropped="full")
    assert second.dropped_policy == "full, ids"
    with pytest.raises(FactoryError, match="already built, its dropped rows kept as 'full, ids'"):
        build(make(*steps, version="2"), tmp_path, dropped="sample")


def test_a_kept_stage_spares_all_that_comes_before_it(tmp_path):
    begin = [SOURCE, {"use": "Once"}, {"use": "DropOdd", "keep_rows": True}]
    first = build(make(*begin, {"use": "Shout"}, version="1"), tmp_path)
    left = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob(".stages/*/receipts")}
    assert set(left) == {stage["key"] for stage in first.stages[:2]}
    assert not (tmp_path / ".stages" / first.stages[0]["key"] / "rows").exists()
    receipts = {p: p.stat().st_ino for p in tmp_path.glob(".stages/*/receipts/*/*")}
    second = build(make(*begin, {"use": "Pairs"}, version="2"), tmp_path)
    assert all(p.stat().st_ino == inode for p, inode in receipts.items())
    assert content(second) == content(build(make(*begin, {"use": "Pairs"}, version="2"), tmp_path / "fresh"))
    check_law(second)
    assert second.counts["rows_in"] == 200


def test_a_source_with_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(FactoryError, match="there is nothing to read"):
        build(make({**SOURCE, "shards": 0}), tmp_path)


STEPS = (SOURCE, {"use": "DropOdd"}, {"use": "Once"})


@pytest.mark.parametrize("version", ["1", "dev"])
@pytest.mark.parametrize("place", ["share", "write_json", "remove_tree", "move"])
def test_ended_anywhere_while_it_finishes_it_goes_on(tmp_path, monkeypatch, version, place):
    """Each call of a function that changes files at the end is the last one of some run; the next run goes on."""
    calm = build(make(*STEPS, version=version), tmp_path / "calm")
    root = tmp_path / "rough"
    if version == "dev":
        build(make(SOURCE, {"use": "Shout"}, version="dev"), root)  # which the new one takes the place of
    real = getattr(files, place)
    for count in range(200):
        calls = 0

        def stopped(*arguments: object, last: int = count, **more: object) -> None:
            nonlocal calls
            calls += 1
            if calls > last:
                raise KeyboardInterrupt
            real(*arguments, **more)

        monkeypatch.setattr(files, place, stopped)
        try:
            rough = build(make(*STEPS, version=version), root)
        except KeyboardInterrupt:
            continue
        finally:
            monkeypatch.setattr(files, place, real)
        break
    rough = build(make(*STEPS, version=version), root)
    assert content(rough, "rows", "dropped", "failed") == content(calm, "rows", "dropped", "failed")
    check_law(rough)
    kept = {p.name for p in (root / ".stages").iterdir() if p.is_dir()}
    assert kept == ({stage["key"] for stage in rough.stages} if version == "dev" else set())
    assert not (Path(rough.folder) / finish.REPLACED).exists()
    assert not list(root.rglob("*" + files.TEMPORARY))


def test_a_version_built_while_this_run_waited_is_not_replaced(tmp_path, monkeypatch):
    other = build(make(SOURCE, {"use": "DropOdd"}), tmp_path)
    found = manifest.find
    calls = []

    def late(root: str, dataset: str) -> manifest.Manifest | None:
        calls.append(dataset)
        return found(root, dataset) if len(calls) > 1 else None  # not there yet at the first look

    monkeypatch.setattr(manifest, "find", late)
    with pytest.raises(FactoryError, match="already built from another recipe"):
        build(make(SOURCE, {"use": "Once"}), tmp_path)
    monkeypatch.undo()
    assert content(manifest.load(str(tmp_path), "numbers@1")) == content(other)


def test_annotated_steps_of_one_name_write_columns_of_their_own(tmp_path):
    built = build(make(SOURCE, {"use": "DropOdd"}, {"use": "DropOdd"}, {"use": "Once"}), tmp_path, annotate=True)
    assert {"drop_odd_2_reason", "drop_odd_3_reason", "drop_odd_3_length", "once_reason"} <= set(built.columns)
    check_law(built)


def test_bytes_of_nested_values_are_counted():
    messages = pa.array([[{"role": "user", "content": "x" * 1000}] * 3, [], None])
    numbers = pa.array([[1, 2], [3], []], pa.list_(pa.int32()))
    batch = pa.record_batch({"messages": messages, "numbers": numbers, "text": pa.array(["ab", None, ""])})
    assert shard.row_bytes(batch).tolist() == [3 * 1004 + 16 + 2, 8, 0]
    assert shard.row_bytes(batch.slice(1)).tolist() == [8, 0]


def test_a_manifest_is_json_that_names_its_files(tmp_path):
    built = build(make(*STEPS), tmp_path)
    table = json.loads((Path(built.folder) / "manifest.json").read_text())
    assert [Path(built.folder, f["path"]).stat().st_size for f in table["rows"]] == [f["bytes"] for f in table["rows"]]
    assert sum(f["rows"] for f in table["rows"]) == built.counts["rows_kept"]


def test_what_a_gather_takes_is_counted(tmp_path):
    built = build(make(SOURCE, {"use": "Once", "delay": 0.0}), tmp_path)
    assert [one["name"] for one in built.exchanges] == ["repeats", "ids-asked", "ids"]
    assert all(one["tasks"] == 4 and one["peak_memory_bytes"] > 1 << 20 for one in built.exchanges)
    spent = sum(one["cpu_seconds"] for one in built.exchanges)
    assert 0 < spent <= built.funnel[-1]["cpu_seconds"]
