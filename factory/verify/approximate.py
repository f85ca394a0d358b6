r"""Whether two expressions can be equal, by their values at two points: most that are not are told apart at once.

Read are rational numbers, roots, powers, $\pi$ and letters; all else is `None`, and sympy's to decide.
"""

from __future__ import annotations

import cmath
import math
from functools import lru_cache

from factory.verify.notation import Arithmetic, Token, Unknown, tokens

# The letters' values at the two points: positive ones, where sqrt(x²) is x, and complex ones, where it is -x.
POINTS = (
    {chr(97 + k): complex(0.37 + 0.618034 * (k + 1) % 1.7) for k in range(26)},
    {chr(97 + k): complex(-0.3 - 0.7548777 * (k + 1) % 1.9, 0.2 + 0.5698403 * (k + 1) % 1.3) for k in range(26)},
)
ROUNDED, APART, TOGETHER = 1e-3, 1e-6, 1e-12
"""Relative differences above which values differ, with a decimal in them and without, and below which they are one."""
LARGE = 1e4
"""Constants beyond are not called equal: the 12 digits of e^(pi sqrt 163) are those of an integer."""


class Complex(Arithmetic):
    """Expressions with letters, at a point, in complex floating point."""

    def __init__(self, found: list[Token], point: dict[str, complex]) -> None:
        super().__init__(found)
        self.point = point

    def mixed(self) -> complex:  # type: ignore[override]
        reader = Arithmetic(self.tokens)
        reader.place = self.place
        value = reader.mixed()
        self.place = reader.place
        return complex(value)

    def joins(self) -> bool:
        token = self.tokens[self.place] if self.place < len(self.tokens) else None
        found = super().joins() or (token is not None and (token.kind == "word" or token.text == r"\pi"))
        if found and self.divided:
            raise Unknown
        return found

    def unknown(self) -> complex:  # type: ignore[override]
        if self.place >= len(self.tokens):
            raise Unknown
        token = self.tokens[self.place]
        self.place += 1
        if token.text == r"\pi":
            return complex(math.pi)
        if token.kind != "word" or len(token.text) > 1 or not token.text.isascii() or token.text in "iIjeE":
            raise Unknown  # i and e may be letters or numbers
        value = self.point[token.text.lower()]
        return value if token.text.islower() else value * value + 1.25

    def bounded(self, value: complex) -> complex:  # type: ignore[override]
        if not abs(value) < 1e100:
            raise Unknown
        return value

    def quotient(self, above: complex, below: complex) -> complex:  # type: ignore[override]
        if abs(below) < 1e-9:
            raise Unknown
        return above / below

    def raised(self, base: complex, exponent: complex) -> complex:  # type: ignore[override]
        if abs(exponent) > 50 or abs(base) > 1e6 or abs(base) < 1e-9:
            raise Unknown
        return self.bounded(base**exponent)

    def root(self, value: complex) -> complex:  # type: ignore[override]
        return cmath.sqrt(value)

    def factorial(self, value: complex) -> complex:  # type: ignore[override]
        raise Unknown


@lru_cache(maxsize=4096)
def values(text: str) -> tuple[complex, complex] | None:
    """The values of a cleaned expression at the two points, None where it is not read."""
    found = [token for token in tokens(text) if token.kind != "space"]
    if len(found) > 200:
        return None
    try:
        readers = [Complex(found, point) for point in POINTS]
        one, other = (complex(reader.sum()) for reader in readers)
    except Unknown:
        return None
    return (one, other) if readers[0].place == len(found) else None


def same(left: str, right: str) -> bool | None:
    """Whether two cleaned expressions are equal; None where their values do not say."""
    ones, others = values(left), values(right)
    if ones is None or others is None:
        return None
    size = max(abs(ones[0]), abs(others[0]))
    if size < 1e-9:
        return None
    decimal = "." in left + right
    if abs(ones[0] - others[0]) > (ROUNDED if decimal else APART) * size:
        return False
    near = all(abs(a - b) <= TOGETHER * max(abs(a), abs(b)) for a, b in zip(ones, others, strict=True))
    constant = ones[0] == ones[1]
    return True if near and (size < LARGE or not constant) and not decimal else None
