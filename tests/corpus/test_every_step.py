"""Every step of the corpus on the inputs that break software: no rows, one row, empty texts, 50 MB in one document,
bytes that are not UTF-8, NUL bytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.corpus import tokens
from factory.engine import recipe, run, shard
from factory.engine.recipe import all_steps, make_step
from factory.engine.step import Context, Filter, Gather, Map, Mapped, Memo, Regroup, Source
from tests.engine.build import check_law

PROSE = "The factory reads a text that has some words, and it keeps the ones that are worth the reading. "
BIG = 50 << 20
HARD: dict[str, list[bytes]] = {
    "no rows": [],
    "one row": [PROSE.encode()],
    "empty texts": [b"", b"", PROSE.encode(), b" ", b"\n\n"],
    "50 MB in one document": [(PROSE * (BIG // len(PROSE))).encode()],
    "50 MB in one word": [b"a" * BIG],
    "50 MB of lines": [b"\n" * BIG],
    "not UTF-8": [
        b"\xff\xfe\x00",
        b"caf\xe9 au lait",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        PROSE.encode(),
    ],
    "NUL bytes": [b"\x00", b"a\x00b \x00\x00 c", PROSE.encode() + b"\x00"],
    "other scripts": [
        "统一码是一种字符编码标准。".encode(),
        "ภาษาไทยไม่มีช่องว่าง".encode(),
        "🙂 e\u0301 \u200d\ufeff".encode(),
    ],
}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens.train_bpe(iter([PROSE, "bytes"]), 300, folder)
    return str(folder)


OPTIONS: dict[str, dict[str, object]] = {
    "language.Keep": {"keep": []},
    "order.Sort": {"by": "number"},
    "order.Together": {"by": "text"},
}
FILES = ("ingest.Folder", "ingest.JsonLines", "ingest.Parquet", "ingest.Warc", "ingest.Wet")


def steps() -> list[str]:
    """All but the sources, and the bridge to another library's blocks, which test_datatrove.py runs on hard input."""
    bridge = {"datatrove.Block"}
    here = {name: step for name, step in all_steps().items() if step.__module__.startswith("factory.corpus.")}
    return sorted(name for name, step in here.items() if not issubclass(step, Source) and name not in bridge)


def batch_of(documents: list[bytes]) -> pa.RecordBatch:
    """Rows with these bytes as text, valid or not, in a slice whose offsets do not begin at zero."""
    binary = pa.array([b"before", *documents], pa.large_binary())
    offsets, data = binary.buffers()[1], binary.buffers()[2]
    text = pa.LargeStringArray.from_buffers(len(binary), offsets, data)
    ids = pa.array([f"d{n}" for n in range(len(binary))], pa.large_string())
    numbers = pa.array(range(len(binary)))
    columns = {"id": ids, "text": text, "html": binary, "url": ids, "content_type": ids, "number": numbers}
    return pa.record_batch(columns).slice(1)


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", steps())
def test_a_step_runs_on_hard_input(name, case, tokenizer):
    options = {"tokenizer": tokenizer} if name == "tokens.Pack" else OPTIONS.get(name, {})
    step = make_step(name, options, name)
    step.open(Context())
    rows = HARD[case]
    batch = batch_of(rows)
    if isinstance(step, Filter):
        memo = Memo(len(rows))
        assert len(step(batch, memo)) == len(rows)
        assert all(len(column) == len(rows) for column in step.measures(batch, memo).values())
    elif isinstance(step, Map):
        result = step(batch, Memo(len(rows)))
        out = result.batch if isinstance(result, Mapped) else result
        assert out.num_rows == len(rows)
        assert all(
            len(a) == len(rows) for a in (getattr(result, "reasons", None), getattr(result, "errors", None)) if a
        )
    elif isinstance(step, Gather):
        docs = np.arange(len(rows), dtype=np.uint64)
        assert step.emit(batch, Memo(len(rows)), docs)
    else:
        assert isinstance(step, Regroup)
        valid = batch_of([row.decode("utf-8", "replace").encode() for row in rows])
        prepared = step.prepare(valid, Memo(len(rows)))
        assert isinstance(prepared, pa.RecordBatch)
        made = list(step(iter([prepared])))
        assert sum(b.num_rows for b in made) >= (1 if rows else 0)
    step.close()


def jsonl(documents: list[bytes]) -> bytes:
    """JSON lines with these bytes as they are: where they are not UTF-8, neither is the line."""
    lines = []
    for number, document in enumerate(documents):
        text = json.dumps(document.decode("utf-8", "surrogateescape"), ensure_ascii=False)
        lines.append(b'{"text": ' + text.encode("utf-8", "surrogateescape") + b', "n": %d}\n' % number)
    return b"".join(lines)


def warc(documents: list[bytes], type_: bytes, wrap: bytes = b"%s") -> bytes:
    records = []
    for number, document in enumerate(documents):
        body = wrap % document
        head = b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Record-ID: <urn:uuid:%032d>\r\n" % (type_, number)
        head += b"WARC-Target-URI: http://example.org/%d\r\nWARC-Date: 2026-11-20T00:00:00Z\r\n" % number
        media = b"application/http; msgtype=response" if type_ == b"response" else b"text/plain"
        head += b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (media, len(body))
        records.append(gzip.compress(head + body + b"\r\n\r\n", 1))
    return b"".join(records)


def source_of(name: str, documents: list[bytes], folder: Path) -> dict[str, object] | None:
    """A file of this source's form with the documents, and the step's options."""
    if name == "ingest.JsonLines":
        (folder / "a.jsonl").write_bytes(jsonl(documents))
        return {"glob": str(folder / "a.jsonl")}
    if name == "ingest.Parquet":
        table = pa.table({"id": [str(n) for n in range(len(documents))], "text": pa.array(documents, pa.binary())})
        raw = table.column("text").combine_chunks()
        raw = raw.chunk(0) if isinstance(raw, pa.ChunkedArray) else raw
        text = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
        pq.write_table(table.set_column(1, "text", text), folder / "a.parquet")
        return {"glob": str(folder / "a.parquet")}
    if name == "ingest.Folder":
        for number, document in enumerate(documents):
            (folder / f"{number}.txt").write_bytes(document)
        return {"glob": str(folder / "*.txt")} if documents else None
    if name == "ingest.Wet":
        (folder / "a.warc.wet.gz").write_bytes(warc(documents, b"conversion"))
        return {"glob": str(folder / "a.warc.wet.gz")}
    if name == "ingest.Warc":
        page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n%s"
        (folder / "a.warc.gz").write_bytes(warc(documents, b"response", page))
        return {"glob": str(folder / "a.warc.gz")}
    return None


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", FILES)
def test_a_source_reads_hard_input_and_loses_nothing(name, case, tmp_path):
    documents = HARD[case]
    options = source_of(name, documents, tmp_path)
    if options is None:
        return  # a folder without files is an empty glob: an error, tested with the command line
    built = run.run(
        recipe.build({"name": "hard", "version": "1", "step": [{"use": name, **options}]}),
        run.Options(root=str(tmp_path / "runs"), quiet=True),
    )
    check_law(built)
    assert built.counts["rows_in"] == len(documents)
    bad = [d for d in documents if not _valid(d)]
    if name != "ingest.Warc":  # a page may be in any encoding: its bytes are kept as they are
        assert built.counts["rows_failed"] == len(bad)
        texts = [row for url in built.urls() for row in shard.read_column(url, "text", pa.large_string()).to_pylist()]
        assert sorted(t.encode() for t in texts) == sorted(d for d in documents if _valid(d))


def _valid(document: bytes) -> bool:
    try:
        document.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("case", [c for c in HARD if c != "not UTF-8"])
def test_a_dataset_of_hard_rows_is_read_back_as_it_is(case, tmp_path):
    options = source_of("ingest.JsonLines", HARD[case], tmp_path)
    root = run.Options(root=str(tmp_path / "runs"), quiet=True)
    first = {"name": "first", "version": "1", "step": [{"use": "ingest.JsonLines", **(options or {})}]}
    built = run.run(recipe.build(first), root)
    again = {"name": "again", "version": "1", "step": [{"use": "ingest.Dataset", "name": "first@1"}]}
    read = run.run(recipe.build(again), root)
    assert [file["rows"] for file in read.rows] == [file["rows"] for file in built.rows]
    for one, two in zip(built.urls(), read.urls(), strict=True):
        assert pq.read_table(one).equals(pq.read_table(two))


def test_every_source_is_tested_on_hard_input():
    sources = {name for name, step in all_steps().items() if issubclass(step, Source)}
    # Dataset has a test of its own above; the packages are what is installed; problems are made, not read.
    assert sources == {*FILES, "ingest.Dataset", "ingest.PythonPackages", "problems.Problems"}
