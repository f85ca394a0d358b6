from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.corpus import ingest
from factory.corpus.ingest import files, jsonl
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Failure, Source

CONTEXT = Context()


def collect(step: Source, target: int = 1 << 28) -> tuple[pa.Table, list[Failure]]:
    """All rows and failures; every batch has the schema of `start()` and holds valid UTF-8."""
    schema, batches, failures = step.start(CONTEXT), [], []
    for split in step.splits(CONTEXT, target):
        for got in step.read(split):
            if isinstance(got, Failure):
                failures.append(got)
            else:
                assert isinstance(got, pa.RecordBatch) and got.schema == schema and got.num_rows
                got.validate(full=True)
                batches.append(got)
    return pa.Table.from_batches(batches, schema), failures


def write(path: Path, *lines: bytes | dict[str, Any]) -> str:
    path.write_bytes(b"".join(x if isinstance(x, bytes) else json.dumps(x).encode() + b"\n" for x in lines))
    return str(path)


def test_columns_types_and_metadata(tmp_path: Path) -> None:
    glob = write(
        tmp_path / "a.jsonl",
        {"text": "one", "id": "x", "url": "http://a", "language_score": 0.5, "token_count": 3, "n": [1, {"a": None}]},
        {"text": "two", "id": 7, "token_count": "12", "language_score": 1, "url": None, "other": "é\n"},
        {"text": 5, "token_count": "many", "url": {"a": 1}},
    )
    table, failures = collect(ingest.JsonLines(glob=glob))
    assert not failures
    assert table.schema.names == ["id", "text", "url", "language_score", "token_count", "metadata"]
    assert table.schema.field("token_count").type == pa.int64()
    rows = table.to_pylist()
    third = len((tmp_path / "a.jsonl").read_bytes().rsplit(b"\n", 2)[0]) + 1
    assert [row["id"] for row in rows] == ["x", "7", f"a.jsonl#{third}"]
    assert [row["text"] for row in rows] == ["one", "two", "5"]
    assert [row["url"] for row in rows] == ["http://a", None, '{"a": 1}']
    assert [row["token_count"] for row in rows] == [3, 12, None]
    assert [row["language_score"] for row in rows] == [0.5, 1.0, None]
    metadata = [row["metadata"] and json.loads(row["metadata"]) for row in rows]
    assert metadata == [{"n": [1, {"a": None}]}, {"other": "é\n"}, {"token_count": "many"}]


BAD = [
    b'{"text": "a"',
    b'{"text": "a"} x\n',
    b'{"text": "a" "b": 1}\n',
    b'{"text": "a",}\n',
    b"[1, 2]\n",
    b'"just text"\n',
    b'{"text": "\xff"}\n',
    b'{"text": "\xed\xa0\x80"}\n',
    b'{"text": "\\ud800"}\n',
    b'{"text": "a", "b": "\\udc00x"}\n',
    b'{"text": "\\x"}\n',
    b'{"text": "a\tb"}\n',
    b'{"text": null}\n',
    b'{"text": "a", "text": null}\n',
    b'{"other": "no text"}\n',
    b'{"text": "a", "n": 01}\n',
    b'{"text": "a", "n": [1 2]}\n',
    b'{"text": "a", "n": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
    b'{"text": "a", "n": tru}\n',
    b"\x00\x00\x00\n",
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_is_one_failure_and_its_neighbours_are_read(tmp_path: Path, bad: bytes) -> None:
    before = b'{"text": "before"}\n'
    bad = bad if bad.endswith(b"\n") else bad + b"\n"
    glob = write(tmp_path / "a.jsonl", before, bad, b'{"text": "after"}\n')
    table, failures = collect(ingest.JsonLines(glob=glob))
    assert table["text"].to_pylist() == ["before", "after"]
    assert [f.place for f in failures] == [f"a.jsonl:{len(before)}"]
    assert failures[0].data.rstrip(b"\n") == bad.rstrip(b"\n") and failures[0].error
    assert failures[0].id == f"a.jsonl#{len(before)}"


ODD = [
    (b'{"text": "nul \\u0000."}', "nul \0."),
    (b'{"text": "\\ud83d\\ude00 \\u00e9\\n\\"\\\\\\/\\b\\f\\r\\t"}', '😀 é\n"\\/\b\f\r\t'),
    (b'{"text": "first", "text": "last"}', "last"),
    (b'{"te\\u0078t": "escaped key"}', "escaped key"),
    (b'  {"text" : "space"\t}  \r', "space"),
    (b'{"text": "", "x": NaN}', ""),
    (b'{"x": {"text": "inner"}, "text": "outer"}', "outer"),
    (b'{"a": 1, "a": 2, "text": "t"}', "t"),
    (b'{"text": "d", "n": -0.5e+10, "m": [], "o": {}, "p": [true, false, null, {"q": [[]]}]}', "d"),
]


def test_odd_lines_are_read(tmp_path: Path) -> None:
    glob = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf", *(line + b"\n\n" for line, _ in ODD), b'{"text": "end"}')
    table, failures = collect(ingest.JsonLines(glob=glob))
    assert not failures
    assert table["text"].to_pylist() == [text for _, text in ODD] + ["end"]
    metadata = table["metadata"].to_pylist()
    assert json.loads(metadata[7]) == {"a": 2} and json.loads(metadata[5]) == {"x": None}
    assert json.loads(metadata[8])["p"] == [True, False, None, {"q": [[]]}]


VALUES = ["1.50", "1e400", "-1E400", '{"a": [1.0,  2e2]}', "[]", "true", '"\\u00e9"', "12345678901234567", "-0"]
VALUES += ["1" + "0" * 400, "9007199254740993"]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_spelt_alike_whatever_else_the_line_holds(tmp_path: Path, value: str) -> None:
    """A doubled key sends a line to the general parser, whose rows are those of the compiled one."""
    members = ", ".join(f'"{key}": {value}' for key in ("id", "url", "score", "count", "other"))
    line = f'{{"text": "t", {members}, "twice" : 1.0'
    glob = write(tmp_path / "a.jsonl", f'{line}}}\n{line[:-3]}2, "twice" : 1.0}}\n'.encode())
    table, failures = collect(ingest.JsonLines(glob=glob, columns=("score:double", "count:int64")))
    first, second = table.to_pylist()
    assert not failures and first == second
    assert first["id"] == first["url"] == (value if value[0] != '"' else "é")
    metadata = json.loads(first["metadata"], parse_constant=lambda word: pytest.fail(word))
    assert f'"other": {value}' in first["metadata"] and '"twice" : 1.0' in first["metadata"]
    for name in ("score", "count"):  # a column, or else in `metadata`
        assert (first[name] is None) == (name in metadata)


def test_numbers_are_finite(tmp_path: Path) -> None:
    rows = ['1e400, "x": 1', '"nan"', '"-Infinity"', 'NaN, "x": "a \\"NaN\\" Infinity"', '-Infinity, "x": [NaN, 1e400]']
    glob = write(tmp_path / "a.jsonl", *(f'{{"text": "t", "score": {row}}}\n'.encode() for row in rows))
    table, failures = collect(ingest.JsonLines(glob=glob, columns=("score:double",)))
    assert not failures and table["score"].null_count == 5
    assert table["metadata"].to_pylist() == [
        '{"score": 1e400,"x": 1}',
        '{"score": "nan"}',
        '{"score": "-Infinity"}',
        '{"x": "a \\"NaN\\" Infinity"}',
        '{"x": [null, 1e400]}',
    ]


numbers = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
objects = st.dictionaries(st.text(max_size=4) | st.sampled_from(["text", "url", "token_count", "id"]), values)


@given(st.lists(objects, max_size=8), st.booleans())
@settings(deadline=None, max_examples=150)
def test_every_object_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], plain: bool) -> None:
    path = tmp_path_factory.mktemp("j") / "a.jsonl"
    path.write_bytes(b"".join(json.dumps(r, ensure_ascii=not plain).encode() + b"\n" for r in rows))
    columns = ("url", "token_count")
    table, failures = collect(ingest.JsonLines(glob=str(path), columns=columns))
    if "text" not in table.schema.names:  # no row of the sample has one
        assert not any("text" in row for row in rows)
        rows_with = rows
    else:
        rows_with = [row for row in rows if row.get("text") is not None]
    assert len(table) == len(rows_with) and len(failures) == len(rows) - len(rows_with)
    for got, row in zip(table.to_pylist(), rows_with, strict=True):
        extra = json.loads(got["metadata"]) if got["metadata"] else {}
        for key, value in row.items():
            if value is None and key in table.schema.names:
                continue
            if key != "token_count" and key in table.schema.names:
                assert got[key] == value or json.loads(got[key]) == value
            elif key == "token_count" and got[key] is not None:
                assert got[key] == (value if isinstance(value, int) else float(value))
            else:
                assert extra[key] == value


def oracle(line: bytes) -> tuple[Any, dict[str, Any]] | None:
    """A line by the standard library: its text and what else it holds; None where it is to fail."""
    try:
        found = json.loads(line.decode(), parse_constant=lambda _: None)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("text") is None:
        return None
    return found.pop("text"), found


@pytest.mark.parametrize("seed", range(4))
def test_spoilt_lines_as_the_standard_library_reads_them(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    seeds = [line for line, _ in ODD[:5]] + [line for line, _ in ODD[6:]] + BAD
    seeds += [
        json.dumps({"text": "é€😀", "n": [1.5e-3, -0, {"a": [True, None, "\\u0041"]}]}, ensure_ascii=a).encode()
        for a in (True, False)
    ]
    lines = [b'{"text": "first"}']
    for _ in range(4000):
        spoilt = bytearray(chance.choice(seeds).rstrip(b"\n"))
        for _ in range(chance.choice((0, 1, 1, 2, 4))):
            at = chance.randrange(len(spoilt)) if spoilt else 0
            if chance.random() < 0.5:
                spoilt[at : at + 1] = bytes([chance.choice(b'{}[]",:\\u0d8ntfe-+.1 \t\x00\x80\xc3')])
            elif chance.random() < 0.5:
                del spoilt[at : at + chance.randrange(1, 4)]
            else:
                spoilt[at:at] = spoilt[chance.randrange(len(spoilt) or 1) :][: chance.randrange(1, 9)]
        lines.append(bytes(spoilt))
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    table, failures = collect(ingest.JsonLines(glob=str(path)), 20_000)
    place, rows, bad = 0, {}, set()
    for line in lines:
        if line.strip(b" \t\r"):
            expected = oracle(line)
            if expected is None:
                bad.add(f"a.jsonl#{place}")
            else:
                rows[f"a.jsonl#{place}"] = expected
        place += len(line) + 1
    assert {failure.id for failure in failures} == bad and len(failures) == len(bad)
    got = {row["id"]: row for row in table.to_pylist()}
    assert set(got) == set(rows) and len(rows) > 200 and len(bad) > 200
    for id_, (text, rest) in rows.items():
        assert got[id_]["text"] == text or json.loads(got[id_]["text"], parse_constant=lambda _: None) == text
        assert json.loads(got[id_]["metadata"] or "{}") == rest


def test_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    tools = [{"role": "user", "content": "hi", "name": "Bo"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    glob = write(
        tmp_path / "a.jsonl",
        {"messages": turns, "prompt": "plain"},
        {"messages": tools},
        {"messages": "none"},
        {"messages": parts},
        {},
    )
    table, failures = collect(ingest.JsonLines(glob=glob))
    assert table.schema.names == ["id", "messages", "prompt", "metadata"]
    assert table.schema.field("messages").type.value_type.field("role").type == pa.string()
    rows = table.to_pylist()
    assert rows[0]["messages"] == turns and rows[0]["prompt"] == "plain" and rows[0]["metadata"] is None
    assert rows[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert json.loads(rows[1]["metadata"]) == {"messages": tools}
    assert json.loads(rows[2]["messages"][0]["content"]) == parts[0]["content"]
    assert rows[3]["messages"] is None
    assert len(failures) == 1 and "not a list of messages" in failures[0].error


@pytest.mark.parametrize("target", [1, 7, 100, 1 << 20])
def test_a_split_owns_the_lines_that_start_in_it(tmp_path: Path, target: int) -> None:
    lines = [b'{"text": "%d %s"}\n' % (i, b"x" * (i * 37 % 200)) for i in range(60)]
    lines[20] = b"\n"
    glob = write(tmp_path / "a.jsonl", *lines[:-1], lines[-1].rstrip())
    step = ingest.JsonLines(glob=glob)
    table, failures = collect(step, target)
    assert not failures
    assert table["text"].to_pylist() == [json.loads(line)["text"] for line in lines if line.strip()]
    assert len(set(table["id"].to_pylist())) == 59
    assert len(step.splits(CONTEXT, target)) > 1 or target > 1000


def test_blocks_much_smaller_than_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b'{"text": "%d %s"}\n' % (i, b"y" * (i * 37 % 200)) for i in range(60)]
    glob = write(tmp_path / "a.jsonl", *lines)
    whole = collect(ingest.JsonLines(glob=glob))[0]
    for size in (1, 5, 64, 1000):
        monkeypatch.setattr(jsonl, "BATCH", size)
        for target in (50, 1 << 20):
            assert collect(ingest.JsonLines(glob=glob), target)[0].equals(whole)


def test_a_line_over_the_limit_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LIMIT", 1000)
    monkeypatch.setattr(jsonl, "BATCH", 100)
    glob = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b" * 2000}, {"text": "c"})
    table, failures = collect(ingest.JsonLines(glob=glob))
    assert table["text"].to_pylist() == ["a", "c"]
    assert [f.place for f in failures] == ["a.jsonl:14"] and "1000 bytes" in failures[0].error


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed(tmp_path: Path, ending: str) -> None:
    lines = [json.dumps({"text": f"{i} " + "abc" * (i % 50), "n": i}).encode() + b"\n" for i in range(5000)]
    pack = gzip.compress if ending == ".gz" else (lambda raw: pa.Codec("zstd").compress(raw, asbytes=True))
    packed = pack(b"".join(lines[:2000])) + pack(b"".join(lines[2000:]))
    glob = write(tmp_path / f"a.jsonl{ending}", packed)
    step = ingest.JsonLines(glob=glob)
    table, failures = collect(step, 1000)
    assert not failures and len(table) == 5000
    assert table["id"][1].as_py() == f"a.jsonl{ending}#{len(lines[0])}"
    (split,) = step.splits(CONTEXT, 1000)
    assert step.whole(split) and not step.whole(step.splits(CONTEXT, 1 << 28)[0])

    # A file that was cut: all whole lines before the cut, and one failure with its place.
    write(tmp_path / f"a.jsonl{ending}", packed[: len(packed) * 3 // 4])
    cut, failures = collect(step)
    assert 1000 < len(cut) < 5000 and cut.equals(table.slice(0, len(cut)))
    assert len(failures) == 1 and "cut or damaged" in failures[0].error
    assert failures[0].place == f"a.jsonl{ending}:{sum(map(len, lines[: len(cut)]))}"


def test_zero_bytes_after_the_last_gzip_member(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}')
    for size in (1, 512, 600_000):
        table, failures = collect(ingest.JsonLines(glob=write(tmp_path / "a.jsonl.gz", packed + bytes(size))))
        assert not failures and table["text"].to_pylist() == ["a", "b"]
    for more in (b"\0x", b"\0" + packed, b"x", bytes(600_000) + b"x", b"\x1f\x8b"):
        table, failures = collect(ingest.JsonLines(glob=write(tmp_path / "a.jsonl.gz", packed + more)))
        assert [f.place for f in failures] == ["a.jsonl.gz:14"] and table["text"].to_pylist() == ["a"]


def test_every_byte_before_a_damaged_place(tmp_path: Path) -> None:
    body = random.Random(1).randbytes(300_000).hex().encode()
    packed = gzip.compress(body[:1000]) + gzip.compress(body[1000:])
    path = tmp_path / "a.gz"
    for cut, least in ((len(packed) - 1, len(body)), (len(packed) - 8, len(body)), (len(packed) // 2, len(body) // 3)):
        for data in (packed[:cut], packed[:cut] + b"\xff" * 9):
            path.write_bytes(data)
            out = bytearray()
            with pytest.raises(files.CutError):
                for block in files.blocks(str(path), 1000):
                    assert len(block) == 1000 or len(out) + len(block) >= least
                    out += block
            assert len(out) >= least and (out == body or data[-1] == 0xFF or body.startswith(out))


def test_fifty_megabytes_in_one_document(tmp_path: Path) -> None:
    text = "a\nNUL\0é" * 6_000_000
    glob = write(tmp_path / "a.jsonl", {"text": "before"}, {"text": text}, {"text": "after"})
    table, failures = collect(ingest.JsonLines(glob=glob), 1 << 24)
    assert not failures and table["text"].to_pylist() == ["before", text, "after"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_empty_files(tmp_path: Path, content: bytes) -> None:
    table, failures = collect(ingest.JsonLines(glob=write(tmp_path / "a.jsonl", content)))
    assert table.schema.names == ["id", "text", "metadata"] and not len(table) and not failures


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match=r"no such file: .*none.jsonl"):
        ingest.JsonLines(glob=str(tmp_path / "none.jsonl")).splits(CONTEXT, 1)
    with pytest.raises(FactoryError, match=r"no file matches .*\*.jsonl"):
        ingest.JsonLines(glob=str(tmp_path / "*.jsonl")).splits(CONTEXT, 1)
    with pytest.raises(FactoryError, match="is a folder"):
        ingest.JsonLines(glob=str(tmp_path)).splits(CONTEXT, 1)
    glob = write(tmp_path / "a.jsonl", {"content": "x"})
    with pytest.raises(FactoryError, match="did you mean 'content'"):
        ingest.JsonLines(glob=glob, text="contents").start(CONTEXT)
    with pytest.raises(FactoryError, match=r"no such type.*double"):
        ingest.JsonLines(glob=glob, columns=("score:doubel",)).start(CONTEXT)
    assert collect(ingest.JsonLines(glob=glob, text="content"))[0]["text"].to_pylist() == ["x"]


def test_typed_columns_by_name(tmp_path: Path) -> None:
    glob = write(tmp_path / "a.jsonl", {"text": "a", "score": 1.5, "label": 3, "kind": "k"})
    table, _ = collect(ingest.JsonLines(glob=glob, columns=("score:double", "label:int64", "kind")))
    assert table.select(["score", "label", "kind"]).to_pylist() == [{"score": 1.5, "label": 3, "kind": "k"}]
    assert table["metadata"].null_count == 1


def test_webtext(data: Path) -> None:
    table, failures = collect(ingest.JsonLines(glob=str(data / "webtext" / "00000.jsonl.zst")))
    expected = pq.read_table(data / "webtext" / "00000.parquet")
    assert not failures
    for name in ("id", "text", "url"):
        assert table[name].to_pylist() == expected[name].to_pylist()


def test_gsm8k_beside_the_standard_library(data: Path) -> None:
    (path,) = data.glob("gsm8k/**/train.jsonl")
    table, failures = collect(ingest.JsonLines(glob=str(path), text="question"), 100_000)
    expected = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert not failures and table["text"].to_pylist() == [row.pop("question") for row in expected]
    assert [json.loads(row) for row in table["metadata"].to_pylist()] == expected
