"""Texts of a length in tokens: filler from files or made up, cut so that a prompt has exactly the tokens asked for."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from factory.engine.errors import FactoryError

SENTENCE_END = re.compile(r"[.!?][\"”’)]*\s+|[。！？]+|\n\s*\n")
REST = 16  # tokens or characters that are tried one by one
NEAR = 500  # characters: a sentence end further away is not waited for

SUBJECTS = ("The baker", "A gardener", "My neighbour", "The old sailor", "A clerk", "Her cousin", "The postman")
VERBS = ("painted", "carried", "found", "sold", "repaired", "watched", "described", "forgot", "washed", "counted")
THINGS = ("fence", "kettle", "ladder", "map", "basket", "clock", "boat", "window", "letter", "coat", "bridge", "lamp")
COLOURS = ("red", "small", "broken", "heavy", "new", "quiet", "wooden", "borrowed", "round", "dusty")
TIMES = ("in the morning", "before lunch", "on a Tuesday", "after the rain", "last winter", "near the station")


def count(tokenizer: Tokenizer, text: str) -> int:
    """The tokens of a prompt, with those that the tokenizer itself adds."""
    return len(tokenizer.encode(text))


def noise(random: np.random.Generator, sentences: int) -> str:
    """Sentences that say nothing of use, each drawn anew."""
    parts = (SUBJECTS, VERBS, COLOURS, THINGS, TIMES)
    drawn = np.stack([random.integers(len(part), size=sentences) for part in parts], axis=1)
    made = []
    for row in drawn.tolist():
        who, did, how, what, when = (part[number] for part, number in zip(parts, row, strict=True))
        made.append(f"{who} {did} the {how} {what} {when}.")
    return " ".join(made)


def read_texts(patterns: Sequence[str]) -> str:
    """The text files that the patterns name, one behind the other. FactoryError where one names none."""
    texts = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise FactoryError(f"{pattern}: no such file")
        for path in found:
            try:
                texts.append(Path(path).read_text("utf-8-sig"))
            except (OSError, UnicodeDecodeError) as error:
                raise FactoryError(f"{path}: cannot read the text: {error}") from error
    return "\n\n".join(texts)


class Filler:
    """Text to fill prompts with, from a random sentence on, as many tokens as are needed; it begins anew at its end.

    Without files it is noise.
    """

    def __init__(self, tokenizer: Tokenizer, files: Sequence[str], random: np.random.Generator) -> None:
        self.tokenizer = tokenizer
        self.text = read_texts(files) if files else noise(random, 4000)
        if not self.text.strip():
            raise FactoryError(f"{', '.join(files)}: no text")

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each token ends, in characters."""
        return np.array([end for _, end in self.tokenizer.encode(self.text, add_special_tokens=False).offsets])

    @cached_property
    def starts(self) -> np.ndarray:
        """Where sentences begin."""
        return np.array([0, *(match.end() for match in SENTENCE_END.finditer(self.text))])

    def start(self, random: np.random.Generator, tokens: int) -> int:
        """The character at which a sentence begins, far enough from the end for so many tokens where there are some."""
        last = self.ends[-tokens] if tokens < len(self.ends) else 0
        return int(self.starts[random.integers(np.searchsorted(self.starts, last, side="right"))])

    def piece(self, start: int, tokens: int) -> str:
        """About so many tokens from the character `start` on."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        out = []
        while first + tokens > len(self.ends):
            out.append(self.text[start:])
            tokens -= len(self.ends) - first
            first = start = 0
        return "\n\n".join([*out, self.text[start : self.ends[first + tokens - 1]] if tokens else ""])


def fit(tokenizer: Tokenizer, length: int, build: Callable[[str], str], filler: Filler, start: int) -> str:
    """`build(text)` with as much filler as makes `length` tokens of it, or one less; where a character is several
    tokens, the most that is not above.

    Raises FactoryError where it is longer without any.
    """
    wanted, tried = length - count(tokenizer, build("")), set[int]()
    if wanted < 0:
        raise FactoryError(f"{length} tokens are too few: without any filler the prompt has {length - wanted}")
    best = ""
    while wanted not in tried and wanted >= 0:
        tried.add(wanted)
        text = filler.piece(start, wanted)
        missing = length - count(tokenizer, build(text))
        if missing == 0:
            return build(text)
        if missing > 0:
            best = text if len(text) > len(best) else best
        wanted += missing
    # What is inserted moves with the length, tokens join at edges, and a character may be several tokens: the count
    # jumps. The rest goes by characters, at the end and, where that does not help, at the beginning.
    rest = filler.piece(start, max(tried) + REST)
    nearest, tokens = "", 0
    for first, last in itertools.product(range(REST), range(max(0, len(best) - REST), len(rest) + 1)):
        found = build(rest[first:last])
        if tokens < (now := count(tokenizer, found)) <= length:
            nearest, tokens = found, now
        if tokens >= length - 1:
            return nearest
    if tokens:
        return nearest
    raise FactoryError(f"no prompt of {length} tokens can be made with this tokenizer and filler")


def most(tokenizer: Tokenizer, length: int, build: Callable[[int], str], least: int = 1) -> int:
    """The most units of which `build(units)` has at most `length` tokens. FactoryError where not even `least` fit."""
    base = count(tokenizer, build(least))
    if base > length:
        raise FactoryError(f"{length} tokens are too few: the shortest prompt has {base}")
    low, high = least, length + 1  # a unit has at least a token
    each = (count(tokenizer, build(least + 8)) - base) / 8
    while high - low > 1:
        guess = least + int((length - base) / each)
        middle = min(max(guess, low + 1), high - 1)
        found = count(tokenizer, build(middle))
        each = (found - base) / (middle - least)
        low, high = (middle, high) if found <= length else (low, middle)
    return low


def place(text: str, depth: float) -> int:
    """The character at which to insert something at this depth, 0 to 1: the nearest end of a sentence."""
    at = round(depth * len(text))
    if at in (0, len(text)):
        return at
    begin = max(0, at - NEAR)
    ends = [match.end() for match in SENTENCE_END.finditer(text, begin, min(len(text), at + NEAR))]
    if ends:
        return min(ends, key=lambda end: abs(end - at))
    space = text.rfind(" ", begin, at)
    return space + 1 if space >= 0 else at


def insert(text: str, sentences: Sequence[str], depths: Sequence[float]) -> str:
    """The sentences within the text, each at its depth; those of one place in the order given."""
    out, end = [], len(text)
    order = sorted(range(len(sentences)), key=lambda number: depths[number])
    for number in reversed(order):
        at = min(place(text, depths[number]), end)
        out.append(text[at:end])
        out.append(("" if at == 0 or text[at - 1].isspace() else " ") + sentences[number] + " ")
        end = at
    return "".join([text[:end], *reversed(out)])
