"""Any per-document block of datatrove as a step: `use = "datatrove:datatrove.pipeline.filters.C4QualityFilter"`."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from factory.engine.errors import FactoryError, nearest
from factory.engine.step import Context, Map, Mapped, Memo, reasons

_OTHER = ("readers", "writers", "dedup", "decont", "tokens", "stats", "inference", "executor", "media")
"""Parts of datatrove whose blocks read, write or look across documents: the factory has steps of its own for that."""


def step(path: str, options: dict[str, Any]) -> Block:
    """The block of the class `path`, made with `options` as its constructor's arguments.

    FactoryError where datatrove or the class is missing, the class is no per-document block, or an option is unknown.
    """
    cls = _load(path)
    parameters = inspect.signature(cls.__init__).parameters
    names = [name for name in parameters if name != "self"]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in options:
        if name not in names and not open_ended:
            raise FactoryError(
                f"datatrove:{path}: no option {name!r}{nearest(name, names)}; it has {', '.join(names) or 'none'}"
            )
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as error:
        raise FactoryError(f"datatrove:{path}: {error}; give it as an option of the step") from None
    return Block(path=path, options=json.dumps(options, sort_keys=True), datatrove=_version())


@dataclass(frozen=True, kw_only=True)
class Block(Map):
    """A datatrove block, document by document.

    A filter drops with its reason (its class's name where it gives none) and may edit the text of what it keeps, as
    C4 does; a formatter or extractor edits; any other block that takes documents one by one is run on each alone, and
    what it does not give back is dropped. A document that raises becomes a failed row.

    A block must judge each document by itself: one that counts or draws lots (SamplerFilter) decides differently when a
    task is done again.

    The columns besides `id` and `text` are the document's metadata, and come back from it; metadata without a column
    is not kept, as the schema is known before any document is read.
    """

    rows_a_call: ClassVar[int | None] = 256

    path: str
    """The class, as it is imported."""
    options: str = field(default="{}")
    """Its constructor's arguments, as JSON."""
    datatrove: str = ""
    """datatrove's version: another one may decide differently."""

    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def adds(self) -> dict[str, pa.DataType]:
        return {"text": pa.large_string()}

    def open(self, context: Context) -> None:
        _ = self._run

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> Mapped:
        from datatrove.data import Document

        rows = np.flatnonzero(memo.alive).tolist()
        names = [name for name in batch.schema.names if name not in ("id", "text")]
        taken = batch.take(pa.array(rows, pa.int64())).to_pydict()
        documents = [
            Document(text=text, id=id_, metadata={name: taken[name][i] for name in names if taken[name][i] is not None})
            for i, (id_, text) in enumerate(zip(taken["id"], taken["text"], strict=True))
        ]
        found: list[str] = []
        codes = np.full(batch.num_rows, -1, np.int16)
        errors: list[str | None] = [None] * batch.num_rows
        values = {name: batch.column(name).to_pylist() for name in ["text", *names]}
        for row, document, verdict in zip(rows, documents, self._run(documents), strict=True):
            if isinstance(verdict, Exception):
                errors[row] = f"{type(verdict).__name__}: {verdict}"
            elif isinstance(verdict, str):
                if verdict not in found:
                    found.append(verdict)
                codes[row] = found.index(verdict)
            else:
                given = document if verdict is None else verdict
                values["text"][row] = given.text
                for name in names:
                    values[name][row] = given.metadata.get(name)
        arrays = []
        for column in batch.schema:
            if column.name == "id":
                arrays.append(batch.column("id"))
            else:
                arrays.append(_array(values[column.name], batch.column(column.name), errors))
        out = pa.RecordBatch.from_arrays(arrays, schema=batch.schema)
        return Mapped(out, reasons(codes, found), pa.array(errors, pa.string()))

    @cached_property
    def _run(self) -> Callable[[list[Any]], list[Any]]:
        """Documents in; for each None (kept, edited in place), a Document (to take instead), a reason, an exception."""
        from datatrove.pipeline.filters.base_filter import BaseFilter

        cls = _load(self.path)
        try:
            block = cls(**json.loads(self.options))
        except Exception as error:
            raise FactoryError(f"datatrove:{self.path}: cannot be made with these options: {error}") from error
        own = cls.__name__

        def judge(documents: list[Any]) -> list[Any]:
            found: list[Any] = []
            for first in range(0, len(documents), block.batch_size):
                some = documents[first : first + block.batch_size]
                before = copy.deepcopy(some) if len(some) > 1 else some
                try:
                    found += [_verdict(result, own) for result in block.filter_batch(some)]
                except Exception as error:
                    if len(some) == 1:
                        found.append(error)  # this document's: it is written to failed/
                        continue
                    for document, old in zip(some, before, strict=True):  # some document's: each alone, as it was
                        document.text, document.metadata = old.text, old.metadata
                        found.append(_one(block, document, own))
            return found

        def run(documents: list[Any]) -> list[Any]:
            return [_alone(block, document, own) for document in documents]

        return judge if isinstance(block, BaseFilter) else run


def _one(block: Any, document: Any, own: str) -> str | Exception | None:
    try:
        return _verdict(block.filter_batch([document])[0], own)
    except Exception as error:  # one document's: it is written to failed/
        return error


def _verdict(result: Any, own: str) -> str | None:
    kept, reason = result if isinstance(result, tuple) else (result, None)
    return None if kept else str(reason or own)


def _alone(block: Any, document: Any, own: str) -> Any:
    try:
        given = list(block.run(iter([document])))
    except Exception as error:  # one document's: it is written to failed/
        return error
    if len(given) > 1:
        return ValueError(f"{own} made {len(given)} documents of one: a step of its own is needed for that")
    return given[0] if given else own


def _array(values: list[Any], before: pa.Array, errors: list[str | None]) -> pa.Array:
    """The values in the column's type; a row whose value does not fit fails."""
    try:
        return pa.array(values, before.type)
    except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
        pass  # found below, row by row
    for row, value in enumerate(values):
        try:
            pa.array([value], before.type)
        except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError) as error:
            errors[row] = errors[row] or f"{type(error).__name__}: {error}"
            values[row] = before[row].as_py()
    return pa.array(values, before.type)


def _version() -> str:
    from importlib.metadata import version

    return version("datatrove")


def _load(path: str) -> type[Any]:
    module, _, name = path.rpartition(".")
    try:
        from datatrove.pipeline.base import PipelineStep
    except ImportError as error:
        raise FactoryError(f"datatrove:{path}: cannot import datatrove ({error}); install factory[datatrove]") from None
    try:
        found = importlib.import_module(module or path)
    except ImportError as error:
        raise FactoryError(f"datatrove:{path}: {error}; check the module's name") from None
    cls = getattr(found, name, None)
    if not _is_block(cls, PipelineStep):
        blocks = [key for key, value in vars(found).items() if _is_block(value, PipelineStep)]
        raise FactoryError(f"datatrove:{path}: no such block{nearest(name, blocks)}; {module} has {', '.join(blocks)}")
    assert isinstance(cls, type)
    for parent in cls.__mro__:
        part = parent.__module__.split(".")
        if part[:2] == ["datatrove", "pipeline"] and part[2:3] and part[2] in _OTHER:
            raise FactoryError(
                f"datatrove:{path}: a block of datatrove's {part[2]} does not work document by document;"
                " filters, formatters and extractors do"
            )
    return cls


def _is_block(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base
