"""Where the steps of a chain begin: one rule for those who label steps, and for those who judge them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal, get_args

from factory.engine.errors import FactoryError
from factory.verify.instructions.text import ends_sentence

Rule = Literal["lines", "sentences"]
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_WORD = re.compile(r"\S+")
_WIDE = re.compile(r"[。！？]+[」』”’）]*")  # these end a sentence without a blank behind them
_NUMBER = re.compile(r"[(\[]?(?:\d+|[A-Za-z])[.)\]]+")


def split(text: str, rule: Rule = "lines") -> list[str]:
    """The steps of a chain, of which `"".join` is the chain again; "" has none.

    `lines`: a step is a line with its line end; blank lines belong to the step before them. `sentences`: lines are cut
    further where a sentence of English, Chinese or Japanese ends; the blank between two sentences belongs to the
    second, and a number or letter that heads a line (`1.`) is no sentence. Raises FactoryError for another rule.
    """
    if rule not in get_args(Rule):
        raise FactoryError(f"steps are cut by {' or '.join(get_args(Rule))}, not by {rule!r}")
    lines: Iterable[str] = _LINE.findall(text)
    pieces = lines if rule == "lines" else (piece for line in lines for piece in _sentences(line))
    steps: list[str] = []
    for piece in pieces:
        if steps and not (piece.strip() and steps[-1].strip()):
            steps[-1] += piece
        else:
            steps.append(piece)
    return steps


def _sentences(line: str) -> Iterator[str]:
    words = list(_WORD.finditer(line))
    cuts = {end for word in words for end in _wide_ends(word)}
    for place, (word, after) in enumerate(pairwise(words)):
        heads = place == 0
        if ends_sentence(word[0], heads, after[0]) and not (heads and _NUMBER.fullmatch(word[0])):
            cuts.add(word.end())
    for start, end in pairwise([0, *sorted(cuts - {0, len(line)}), len(line)]):
        yield line[start:end]


def _wide_ends(word: re.Match[str]) -> Iterator[int]:
    return (word.start() + found.end() for found in _WIDE.finditer(word[0]))
