from __future__ import annotations

import dataclasses
import gzip
import random
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from factory.corpus import ingest
from factory.corpus.ingest import http
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Failure, Seam, Source, Split

CONTEXT = Context()
PAGE = b"<html><body><p>Hello</p></body></html>"


def read(step: Source, split: Split) -> tuple[list[dict[str, Any]], list[Failure], Seam]:
    rows, failures, seams = [], [], []
    for got in step.read(split):
        if isinstance(got, Failure):
            failures.append(got)
        elif isinstance(got, Seam):
            seams.append(got)
        else:
            assert got.schema == step.start(CONTEXT)
            got.validate(full=True)
            rows += got.to_pylist()
    assert len(seams) == 1
    return rows, failures, seams[0]


def collect(step: Source, target: int = 1 << 40) -> tuple[list[dict[str, Any]], list[Failure], int]:
    """All splits, each redone whose predecessor ended elsewhere than where it began; and how many were redone."""
    rows, failures, redone = [], [], 0
    last: dict[str, int] = {}
    for split in step.splits(CONTEXT, target):
        found, failed, seam = read(step, split)
        if split.path in last and last[split.path] != seam.first:
            redone += 1
            begin = last[split.path]
            found, failed, seam = read(step, dataclasses.replace(split, start=begin, exact=True))
            assert seam.first == begin
        last[split.path] = seam.last
        rows += found
        failures += failed
    return rows, failures, redone


def record(block: bytes, kind: str = "response", n: int = 0, **fields: str) -> bytes:
    head = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{n}>",
        "WARC-Target-URI": f"http://example.com/{n}",
        "WARC-Date": "2026-11-20T00:00:00Z",
        "Content-Type": "application/http; msgtype=response",
        "Content-Length": str(len(block)),
    } | {name.replace("_", "-"): value for name, value in fields.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return b"WARC/1.0\r\n" + lines.encode() + b"\r\n" + block + b"\r\n\r\n"


def response(body: bytes, *lines: str, kind: str = "text/html; charset=utf-8") -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {kind}", *lines])
    return head.encode() + b"\r\n\r\n" + body


def warcio_records(path: Path, kind: str) -> list[tuple[str, str, bytes]]:
    from warcio.archiveiterator import ArchiveIterator

    found = []
    with path.open("rb") as file:
        for r in ArchiveIterator(file):
            if r.rec_type == kind:
                said = r.http_headers.get_header("content-type") if r.http_headers else ""
                if kind == "conversion" or said.partition(";")[0].lower() in ingest.Warc(glob="").types:
                    id_, url = (r.rec_headers.get_header(f"WARC-{name}") for name in ("Record-ID", "Target-URI"))
                    found.append((id_, url, r.content_stream().read()))
    return found


WELL = [
    "dolma/tests/data/warc/sample-0000.warc.gz",
    "dolma/tests/data/warc/sample-0001.warc.gz",
    "warcio/test/data/example.warc",
    "warcio/test/data/example.warc.gz",
    "warcio/test/data/example-digest.warc",
    "warcio/test/data/example-iana.org-chunked.warc",
    "warcio/test/data/example-resource.warc.gz",
    "warcio/test/data/example-space-in-target-uri.warc.gz",
    "warcio/test/data/example-wget-bad-target-uri.warc.gz",
    "warcio/test/data/post-test.warc.gz",
    "whirlwind-python/whirlwind.warc",
    "whirlwind-python/whirlwind.warc.gz",
]


@pytest.mark.parametrize("name", WELL)
def test_real_files_beside_warcio(data: Path, name: str) -> None:
    path = data / "warc" / name
    rows, failures, _ = collect(ingest.Warc(glob=str(path)))
    assert not failures
    assert [(row["id"], row["url"], row["html"]) for row in rows] == warcio_records(path, "response")


@pytest.mark.parametrize("name", ["whirlwind.warc.wet", "whirlwind.warc.wet.gz"])
def test_real_wet(data: Path, name: str) -> None:
    path = data / "warc" / "whirlwind-python" / name
    rows, failures, _ = collect(ingest.Wet(glob=str(path)))
    assert not failures
    assert [(row["id"], row["url"], row["text"].encode()) for row in rows] == warcio_records(path, "conversion")
    assert rows[0]["languages"] == "spa" and rows[0]["date"] == "2024-05-18T01:58:10Z"


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("example-trunc.warc", ["1197"]),  # the Content-Length is short of the body
        ("example-wrong-chunks.warc.gz", ["0", "516"]),  # a record torn over two gzip members
        ("example-bad.warc.gz.bad", []),  # one member that holds all records: no fault for this reader
        ("example-bad-non-chunked.warc.gz", []),
    ],
)
def test_real_broken_files(data: Path, name: str, places: list[str]) -> None:
    path = data / "warc" / "warcio" / "test" / "data" / name
    rows, failures, _ = collect(ingest.Warc(glob=str(path)))
    assert [failure.place for failure in failures] == [f"{name}:{place}" for place in places]
    raw = path.read_bytes() if name.endswith(".warc") else gzip.decompress(path.read_bytes())
    assert len(rows) + len(failures) >= raw.count(b"WARC-Type: response\r\n")
    assert all(b"</html>" in row["html"] for row in rows)


@pytest.mark.parametrize("name", WELL[:4])
def test_cut_anywhere_gives_the_same_records(data: Path, name: str) -> None:
    path = data / "warc" / name
    whole, _, _ = collect(ingest.Warc(glob=str(path)))
    for pieces in (2, 3, 37, 211):
        target = path.stat().st_size * (4 if name.endswith(".gz") else 1) // pieces
        step = ingest.Warc(glob=str(path))
        assert len(step.splits(CONTEXT, target)) >= pieces - 1
        rows, failures, _ = collect(step, target)
        assert not failures and rows == whole


@pytest.fixture(params=["plain", "members", "one member"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write(path: Path, records: list[bytes], form: str) -> str:
    if form == "plain":
        data = b"".join(records)
    elif form == "members":
        data = b"".join(gzip.compress(r) for r in records)
    else:
        data = gzip.compress(b"".join(records))
    path = path / ("a.warc" if form == "plain" else "a.warc.gz")
    path.write_bytes(data)
    return str(path)


def test_records_of_all_kinds(tmp_path: Path, form: str) -> None:
    chunked = b"5;x=y\r\n<html\r\n1\r\n>\r\n0\r\n\r\n"
    glob = write(
        tmp_path,
        [
            record(b"software: x\r\n", "warcinfo", 1),
            record(response(PAGE), n=2),
            record(b"GET / HTTP/1.1\r\n\r\n", "request", 3),
            record(response(chunked, "Transfer-Encoding: chunked"), n=4),
            record(response(gzip.compress(PAGE), "Content-Encoding: gzip"), n=5),
            record(response(zlib.compress(PAGE), "Content-Encoding: deflate"), n=6),
            record(response(zlib.compress(PAGE)[2:-4], "Content-Encoding: deflate"), n=7),
            record(response(PAGE, "Content-Encoding: gzip", "Transfer-Encoding: chunked"), n=8),  # says so, is not
            record(response(b"\x89PNG", kind="image/png"), n=9),
            record(response(b"x" * 100_000, kind="image/png"), n=10),
            record(b"example.com 1.2.3.4", n=11, Content_Type="text/dns"),
            record(response(b"", kind="TEXT/HTML"), n=12),
            record(response(gzip.compress(PAGE)[:-12], "Content-Encoding: gzip"), n=13, WARC_Truncated="length"),
            record(response(b"a0\r\n<html", "Transfer-Encoding: chunked"), n=14, WARC_Truncated="length"),
        ],
        form,
    )
    rows, failures, _ = collect(ingest.Warc(glob=glob))
    assert not failures
    assert {row["id"]: row["html"] for row in rows} == {
        f"<urn:uuid:{n}>": body
        for n, body in [
            (2, PAGE),
            (4, b"<html>"),
            (5, PAGE),
            (6, PAGE),
            (7, PAGE),
            (8, PAGE),
            (12, b""),
            (13, zlib.decompressobj(31).decompress(gzip.compress(PAGE)[:-12])),
            (14, b"<html"),
        ]
    }
    assert rows[0]["charset"] == "utf-8" and rows[0]["content_type"] == "text/html; charset=utf-8"
    assert rows[0]["url"] == "http://example.com/2" and rows[-3]["charset"] is None


def broken(n: int) -> list[tuple[str, bytes]]:
    return [
        ("chunk", record(response(b"6\r\n<html>\r\nff\r\nabc", "Transfer-Encoding: chunked"), n=n)),
        ("content encoding", record(response(gzip.compress(PAGE)[:-12], "Content-Encoding: gzip"), n=n)),
        ("content encoding", record(response(b"x", "Content-Encoding: snappy"), n=n)),
        ("HTTP", record(b"<html>no header", n=n)),
        ("no record follows", record(response(PAGE), n=n, Content_Length=str(len(response(PAGE)) - 9))),
        ("", record(response(PAGE), n=n, Content_Length=str(len(response(PAGE)) + 9))),
        ("ends early", record(response(PAGE), n=n, Content_Length="1000000")),
        ("Content-Length", record(response(PAGE), n=n, Content_Length="many")),
        ("more than", record(response(PAGE), n=n, Content_Length="99999999999")),
        ("no WARC record", b"<html>junk\r\n\r\n"),
        ("UTF-8", record(response(PAGE), n=n).replace(b"example.com", b"ex\xff\xfemple.com")),
        ("does not end", b"WARC/1.0\r\nWARC-Type: response\r\n"),
    ]


@pytest.mark.parametrize("number", range(len(broken(0))))
def test_a_broken_record_is_a_failure_and_the_others_are_read(tmp_path: Path, form: str, number: int) -> None:
    error, bad = broken(50)[number]
    good = [record(response(b"<p>%d" % i), n=i) for i in range(6)]
    glob = write(tmp_path, [*good[:3], bad, *good[3:]], form)
    rows, failures, _ = collect(ingest.Warc(glob=glob))
    assert [row["html"] for row in rows] == [b"<p>%d" % i for i in range(6)]
    assert len(failures) == 1 and error in failures[0].error
    name = Path(glob).name
    offset = len(b"".join(good[:3])) if form == "plain" else len(b"".join(map(gzip.compress, good[:3])))
    inside = f"0+{len(b''.join(good[:3]))}" if form == "one member" else str(offset)
    assert failures[0].place == f"{name}:{inside}" and failures[0].data


@pytest.mark.parametrize("seed", range(12))
def test_damaged_members(tmp_path: Path, seed: int) -> None:
    """Bytes of some members are overwritten: exactly those records fail, in one piece and in many."""
    chance = random.Random(seed)
    members = [gzip.compress(record(response(chance.randbytes(chance.randrange(2000))), n=i)) for i in range(80)]
    hurt = sorted(chance.sample(range(80), 7))
    for i in hurt:
        member = bytearray(members[i])
        at = chance.randrange(len(member) - 6)
        member[at : at + 6] = bytes(b ^ 0x5A for b in member[at : at + 6])
        members[i] = bytes(member)
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members))
    step = ingest.Warc(glob=str(path))
    whole, failures, _ = collect(step)
    starts = {sum(map(len, members[:i])): i for i in range(80)}
    failed = {starts[int(failure.place.rpartition(":")[2].split("+")[0])] for failure in failures}
    read_ids = {int(row["id"][10:-1]) for row in whole}
    assert failed <= set(hurt) and read_ids == set(range(80)) - set(hurt)
    assert len(failures) <= len(hurt)  # two in a row are one gap
    for pieces in (5, 41):
        again, more, _ = collect(step, path.stat().st_size * 4 // pieces)
        assert again == whole and [f.place for f in more] == [f.place for f in failures]


def test_nested_archives_are_found_at_the_seams(tmp_path: Path) -> None:
    """Payloads that hold whole .warc.gz files fool the search; the seams tell, and redoing repairs."""
    inner = b"".join(gzip.compress(record(response(b"inner %d" % i), n=1000 + i)) for i in range(20))
    members = []
    for i in range(30):
        pack = zlib.compressobj(0, zlib.DEFLATED, 31)  # stored: the inner members stand there byte for byte
        members.append(pack.compress(record(response(inner + b"%d" % i), n=i)) + pack.flush())
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members))
    step = ingest.Warc(glob=str(path))
    whole, _, _ = collect(step)
    assert len(whole) == 30
    rows, failures, redone = collect(step, path.stat().st_size * 4 // 37)
    assert rows == whole and not failures and redone > 0


@pytest.mark.parametrize("form", ["plain", "members"])
def test_a_file_that_was_cut(tmp_path: Path, form: str) -> None:
    records = [record(response(b"<p>%d" % i), n=i) for i in range(5)]
    path = Path(write(tmp_path, records, form))
    data = path.read_bytes()
    tail = len(records[4]) if form == "plain" else len(gzip.compress(records[4]))
    for cut in range(5, tail - 1):
        path.write_bytes(data[:-cut])
        rows, failures, _ = collect(ingest.Warc(glob=str(path)))
        whole_body = form == "plain" and cut == 4
        assert len(rows) == 4 + whole_body
        assert [f.place for f in failures] == [f"{path.name}:{len(data) - tail}"]


def test_trailing_padding_and_one_split_per_byte(tmp_path: Path, form: str) -> None:
    path = Path(write(tmp_path, [record(response(PAGE), n=i) for i in range(3)], form))
    step = ingest.Warc(glob=str(path))
    whole, failures, _ = collect(step)
    rows, more, _ = collect(step, 1)
    assert not failures and not more and rows == whole and len(rows) == 3


@pytest.mark.parametrize("form", ["members", "one member"])
def test_zero_bytes_after_the_last_member(tmp_path: Path, form: str) -> None:
    path = Path(write(tmp_path, [record(response(PAGE), n=i) for i in range(3)], form))
    data = path.read_bytes()
    for size in (1, 512, 600_000):
        path.write_bytes(data + bytes(size))
        step = ingest.Warc(glob=str(path))
        for target in (1 << 40, path.stat().st_size * 4 // 7):
            rows, failures, _ = collect(step, target)
            assert not failures and len(rows) == 3
    path.write_bytes(data + bytes(100) + b"x")
    assert [f.place for f in collect(step)[1]] == [f"{path.name}:{len(data)}"]


def test_records_without_an_id(tmp_path: Path, form: str) -> None:
    lines = (b"WARC-Record-ID", b"WARC-Target-URI", b"WARC-Date")
    for kind, block in (("response", response(PAGE)), ("conversion", b"text")):
        bare = record(block, kind)
        bare = b"\r\n".join(line for line in bare.split(b"\r\n") if not line.startswith(lines))
        glob = write(tmp_path, [bare, bare], form)
        rows, failures, _ = collect((ingest.Warc if kind == "response" else ingest.Wet)(glob=glob))
        place = {"plain": str(len(bare)), "members": str(len(gzip.compress(bare))), "one member": f"0+{len(bare)}"}
        name = Path(glob).name
        assert not failures and [row["id"] for row in rows] == [f"{name}#0", f"{name}#{place[form]}"]
        assert all(row["url"] is None and row["date"] is None for row in rows)


def test_header_fields() -> None:
    head = "HTTP/1.1 200 OK\r\nA: 1\r\n\t2\r\nb : x\x85y\r\nB: 3\r\n 4\r\njunk\r\n 5\nC:\r\n\r\n"
    assert http.fields(head) == {"a": "1 2", "b": "x\x85y", "c": ""}
    assert http.parse(head.encode("latin-1") + b"body") == (http.fields(head), b"body")


def test_fifty_megabytes_in_one_page_and_nul_bytes(tmp_path: Path, form: str) -> None:
    page = b"<p>a\0b" * 9_000_000
    glob = write(tmp_path, [record(response(page), n=1), record(response(PAGE), n=2)], form)
    rows, failures, _ = collect(ingest.Warc(glob=glob), 1 << 24)
    assert not failures and [row["html"] for row in rows] == [page, PAGE]


def test_large_records_that_are_not_wanted_are_not_held(tmp_path: Path, form: str) -> None:
    video = response(bytes(20 << 20), kind="video/mp4")
    glob = write(tmp_path, [record(video, n=1), record(response(PAGE), n=2)], form)
    pool_before = pa.total_allocated_bytes()
    rows, failures, _ = collect(ingest.Warc(glob=glob))
    assert not failures and [row["html"] for row in rows] == [PAGE] and pa.total_allocated_bytes() <= pool_before


def test_empty_files_and_mistakes(tmp_path: Path) -> None:
    for name in ("a.warc", "a.warc.gz"):
        (tmp_path / name).write_bytes(b"")
        assert collect(ingest.Warc(glob=str(tmp_path / name)))[:2] == ([], [])
    (tmp_path / "b.warc").write_bytes(b"no warc at all\n")
    rows, failures, _ = collect(ingest.Warc(glob=str(tmp_path / "b.warc")))
    assert not rows and [f.place for f in failures] == ["b.warc:0"]
    with pytest.raises(FactoryError, match="no file matches"):
        ingest.Warc(glob=str(tmp_path / "*.none")).splits(CONTEXT, 1)


def test_wet_that_is_not_utf8_or_empty(tmp_path: Path, form: str) -> None:
    glob = write(
        tmp_path,
        [record(b"good\0", "conversion", 1), record(b"bad \xff", "conversion", 2), record(b"", "conversion", 3)],
        form,
    )
    rows, failures, _ = collect(ingest.Wet(glob=glob))
    assert [row["text"] for row in rows] == ["good\0", ""]
    assert [f.id for f in failures] == ["<urn:uuid:2>"] and failures[0].data == b"bad \xff"
    assert rows[0]["languages"] is None and "dump" not in rows[0]
    for step in (ingest.Wet(glob=glob, dump="CC-1"), ingest.Warc(glob=glob, dump="CC-1")):
        assert all(row["dump"] == "CC-1" for row in collect(step)[0]) and "dump" in step.start(CONTEXT).names


def test_chunks_that_are_none() -> None:
    head = {"transfer-encoding": "chunked"}
    for body in (b"<html>", b"2026\nNews", b"12 monkeys\r\n", b""):
        assert http.decode(head, memoryview(body)) == body
    for body in (b"ff\r\nabc", b"3\r\nabc\r\nff\r\nabc", b"3\r\nabc\r\nnonsense"):
        with pytest.raises(ValueError, match="chunk"):
            http.decode(head, memoryview(body))
    assert http.decode(head, memoryview(b"3\r\nabc\r\n")) == b"abc"  # only the empty last chunk is missing


def test_brotli() -> None:
    brotli = pytest.importorskip("brotli")
    packed = brotli.compress(PAGE * 100)
    head = {"content-encoding": "br"}
    assert http.decode(head, memoryview(packed)) == PAGE * 100
    assert http.decode(head, memoryview(PAGE)) == PAGE
    with pytest.raises(ValueError, match="encoding"):
        http.decode(head, memoryview(packed[:-5]))
    assert http.decode(head, memoryview(packed[:-5]), cut=True).startswith(PAGE[:9])


def test_names_and_identities_do_not_tell_where_the_files_lie(tmp_path: Path) -> None:
    found = []
    for place in ("here", "there/far"):
        folder = tmp_path / place / "cc" / "part"
        folder.mkdir(parents=True)
        (folder / "a.warc").write_bytes(record(response(PAGE), n=1) + b"junk")
        step = ingest.Warc(glob=f"{tmp_path / place}/**/*.warc")
        identities = step.identities(CONTEXT, step.splits(CONTEXT, 1 << 20))
        found.append((identities, [f.id for f in collect(step)[1]]))
    assert found[0] == found[1] and found[0][1][0].startswith("cc/part/a.warc#")
