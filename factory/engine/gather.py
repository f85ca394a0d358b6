"""Gathers look across shards by exchanges: producers write keyed records cut into partitions, consumers read one each.

An exchange file is raw: a small header, an offsets table, the records sorted by (partition, fields), and where
records carry text, that text in the same order. A consumer reads its slice of every producer with two seeks. (Parquet
with a row group a partition has a footer of hundreds of kilobytes that every reader would parse.)

Every task of an exchange is independent, repeatable and committed by the rename of its one file.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from factory.engine import files, shard
from factory.engine.errors import FactoryError
from factory.engine.receipt import Meter
from factory.engine.step import Gather

Route = Literal["hash", "shard", "home"]
"""Where records go: by a hash of their key; to the partition of their row's shard, of which there is one a shard; to
the home of that shard, one of as many partitions as there are for hashes, so that many shards meet in a task."""


@dataclass(frozen=True)
class WithPayload:
    """Records that carry a text, or other bytes, each."""

    records: np.ndarray
    payload: pa.LargeStringArray


def with_payload(records: np.ndarray, payload: pa.Array) -> WithPayload:
    """Records (first field `key`, uint64) with one text each, to be emitted or returned by an exchange's method."""
    if len(records) != len(payload):
        raise ValueError(f"{len(records)} records with {len(payload)} texts")
    return WithPayload(records, payload.cast(pa.large_string()))


def partition_of(keys: np.ndarray, route: Route, partitions: int) -> np.ndarray:
    """Where each key goes. Its bits are mixed, so that structured keys spread too."""
    if route == "shard":
        return (keys >> np.uint64(32)).astype(np.int64)
    if route == "home":
        keys = keys >> np.uint64(32)
    mixed = keys * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    return (mixed % np.uint64(partitions)).astype(np.int64)


def write_records(
    path: str,
    value: np.ndarray | WithPayload,
    route: Route,
    partitions: int,
    used: dict[str, float | int] | None = None,
) -> None:
    """One producer's file. `used` is what making it took, as `receipt.Meter` reads it."""
    records = value.records if isinstance(value, WithPayload) else value
    where = partition_of(records["key"], route, partitions)
    if len(where) and where.max() >= partitions:
        raise ValueError(f"{path}: a key of shard {where.max()}, of {partitions}")
    order = np.lexsort([records[name] for name in reversed(records.dtype.names or ())] + [where])
    offsets = np.searchsorted(where[order], np.arange(partitions + 1)).astype(np.uint64)
    header: dict[str, Any] = {"dtype": records.dtype.descr, "rows": len(records), "partitions": partitions}
    header["used"] = used
    blocks = [offsets.tobytes(), records[order].tobytes()]
    if isinstance(value, WithPayload):
        sorted_text = value.payload.take(pa.array(order))
        starts = np.frombuffer(sorted_text.buffers()[1], np.int64)[: len(records) + 1]
        data = sorted_text.buffers()[2]
        header["payload"] = True
        blocks += [starts.astype(np.uint64).tobytes(), bytes(data)[: int(starts[-1])] if data is not None else b""]
    text = json.dumps(header).encode()
    with files.aside(path) as scratch, open(scratch, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(block)


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype
    rows: int
    partitions: int
    payload: bool
    start: int
    used: dict[str, float | int] | None


def _read_header(file: Any) -> _Header:
    size = int.from_bytes(file.read(8), "little")
    head = json.loads(file.read(size))
    dtype = np.dtype([(name, kind) for name, kind in head["dtype"]])
    return _Header(dtype, head["rows"], head["partitions"], head.get("payload", False), 8 + size, head["used"])


def read_partition(path: str, number: int | None) -> tuple[np.ndarray, pa.Array | None]:
    """One partition of one producer's file (None: all of it): the records, and their texts where they carry some."""
    fs, local = files.locate(path)
    with fs.open(local, "rb") as file:
        head = _read_header(file)
        first, last = 0, head.rows
        if number is not None:
            file.seek(head.start + 8 * number)
            first, last = (int(x) for x in np.frombuffer(file.read(16), np.uint64))
        records_at = head.start + 8 * (head.partitions + 1)
        file.seek(records_at + first * head.dtype.itemsize)
        records = np.frombuffer(file.read((last - first) * head.dtype.itemsize), head.dtype)
        if not head.payload:
            return records, None
        starts_at = records_at + head.rows * head.dtype.itemsize
        file.seek(starts_at + 8 * first)
        starts = np.frombuffer(file.read(8 * (last - first + 1)), np.uint64).astype(np.int64)
        file.seek(starts_at + 8 * (head.rows + 1) + int(starts[0]))
        data = file.read(int(starts[-1] - starts[0]))
        texts = pa.LargeStringArray.from_buffers(last - first, pa.py_buffer(starts - starts[0]), pa.py_buffer(data))
        return records, texts


def read_header(path: str) -> _Header:
    fs, local = files.locate(path)
    with fs.open(local, "rb") as file:
        return _read_header(file)


@dataclass(frozen=True)
class Records:
    """Records of all producers of an exchange, cut into `partitions`. `rows` is how many there are."""

    folder: str
    producers: int
    partitions: int

    def producer(self, number: int) -> str:
        return record_path(self.folder, number)

    @property
    def rows(self) -> int:
        return sum(read_header(self.producer(n)).rows for n in range(self.producers))

    def used(self) -> dict[str, float | int]:
        """What making them took: tasks, CPU seconds of all, the most memory of one."""
        used = [read_header(self.producer(n)).used or {} for n in range(self.producers)]
        return {
            "tasks": len(used),
            "cpu_seconds": round(sum(one["cpu_seconds"] for one in used), 3),
            "peak_memory_bytes": max(int(one["peak_memory_bytes"]) for one in used),
        }

    def partition(self, number: int | None) -> tuple[np.ndarray, pa.Array | None]:
        """A partition's records, sorted by all fields, with their texts in the same order."""
        parts = [read_partition(self.producer(n), number) for n in range(self.producers)]
        records = np.concatenate([p[0] for p in parts])
        order = np.lexsort([records[name] for name in reversed(records.dtype.names or ())])
        texts = [p[1] for p in parts if p[1] is not None]
        payload = pa.concat_arrays(texts).take(pa.array(order)) if texts else None
        return records[order], payload


def record_path(folder: str, number: int) -> str:
    return files.join(folder, f"{number // 1000:04d}", f"{number:07d}.raw")


@dataclass(frozen=True)
class Part:
    """What one task of an exchange sees: its partition of each input, and what lies beside the shards."""

    number: int
    records: list[np.ndarray]
    payloads: list[pa.Array | None]
    emitted: str
    shards: Sequence[str]
    given: np.ndarray | None = None
    """What the driver gave to every task of the exchange."""

    def side(self, name: str, number: int) -> np.ndarray:
        """The array that the Gather emitted beside a shard, one element a row, mapped from disk where it is local."""
        path = side_path(files.join(self.emitted, name), number)
        if files.is_local(path):
            return np.load(files.locate(path)[1], mmap_mode="r", allow_pickle=False)
        fs, remote = files.locate(path)
        with fs.open(remote, "rb") as file:
            return np.load(file, allow_pickle=False)

    def ids(self, number: int) -> pa.Array:
        """The ids of a shard's rows."""
        return shard.read_column(self.shards[number], "id", pa.large_string())


def side_path(folder: str, number: int) -> str:
    return files.join(folder, f"{number // 1000:04d}", f"{number:07d}.npy")


def emitted_done(folder: str, number: int) -> str:
    """The mark that a shard's emission is whole: written after its files."""
    return files.join(folder, "done", f"{number // 1000:04d}", f"{number:07d}")


def write_emitted(folder: str, number: int, arrays: dict[str, np.ndarray | WithPayload], partitions: int) -> None:
    """All that a shard emits, then the mark that it did."""
    for name, value in arrays.items():
        if isinstance(value, WithPayload) or value.dtype.names:
            write_records(record_path(files.join(folder, name), number), value, "hash", partitions)
        else:
            with files.aside(side_path(files.join(folder, name), number)) as scratch, open(scratch, "wb") as file:
                np.save(file, value, allow_pickle=False)
    files.write_atomic(emitted_done(folder, number), b"")


@dataclass(frozen=True)
class ExchangeTask:
    """One partition of one exchange, or the making of an artifact: a value that any worker can run."""

    stage: str
    folder: str
    method: str
    inputs: tuple[Records, ...]
    output: str
    number: int
    route: Route
    partitions: int
    artifact: bool = False
    given: np.ndarray | None = dataclasses.field(default=None, compare=False)

    @property
    def done(self) -> bool:
        return files.exists(self.output if self.artifact else record_path(self.output, self.number))


class Runner(Protocol):
    """Runs tasks, each to its end, in any order, and shows progress under a name."""

    def __call__(self, name: str, tasks: list[ExchangeTask]) -> None: ...


@dataclass
class Exchange:
    """What a Gather's `decide` works with, in the driver."""

    stage: str
    folder: str
    shards: list[str]
    partitions: int
    runner: Runner
    artifacts: dict[str, str] = dataclasses.field(default_factory=dict)
    used: dict[str, dict[str, float | int]] = dataclasses.field(default_factory=dict)
    """What each exchange took, by name."""

    def emitted(self, name: str) -> Records:
        """What every shard emitted under a name, routed by a hash of its key."""
        return Records(files.join(self.folder, "emitted", name), len(self.shards), self.partitions)

    def run(
        self,
        name: str,
        inputs: Sequence[Records],
        method: str,
        route: Route = "hash",
        given: np.ndarray | None = None,
    ) -> Records:
        """One task a partition: `method` of the step (or `module:function`, called with the step first) takes a `Part`
        and returns records. Finished tasks of an earlier, killed run are not repeated: what is `given` to all tasks,
        a small array, must follow from the records alone."""
        output = files.join(self.folder, "exchanges", name)
        partitions = len(self.shards) if route == "shard" else self.partitions
        if len({records.partitions for records in inputs}) != 1:
            raise ValueError(f"{name}: its inputs are cut into different numbers of partitions")
        tasks = [
            ExchangeTask(self.stage, self.folder, method, tuple(inputs), output, number, route, partitions, given=given)
            for number in range(inputs[0].partitions)
        ]
        self.runner(name, [task for task in tasks if not task.done])
        made = Records(output, inputs[0].partitions, partitions)
        self.used[name] = made.used()
        return made

    def artifact(self, name: str, inputs: Sequence[Records], method: str) -> str:
        """One task over all partitions: `method(part, folder)` writes files; later steps find them by `name`."""
        output = files.join(self.folder, "artifacts", name)
        task = ExchangeTask(self.stage, self.folder, method, tuple(inputs), output, 0, "hash", 1, artifact=True)
        if not task.done:
            self.runner(name, [task])
        self.artifacts[name] = output
        return output


def find_method(step: Gather, method: str) -> Callable[..., Any]:
    if ":" not in method:
        return getattr(step, method)
    module, _, name = method.partition(":")
    function = getattr(importlib.import_module(module), name)
    return lambda *arguments: function(step, *arguments)


def run_exchange_task(task: ExchangeTask, step: Gather, shards: Sequence[str]) -> None:
    """Do one task and commit its file or folder."""
    if task.done:
        return
    meter = Meter()
    read = [records.partition(None if task.artifact else task.number) for records in task.inputs]
    emitted = files.join(task.folder, "emitted")
    part = Part(task.number, [r for r, _ in read], [p for _, p in read], emitted, shards, task.given)
    if not task.artifact:
        value = find_method(step, task.method)(part)
        write_records(record_path(task.output, task.number), value, task.route, task.partitions, meter.read())
        return
    if not files.is_local(task.output):
        raise FactoryError(
            f"{task.output}: a step that trains writes to a local folder: run with --out of this machine"
        )
    target = files.locate(task.output)[1]
    scratch = f"{target}.{os.getpid()}{files.TEMPORARY}"
    files.remove_tree(scratch)
    os.makedirs(scratch)
    find_method(step, task.method)(part, scratch)
    os.rename(scratch, target)
