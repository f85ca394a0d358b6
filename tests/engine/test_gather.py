"""Exchanges: what producers write, consumers read, whole and in order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.engine import gather

DTYPE = np.dtype([("key", np.uint64), ("doc", np.uint64), ("size", np.float32)])
KEYS = st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 5), st.integers(0, 2**40)), max_size=60)


@given(producers=st.lists(KEYS, min_size=1, max_size=4), partitions=st.integers(1, 9), texts=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_partitions_hold_every_record_once_in_order(tmp_path, producers, partitions, texts):
    everything = []
    for number, rows in enumerate(producers):
        records = np.zeros(len(rows), DTYPE)
        records["key"], records["doc"] = [r[0] for r in rows], [r[1] for r in rows]
        everything += [(int(r["key"]), int(r["doc"])) for r in records]
        named = gather.with_payload(records, pa.array([f"é{d}" for _, d in rows], pa.large_string()))
        path = gather.record_path(str(tmp_path), number)
        gather.write_records(path, named if texts else records, "hash", partitions)
    read = gather.Records(str(tmp_path), len(producers), partitions)
    assert read.rows == len(everything)
    found = []
    for number in range(partitions):
        records, payload = read.partition(number)
        rows = [(int(r["key"]), int(r["doc"])) for r in records]
        assert rows == sorted(rows)
        assert all(gather.partition_of(records["key"], "hash", partitions) == number)
        assert payload is None or payload.to_pylist() == [f"é{d}" for _, d in rows]
        assert (payload is not None) == texts
        found += rows
    assert sorted(found) == sorted(everything)
    assert len(read.partition(None)[0]) == len(everything)


def test_equal_keys_meet_in_one_partition_and_spread_by_their_bits():
    keys = np.arange(10_000, dtype=np.uint64) << np.uint64(32)
    where = gather.partition_of(keys, "hash", 16)
    assert (np.bincount(where, minlength=16) > 400).all()
    assert (gather.partition_of(keys, "shard", 10_000) == np.arange(10_000)).all()
