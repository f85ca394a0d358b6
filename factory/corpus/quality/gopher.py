"""The quality rules of Gopher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, MaxLen

from factory.corpus.quality.decide import columns, first_reason, ratio
from factory.engine.step import Filter, Memo
from factory.kernels.statistics import count_words, symbols


@dataclass(frozen=True, kw_only=True)
class Gopher(Filter):
    """Drop documents by Gopher's quality rules: length, mean word length, symbols, bullets, letters, stop words.

    From Rae et al. 2021, "Scaling Language Models" (arXiv 2112.11446), table A1 and appendix A.1.1. The defaults and
    the order of the rules are those of datatrove's filter. A threshold of 0 turns its rule off. For text that is not
    English set `stop_words` to common words of its language, or `min_stop_words = 0`. So that the limits of the mean
    compare, a Han character counts as 4.5 letters of English, one of kana or Hangul as 2, one of Thai and other
    scripts that are cut into syllables as 1.5.
    """

    column: str = "text"
    """The column to read."""
    words: Literal["unicode", "spacy"] = "unicode"
    """What a word is: a run of letters and digits, or a token of spaCy's English rules (punctuation marks count)."""
    min_doc_words: Annotated[int, Ge(0)] = 50
    """The fewest words, not counting symbols."""
    max_doc_words: Annotated[int, Ge(0)] = 100_000
    """The most words, not counting symbols."""
    min_avg_word_length: Annotated[float, Ge(0)] = 3
    """The least mean length of a word, in characters."""
    max_avg_word_length: Annotated[float, Ge(0)] = 10
    """The greatest mean length of a word, in characters."""
    max_symbol_word_ratio: Annotated[float, Ge(0)] = 0.1
    """The most hash signs a word, and the most ellipses a word."""
    max_bullet_lines_ratio: Annotated[float, Ge(0)] = 0.9
    """The greatest share of lines that begin with a bullet."""
    max_ellipsis_lines_ratio: Annotated[float, Ge(0)] = 0.3
    """The greatest share of lines that end in an ellipsis."""
    min_alpha_words_ratio: Annotated[float, Ge(0)] = 0.8
    """The least share of words with at least one letter (datatrove calls it max_non_alpha_words_ratio)."""
    min_stop_words: Annotated[int, Ge(0)] = 2
    """How many different stop words must occur."""
    stop_words: Annotated[tuple[str, ...], MaxLen(64)] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The stop words, as they are written (`The` is not `the`)."""

    def libraries(self) -> tuple[str, ...]:
        return ("unicodedata",)

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.DictionaryArray:
        return first_reason(batch.num_rows, self._tests(self._numbers(batch, memo)))

    def measures(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, pa.Array]:
        return columns(**self._numbers(batch, memo))

    def _numbers(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, np.ndarray]:
        text = batch.column(self.column)
        every, solid, half_letters, lettered, stops = memo(count_words, text, self.words, self.stop_words).T
        hashes, ellipses, lines, bullets, trailing = memo(symbols, text).T
        return {
            "gopher_words": solid,
            "gopher_word_length": ratio(half_letters, 2 * solid),
            "gopher_hash_ratio": ratio(hashes, every),
            "gopher_ellipsis_ratio": ratio(ellipses, every),
            "gopher_bullet_lines": ratio(bullets, lines),
            "gopher_ellipsis_lines": ratio(trailing, lines),
            "gopher_alpha_words": ratio(lettered, every),
            "gopher_stop_words": stops,
        }

    def _tests(self, number: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        words, length = number["gopher_words"], number["gopher_word_length"]
        yield "gopher_short_doc", words < self.min_doc_words
        if self.max_doc_words:
            yield "gopher_long_doc", words > self.max_doc_words
        yield "gopher_below_avg_threshold", (length < self.min_avg_word_length) & (words > 0)
        if self.max_avg_word_length:
            yield "gopher_above_avg_threshold", length > self.max_avg_word_length
        if self.max_symbol_word_ratio:
            yield "gopher_too_many_hashes", number["gopher_hash_ratio"] > self.max_symbol_word_ratio
            yield "gopher_too_many_ellipsis", number["gopher_ellipsis_ratio"] > self.max_symbol_word_ratio
        if self.max_bullet_lines_ratio:
            yield "gopher_too_many_bullets", number["gopher_bullet_lines"] > self.max_bullet_lines_ratio
        if self.max_ellipsis_lines_ratio:
            yield "gopher_too_many_end_ellipsis", number["gopher_ellipsis_lines"] > self.max_ellipsis_lines_ratio
        yield "gopher_below_alpha_threshold", number["gopher_alpha_words"] < self.min_alpha_words_ratio
        yield "gopher_enough_stop_words", number["gopher_stop_words"] < self.min_stop_words
