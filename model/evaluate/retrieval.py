"""Key-value retrieval (Lost in the Middle, arXiv 2307.03172): the value of one key of a JSON object of random UUIDs."""

from __future__ import annotations

import gzip
import itertools
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from factory.engine.errors import FactoryError
from model.evaluate.task import Question
from model.evaluate.text import Filler, fit, most

TOKENS = 64  # a UUID of 36 characters, and some room for what comes before it
SLACK = 48  # tokens: keys differ by some, and words in front take some to begin with

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """The answer is right where it contains the value, in any case of its letters (the accuracy there).

    The questions are those of files in the benchmark's form (JSON lines with `ordered_kv_records`, `key` and `value`;
    .gz too), or drawn anew: objects of so many `keys`, or as many as a length in tokens holds, where the rest, less
    than a pair, is filled with words in front. What is asked for lies at `positions` places, spread evenly.
    """

    files: tuple[str, ...] = ()
    keys: tuple[int, ...] = ()
    lengths: tuple[int, ...] = (2048, 4096)
    """In tokens, prompt and answer together; not used where `files` or `keys` are given."""
    positions: int = 5
    samples: int = 1
    """Questions for each size and position; of a file, its first so many questions at each of the positions."""
    seed: int = 0

    def questions(self, tokenizer: Tokenizer) -> Iterator[Question]:
        for path in self.files:
            for number, (pairs, key) in enumerate(read(Path(path), self.samples)):
                for place in self._places(len(pairs)):
                    yield _question(moved(pairs, key, place), place, f"{Path(path).name}-{number}-{place}")
        if self.files:
            return
        filler = Filler(tokenizer, (), np.random.default_rng([self.seed, 0]))
        for size, sample in itertools.product(dict.fromkeys(self.keys or self.lengths), range(self.samples)):
            random = np.random.default_rng([self.seed, size, sample])
            if self.keys:
                drawn = draw(random, size)
                for place in self._places(size):
                    yield _question(drawn, place, f"{size}-keys-{sample}-{place}")
                continue
            drawn = draw(random, size // 8 + 10)  # a pair has far more than 8 tokens
            room = size - TOKENS
            count = most(tokenizer, room - SLACK, partial(_first, drawn), least=2)
            for place in self._places(count):
                tail = ask(drawn[:count], drawn[place][0])
                made = fit(tokenizer, room, partial(_behind, tail), filler, 0)
                yield _question(drawn[:count], place, f"{size}-{sample}-{place}", made, size)

    def score(self, answer: str, question: Question) -> float:
        return float(question.answers[0].lower() in answer.lower())

    def _places(self, count: int) -> list[int]:
        return sorted({round(place) for place in np.linspace(0, count - 1, min(self.positions, count))})


def ask(pairs: Pairs, key: str) -> str:
    """The prompt: a JSON object with a pair a line, as in the benchmark, and a key."""
    lines = ",\n ".join(f"{json.dumps(one)}: {json.dumps(value)}" for one, value in pairs)
    return f'Give the value that belongs to the key in this JSON object.\n\n{{{lines}}}\n\nKey: "{key}"\nValue:'


def draw(random: np.random.Generator, count: int) -> Pairs:
    """Pairs of random UUIDs (version 4)."""
    made = [str(uuid.UUID(bytes=random.bytes(16), version=4)) for _ in range(2 * count)]
    return list(zip(made[::2], made[1::2], strict=True))


def read(path: Path, count: int) -> list[tuple[Pairs, str]]:
    """The first rows of a file of the benchmark: pairs in order, and the key that is asked for."""
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in itertools.islice(file, count):
                row = json.loads(line)
                rows.append(([(key, value) for key, value in row["ordered_kv_records"]], row["key"]))
    except OSError as error:
        raise FactoryError(f"{path}: cannot read it: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FactoryError(f"{path}, line {len(rows) + 1}: not a row of key-value retrieval: {error!r}") from error
    return rows


def moved(pairs: Pairs, key: str, place: int) -> Pairs:
    """The pairs with that of the key at this place, the others in their order."""
    others = [pair for pair in pairs if pair[0] != key]
    return [*others[:place], *(pair for pair in pairs if pair[0] == key), *others[place:]]


def _first(pairs: Pairs, count: int) -> str:
    return ask(pairs[:count], pairs[0][0])


def _behind(tail: str, text: str) -> str:
    return f"{text}\n\n{tail}"


def _question(pairs: Pairs, place: int, name: str, prompt: str = "", length: int = 0) -> Question:
    key, value = pairs[place]
    return Question(
        task="retrieval",
        subtask=f"{len(pairs)} keys" if not length else "",
        id=name,
        prompt=prompt or ask(pairs, key),
        answers=(value,),
        tokens=TOKENS,
        length=length,
        depth=place / max(1, len(pairs) - 1),
        details={"position": place},
    )


TASK = Retrieval
