"""The rules that FineWeb adds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from factory.corpus.quality.decide import columns, first_reason, ratio
from factory.engine.step import Filter, Memo
from factory.kernels.lines import line_counts, lines
from factory.kernels.words import words


@dataclass(frozen=True, kw_only=True)
class FineWeb(Filter):
    """Drop documents that look like lists or menus: few sentence ends, short lines, repeated lines, many breaks.

    From Penedo et al. 2024, "The FineWeb Datasets" (arXiv 2406.17557), section 3.6; defaults as in datatrove's
    filter. Lines end at a line feed; blank ones do not count.
    """

    column: str = "text"
    """The column to read."""
    words: Literal["unicode", "spacy"] = "unicode"
    """What a word is: a run of letters and digits, or a token of spaCy's English rules (punctuation marks count)."""
    line_punct_thr: Annotated[float, Ge(0)] = 0.12
    """The least share of lines that end in a stop character."""
    line_punct_exclude_zero: bool = False
    """Keep documents where no line at all does."""
    stop_chars: str = ""
    """The stop characters; where empty, every character that ends a sentence in some script."""
    short_line_thr: Annotated[float, Ge(0)] = 0.67
    """The greatest share of short lines."""
    short_line_length: Annotated[int, Ge(0)] = 30
    """A line of at most so many characters is short."""
    char_duplicates_ratio: Annotated[float, Ge(0)] = 0.01
    """The greatest share of characters in lines that repeat an earlier line."""
    new_line_ratio: Annotated[float, Ge(0)] = 0.3
    """The most line feeds a word."""

    def libraries(self) -> tuple[str, ...]:
        return ("unicodedata",)

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.DictionaryArray:
        return first_reason(batch.num_rows, self._tests(self._numbers(batch, memo)))

    def measures(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, pa.Array]:
        numbers = self._numbers(batch, memo)
        del numbers["lines"]
        return columns(**numbers)

    def _numbers(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, np.ndarray]:
        text = batch.column(self.column)
        found = memo(lines, text)
        count, stopped, short, repeated = memo(line_counts, text, self.stop_chars, self.short_line_length).T
        return {
            "lines": count,
            "line_punct_ratio": ratio(stopped, count),
            "short_line_ratio": ratio(short, count),
            "char_dup_ratio": ratio(repeated, found.points - found.breaks),
            "list_ratio": ratio(found.breaks, np.diff(memo(words, text, self.words).doc)),
        }

    def _tests(self, number: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        yield "empty", number["lines"] == 0
        punct = number["line_punct_ratio"]
        excused = (punct == 0) & self.line_punct_exclude_zero
        yield "line_punct_ratio", (punct < self.line_punct_thr) & ~excused
        yield "short_line_ratio", number["short_line_ratio"] > self.short_line_thr
        yield "char_dup_ratio", number["char_dup_ratio"] > self.char_duplicates_ratio
        yield "list_ratio", number["list_ratio"] > self.new_line_ratio
