"""What a step is: a frozen, typed value whose fields are its configuration; one call is its work.

There are five kinds, one level of inheritance each:

- `Source` reads splits into record batches,
- `Map` takes a batch and gives a batch of the same rows (and may drop or fail some),
- `Filter` takes a batch and gives one reason a row, null to keep it,
- `Regroup` takes the rows of a shard and makes other rows of them (packing, sampling n answers),
- `Gather` looks across shards (deduplication, training a tokenizer); see `factory.engine.gather`.

A batch is a `pyarrow.RecordBatch` whose columns are single arrays; text is `large_string`, valid UTF-8 and never
null. Rows are independent for Map and Filter: a call on part of a batch gives that part of the result. The engine
relies on it to find a document that crashes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from factory.engine.gather import Exchange, Records


class Memo:
    """Statistics of one batch, each computed once and shared by the steps of a stage.

    `memo(kernel, array, *options)` returns `kernel(memo, array, *options)`, from memory where the same kernel has
    seen the same buffer with the same options. A step that edits a column makes a new array, so what was known of
    the old one no longer matches: nothing has to be invalidated by hand.

    `alive` is a boolean a row. Kernels skip the rows that an earlier step dropped; rows only ever leave, so a
    result computed earlier stays valid.
    """

    def __init__(self, rows: int) -> None:
        self.alive = np.ones(rows, dtype=np.bool_)
        self._known: dict[tuple[Any, ...], tuple[pa.Array, Any]] = {}

    def __call__(self, kernel: Callable[..., Any], array: pa.Array, *options: Any) -> Any:
        where = tuple(buffer.address if buffer is not None else 0 for buffer in array.buffers())
        key = (kernel, array.offset, len(array), where, options)
        if key not in self._known:
            # The array is kept with the result: while it lives, no other buffer can have its address.
            self._known[key] = (array, kernel(self, array, *options))
        return self._known[key][1]


@dataclass(frozen=True)
class Context:
    """What a step may know of the run: where datasets lie, and the folders that earlier Gathers made."""

    root: str = "runs"
    artifacts: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """A piece of input that one task reads. `start` and `end` count bytes, rows or row groups, as the Source says.

    `bytes` is the size of the work, for progress and planning. `exact` says that `start` is known to be the start
    of a record (set by the engine where a seam was repaired).
    """

    path: str
    start: int = 0
    end: int = 0
    bytes: int = 0
    exact: bool = False


@dataclass(frozen=True)
class Failure:
    """A record that could not be read or processed: it becomes a row in failed/."""

    id: str
    error: str
    place: str = ""
    data: bytes = b""
    of: str = ""
    """The id of the row that it was to be made of, where several are made of each: those of one row count as one when
    the engine judges whether all fail."""


@dataclass(frozen=True)
class Seam:
    """Where a split's first record really began and its last one ended, for formats whose records must be searched.

    The engine redoes a split whose predecessor ended elsewhere than where it began.
    """

    first: int
    last: int


@dataclass(frozen=True)
class Tally:
    """What a Regroup saw and its rows do not tell (prompts without a pair, votes), counted by name.

    The engine sums the counts of a step over its shards: they stand in the receipts and the manifest, and
    `factory show` prints them beneath the step. They are no rows: the law of the receipts knows nothing of them.
    """

    counts: Mapping[str, int]


@dataclass(frozen=True)
class Mapped:
    """A Map's result where it drops or fails rows: `batch` has a row for each row that came in.

    `reasons` as `Filter` returns them; `errors` a string array, null where the row is well.
    """

    batch: pa.RecordBatch
    reasons: pa.DictionaryArray | None = None
    errors: pa.Array | None = None


def reasons(codes: np.ndarray, names: Iterable[str]) -> pa.DictionaryArray:
    """One reason a row from integer codes into `names`; a negative code keeps the row (null)."""
    indices = pa.array(codes.astype(np.int16, copy=False), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(names), pa.string()))


@dataclass(frozen=True, kw_only=True)
class Step:
    """The base of all steps. Subclasses are frozen keyword-only dataclasses of scalars and tuples of scalars.

    `version` is bumped when a step's output changes for the same configuration: it is part of the identity of
    everything made with it. `resources` names what a step holds (`"gpu"`, `"server"`): a stage ends where it changes.
    """

    version: ClassVar[int] = 1
    resources: ClassVar[str] = "cpu"
    rows_a_call: ClassVar[int | None] = None
    """At most so many rows in a call, for steps that are slow a row: the time limit is for a call. Of a Regroup: at
    most so many rows in a batch that it is given, so that progress is told as it pulls them."""
    located: ClassVar[tuple[str, ...]] = ()
    """Options that say where something lies: not part of the identity, the content found there is."""

    def needs(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return ()

    def adds(self) -> dict[str, pa.DataType]:
        """The columns that it adds or replaces, with their types."""
        return {}

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The columns after this step, given those before it."""
        for name, type_ in self.adds().items():
            field = pa.field(name, type_)
            at = schema.get_field_index(name)
            schema = schema.append(field) if at < 0 else schema.set(at, field)
        return schema

    def files(self) -> tuple[str, ...]:
        """Local files (models, prompts) whose content is part of the identity."""
        return ()

    def libraries(self) -> tuple[str, ...]:
        """Packages whose version may change the output, and `unicodedata`, Python's own: part of the identity."""
        return ()

    def folders(self) -> dict[str, str]:
        """Local folders that belong to what it makes, by name (a tokenizer): copied into the dataset as artifacts."""
        return {}

    def datasets(self) -> tuple[str, ...]:
        """Datasets (`name@version`) that it reads: their manifest keys are part of the identity."""
        return ()

    def made_for(self) -> dict[str, str]:
        """What the rows that it makes are for alone, a hash of each: `tokenizer` and `template` (the chat template) of
        the model that said them. It stands in the manifest, and is no part of the identity."""
        return {}

    def measures(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, pa.Array]:
        """The numbers by which a Map or a Filter decides, of the batch as it comes in, a column each: written by
        `run --annotate`, to choose thresholds."""
        return {}

    def open(self, context: Context) -> None:
        """Called once a worker before the first batch: load models, connect clients (in cached properties)."""

    def close(self) -> None:
        """Called once a worker after the last batch."""


@dataclass(frozen=True, kw_only=True)
class Source(Step):
    """Reads input."""

    located: ClassVar[tuple[str, ...]] = ("glob",)

    def splits(self, context: Context, target: int) -> list[Split]:
        """The pieces of the input, in dataset order, each about `target` bytes of text.

        Raises `FactoryError` where a file is missing or a glob is empty.
        """
        raise NotImplementedError

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        """What the input is, apart from where it lies: of a file its name below the glob's root, its size and edges."""
        raise NotImplementedError

    def start(self, context: Context) -> pa.Schema:
        """The schema of the batches, resolved before any work."""
        raise NotImplementedError

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure | Seam]:
        """Batches of 8 to 16 MB of text at most (one document may exceed it), and a Failure for each bad record."""
        raise NotImplementedError

    def whole(self, split: Split) -> bool:
        """True where a split is larger than a shard and can only be streamed: a stage of its own cuts it first."""
        return False


@dataclass(frozen=True, kw_only=True)
class Map(Step):
    """Batch in, batch of the same rows out."""

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch | Mapped:
        """Rows where `memo.alive` is false need no work: whatever is returned for them is not read."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Filter(Step):
    """Batch in, one reason a row out; null keeps the row."""

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.DictionaryArray:
        """What is returned for rows where `memo.alive` is false is not read."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Regroup(Step):
    """The rows of a shard in, other rows out: each row that comes in is consumed, each that goes out is made.

    A row that cannot be made is a `Failure`, which counts as made and as failed. Where the first hundred of a shard are
    all failures the run ends: so rows that are made are yielded before a Failure that comes after them, not held.
    `batches` is pulled lazily: what is asked of a server or put in a window may reach over batches. An exception here
    is no row's fault and ends the task.
    """

    def prepare(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        """The part of the work that is done row by row, as a Map does it."""
        return batch

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Failure | Tally]:
        """`batches` are all of a shard's prepared rows, in order. Rows made carry the ids of those consumed."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Gather(Step):
    """Looks across shards: per shard, emit keyed records; per partition, decide; per shard, apply."""

    reasons: ClassVar[tuple[str, ...]] = ()
    """Why it drops rows."""
    arranges: ClassVar[bool] = False
    """It drops nothing and gives every row a new place."""

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, np.ndarray]:
        """What the shard contributes, for the rows where `memo.alive` is true only, in order.

        `docs` (uint64 a row of the batch) numbers the rows: shard << 32 | row in the written shard. A structured
        array whose first field is `key` (uint64) is sent to partitions; any other array has one element a living
        row and is kept beside the shard, to be read back with `Part.side(name, shard)`.
        """
        raise NotImplementedError

    def decide(self, exchange: Exchange) -> Records | None:
        """Runs in the driver and chains exchanges; returns the rows to drop, or None to keep all.

        The records, routed by shard, have the fields `key` (the doc that goes), `kept` (the doc that stays for it),
        `pair` (the doc whose likeness tied it) and `similarity` (float32); dropped/ shows them as kept_id, pair_id,
        similarity. Where a row goes for no other's sake, `kept` and `pair` are the row itself, and all three are null.
        A field `reason` (uint8) is an index into `reasons`; without it every row goes for the first.

        A Gather that arranges returns, also routed by shard, the fields `key` (a new place: shard << 32 | row, in as
        many shards as there are) and `kept` (the doc that comes there), one of each row; None leaves all where it is.
        """
        raise NotImplementedError
