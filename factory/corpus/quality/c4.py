"""The rules of C4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from factory.corpus.quality.decide import first_reason
from factory.engine.step import Map, Mapped, Memo
from factory.kernels.cleaning import Rules, clean


@dataclass(frozen=True, kw_only=True)
class C4(Map):
    """Take out the lines that are not sentences, then drop what is left of a document where it is too little.

    From Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (JMLR 21), section 2.2; defaults and order as
    in datatrove's filter, the list of bad words apart. A line goes where a word is too long, where it does not end
    in a stop, where it has too few words, or where it speaks of javascript or of a site's policies. A document is
    dropped where a line that would stay has "lorem ipsum" or a curly bracket (its text is then left as it was), or
    where too few sentences are left.
    """

    column: str = "text"
    """The column to read and to replace."""
    words: Literal["unicode", "spacy"] = "unicode"
    """How sentences are counted: by full stops that end a word, or by the tokens of spaCy's English rules."""
    remove_citations: bool = True
    """Take out Wikipedia's marks: [1], [], [edit], [citation needed]."""
    filter_no_terminal_punct: bool = True
    """Take out lines that do not end in a stop, or end in three dots."""
    stops: str = ".?!\"'"
    """The characters that a line may end in; add those of other scripts (。？！) to keep their lines."""
    min_num_sentences: Annotated[int, Ge(0)] = 5
    """The fewest sentences that must be left."""
    min_words_per_line: Annotated[int, Ge(0)] = 3
    """The fewest words of a line, which white space divides."""
    max_word_length: Annotated[int, Ge(0)] = 1000
    """The longest word of a line in characters; 0 for no limit."""
    filter_lorem_ipsum: bool = True
    """Drop documents that have "lorem ipsum"."""
    filter_javascript: bool = True
    """Take out lines that have "javascript"."""
    filter_curly_bracket: bool = True
    """Drop documents that have "{"."""
    filter_policy: bool = True
    """Take out lines on terms of use, privacy and cookies."""

    def libraries(self) -> tuple[str, ...]:
        return ("unicodedata",)

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def adds(self) -> dict[str, pa.DataType]:
        return {self.column: pa.large_string()}

    def _cleaned(self, batch: pa.RecordBatch, memo: Memo) -> tuple[pa.Array, np.ndarray, np.ndarray]:
        rules = Rules(
            citations=self.remove_citations,
            words=self.min_words_per_line,
            word_length=self.max_word_length,
            lorem=self.filter_lorem_ipsum,
            javascript=self.filter_javascript,
            bracket=self.filter_curly_bracket,
            policy=self.filter_policy,
        )
        stops = self.stops if self.filter_no_terminal_punct else ""
        return memo(clean, batch.column(self.column), rules, stops, self.words)

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> Mapped:
        text, codes, counts = self._cleaned(batch, memo)
        where = batch.schema.get_field_index(self.column)
        edited = batch.set_column(where, pa.field(self.column, pa.large_string()), text)
        tests = (
            ("lorem_ipsum", codes == 0),
            ("curly_bracket", codes == 1),
            ("too_few_sentences", counts[:, 2] < self.min_num_sentences),
        )
        return Mapped(edited, first_reason(batch.num_rows, tests))

    def measures(self, batch: pa.RecordBatch, memo: Memo) -> dict[str, pa.Array]:
        _, _, counts = self._cleaned(batch, memo)
        return {name: pa.array(counts[:, n]) for n, name in enumerate(("lines", "lines_kept", "sentences"))}
