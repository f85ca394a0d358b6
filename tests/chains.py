"""Planted chains: sums of some steps, of which one may be wrong at a known place, and what follows goes on from it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Chain:
    """`3 + 4 - 2 =` and its lines, `3 + 4 = 7` and so on."""

    prompt: str
    steps: list[str]
    """Each with its line end, but the last."""
    wrong: int | None
    """The place of the wrong step; None where all are right."""
    gold: int

    @property
    def labels(self) -> list[bool]:
        """Whether the right answer can still be reached from each step by going on without a mistake."""
        return [self.wrong is None or place < self.wrong for place in range(len(self.steps))]

    @property
    def right(self) -> bool:
        return self.wrong is None


def problem(rng: Random, length: int, top: int = 9) -> tuple[int, list[int]]:
    """A start and what is added, one after the other; every sum lies in 0 to `top`."""
    value = start = rng.randint(0, top)
    terms: list[int] = []
    for _ in range(length):
        term = rng.choice([one for one in range(-top, top + 1) if one and 0 <= value + one <= top])
        terms.append(term)
        value += term
    return start, terms


def plant(rng: Random, length: int = 4, wrong: bool = True, top: int = 9) -> Chain:
    """A chain of `length` steps. A wrong step has another sum, from which the next goes on."""
    while True:
        start, terms = problem(rng, length, top)
        place = rng.randrange(length) if wrong else None
        value, lines = start, []
        for number, term in enumerate(terms):
            result = value + term
            if number == place:
                result = rng.choice([one for one in range(top + 1) if one != result])
            lines.append(f"{value} {'+' if term > 0 else '-'} {abs(term)} = {result}\n")
            value = result
            if not 0 <= value <= top:
                break
        else:
            lines[-1] = lines[-1].rstrip("\n")
            return Chain(asked(start, terms), lines, place, start + sum(terms))


def asked(start: int, terms: list[int]) -> str:
    return f"{start} " + "".join(f"{'+' if term > 0 else '-'} {abs(term)} " for term in terms) + "=\n"


def go_on(text: str, rng: Random, slip: float) -> str:
    """An honest model of some skill: it goes on from where a chain is, and is wrong in a step with chance `slip`."""
    head, _, said = text.partition("=\n")
    words = head.split()
    terms = [
        int(number) if sign == "+" else -int(number) for sign, number in zip(words[1::2], words[2::2], strict=True)
    ]
    done = said.count("\n")
    value = int(said.splitlines()[-1].rpartition("=")[2]) if done else int(words[0])
    lines = []
    for term in terms[done:]:
        result = value + term + (rng.choice((-2, -1, 1, 2)) if rng.random() < slip else 0)
        lines.append(f"{value} {'+' if term > 0 else '-'} {abs(term)} = {result}")
        value = result
    return "\n".join(lines)
