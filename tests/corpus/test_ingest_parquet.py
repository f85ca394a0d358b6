from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.corpus import ingest
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Failure, Source

CONTEXT = Context()


def collect(step: Source, target: int = 1 << 28) -> tuple[pa.Table, list[Failure]]:
    schema, batches, failures = step.start(CONTEXT), [], []
    for split in step.splits(CONTEXT, target):
        for got in step.read(split):
            if isinstance(got, Failure):
                failures.append(got)
            else:
                assert isinstance(got, pa.RecordBatch) and got.schema == schema and got.num_rows
                assert got.nbytes < 12 << 20 or got.num_rows == 1
                got.validate(full=True)
                batches.append(got)
    return pa.Table.from_batches(batches, schema), failures


def invalid(values: list[bytes]) -> pa.Array:
    """Bytes that say they are strings."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def test_all_columns_widened(tmp_path: Path) -> None:
    glob = write(
        tmp_path / "a.parquet",
        {
            "text": ["a\0", "", "é"],
            "score": [1, None, 3],
            "kind": pa.array(["x", None, "x"]).dictionary_encode(),
            "html": [b"\xff", b"", None],
            "nothing": pa.nulls(3),
            "turns": [[{"role": "user", "content": "hi"}], [], None],
        },
    )
    table, failures = collect(ingest.Parquet(glob=glob))
    assert not failures
    assert table.schema.names == ["id", "text", "score", "kind", "html", "nothing", "turns"]
    assert [str(t) for t in table.schema.types[:6]] == [
        "large_string",
        "large_string",
        "int64",
        "large_string",
        "large_binary",
        "large_string",
    ]
    assert table["id"].to_pylist() == [f"a.parquet#{i}" for i in range(3)]
    assert table["text"].to_pylist() == ["a\0", "", "é"] and table["kind"].to_pylist() == ["x", None, "x"]
    assert table["turns"].to_pylist()[0] == [{"role": "user", "content": "hi"}]


def test_row_groups_are_shared_out_and_ids_are_row_numbers(tmp_path: Path) -> None:
    texts = [f"{i} " + "x" * 500 for i in range(1000)]
    glob = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=100, use_dictionary=False)
    step = ingest.Parquet(glob=glob)
    whole, _ = collect(step)
    assert len(step.splits(CONTEXT, 120_000)) == 5 and not any(map(step.whole, step.splits(CONTEXT, 120_000)))
    table, failures = collect(step, 120_000)
    assert not failures and table.equals(whole)
    assert table["id"][777].as_py() == "a.parquet#777" and table["text"].to_pylist() == texts
    assert all(map(step.whole, step.splits(CONTEXT, 20_000)))
    assert collect(step, 20_000)[0].equals(whole)


def test_names_columns_and_drift(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"content": ["a"], "key": [7], "n": pa.array([1], pa.int32()), "rest": ["r"]})
    write(tmp_path / "2.parquet", {"content": ["b"], "key": pa.array([None], pa.int64()), "n": pa.array([2.0])})
    step = ingest.Parquet(glob=f"{tmp_path}/*.parquet", text="content", id="key", columns=("n", "rest"))
    table, failures = collect(step)
    assert not failures
    assert table.to_pylist() == [
        {"id": "7", "text": "a", "n": 1, "rest": "r"},
        {"id": "2.parquet#0", "text": "b", "n": 2, "rest": None},
    ]
    write(tmp_path / "3.parquet", {"content": ["c"], "key": [1], "n": ["many"]})
    with pytest.raises(FactoryError, match=r"column 'n' of .*3.parquet is string, not int32"):
        collect(step)


def test_bad_rows_fail_and_the_others_are_read(tmp_path: Path) -> None:
    glob = write(
        tmp_path / "a.parquet",
        {
            "text": invalid([b"ok", b"\xffbad", b"fine", b"", b"\xed\xa0\x80", b"end"]),
            "url": invalid([b"u", b"u", b"\xfe", b"u", b"u", b"u"]),
        },
    )
    table, failures = collect(ingest.Parquet(glob=glob))
    assert table["text"].to_pylist() == ["ok", "", "end"]
    assert [(f.place, f.id) for f in failures] == [(f"a.parquet:{i}", f"a.parquet#{i}") for i in (1, 2, 4)]
    assert failures[0].data == b"\xffbad" and "'url'" in failures[1].error
    glob = write(tmp_path / "b.parquet", {"text": ["x", None, "y"]})
    table, failures = collect(ingest.Parquet(glob=glob))
    assert table["text"].to_pylist() == ["x", "y"] and "null" in failures[0].error


def test_binary_text_is_checked(tmp_path: Path) -> None:
    glob = write(tmp_path / "a.parquet", {"text": [b"ok", b"\xff"]})
    table, failures = collect(ingest.Parquet(glob=glob))
    assert table["text"].to_pylist() == ["ok"] and len(failures) == 1


def test_a_damaged_row_group_is_one_failure(tmp_path: Path) -> None:
    texts = [f"{i} " + str(np.random.default_rng(i).random(50)) for i in range(400)]
    glob = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=100, use_dictionary=False)
    chunk = pq.ParquetFile(glob).metadata.row_group(2).column(0)
    data = bytearray(Path(glob).read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    Path(glob).write_bytes(data)
    table, failures = collect(ingest.Parquet(glob=glob))
    assert len(failures) == 1 and failures[0].place.startswith("a.parquet:2")
    got = table["text"].to_pylist()
    assert [text for text in got if not text.startswith("2")] == [t for t in texts if not t.startswith("2")]
    assert got[-100:] == texts[300:]


def test_empty_and_one_row(tmp_path: Path) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "a.parquet")
    table, failures = collect(ingest.Parquet(glob=str(tmp_path / "a.parquet")))
    assert len(table) == 0 and table.schema.names == ["id", "text"] and not failures
    assert collect(ingest.Parquet(glob=write(tmp_path / "b.parquet", {"text": ["x"]})))[0].num_rows == 1


def test_fifty_megabytes_in_one_document(tmp_path: Path) -> None:
    text = "a\0é\n" * 10_000_000
    glob = write(tmp_path / "a.parquet", {"text": ["before", text, "after"]})
    table, failures = collect(ingest.Parquet(glob=glob), 1 << 20)
    assert not failures and table["text"].to_pylist() == ["before", text, "after"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("not parquet at all")
    with pytest.raises(FactoryError, match=r"not a Parquet file: .*a\.parquet"):
        ingest.Parquet(glob=str(tmp_path / "a.parquet")).splits(CONTEXT, 1)
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(FactoryError, match=r"not a Parquet file: .*b\.parquet"):
        ingest.Parquet(glob=str(tmp_path / "b.parquet")).splits(CONTEXT, 1)
    glob = write(tmp_path / "c.parquet", {"content": ["x"], "text": ["y"]})
    with pytest.raises(FactoryError, match=r"text: no column 'contant' .*did you mean 'content'"):
        ingest.Parquet(glob=glob, text="contant").start(CONTEXT)
    with pytest.raises(FactoryError, match=r"columns: no column 'x'"):
        ingest.Parquet(glob=glob, columns=("x",)).start(CONTEXT)
    with pytest.raises(FactoryError, match="besides"):
        ingest.Parquet(glob=glob, text="content").start(CONTEXT)
    with pytest.raises(FactoryError, match="no file matches"):
        ingest.Parquet(glob=f"{tmp_path}/**/*.none").start(CONTEXT)


def test_html_pages(data: Path) -> None:
    path = data / "html_pages" / "pages.parquet"
    table, failures = collect(ingest.Parquet(glob=str(path)), 1 << 24)
    expected = pq.read_table(path)
    assert not failures and table["html"].to_pylist() == expected["html"].to_pylist()
    assert table["must"].to_pylist() == expected["must"].to_pylist()


def test_webtext_through_any_file_system(data: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("00000.parquet", "00001.parquet"):
        memory.pipe(f"/ingest/web/{name}", (data / "webtext" / name).read_bytes())
    remote, failures = collect(ingest.Parquet(glob="memory://ingest/web/*.parquet"))
    local, _ = collect(ingest.Parquet(glob=str(data / "webtext" / "0000*.parquet")))
    memory.rm("/ingest", recursive=True)
    assert not failures and remote.equals(local) and len(local) == 9566
