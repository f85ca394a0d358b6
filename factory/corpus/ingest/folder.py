"""Folders of small files, one document each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa

from factory.corpus.ingest import files
from factory.corpus.ingest.batch import Rows
from factory.engine.files import digest
from factory.engine.step import Context, Failure, Source, Split

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """One document a file: text, Markdown, source code, HTML, whatever the glob matches.

    The `id` is the file's path below the glob's fixed part. `kind = "text"` gives a column `text`; a file that is not
    UTF-8 becomes a failed row. `kind = "html"` gives the bytes in a column `html`, for `extract.Html`, which finds
    the character set. Many files make one task. A file of 2 GB or more becomes a failed row.
    """

    glob: str
    """The files, such as `docs/**/*.md`; every file that it matches is read."""
    kind: Literal["text", "html"] = "text"
    """What the files hold."""

    def splits(self, context: Context, target: int) -> list[Split]:
        _listing.cache_clear()
        return files.groups(_listing(self.glob), files.root(self.glob), target)

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        """Each file's name, size and edges; of more than a thousand files, one digest of all that."""
        found = files.identities(self.glob)
        if len(found) <= 1000:
            return found
        size = sum(one["bytes"] for one in found)
        return [{"path": "", "files": len(found), "bytes": size, "digest": digest(found)}]

    def start(self, context: Context) -> pa.Schema:
        content = ("text", pa.large_string()) if self.kind == "text" else ("html", pa.large_binary())
        return pa.schema([("id", pa.large_string()), content])

    def read(self, split: Split) -> Iterator[pa.RecordBatch | Failure]:
        rows = Rows(self.start(Context()))
        for file in _listing(self.glob)[split.start : split.end]:
            with files.open_file(file.path) as opened:
                data = files.read_whole(opened)
            if data is None:
                yield Failure(file.name, f"the file has {files.LIMIT} bytes or more; cut it", file.name)
                continue
            if self.kind == "text":
                data = data.removeprefix(_BOM)
                try:
                    data.decode()
                except UnicodeDecodeError as error:
                    yield Failure(
                        file.name, f"not UTF-8: {error.reason}", f"{file.name}:{error.start}", data[: files.SHOWN]
                    )
                    continue
            yield from rows.add((file.name, data))
        yield from rows.flush()


@lru_cache(maxsize=4)
def _listing(glob: str) -> list[files.File]:
    """Kept, as the tasks of a worker share it; `splits` looks anew."""
    return files.find(glob)
