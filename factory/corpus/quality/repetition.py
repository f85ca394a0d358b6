"""The repetition rules of Gopher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from factory.corpus.quality.decide import columns, first_reason, ratio
from factory.engine.step import Filter, Memo
from factory.kernels.lines import lines, repeats
from factory.kernels.repetition import ALL, TOP, ngrams

Share = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class GopherRepetition(Filter):
    """Drop documents that repeat themselves: lines, paragraphs, and n-grams of words.

    From Rae et al. 2021, "Scaling Language Models" (arXiv 2112.11446), table A1, with its thresholds; each is the
    greatest share of the document that is kept, and 0 turns its rule off. As in datatrove's filter, characters are
    counted against the whole text, and a repeated n-gram is one that stands earlier in the document.
    """

    column: str = "text"
    """The column to read."""
    words: Literal["unicode", "spacy"] = "unicode"
    """What a word is: a run of letters and digits, or a token of spaCy's English rules (punctuation marks count)."""
    dup_line_frac: Share = 0.3
    """Lines that repeat an earlier line, of all lines."""
    dup_para_frac: Share = 0.3
    """Paragraphs that repeat an earlier paragraph, of all paragraphs."""
    dup_line_char_frac: Share = 0.2
    """Characters in repeated lines."""
    dup_para_char_frac: Share = 0.2
    """Characters in repeated paragraphs."""
    top_2_gram: Share = 0.2
    """Characters in the most frequent pair of words."""
    top_3_gram: Share = 0.18
    """Characters in the most frequent 3-gram."""
    top_4_gram: Share = 0.16
    """Characters in the most frequent 4-gram."""
    dup_5_gram: Share = 0.15
    """Characters in repeated 5-grams."""
    dup_6_gram: Share = 0.14
    """Characters in repeated 6-grams."""
    dup_7_gram: Share = 0.13
    """Characters in repeated 7-grams."""
    dup_8_gram: Share = 0.12
    """Characters in repeated 8-grams."""
    dup_9_gram: Share = 0.11
    """Characters in repeated 9-grams."""
    dup_10_gram: Share = 0.10
    """Characters in repeated 10-grams."""

    def libraries(self) -> tuple[str, ...]:
        return ("unicodedata",)

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.DictionaryArray:
        return first_reason(batch.num_rows, self._tests(self._numbers(batch, memo)))

    def measures(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, pa.Array]:
        numbers = self._numbers(batch, memo)
        del numbers["characters"]
        return columns(**numbers)

    def _numbers(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, np.ndarray]:
        text = batch.column(self.column)
        characters = memo(lines, text).points
        line, line_again, line_size, para, para_again, para_size = memo(repeats, text).T
        grams = memo(ngrams, text, self.words).T
        return {
            "characters": characters,
            "dup_para_frac": ratio(para_again, para),
            "dup_para_char_frac": ratio(para_size, characters),
            "dup_line_frac": ratio(line_again, line),
            "dup_line_char_frac": ratio(line_size, characters),
            **{f"top_{n}_gram": ratio(grams[n - 2], characters) for n in TOP},
            **{f"duplicated_{n}_n_grams": ratio(grams[n - 2], characters) for n in ALL},
        }

    def _tests(self, number: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        yield "empty", number["characters"] == 0
        limits = {
            "dup_para_frac": self.dup_para_frac,
            "dup_para_char_frac": self.dup_para_char_frac,
            "dup_line_frac": self.dup_line_frac,
            "dup_line_char_frac": self.dup_line_char_frac,
            **{f"top_{n}_gram": getattr(self, f"top_{n}_gram") for n in TOP},
            **{f"duplicated_{n}_n_grams": getattr(self, f"dup_{n}_gram") for n in ALL},
        }
        for name, limit in limits.items():
            if limit:
                yield name, number[name] > limit
