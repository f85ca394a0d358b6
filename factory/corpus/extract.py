"""Text out of web pages."""

from __future__ import annotations

import codecs
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from factory.engine.errors import FactoryError
from factory.engine.step import Context, Map, Mapped, Memo, reasons

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_WIDER = {
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "gbk": "gb18030",
    "iso8859-11": "cp874",
}
"""Python's codecs for what the web, and so the WHATWG's standard, means by these names: more than the names say."""
_PAIRS = "factory-pairs"
_DOUBLE = ("cp932", "cp949", "big5hkscs", "gb18030", "euc_jp")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BESIDE = ("charset", "content_type")


@dataclass(frozen=True, kw_only=True)
class Html(Map):
    """The main text of web pages: the article without menus, headers, footers and adverts, as `text`.

    The page's bytes (`column`) go, and `charset` and `content_type`, which describe them, too. A page without text is
    dropped as `empty`; one that the extractor cannot read becomes a failed row.

    The character set is a byte order mark's; else UTF-8 where the page holds more than ASCII and is valid UTF-8; else
    the server's (`charset`, where the column is there); else the page's `<meta>`; else guessed. Bytes that make no
    sense in it become U+FFFD.
    """

    rows_a_call: ClassVar[int | None] = 64

    engine: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """resiliparse is about ten times as fast; trafilatura leaves less of menus and the like."""
    column: str = "html"
    """The column with the pages, bytes or text."""

    def libraries(self) -> tuple[str, ...]:
        return (self.engine,)

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def adds(self) -> dict[str, pa.DataType]:
        return {"text": pa.large_string()}

    def schema(self, schema: pa.Schema) -> pa.Schema:
        for name in (self.column, *_BESIDE):
            if (at := schema.get_field_index(name)) >= 0 and name != "text":
                schema = schema.remove(at)
        return super().schema(schema)

    def open(self, context: Context) -> None:
        if importlib.util.find_spec(self.engine) is None:
            raise FactoryError(f"extract.Html: the package {self.engine} is not installed; install factory[html]")

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> Mapped:
        extract = _extractor(self.engine)
        pages = batch.column(self.column)
        hints = batch.column("charset") if "charset" in batch.schema.names else None
        texts, errors = [""] * batch.num_rows, [None] * batch.num_rows  # type: list[str], list[str | None]
        codes = np.full(batch.num_rows, -1, np.int16)
        for row in np.flatnonzero(memo.alive).tolist():
            page = pages[row].as_py() or b""
            try:
                if isinstance(page, bytes):
                    page = decode(page, hints[row].as_py() if hints is not None else None)
                text = _clean(extract(page)) if page else ""
            except Exception as error:  # whatever one page does to a parser, the others go on
                errors[row] = f"{type(error).__name__}: {error}"
                continue
            texts[row] = text
            if not text:
                codes[row] = 0
        out = self.schema(batch.schema)
        made = pa.array(texts, pa.large_string())
        arrays = [made if name == "text" else batch.column(name) for name in out.names]
        dropped = reasons(codes, ["empty"])
        return Mapped(pa.RecordBatch.from_arrays(arrays, schema=out), dropped, pa.array(errors, pa.string()))


def decode(page: bytes, hint: str | None = None) -> str:
    """A page's bytes as text; `hint` is the character set that the server named, if it did. Never fails."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    for mark, encoding in _MARKS:
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace")
    if not page.isascii():
        try:
            return page.decode()
        except UnicodeDecodeError:
            pass  # not UTF-8: what the server or the page says, or a guess
    named = map_encoding_to_html5(hint, fallback_utf8=False) if hint else None
    encoding = named or detect_encoding(page, from_html_meta=True) or "utf-8"
    encoding = _WIDER.get(encoding, encoding)
    try:
        return page.decode(encoding, _PAIRS if encoding in _DOUBLE else "replace")
    except LookupError:  # a name that Python does not know
        return page.decode("utf-8", "replace")


def _unpaired(error: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that a double-byte codec lacks, and where to go on: past both, but never past ASCII.

    Python would go on at the second byte, which then begins a pair with the third, and so on to the next ASCII byte.
    """
    assert isinstance(error, UnicodeDecodeError)
    pair = error.object[error.start : error.start + 2]
    if len(pair) < 2 or not (0x81 <= pair[0] <= 0xFE and pair[1] >= 0x80):
        return "\ufffd", error.start + 1
    text = "\ufffd"
    if error.encoding == "euc_jp" and min(pair) > 0xA0:
        # NEC's and IBM's characters, which Python has in Shift_JIS only: two rows of 94 there share a first byte.
        (lead, odd), cell = divmod(pair[0] - 0xA1, 2), pair[1] - 0xA1
        trail = cell + (0x9F if odd else 0x40 + (cell > 62))
        there = bytes([lead + (0x81 if lead < 31 else 0xC1), trail]).decode("cp932", "replace")
        text = there if len(there) == 1 else text
    return text, error.start + 2


codecs.register_error(_PAIRS, _unpaired)


def _extractor(engine: str) -> Callable[[str], str]:
    if engine == "trafilatura":
        import trafilatura

        return lambda page: trafilatura.extract(page, include_comments=False) or ""
    from resiliparse.extract.html2text import extract_plain_text

    return lambda page: extract_plain_text(page, main_content=True, alt_texts=False)


def _clean(text: str) -> str:
    """Without what UTF-8 cannot hold, and without space at the ends."""
    text = text.strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text
