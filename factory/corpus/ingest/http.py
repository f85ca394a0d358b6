"""An HTTP response as a crawler saved it: header, chunks, content encoding."""

from __future__ import annotations

import re
import zlib

from factory.corpus.ingest.files import LIMIT

_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9._:+-]+)", re.IGNORECASE)
_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


def parse(block: bytes) -> tuple[dict[str, str], memoryview]:
    """The header, names in lower case, and the body. ValueError where the block is no HTTP response."""
    if not block.startswith(b"HTTP/"):
        raise ValueError("the record holds no HTTP response")
    ends = [at + len(mark) for mark in (b"\r\n\r\n", b"\n\n") if (at := block.find(mark)) >= 0]
    if not ends:
        if block.endswith(b"\n"):
            return fields(block.decode("latin-1")), memoryview(b"")
        raise ValueError("the HTTP header does not end")
    end = min(ends)
    return fields(block[:end].decode("latin-1")), memoryview(block)[end:]


def fields(head: str) -> dict[str, str]:
    """The first value of each field of a header, WARC's or HTTP's, by names in lower case; not of its first line."""
    found: dict[str, str] = {}
    last = ""
    for line in head.split("\n")[1:]:
        if line[:1] in (" ", "\t"):
            if last:
                found[last] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        last = name.strip().lower()
        if colon and last not in found:
            found[last] = value.strip()
        else:
            last = ""  # what is folded after it goes as well
    return found


def charset(parameters: str) -> str | None:
    """The character set that a Content-Type names."""
    found = _CHARSET.search(parameters)
    return found.group(1).lower() if found else None


def decode(head: dict[str, str], body: memoryview, cut: bool = False) -> bytes:
    """The body without chunks and content encodings. `cut`: the crawler cut it, so an early end is no error.

    Crawlers often save a body decoded and leave the header: a body that does not begin as the header says is taken as
    it is. ValueError where it begins so and breaks later, or has an encoding that cannot be read.
    """
    data: bytes | memoryview = body
    if "chunked" in head.get("transfer-encoding", "").lower():
        data = _unchunk(body, cut)
    for coding in reversed(head.get("content-encoding", "").lower().split(",")):
        coding = coding.strip()
        if coding in ("", "identity", "none", "utf-8") or not len(data):
            continue
        if coding in ("gzip", "x-gzip"):
            data = _inflate(data, cut, 31) if data[:2] == b"\x1f\x8b" else data
        elif coding == "deflate":
            data = _deflate(data, cut)
        elif coding == "br":
            data = _brotli(bytes(data), cut)
        else:
            raise ValueError(f"content encoding {coding!r} cannot be read")
    return bytes(data)


def _unchunk(body: memoryview, cut: bool) -> bytes | memoryview:
    pieces: list[memoryview] = []
    at = 0
    while True:
        size = _SIZE.match(body, at)
        if size is None:
            if not pieces:
                return body
            if at >= len(body):
                break  # all of a chunk came, the last, empty one did not
            if cut:
                pieces.append(body[at:])
                break
            raise ValueError(f"no chunk begins at byte {at} of the body")
        length, at = int(size.group(1), 16), size.end()
        if length == 0:
            break
        if at + length > len(body):
            if not pieces and not cut and not _chunky(body, size.start()):
                return body
            if not cut:
                raise ValueError(f"the body ends in a chunk: {len(body) - at} bytes of {length}")
            pieces.append(body[at:])
            break
        pieces.append(body[at : at + length])
        at += length
        if bytes(body[at : at + 2]) == b"\r\n":
            at += 2
        elif bytes(body[at : at + 1]) == b"\n":
            at += 1
    return b"".join(pieces)


def _chunky(body: memoryview, at: int) -> bool:
    """Whether the line there is a chunk's size as servers write it, and not a number that begins a text."""
    return re.match(rb"[0-9A-Fa-f]{1,8}[ ]*\r\n", body[at:]) is not None


def _inflate(data: bytes | memoryview, cut: bool, window: int) -> bytes:
    """Inflate one stream after the other; `window` as zlib wants it."""
    pieces: list[bytes] = []
    size = 0
    while True:
        stream = zlib.decompressobj(window)
        try:
            out = stream.decompress(data, LIMIT - size)
        except zlib.error as error:
            if pieces or cut:
                break  # what follows a whole stream is padding; a body that was cut gives what came
            raise ValueError(f"the content encoding breaks: {error}") from error
        pieces.append(out)
        size += len(out)
        if size >= LIMIT:
            raise ValueError(f"the body inflates to {LIMIT} bytes or more")
        if not stream.eof and not cut:
            raise ValueError(f"the content encoding ends early, after {size} bytes")
        data = stream.unused_data
        if not data:
            break
    return b"".join(pieces)


def _deflate(data: bytes | memoryview, cut: bool) -> bytes | memoryview:
    """zlib's wrapping, or the bare stream that some servers send, or plain after all."""
    for window in (15, -15):
        try:
            zlib.decompressobj(window).decompress(data[:512], 64)
        except zlib.error:
            continue
        return _inflate(data, cut, window)
    return data


def _brotli(data: bytes, cut: bool) -> bytes:
    try:
        import brotli
    except ImportError:
        raise ValueError("content encoding 'br' cannot be read: install the package brotli") from None
    stream = brotli.Decompressor()
    try:
        out = bytes(stream.process(data))
    except brotli.error as error:
        if data[:1] == b"<" or data[:64].lstrip()[:1] == b"<":
            return data
        raise ValueError(f"the content encoding breaks: {error}") from error
    if not stream.is_finished() and not cut:
        raise ValueError(f"the content encoding ends early, after {len(out)} bytes")
    return out
