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


def problem(rng: Random, length: int, most: int = 9, top: int = 9) -> list[int]:
    """The sums of a problem, of which each adds or takes away up to `most`; all are from 0 to `top`."""
    values = [rng.randint(0, top)]
    for _ in range(length):
        values.append(rng.choice([one for one in range(top + 1) if 0 < abs(one - values[-1]) <= most]))
    return values


def worked(values: list[int], rng: Random | None = None, top: int = 9) -> Chain:
    """The chain of a problem; with `rng` a step is wrong in its sum, from which the next goes on."""
    terms = [after - before for before, after in pairwise(values)]
    said, place = list(values), -1
    if rng:
        offs: list[int] = []
        while not offs:
            place = rng.randrange(len(terms))
            later = values[place + 1 :]
            offs = [one for one in range(-min(later), top + 1 - max(later)) if one]
        off = rng.choice(offs)
        said[place + 1 :] = [one + off for one in later]
    lines = [f"{before}{term:+}={after}\n" for before, term, after in zip(said, terms, said[1:], strict=False)]
    lines[-1] = lines[-1].rstrip("\n")
    prompt = f"{values[0]}" + "".join(f"{term:+}" for term in terms) + "=\n"
    return Chain(prompt, lines, place if rng else None, values[-1])


def plant(rng: Random, length: int = 4, wrong: bool = True, most: int = 9, top: int = 9) -> Chain:
    """A chain of `length` steps, one of them wrong or none."""
    return worked(problem(rng, length, most, top), rng if wrong else None, top)


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
