from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("resiliparse")

from factory.corpus import extract
from factory.engine.errors import FactoryError
from factory.engine.step import Context, Mapped, Memo

ARTICLE = "<html><body><article><h1>Title</h1><p>{}</p></article></body></html>"


def run(
    pages: list[Any], hints: list[str | None] | None = None, alive: list[bool] | None = None, **options: Any
) -> Mapped:
    columns = {
        "id": pa.array([str(i) for i in range(len(pages))], pa.large_string()),
        "html": pa.array(pages, pa.large_binary()),
    }
    if hints:
        columns["charset"] = pa.array(hints, pa.large_string())
    batch = pa.RecordBatch.from_pydict(columns)
    step, memo = extract.Html(**options), Memo(len(pages))
    if alive:
        memo.alive[:] = alive
    step.open(Context())
    mapped = step(batch, memo)
    assert mapped.batch.schema == step.schema(batch.schema) and mapped.batch.num_rows == len(pages)
    assert mapped.batch.schema.names == ["id", "text"]
    mapped.batch.validate(full=True)
    return mapped


def texts(*pages: bytes, hints: list[str | None] | None = None) -> list[str]:
    return list(run(list(pages), hints).batch["text"].to_pylist())


@pytest.mark.parametrize("engine", ["resiliparse", "trafilatura"])
def test_empty_pages_are_dropped(engine: str) -> None:
    pytest.importorskip(engine)
    page = ARTICLE.format("Some words that make a paragraph. " * 20).encode()
    mapped = run([page, b"", b"<html><body></body></html>", None, b"<p>\0\xff"], engine=engine)
    assert "Some words that make a paragraph." in mapped.batch["text"][0].as_py()
    assert mapped.reasons is not None and mapped.errors is not None
    assert mapped.reasons.to_pylist()[:4] == [None, "empty", "empty", "empty"]
    assert mapped.errors.null_count == 5


def test_zero_rows_and_rows_that_are_gone() -> None:
    assert run([]).batch.num_rows == 0
    mapped = run([b"<p>one", b"<p>two"], alive=[False, True])
    assert mapped.batch["text"].to_pylist() == ["", "two"]


def test_character_sets() -> None:
    word = "größer"
    utf8, latin = ARTICLE.format(word).encode(), ARTICLE.format(word).encode("cp1252")
    japanese = ARTICLE.format("日本語の文章です。これはテストです。")
    meta = '<html><head><meta charset="{}"></head>'
    assert all(
        word in text
        for text in texts(
            utf8,
            latin,
            b"\xef\xbb\xbf" + utf8,
            b"\xff\xfe" + utf8.decode().encode("utf-16-le"),
            utf8,
            latin,
            latin,
            (meta.format("windows-1252")).encode() + latin,
            hints=[None, "iso-8859-1", "latin1", "ascii", "iso-8859-1", "windows-1252", "no-such-set", None],
        )
    )
    for encoding in ("shift_jis", "euc-jp", "iso-2022-jp"):
        page = japanese.encode(encoding)
        found = texts(page, meta.format(encoding).encode() + page, hints=[encoding, None])
        assert all("日本語" in text for text in found)
    assert "日本語" in texts(japanese.encode("shift_jis"))[0]  # a guess


@pytest.mark.parametrize(
    ("label", "codec", "word"),
    [
        ("shift_jis", "cp932", "①㈱髙橋"),
        ("euc-jp", "", "①㈱髙橋"),
        ("euc-kr", "cp949", "똠방각하"),
        ("big5", "big5hkscs", "中文喺度㗎"),
        ("gb2312", "gb18030", "朱镕基與㐀"),
        ("gbk", "gb18030", "朱镕基與㐀"),
        ("windows-874", "cp874", "“ไทย”…"),
        ("iso-8859-8-i", "iso8859-8", "שלום"),
        ("iso-8859-1", "cp1252", "“größer” €"),
        ("us-ascii", "cp1252", "“größer” €"),
    ],
)
def test_a_name_means_what_browsers_take_it_for(label: str, codec: str, word: str) -> None:
    raw = word.encode(codec) if codec else b"\xad\xa1\xad\xea\xfc\xe2\xb6\xb6"
    meta = f'<html><head><meta charset="{label}"></head>'.encode()
    page = b"<html><body><p>" + raw + b" end</p></body></html>"
    assert texts(page, meta + page, hints=[label, None]) == [f"{word} end"] * 2


@pytest.mark.parametrize(
    ("label", "raw", "text"),
    [
        ("shift_jis", b"\x81\xad\x82\xa0\x82\xa2", "\ufffdあい"),
        ("euc-kr", b"\xc9\xa1\xb0\xa1\xb0\xa2", "\ufffd가각"),
        ("big5", b"\x81\xa1\xa4\xa4\xa4\xe5", "\ufffd中文"),
        ("gbk", b"\xff\xb0\xa1\xfe\xff\xb0\xa1", "\ufffd啊\ufffd啊"),
        ("euc-jp", b"\xa9\xa1\xb6\xb6\xb6", "\ufffd橋\ufffd"),
        ("shift_jis", b"\x81<b>\x82\xa0", "\ufffd<b>あ"),
    ],
)
def test_a_pair_that_makes_no_sense_does_not_harm_the_next(label: str, raw: bytes, text: str) -> None:
    assert extract.decode(raw, label) == text


def test_text_is_always_utf8() -> None:
    odd = [b"<p>a&#xD800;b\0c \xed\xa0\x80 d", b"<p>\xff\xfe\xfd", b"\x00" * 100, b"<p>x&#0;y", b"<p>&#55357;&#56832;"]
    got = texts(*odd)
    assert all(text.encode() is not None for text in got)
    assert extract._clean(" a\ud800b ") == "a\ufffdb"


def test_one_page_that_raises_does_not_harm_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = extract._extractor("resiliparse")

    def hurt(page: str) -> str:
        if "bomb" in page:
            raise RuntimeError("boom")
        return plain(page)

    monkeypatch.setattr(extract, "_extractor", lambda engine: hurt)
    mapped = run([b"<p>one", b"<p>bomb", b"<p>two"])
    assert mapped.errors is not None and mapped.errors.to_pylist() == [None, "RuntimeError: boom", None]
    assert mapped.reasons is not None and mapped.reasons.null_count == 3
    assert mapped.batch["text"].to_pylist() == ["one", "", "two"]


def test_fifty_megabytes_in_one_page() -> None:
    page = b"<html><body>" + b"<p>" + b"word \0 " * 7_000_000 + b"</p></body></html>"
    (text,) = texts(page)
    assert text.count("word") == 7_000_000


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FactoryError, match="trafilatura is not installed"):
        extract.Html(engine="trafilatura").open(Context())


def test_pages_given_as_text_and_under_another_name() -> None:
    columns = {name: pa.array([value], pa.large_string()) for name, value in (("id", "a"), ("raw", "<p>é"))}
    batch = pa.RecordBatch.from_pydict(columns)
    mapped = extract.Html(column="raw")(batch, Memo(1))
    assert mapped.batch.to_pylist() == [{"id": "a", "text": "é"}]


def judged(rows: list[dict[str, Any]], found: list[str]) -> tuple[float, float, float]:
    """Precision, recall and F1 over segments: those of the article should be there, those beside it should not."""
    there = [segment in text for row, text in zip(rows, found, strict=True) for segment in row["must"]]
    wrong = [segment in text for row, text in zip(rows, found, strict=True) for segment in row["must_not"]]
    precision, recall = sum(there) / (sum(there) + sum(wrong)), float(np.mean(there))
    return precision, recall, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(("engine", "pages", "floor"), [("resiliparse", 990, 0.84), ("trafilatura", 100, 0.92)])
def test_real_pages(data: Any, engine: str, pages: int, floor: float) -> None:
    """F1 on pages with judged segments (measured: resiliparse .847, trafilatura .94)."""
    pytest.importorskip(engine)
    rows = pq.read_table(data / "html_pages" / "pages.parquet").slice(0, pages).to_pylist()
    began = time.process_time()
    mapped = run([row["html"] for row in rows], engine=engine)
    seconds = time.process_time() - began
    assert mapped.errors is not None and mapped.errors.null_count == pages
    precision, recall, f1 = judged(rows, mapped.batch["text"].to_pylist())
    print(f"{engine}: P {precision:.3f} R {recall:.3f} F1 {f1:.3f}, {pages / seconds:.0f} pages/s")
    assert f1 > floor
