"""Fenced code blocks of a Markdown answer, read as CommonMark reads them (CommonMark 0.31, section 4.5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_OPEN = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*(.*)")


@dataclass(frozen=True)
class Fence:
    """A fenced block: its info string (`json`), its content, where it begins and ends, whether it was closed."""

    info: str
    body: str
    start: int
    end: int
    closed: bool


def fences(text: str) -> Iterator[Fence]:
    """The fenced blocks of a text, in order. One that is never closed reaches to the end."""
    opened: tuple[str, int, int] | None = None  # info string, start of the block, start of its body
    mark, at = "", 0
    for line in _LINE.findall(text):
        found = _OPEN.fullmatch(line.rstrip("\r\n"))
        if opened is None:
            # Backticks in the info string: a span of code within a line.
            if found and not (found[1][0] == "`" and "`" in found[2]):
                mark = found[1]
                opened = (found[2].strip(), at, at + len(line))
        elif found and not found[2].strip() and found[1].startswith(mark):
            yield Fence(opened[0], text[opened[2] : at], opened[1], at + len(line), True)
            opened = None
        at += len(line)
    if opened is not None:
        yield Fence(opened[0], text[opened[2] :], opened[1], at, False)


def payload(response: str) -> str:
    """What an answer gives as data: its one fenced block, words around it or not; without a block, all of it.

    Raises `ValueError` where there are several blocks, or one that is never closed.
    """
    blocks = list(fences(response))
    if not blocks:
        return response
    if len(blocks) > 1:
        raise ValueError(f"{len(blocks)} fenced blocks where one is expected")
    if not blocks[0].closed:
        raise ValueError("the fenced block is never closed")
    return blocks[0].body
