"""A document that raises, crashes, hangs or exhausts memory costs one row, and the shard goes on."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.engine.guard import At, Guard, Suspicion
from factory.engine.local import TaskFailed
from factory.engine.step import Memo
from tests.engine.build import build, check_law, content, make

BAD = {"raises": ["n7", "n8", "n399"], "crashes": ["n100", "n101"], "hangs": ["n150"], "fills": ["n250"]}


def test_every_kind_of_bad_document_is_found(tmp_path):
    steps = [{"use": "Numbers", "rows": 400, "shards": 4}, {"use": "Trouble", **BAD}, {"use": "DropOdd"}]
    built = build(make(*steps), tmp_path, workers=2, seconds=5.0, memory=500 << 20)
    check_law(built)
    failed = dict(duckdb.sql(f"select id, error from '{built.folder}/failed/*.parquet'").fetchall())
    assert sorted(failed) == sorted(i for ids in BAD.values() for i in ids)
    assert failed["n7"] == "ValueError: cannot do n7 in steps.py"
    assert failed["n100"] == failed["n101"] == "the worker died (SIGSEGV)"
    assert failed["n150"] == "no end after 5 s (--seconds)"
    assert failed["n250"] == "the worker held more than 500 MiB (--memory)"
    # All other documents came through, as if the bad ones had never been there.
    good = build(make(steps[0], {"use": "DropOdd"}), tmp_path / "good")
    query = "select id, text from '{}/rows/*.parquet' order by id"
    without = [row for row in duckdb.sql(query.format(good.folder)).fetchall() if row[0] not in failed]
    assert duckdb.sql(query.format(built.folder)).fetchall() == without


def test_a_document_that_raises_needs_no_worker(tmp_path):
    steps = [{"use": "Numbers", "rows": 100, "shards": 2}, {"use": "Trouble", "raises": ["n3", "n50"]}]
    alone, workers = build(make(*steps), tmp_path / "0"), build(make(*steps), tmp_path / "2", workers=2)
    assert alone.counts["rows_failed"] == 2
    assert content(alone, "rows", "failed") == content(workers, "rows", "failed")


def test_a_worker_that_dies_elsewhere_fails_the_task_by_name(tmp_path):
    steps = [{"use": "Numbers", "rows": 10, "shards": 1}, {"use": "Fatal"}]
    with pytest.raises(TaskFailed, match=r"numbers@1, stage 1, shard 0: the worker exited with 3, twice"):
        build(make(*steps), tmp_path, workers=1)


@given(rows=st.integers(1, 200), bad=st.sets(st.integers(0, 199), max_size=5), a_call=st.none() | st.integers(1, 50))
def test_bisection_finds_exactly_the_rows_that_raise(rows, bad, a_call):
    bad = {b for b in bad if b < rows}

    def call(batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        if bad & set(batch.column(0).to_pylist()):
            raise RuntimeError("no")
        return batch.append_column("twice", pa.array(2 * batch.column(0).to_numpy()))

    batch = pa.record_batch({"n": pa.array(range(rows), pa.int64())})
    said: list[At | None] = []
    outcome = Guard(Suspicion(), said.append)(call, batch, Memo(rows), 1, 1, a_call)
    assert [row for row, _ in outcome.failed] == sorted(bad)
    left = [n for n in range(rows) if n not in bad]
    if left:
        assert outcome.batch.column("n").to_pylist() == left
        assert outcome.batch.column("twice").to_pylist() == [2 * n for n in left]
    assert said[-1] is None


@given(rows=st.integers(1, 5000), culprit=st.integers(0, 4999), a_call=st.none() | st.integers(1, 64))
def test_a_crash_is_narrowed_to_its_row_in_few_workers(rows, culprit, a_call):
    culprit %= rows

    class Crash(BaseException):
        pass

    def call(batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        if culprit in batch.column(0).to_pylist():
            raise Crash
        return batch

    batch = pa.record_batch({"n": pa.array(np.arange(rows))})
    suspicion, lost = Suspicion(), 0
    while True:
        at: list[At | None] = []
        try:
            outcome = Guard(suspicion, at.append)(call, batch, Memo(rows), 1, 1, a_call)
            break
        except Crash:
            lost += 1
            assert at[-1] is not None
            suspicion.learn(at[-1], "crashed")
    assert lost <= 6
    assert outcome.failed == [(culprit, "crashed")]
    assert outcome.batch.num_rows == rows - 1
