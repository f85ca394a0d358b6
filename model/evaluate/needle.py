"""Needle in a haystack: one sentence hidden at each depth of texts of each length, and asked for at the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from factory.engine.errors import FactoryError
from model.evaluate.task import Question
from model.evaluate.text import Filler, fit, insert

CITIES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Dakar", "Perth", "Turin", "Lima", "Hanoi", "Accra", "Tunis", "Porto")
NEEDLE = "The code of {city} is {code}."
BEFORE = "Read the text. One sentence in it gives the code of a city; you will be asked for it.\n\n"
AFTER = "\n\nQuestion: What is the code of {city}?\nAnswer: The code of {city} is"


@dataclass(frozen=True, kw_only=True)
class Needle:
    """The answer is right where it contains the code. The needle begins a sentence of the text: the one nearest to the
    depth, which is counted in characters of the filler."""

    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """In tokens, prompt and answer together."""
    depths: tuple[float, ...] = tuple(number / 10 for number in range(11))
    samples: int = 1
    """Questions for each length and depth."""
    files: tuple[str, ...] = ()
    """Text files for the haystack, such as books; without any it is made of sentences that say nothing."""
    tokens: int = 16
    """New tokens at most."""
    seed: int = 0

    def questions(self, tokenizer: Tokenizer) -> Iterator[Question]:
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise FactoryError(f"needle.depths = {self.depths}: must lie between 0 and 1")
        filler = Filler(tokenizer, self.files, np.random.default_rng([self.seed, 0]))
        cells = itertools.product(dict.fromkeys(self.lengths), dict.fromkeys(self.depths), range(self.samples))
        for number, (length, depth, sample) in enumerate(cells, 1):
            random = np.random.default_rng([self.seed, number])
            city, code = str(random.choice(CITIES)), str(random.integers(10**6, 10**7))
            needle = NEEDLE.format(city=city, code=code)

            room = length - self.tokens

            def build(text: str, needle: str = needle, depth: float = depth, city: str = city) -> str:
                return BEFORE + insert(text, [needle], [depth]) + AFTER.format(city=city)

            yield Question(
                task="needle",
                id=f"{length}-{depth:g}-{sample}",
                prompt=fit(tokenizer, room, build, filler, filler.start(random, room)),
                answers=(code,),
                tokens=self.tokens,
                length=length,
                depth=depth,
            )

    def score(self, answer: str, question: Question) -> float:
        return float(question.answers[0] in answer)


TASK = Needle
