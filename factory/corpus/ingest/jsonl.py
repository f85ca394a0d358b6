"""JSON lines: plain, .gz or .zst."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from factory.corpus.ingest import files
from factory.corpus.ingest.batch import BATCH, MESSAGES, is_text, join
from factory.engine.errors import FactoryError, nearest
from factory.engine.step import Context, Failure, Source, Split

SAMPLE = 1 << 20
_CONSTANT = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*+")|NaN|-?Infinity')
"""A string, or a word that some writers of JSON have for a number."""
KNOWN: dict[str, pa.DataType] = {
    **dict.fromkeys(("url", "dump", "date", "source", "license", "language"), pa.large_string()),
    "language_score": pa.float64(),
    "token_count": pa.int64(),
    **dict.fromkeys(("messages", "prompt", "chosen", "rejected"), MESSAGES),
}
TYPES = {"string": pa.large_string(), "double": pa.float64(), "int64": pa.int64(), "messages": MESSAGES}


@dataclass(frozen=True, kw_only=True)
class JsonLines(Source):
    """Rows of JSON lines, one object a line, plain or compressed (.gz, .zst).

    Columns: `id`, `text`, those of url, dump, date, source, license, language, language_score, token_count, messages,
    prompt, chosen and rejected that occur in the first megabyte of the first file, those that `columns` names, and
    `metadata`: all other keys as one JSON object, spelt as in the file, null where there are none. A value of another
    type than its column's loses no row: text columns take its JSON text as it stands; what is no number, or too large
    for one, becomes null, and goes to `metadata`. The words NaN and Infinity are read as null. Of a key that occurs
    twice the last value counts. Blank lines are skipped.

    A line that is not a JSON object, or has no text, or is not UTF-8 (lone surrogates are not), becomes a failed row.
    Plain files are read by byte ranges, many tasks a file; a compressed one is one task.
    """

    glob: str
    """Path or URL of the files; `*` and `**` are allowed."""
    text: str = "text"
    """The key that holds the text; the column is called `text`."""
    id: str = "id"
    """The key that holds the id; a row without one is called by its file and its byte in it."""
    columns: tuple[str, ...] = ()
    """More keys that become columns: `name`, or `name:type` with string (the default), double, int64 or messages."""

    def splits(self, context: Context, target: int) -> list[Split]:
        found = files.find(self.glob)
        splits = []
        for file in found:
            if files.codec(file.path):
                size = file.size * files.INFLATED
                splits.append(Split(file.path, 0, files.STREAM if size > 2 * target else file.size, size))
            else:
                splits += files.ranges(file, target)
        return splits

    def whole(self, split: Split) -> bool:
        return split.end == files.STREAM

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        return files.identities(self.glob)

    def start(self, context: Context) -> pa.Schema:
        _layouts[self] = layout = _Layout(self)
        return layout.schema

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure]:
        layout = _layouts.get(self) or _Layout(self)
        _layouts[self] = layout
        name = files.below(self.glob, split.path)
        end = None if files.codec(split.path) else split.end
        for piece in lines(split.path, name, split.start, end):
            if isinstance(piece, Failure):
                yield piece
            else:
                yield from layout.parse(piece[1], name, piece[0])


_layouts: dict[JsonLines, _Layout] = {}


def lines(path: str, name: str, start: int, end: int | None) -> Iterator[tuple[int, bytes] | Failure]:
    """The lines that start in a range, in blocks of whole lines with the offset of each block's first byte."""
    at = max(start - 1, 0)
    skipping = start > 0
    held: list[bytes] = []
    begin, size = start, 0
    try:
        for chunk in files.blocks(path, BATCH, at):
            here, at = at, at + len(chunk)
            if skipping:
                line_end = chunk.find(b"\n")
                if line_end < 0:
                    continue
                chunk, here, skipping = chunk[line_end + 1 :], here + line_end + 1, False
                begin = here
            if end is not None and begin >= end:
                return
            last, done = chunk.rfind(b"\n"), False
            if end is not None and last >= end - 1 - here:
                last, done = chunk.find(b"\n", max(end - 1 - here, 0)), True
            if last < 0:
                held.append(chunk)
                size += len(chunk)
                if size >= files.LIMIT:
                    yield _failure(name, begin, f"a line of over {files.LIMIT} bytes", b"".join(held)[: files.SHOWN])
                    held, size, skipping = [], 0, True
                continue
            yield begin, b"".join([*held, chunk[: last + 1]])
            if done:
                return
            held, begin = [chunk[last + 1 :]], here + last + 1
            size = len(held[0])
        if size and (end is None or begin < end):
            yield begin, b"".join(held)
    except files.CutError as error:
        yield _failure(name, begin, str(error), b"".join(held)[: files.SHOWN])


class _Layout:
    """Which keys become which columns, and the parsing of a block of lines into them."""

    def __init__(self, step: JsonLines) -> None:
        self.step = step
        sample = _sample(step.glob)
        types = {key: KNOWN[key] for key in KNOWN if key in sample}
        for key in ("prompt", "chosen", "rejected"):
            if key in sample and not isinstance(sample[key], list):
                types[key] = pa.large_string()
        for column in step.columns:
            key, _, type_ = column.partition(":")
            if type_ and type_ not in TYPES:
                raise FactoryError(
                    f"ingest.JsonLines: columns: {column!r}: no such type{nearest(type_, TYPES)};"
                    f" use {', '.join(TYPES)}"
                )
            types[key] = TYPES[type_] if type_ else types.get(key, KNOWN.get(key, pa.large_string()))
        keys = {"id": step.id}
        if step.text != "text" and sample and step.text not in sample:
            raise FactoryError(
                f"ingest.JsonLines: no key {step.text!r} in the first megabyte of {step.glob!r}"
                f"{nearest(step.text, sample)}; set `text` to one of: {', '.join(sorted(sample))}"
            )
        if not sample or step.text in sample:
            keys["text"] = step.text
        keys |= {key: key for key in types if key not in keys.values() and key not in ("id", "text", "metadata")}
        self.keys = keys
        types |= {"id": pa.large_string(), "text": pa.large_string()}
        self.types = {column: types[column] for column in keys}
        self.schema = pa.schema([*self.types.items(), ("metadata", pa.large_string())])
        names = [key.encode() for key in keys.values()]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._places = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._kinds = np.array([_kind(type_) for type_ in self.types.values()], np.uint8)

    def parse(self, body: bytes, name: str, offset: int) -> Iterator[pa.RecordBatch | Failure]:
        """The rows of whole lines, the first at byte `offset` of the file, and a Failure for each bad line."""
        from factory.corpus.ingest import jsonscan as js

        data = np.frombuffer(body, np.uint8)
        newlines = np.flatnonzero(data == 10)
        starts, ends = np.concatenate(([0], newlines + 1)), np.append(newlines, len(body))
        if offset == 0 and body.startswith(b"\xef\xbb\xbf"):
            starts[0] = min(3, ends[0])
        state = np.zeros(len(starts), np.uint8)
        if not _valid(body):
            for row, (first, last) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                if not _valid(body[first:last]):
                    state[row] = js.SKIP
                    yield _failure(name, offset + first, "the line is not valid UTF-8", body[first:last])
        shape = (len(self.keys), len(starts))
        begin, stop, form = np.empty(shape, np.int64), np.empty(shape, np.int64), np.zeros(shape, np.uint8)
        rest, rest_at = np.empty(len(body), np.uint8), np.empty(len(starts) + 1, np.int64)
        js.scan(data, starts, ends, self._names, self._places, self._kinds, state, begin, stop, form, rest, rest_at)
        columns: list[pa.Array] = []
        rows = np.flatnonzero(state == js.OK)
        refused: set[int] = set()
        for field, type_ in enumerate(self.types.values()):
            present = form[field][rows] != js.ABSENT
            room = int((stop[field][rows] - begin[field][rows])[present].sum())
            out = np.empty(room, np.uint8)
            offsets = js.strings(data, rows, begin[field], stop[field], form[field], out)
            array = _text(offsets, out, present)
            if type_ == MESSAGES:
                array, wrong = _messages(array)
                refused |= set(rows[wrong].tolist())
            array = array if array.type == type_ else array.cast(type_)
            if type_ == pa.float64():
                refused |= set(rows[np.isinf(array.to_numpy(zero_copy_only=False))].tolist())
            columns.append(array)
        # `rest` holds only the members of lines that were read, so its offsets are theirs.
        rest_offsets = np.append(rest_at[rows], rest_at[-1])
        columns.append(_text(rest_offsets, rest, rest_offsets[1:] > rest_offsets[:-1]))
        batch = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        odd = sorted({*np.flatnonzero(state == js.ODD).tolist(), *refused})
        if refused:
            keep = ~np.isin(rows, list(refused))
            batch, rows = batch.filter(pa.array(keep)), rows[keep]
        slow: dict[str, list[Any]] = {column: [] for column in self.schema.names}
        read = []
        for row in odd:
            line = body[starts[row] : ends[row]]
            try:
                values = self._general(line)
            except (ValueError, RecursionError) as error:
                yield _failure(name, offset + int(starts[row]), f"not read as JSON: {error}", line)
                continue
            read.append(row)
            for column in self.schema.names:
                slow[column].append(values.get(column))
        if read:
            more = pa.RecordBatch.from_arrays(
                [pa.array(slow[field.name], field.type) for field in self.schema], schema=self.schema
            )
            rows = np.concatenate([rows, np.array(read, np.int64)])
            order = np.argsort(rows, kind="stable")
            batch, rows = pa.concat_batches([batch, more]).take(pa.array(order)), rows[order]
        places = offset + starts[rows]
        yield from self._finish(batch, places, name, body, offset, ends[rows])

    def _finish(
        self, batch: pa.RecordBatch, places: np.ndarray, name: str, body: bytes, offset: int, ends: np.ndarray
    ) -> Iterator[pa.RecordBatch | Failure]:
        """Rows without a text fail; rows without an id are called by their place."""
        if "text" in self.keys and (nulls := batch.column("text")).null_count:
            good = np.asarray(nulls.is_valid())
            for row in np.flatnonzero(~good).tolist():
                line = body[int(places[row]) - offset : ends[row]]
                yield _failure(name, int(places[row]), f"no text: the key {self.step.text!r} is missing or null", line)
            batch, places = batch.filter(pa.array(good)), places[good]
        if batch.num_rows and batch.column("id").null_count:
            place = join(f"{name}#", pa.array(places))
            batch = batch.set_column(0, self.schema.field(0), pc.coalesce(batch.column("id"), place))
        if batch.num_rows:
            yield batch

    def _general(self, line: bytes) -> dict[str, Any]:
        """A line through Python's parser; raises ValueError where it is no object, or not text."""
        text = line.decode().lstrip("\ufeff")
        if "NaN" in text or "Infinity" in text:
            text = _CONSTANT.sub(lambda word: word[1] or "null", text)
        found = json.loads(text, parse_float=_finite)
        if not isinstance(found, dict):
            raise ValueError(f"the line is not an object but {type(found).__name__}")
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # a lone surrogate raises here
        members = _members(text)
        values: dict[str, Any] = {}
        for column, type_ in self.types.items():
            if (key := self.keys[column]) in members:
                _, first, last = members[key]
                values[column], whole = _convert(found[key], text[first:last], type_, key)
                if whole:
                    del members[key]
        if members:
            values["metadata"] = "{" + ",".join(text[first:last] for first, _, last in members.values()) + "}"
        return values


def _finite(number: str) -> float | None:
    return value if math.isfinite(value := float(number)) else None


def _members(text: str) -> dict[str, tuple[int, int, int]]:
    """Where the last member of each key of an object begins, where its value does, and where both end.

    The text is known to be valid.
    """

    def go(at: int) -> int:
        while text[at] in " \t\r\n,:":
            at += 1
        return at

    scan, members = json.JSONDecoder().raw_decode, {}
    at = go(text.index("{") + 1)
    while text[at] != "}":
        key, end = scan(text, at)
        value = go(end)
        end = scan(text, value)[1]
        members[key] = at, value, end
        at = go(end)
    return members


def _convert(value: Any, raw: str, type_: pa.DataType, key: str) -> tuple[Any, bool]:
    """A value, `raw` as it stands, as the column's type, and whether nothing of it is lost by that."""
    if raw == "null":
        return None, True
    if type_ == MESSAGES:
        if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
            raise ValueError(f"{key!r} is not a list of messages")
        turns = [{side: _as_text(turn.get(side)) for side in ("role", "content")} for turn in value]
        return turns, turns == value
    if pa.types.is_large_string(type_):
        return value if isinstance(value, str) else raw, True
    try:
        if type_ == pa.float64():
            number = float(value)
            return (number, True) if math.isfinite(number) else (None, False)
        whole = int(value)
        if (not isinstance(value, float) or whole == value) and -(1 << 63) <= whole < 1 << 63:
            return whole, True
    except (TypeError, ValueError, OverflowError):
        pass  # not a number: the value goes to `metadata`
    return None, False


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _messages(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """JSON texts as lists of messages, and the rows that are none, or hold more than role and content."""
    wrong = np.zeros(len(array), np.bool_)

    def part(first: int, last: int) -> list[pa.Array]:
        raw = array.slice(first, last - first).fill_null("null")
        joined = join('{"m":', raw, "}\n")
        source = b"".join(value.as_buffer() for value in joined)
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(source),
                read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(source) + 1),
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=pa.schema([("m", MESSAGES)]), unexpected_field_behavior="error"
                ),
            )
            if table.num_rows == last - first:
                return list(table.column(0).chunks)
        except pa.ArrowInvalid:
            pass  # some row in it is odd: it is found by halves, and read by the general parser
        if last - first == 1:
            wrong[first] = True
            return [pa.nulls(1, MESSAGES)]
        middle = (first + last) // 2
        return part(first, middle) + part(middle, last)

    if not len(array):
        return pa.array([], MESSAGES), wrong
    return pa.concat_arrays(part(0, len(array))), wrong


def _text(offsets: np.ndarray, data: np.ndarray, present: np.ndarray) -> pa.Array:
    valid = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    buffers = [valid, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(present), buffers)


def _sample(glob: str) -> dict[str, Any]:
    """The keys of the first megabyte of the first file that holds anything, each with one value."""
    keys: dict[str, Any] = {}
    for file in files.find(glob):
        try:
            block = next(files.blocks(file.path, SAMPLE), b"")
        except files.CutError:
            block = b""
        if not block:
            continue
        if len(block) >= SAMPLE and b"\n" not in block:
            # One line fills the sample: read on to its end, or there would be no keys.
            block = next((piece[1] for piece in lines(file.path, "", 0, None) if not isinstance(piece, Failure)), b"")
        for line in block.splitlines():
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                continue  # bad lines are reported when they are read; the last one is cut by the sample
            if isinstance(value, dict):
                for key, member in value.items():
                    if keys.get(key) is None:
                        keys[key] = member
        break
    return keys


def _kind(type_: pa.DataType) -> int:
    from factory.corpus.ingest import jsonscan as js

    if type_ == MESSAGES:
        return js.NESTED
    return js.NUMBER if type_ == pa.float64() else js.INTEGER if type_ == pa.int64() else js.TEXT


def _valid(data: bytes) -> bool:
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    return is_text(pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)]))


def _failure(name: str, place: int, error: str, data: bytes) -> Failure:
    return Failure(f"{name}#{place}", error, f"{name}:{place}", data[: files.SHOWN])
