"""Keep and drop of the four quality filters beside datatrove's, on the same documents, each filter alone.

    python benchmarks/decisions.py [--data PATH] [--limit N] [--words spacy|unicode]

Prints for each filter in how many documents both decide alike, where they do not (our reason, theirs, how many), and
MB of text per CPU-second of both. `--data` takes Parquet or JSON lines (.gz, .zst), or a folder of Parquet files.
Needs the extra `datatrove`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from factory.corpus import quality
from factory.engine.step import Filter, Map, Memo

ROOT = Path(__file__).resolve().parent.parent
BATCH = 1000
NAMES = ("Gopher", "GopherRepetition", "C4", "FineWeb")


class Result(NamedTuple):
    """One filter on the documents: reasons a document (None: kept) and CPU seconds, ours and datatrove's."""

    name: str
    ours: list[str | None]
    theirs: list[str | None]
    our_seconds: float
    their_seconds: float

    @property
    def disagreements(self) -> Counter[tuple[str, str]]:
        """(our reason, their reason) of the documents that one keeps and the other drops; `keep` for none."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return Counter((a or "keep", b or "keep") for a, b in pairs if (a is None) != (b is None))

    @property
    def agreement(self) -> float:
        """The share of the documents that both keep or both drop."""
        return 1 - sum(self.disagreements.values()) / max(len(self.ours), 1)


def read(path: Path, field: str, limit: int | None) -> pa.LargeStringArray:
    """The first `limit` texts of a file or of a folder's numbered Parquet files."""
    files = sorted(path.glob("0*.parquet")) or sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    parts: list[Any] = []
    for file in files:
        if file.suffix == ".parquet":
            column = pa.parquet.read_table(file, columns=[field])[field]
        else:
            with pa.input_stream(str(file), compression="detect") as stream:
                column = pa.json.read_json(stream)[field]
        parts += column.cast(pa.large_string()).chunks
    text = pa.concat_arrays(parts)
    return text.slice(0, limit) if limit else text


def ours(step: Filter | Map, text: pa.LargeStringArray) -> list[str | None]:
    """Our reasons. Each batch has a memo of its own, so the words are counted in each filter's time."""
    found: list[str | None] = []
    for start in range(0, len(text), BATCH):
        batch = pa.record_batch({"text": text.slice(start, BATCH)})
        made: Any = step(batch, Memo(batch.num_rows))
        found += getattr(made, "reasons", made).to_pylist()
    return found


def theirs(block: Any, text: pa.LargeStringArray) -> list[str | None]:
    """datatrove's reasons; an exception is a drop, as its pipeline would end there."""
    from datatrove.data import Document

    def decide(document: str) -> str | None:
        try:
            verdict = block.filter(Document(text=document, id=""))
        except ZeroDivisionError:
            return "ZeroDivisionError"
        return None if verdict is True else verdict[1] if isinstance(verdict, tuple) else "dropped"

    return [decide(document) for document in text.to_pylist()]


def timed(function: Callable[..., list[str | None]], *arguments: Any) -> tuple[list[str | None], float]:
    """What the function gives, and its CPU seconds."""
    start = time.process_time()
    return function(*arguments), time.process_time() - start


def compare(text: pa.LargeStringArray, words: str) -> Iterator[Result]:
    """Both sides, filter by filter, after one document to load what they load once."""
    from datatrove.pipeline import filters

    for name in NAMES:
        step = getattr(quality, name)(words=words)
        block = getattr(filters, name + ("QualityFilter" if name != "GopherRepetition" else "Filter"))()
        ours(step, text.slice(0, 1))
        theirs(block, text.slice(0, 1))
        mine, my_seconds = timed(ours, step, text)
        other, their_seconds = timed(theirs, block, text)
        yield Result(name, mine, other, my_seconds, their_seconds)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison and print it; 1 where a filter agrees on less than 99.5% of the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("FACTORY_DATA", ROOT / ".." / "shared" / "data")) / "webtext"
    parser.add_argument("--data", type=Path, default=data, help="Parquet, JSON lines, or a folder of Parquet files")
    parser.add_argument("--field", default="text", help="the column to read")
    parser.add_argument("--limit", type=int, help="no more documents than this")
    parser.add_argument("--words", choices=("spacy", "unicode"), default="spacy", help="our word rule")
    options = parser.parse_args(arguments)
    if not options.data.exists():
        print(f"{options.data}: no such file or folder; name one with --data", file=sys.stderr)
        return 2
    text = read(options.data, options.field, options.limit)
    megabytes = sum(len(document.encode()) for document in text.to_pylist()) / 1e6
    print(f"{len(text):,} documents, {megabytes:.1f} MB, words={options.words}\n")
    print(f"{'filter':18}{'agree':>9}{'ours MB/s':>11}{'theirs MB/s':>13}{'times':>8}   disagreements: ours / theirs")
    worst = 1.0
    for result in compare(text, options.words):
        worst = min(worst, result.agreement)
        causes = [f"{a} / {b}: {count}" for (a, b), count in result.disagreements.most_common()] or ["none"]
        mine, other = megabytes / result.our_seconds, megabytes / result.their_seconds
        row = f"{result.name:18}{result.agreement:>9.3%}{mine:>11.1f}{other:>13.2f}{mine / other:>8.0f}   "
        print(row + f"\n{'':59}   ".join(causes))
    return int(worst < 0.995)


if __name__ == "__main__":
    sys.exit(main())
