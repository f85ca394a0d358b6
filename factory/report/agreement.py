"""How far critics agree: what pairs.Pairs tallies of their votes, as the usual coefficients.

A vote is for, against, or none; `Votes` counts the patterns of votes, one place a critic. Chance-corrected coefficients
are 1 where critics always agree and 0 where they do as often as chance has it; None where there is nothing to compare,
or all votes are the same, so that chance agrees as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations, permutations

Pattern = tuple[bool | None, ...]
Votes = Mapping[Pattern, int]
PREFIX = "votes "
VOTE = re.compile(r" (.+?)=([01-])(?= |$)")
SAID = {"1": True, "0": False, "-": None}
SHOWN = 4
"""Patterns that are shown, the most frequent ones."""


def read(tally: Mapping[str, int]) -> dict[tuple[str, ...], dict[Pattern, int]]:
    """The votes in a step's tally, by the names of the critics: `votes correct=1 reward=-` is a pattern."""
    found: dict[tuple[str, ...], dict[Pattern, int]] = {}
    for name, count in tally.items():
        if name.startswith(PREFIX):
            votes = VOTE.findall(name)
            critics = tuple(critic for critic, _ in votes)
            found.setdefault(critics, {})[tuple(SAID[said] for _, said in votes)] = count
    return found


def of(votes: Votes, *critics: int) -> dict[Pattern, int]:
    """The votes of some critics, where all of them have one."""
    found: dict[Pattern, int] = {}
    for pattern, count in votes.items():
        part = tuple(pattern[critic] for critic in critics)
        if None not in part:
            found[part] = found.get(part, 0) + count
    return found


def share(votes: Votes, a: int, b: int) -> float | None:
    """The share of responses of which two critics say the same, of those of which both say something."""
    both = of(votes, a, b)
    total = sum(both.values())
    return sum(count for (x, y), count in both.items() if x == y) / total if total else None


def cohen(votes: Votes, a: int, b: int) -> float | None:
    """Cohen's kappa of two critics (1960): each has a share of positive votes of its own."""
    both = of(votes, a, b)
    total = sum(both.values())
    if not total:
        return None
    p, q = (sum(count for pattern, count in both.items() if pattern[place]) / total for place in (0, 1))
    agreed = sum(count for (x, y), count in both.items() if x == y) / total
    return _corrected(agreed, p * q + (1 - p) * (1 - q))


def fleiss(votes: Votes) -> float | None:
    """Fleiss' kappa (1971) of the critics that have opinions at all, of the responses of which each of them has one."""
    critics = [place for place, said in enumerate(zip(*votes, strict=True)) if any(vote is not None for vote in said)]
    raters, full = len(critics), of(votes, *critics)
    total = sum(full.values())
    if not total or raters < 2:
        return None
    agreed = sum(count * _alike(sum(map(bool, pattern)), raters) for pattern, count in full.items()) / total
    p = sum(count * sum(map(bool, pattern)) for pattern, count in full.items()) / (total * raters)
    return _corrected(agreed, p * p + (1 - p) * (1 - p))


def krippendorff(votes: Votes) -> float | None:
    """Krippendorff's alpha for nominal data (2004, chapter 11): of all responses of which two or more say something."""
    together = {(a, b): 0.0 for a in (True, False) for b in (True, False)}
    for pattern, count in votes.items():
        said = [vote for vote in pattern if vote is not None]
        for a, b in permutations(said, 2):
            together[a, b] += count / (len(said) - 1)
    positive, negative = (together[one, True] + together[one, False] for one in (True, False))
    total = positive + negative
    if not total or not positive or not negative:
        return None
    return 1 - (total - 1) * together[True, False] / (positive * negative)


def _alike(positive: int, raters: int) -> float:
    """The share of pairs of raters that agree, where so many are for it."""
    negative = raters - positive
    return (positive * (positive - 1) + negative * (negative - 1)) / (raters * (raters - 1))


def _corrected(agreed: float, by_chance: float) -> float | None:
    return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else None


def lines(tally: Mapping[str, int]) -> Iterator[str]:
    """What `factory show` prints of the votes in a tally."""
    for critics, votes in sorted(read(tally).items()):
        total = sum(votes.values())
        often = sorted(votes.items(), key=lambda item: (-item[1], str(item[0])))[:SHOWN]
        names = {said: shown for shown, said in SAID.items()}
        shown = [f"{''.join(names[vote] for vote in pattern)} {count / total:.1%}" for pattern, count in often]
        yield f"votes of {' '.join(critics)} on {total:,} responses: {', '.join(shown)}"
        for a, b in combinations(range(len(critics)), 2):
            if (agreed := share(votes, a, b)) is not None:
                kappa = _number(cohen(votes, a, b))
                yield f"{critics[a]} and {critics[b]} agree on {agreed:.1%}, Cohen's kappa {kappa}"
        if len(critics) > 1:
            yield f"Fleiss' kappa {_number(fleiss(votes))}, Krippendorff's alpha {_number(krippendorff(votes))}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
