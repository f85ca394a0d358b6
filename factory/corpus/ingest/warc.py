"""WARC and WET files, plain or with a gzip member a record."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from factory.corpus.ingest import files, http
from factory.corpus.ingest.batch import Rows
from factory.corpus.ingest.records import Bad, Record, read_range
from factory.engine.step import Context, Failure, Seam, Source, Split

_TEXT, _BYTES = pa.large_string(), pa.large_binary()


@dataclass(frozen=True, kw_only=True)
class Warc(Source):
    """Web pages from the `response` records of WARC files (.warc, .warc.gz).

    Columns: `id` (WARC-Record-ID; a record without one is called by its file and its place in it), `url`, `date`,
    `html` (the body as bytes, without chunks and content encoding), `content_type`, `charset` (as the server said);
    null where nothing was said. `extract.Html` turns `html` into text.

    Only records of the media types `types` are documents. Requests, metadata, other media types and responses that
    are not HTTP are passed over; they are neither rows nor failures. A broken or truncated record becomes a failed row
    with file and offset, and reading goes on at the next record that can be found. A body that the crawler cut by its
    own limit (WARC-Truncated) is read as far as it goes. Content encodings: gzip, deflate, and br where the package
    `brotli` is installed.

    Files are read by byte ranges, many tasks a file; only a .gz that is one single member cannot be entered.
    """

    glob: str
    """Path or URL of the files; `*` and `**` are allowed."""
    types: tuple[str, ...] = ("text/html", "application/xhtml+xml")
    """The media types that are read, by the server's Content-Type, or the crawler's where the server gave none."""
    dump: str = ""
    """The crawl's name, such as CC-MAIN-2026-43, for a column `dump`; no such column where it is empty."""

    def libraries(self) -> tuple[str, ...]:
        return ("brotli",)  # without it a page in that encoding is a failed row

    def splits(self, context: Context, target: int) -> list[Split]:
        return _splits(self.glob, target)

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        return files.identities(self.glob)

    def start(self, context: Context) -> pa.Schema:
        columns = [("id", _TEXT), ("url", _TEXT), ("date", _TEXT), ("html", _BYTES), ("content_type", _TEXT)]
        return pa.schema([*columns, ("charset", _TEXT), *_dump(self.dump)])

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure | Seam]:
        yield from _read(
            split, files.below(self.glob, split.path), self._wanted, self._row, Rows(self.start(Context()))
        )

    def _wanted(self, record: Record, head: bytes) -> bool:
        if record.kind != "response" or not record.header("content-type").startswith("application/http"):
            return False
        if len(head) >= record.length:
            return True
        try:
            return self._listed(record, http.parse(head)[0])
        except ValueError:
            return True  # told as bad once all of it is there

    def _listed(self, record: Record, head: dict[str, str]) -> bool:
        said = head.get("content-type", "") or record.header("warc-identified-payload-type")
        return said.partition(";")[0].strip().lower() in self.types

    def _row(self, record: Record, block: bytes) -> tuple[Any, ...] | None:
        head, body = http.parse(block)
        if not self._listed(record, head):
            return None
        said = head.get("content-type", "") or record.header("warc-identified-payload-type")
        html = http.decode(head, body, cut=bool(record.header("warc-truncated")))
        row = (record.url or None, record.header("warc-date") or None, html, said or None, http.charset(said))
        return (*row, self.dump) if self.dump else row


@dataclass(frozen=True, kw_only=True)
class Wet(Source):
    """Extracted text from the `conversion` records of WET files (.wet, .wet.gz, .warc.wet.gz).

    Columns: `id` (WARC-Record-ID; a record without one is called by its file and its place in it), `text`, `url`,
    `date`, and `languages`, as the crawler named them (ISO 639-3, with commas between); null where nothing was said.
    Other records are passed over; broken ones, and text that is not UTF-8, become failed rows with file and offset.
    Files are read by byte ranges, many tasks a file.
    """

    glob: str
    """Path or URL of the files; `*` and `**` are allowed."""
    dump: str = ""
    """The crawl's name, such as CC-MAIN-2026-43, for a column `dump`; no such column where it is empty."""

    def splits(self, context: Context, target: int) -> list[Split]:
        return _splits(self.glob, target)

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        return files.identities(self.glob)

    def start(self, context: Context) -> pa.Schema:
        columns = [(name, _TEXT) for name in ("id", "text", "url", "date", "languages")]
        return pa.schema([*columns, *_dump(self.dump)])

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure | Seam]:
        yield from _read(
            split, files.below(self.glob, split.path), self._wanted, self._row, Rows(self.start(Context()))
        )

    def _wanted(self, record: Record, head: bytes) -> bool:
        return record.kind == "conversion"

    def _row(self, record: Record, block: bytes) -> tuple[Any, ...] | None:
        try:
            block.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the text is not UTF-8 at its byte {error.start}") from None
        languages = record.header("warc-identified-content-language") or None
        row = (block, record.url or None, record.header("warc-date") or None, languages)
        return (*row, self.dump) if self.dump else row


def _dump(name: str) -> list[tuple[str, pa.DataType]]:
    return [("dump", _TEXT)] if name else []


def _splits(glob: str, target: int) -> list[Split]:
    splits = []
    for file in files.find(glob):
        splits += files.ranges(file, target, files.INFLATED if files.codec(file.path) else 1)
    return splits


def _read(split: Split, name: str, wanted: Any, make: Any, rows: Rows) -> Iterator[pa.RecordBatch | Failure | Seam]:
    """The rows of the records that start in the split, a Failure for each broken one, and last the Seam.

    `make` gives a record's row without its id, or None where it is passed over.
    """
    with files.open_file(split.path) as file:
        for found in read_range(file, split.start, split.end, split.exact, wanted):
            if isinstance(found, Seam):
                yield from rows.flush()
                yield found
                continue
            if isinstance(found, Bad):
                yield Failure(f"{name}#{found.place}", found.error, f"{name}:{found.place}", found.data)
                continue
            record, block = found
            called = record.id or f"{name}#{record.place}"
            try:
                row = make(record, block)
            except (ValueError, zlib.error) as error:
                yield Failure(called, str(error), f"{name}:{record.place}", block[: files.SHOWN])
                continue
            if row is not None:
                yield from rows.add((called, *row))
