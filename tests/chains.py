"""Planted chains: sums of some steps, of which one may be wrong at a known place, and what follows goes on from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from random import Random


@dataclass(frozen=True)
class Chain:
    """`3+4-2=` and its lines, `3+4=7` and so on."""

    prompt: str
    steps: list[str]
    """Each with its line end, but the last."""
    wrong: int | None
    """The place of the wrong step; None where all are right."""
    gold: int

    @property
    def labels(self) -> list[bool]:
        """Whether who goes on from each step without a mistake comes to the right answer."""
        return [self.wrong is None or place < self.wrong for place in range(len(self.steps))]

    @property
    def right(self) -> bool:
        return self.wrong is None


def plant(rng: Random, length: int = 4, wrong: bool = True, most: int = 9) -> Chain:
    """A chain of `length` steps that add or take away up to `most`; all numbers are from 0 to 9.

    A wrong step has another sum, from which the next goes on.
    """
    values = [rng.randint(0, 9)]
    for _ in range(length):
        values.append(rng.choice([one for one in range(10) if 0 < abs(one - values[-1]) <= most]))
    terms = [after - before for before, after in pairwise(values)]
    place = rng.randrange(length) if wrong else None
    said = list(values)
    if place is not None:
        later = values[place + 1 :]
        offs = [one for one in range(-9, 10) if one and min(later) + one >= 0 and max(later) + one <= 9]
        if not offs:  # its numbers are all there are
            return plant(rng, length, wrong, most)
        off = rng.choice(offs)
        said[place + 1 :] = [one + off for one in later]
    lines = [f"{before}{term:+}={after}\n" for before, term, after in zip(said, terms, said[1:], strict=False)]
    lines[-1] = lines[-1].rstrip("\n")
    prompt = f"{values[0]}" + "".join(f"{term:+}" for term in terms) + "=\n"
    return Chain(prompt, lines, place, values[-1])


def go_on(text: str, rng: Random, slip: float) -> str:
    """An honest model of some skill: it goes on from where a chain is, and is wrong in a step with chance `slip`."""
    head, _, said = text.partition("=\n")
    value, *terms = (int(number) for number in re.findall(r"[+-]?\d+", head))
    done = said.count("\n")
    if done:
        value = int(said.splitlines()[-1].rpartition("=")[2])
    lines = []
    for term in terms[done:]:
        result = value + term + (rng.choice((-2, -1, 1, 2)) if rng.random() < slip else 0)
        lines.append(f"{value}{term:+}={result}")
        value = result
    return "\n".join(lines)
