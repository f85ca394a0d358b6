"""Whether two final answers are the same: numbers, units, percentages, sets, tuples, intervals, matrices, equations,
letters of options and texts are settled here, exactly; what is left goes to `symbolic`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction

from factory.verify import approximate, symbolic
from factory.verify.notation import DECIMAL, clean, exact, words
from factory.verify.units import factor, scaled

LENGTH = 2000
"""Characters of an answer: a longer one equals only itself."""
BUDGET = 4.0
"""CPU seconds that the symbolic comparisons of one verdict may take together."""
PLACES = 6
"""A decimal with so many significant digits stands for the number that it rounds, where that has no end."""

LETTER = re.compile(r"\(?\s*(?:(?:option|choice|answer)\s+)?\(?([A-J])\s*\)?[.):]?", re.IGNORECASE)
LABELLED = re.compile(r"\(([A-J])\)\s*[:.]?\s*(\S.*)|([A-J])[.):]\s*(\S.*)")
TIME = re.compile(r"(\d{1,2})(?::(\d\d))?\s*([ap])\.?\s?m\b\.?", re.IGNORECASE)
NAMED = re.compile(r"(?:([A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?|\\[a-z]+)\s*=\s*)(.+)")
UNFINISHED = re.compile(r"[?:]|\d\s*_|[-+*/^=<>]$|^[*/^=]|\d\s?(?:st|nd|rd|th)\b")
"""No mathematics for sympy: ratios, other bases, ordinals, and what breaks off, which its parser would complete."""
RELATION = re.compile(r"<=|>=|<|>")
MEMBER = re.compile(r"([A-Za-z]|\\[a-z]+)\s*\\in(?![a-z])\s*(.+)")
MATRIX = re.compile(r"\\begin\s*\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}")
FUNCTIONS = words("sin cos tan cot sec csc log ln exp arcsin arccos arctan sinh cosh tanh sqrt pi max min mod gcd lcm")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
CONVERSION = str.maketrans("", "", " ")


class Exhausted(Exception):
    """A comparison, or all of a verdict's together, took more than its share: `reason` is timeout or memory."""


class Comparison:
    """One verdict: the two answers are compared part by part, within one budget of symbolic work."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.symbolic = False

    def same(self, one: str, other: str, depth: int = 0) -> bool:
        """Whether two answers are the same. Raises `Exhausted`."""
        if len(one) > LENGTH or len(other) > LENGTH:
            return one.strip() == other.strip() != ""
        left, right = clean(one), clean(other)
        if not left or not right:
            return False
        if left == right or left.translate(CONVERSION) == right.translate(CONVERSION):
            return not _alters(left, right)
        if DECIMAL.fullmatch(left) and DECIMAL.fullmatch(right):
            return exact(left) == exact(right)
        if depth > 6:
            return False
        for judge in (self.letters, self.names, self.matrices, self.regions, self.several, self.quantities):
            found = judge(left, right, depth)
            if found is not None:
                return found
        return self.rest(left, right)

    def letters(self, left: str, right: str, depth: int) -> bool | None:
        """The letter of an option, alone or before its text."""
        for one, other in ((left, right), (right, left)):
            if len(one) == 1 and "A" <= one <= "J":
                match = LETTER.fullmatch(other)
                if match:
                    return match[1].upper() == one
                label, _ = _label(other)
                return label == one if label else None
        (label, text), (another, rest) = _label(left), _label(right)
        if label and another:
            return label == another and self.same(text, rest, depth + 1)
        for (letter, body), whole in (((label, text), right), ((another, rest), left)):
            if letter:
                match = LETTER.fullmatch(whole)
                return match[1].upper() == letter if match else self.same(body, whole, depth + 1)
        return None

    def names(self, left: str, right: str, depth: int) -> bool | None:
        """`x = 3` is 3, and not y = 3; `y = 2x + 1` is `2x + 1`."""
        (name, value), (other, another) = _named(left), _named(right)
        if name and other:
            return self.same(value, another, depth + 1) if name == other else None
        if name and not _related(right):
            return self.same(value, right, depth + 1)
        if other and not _related(left):
            return self.same(left, another, depth + 1)
        return None

    def matrices(self, left: str, right: str, depth: int) -> bool | None:
        """Entry by entry, whatever the brackets; a row or a column is also the tuple of its entries."""
        one, other = _matrix(left), _matrix(right)
        if one is None and other is None:
            return None
        if one is None or other is None:
            rows, text = (one or other), (right if one else left)
            flat = [entry for row in rows or [] for entry in row]
            items = split(text[1:-1], ",") if text[0] + text[-1] in ("()", "[]") else []
            straight = rows is not None and (len(rows) == 1 or all(len(row) == 1 for row in rows))
            return straight and self.every(flat, items, depth)
        if [len(row) for row in one] != [len(row) for row in other]:
            return False
        return all(self.every(a, b, depth) for a, b in zip(one, other, strict=True))

    def regions(self, left: str, right: str, depth: int) -> bool | None:
        """Intervals, their unions, and inequalities in one variable."""
        if not (_regional(left) or _regional(right)):
            return None
        (name, one), (other, another) = _region(left), _region(right)
        if one is None or another is None:
            if _related(left) and _related(right):
                return None
            return False if one != another else None
        if name and other and name != other:
            return False
        return self.any_order(one, another, self.interval, depth)

    def interval(self, left: str, right: str, depth: int) -> bool:
        if "," not in left or "," not in right:
            return self.same(left, right, depth + 1)
        if left[0] + left[-1] != right[0] + right[-1]:
            return False
        return self.every(split(left[1:-1], ","), split(right[1:-1], ","), depth)

    def several(self, left: str, right: str, depth: int) -> bool | None:
        """Sets and lists in any order, tuples in theirs; `±` is two. A value said twice is one."""
        one, other = collection(left), collection(right)
        if one is None and other is None:
            return None
        kind, items = one or ("", [left])
        another, parts = other or ("", [right])
        if "(" in (kind, another) or "[" in (kind, another):
            if kind and another and kind != another and "list" not in (kind, another):
                return False
            return bool(kind and another) and self.every(items, parts, depth)
        if "{" in (kind, another) and not (kind and another):
            return False  # {3} is not 3
        return self.any_order(items, parts, self.same, depth)

    def quantities(self, left: str, right: str, depth: int) -> bool | None:
        """Rational numbers, with units, percent signs, or the time of day."""
        clock, hour = TIME.fullmatch(left), TIME.fullmatch(right)
        if clock or hour:
            return bool(clock and hour) and _clock(clock) == _clock(hour)
        (one, unit, times), (other, another, size) = scaled(left), scaled(right)
        scale = factor(unit, another)
        if scale is None:
            return False
        value, rival = exact(one), exact(other)
        if value is None or rival is None:
            if (one, other) == (left, right):
                return None
            return scale == 1 and self.same(one, other, depth + 1)
        value, rival = value * scale * times, rival * size
        percents = (one.endswith("%"), other.endswith("%"))
        if close(value, rival, one, other):
            return True
        if percents == (True, False):
            return close(value * 100, rival, one, other)
        if percents == (False, True):
            return close(value, rival * 100, one, other)
        return False

    def rest(self, left: str, right: str) -> bool:
        """Texts by their words; what is left is mathematics, for sympy."""
        if _key(left) == _key(right) != "":
            return True
        if any(_wordy(text) or UNFINISHED.search(text) for text in (left, right)):
            return False
        if _contradicts(left) or _contradicts(right):
            return False
        if max(left.count("{"), right.count("{")) > 200 or max(len(left), len(right)) > LENGTH // 2:
            return False
        if r"\infty" in left + right:
            return left.lstrip("+ ") == right.lstrip("+ ")
        near = approximate.same(left, right)
        if near is not None:
            return near
        self.symbolic = True
        found, taken = symbolic.compare(left, right)
        self.spent += taken
        if found in ("timeout", "memory"):
            raise Exhausted(found)
        if self.spent > BUDGET:
            raise Exhausted("timeout")
        return found == "equal"

    def every(self, ones: list[str], others: list[str], depth: int) -> bool:
        return len(ones) == len(others) > 0 and all(
            self.same(a, b, depth + 1) for a, b in zip(ones, others, strict=True)
        )

    def any_order(self, ones: list[str], others: list[str], same: Callable[[str, str, int], bool], depth: int) -> bool:
        """Whether each item of either has its like in the other; one to one where they are as many."""
        if min(len(ones), len(others)) == 0 or max(len(ones), len(others)) > 64:
            return False
        left = set(range(len(others)))
        for item in ones:
            met = [k for k, part in enumerate(others) if same(item, part, depth + 1)]
            if len(ones) == len(others):
                met = [k for k in met if k in left][:1]
            if not met:
                return False
            left -= set(met)
        return not left


def close(value: Fraction, rival: Fraction, one: str, other: str) -> bool:
    """Equal, or the one a decimal of 6 significant digits that rounds (or cuts) the other, which never ends."""
    if value == rival:
        return True
    for rounded, whole, text in ((value, rival, one), (rival, value, other)):
        match = re.fullmatch(r"-?(\d*)\.(\d+)%?", text)
        if match and len((match[1] + match[2]).lstrip("0")) >= PLACES and not _ends(whole):
            step = abs(rounded - whole) * 10 ** len(match[2]) * (100 if text.endswith("%") else 1)
            if step < 1:
                return True
    return False


def _ends(value: Fraction) -> bool:
    """Whether the decimal expansion is finite."""
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1


def split(text: str, separator: str) -> list[str]:
    """The parts of `text` between separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(separator, at):
            parts.append(text[start:at].strip())
            start = at + len(separator)
    return [*parts, text[start:].strip()]


def _closed(text: str) -> bool:
    """Whether the first bracket is closed by the last sign."""
    depth = 0
    for at, sign in enumerate(text):
        depth += sign in "([{"
        depth -= sign in ")]}"
        if depth == 0:
            return at == len(text) - 1
    return False


def collection(text: str) -> tuple[str, list[str]] | None:
    """The kind of a set, a tuple or a list, `{`, `(`, `[` or `list`, and its items."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inside = text[2:-2].strip()
        return "{", split(inside, ",") if inside else []
    if text[0] in "([{" and _closed(text):
        items = split(text[1:-1], ",")
        if text[0] == "{":
            return "{", [item for item in items if item]
        return (text[0], items) if len(items) > 1 else None
    text = re.sub(r"^(?:either|both)\s+", "", text)
    items = [item for part in re.split(r"\s*(?:,?\s+(?:and|or)\s+|;\s*)", text) for item in split(part, ",")]
    if len(items) == 1:
        if r"\pm" in text and text.count(r"\pm") == 1:
            return "list", [text.replace(r"\pm", sign).lstrip("+ ") for sign in "+-"]
        return None
    if not all(items):
        return None
    name, _ = _named(items[0])
    return "list", [_named(item)[1] if name and _named(item)[0] == name else item for item in items]


def _named(text: str) -> tuple[str, str]:
    match = NAMED.fullmatch(text)
    return (match[1], match[2].strip()) if match and "=" not in match[2] else ("", text)


def _contradicts(text: str) -> bool:
    """Whether a chain says that two numbers are one which are not, as `3 = 4`: its last would pass for its value."""
    values = [value for side in re.split(r"=|\\approx", text) if (value := exact(side.strip())) is not None]
    return any(not within(one, values[-1], 0.05) for one in values[:-1])


def _related(text: str) -> bool:
    return "=" in text or "<" in text or ">" in text


def _label(text: str) -> tuple[str, str]:
    match = LABELLED.fullmatch(text)
    if not match or re.search(r"\([A-J]\)|\b[A-J][.)]\s", match[2] or match[4]):
        return "", ""  # all options listed choose none
    return match[1] or match[3], match[2] or match[4]


def _matrix(text: str) -> list[list[str]] | None:
    match = MATRIX.fullmatch(text)
    if not match or match[1] == "vmatrix":
        return None
    rows = [row for row in re.split(r"\\\\", match[2]) if row.strip()]
    return [[entry.strip() for entry in row.split("&")] for row in rows]


def _regional(text: str) -> bool:
    return bool(RELATION.search(text) or r"\cup" in text or r"\in " in text or (r"\infty" in text and "," in text)) or (
        "," in text and text[0] + text[-1] in ("[)", "(]", "][")
    )


def _region(text: str) -> tuple[str, list[str] | None]:
    """The variable, and the intervals `(a,b]` whose union it is."""
    match = MEMBER.fullmatch(text)
    name, body = (match[1], match[2]) if match else ("", text)
    found = []
    for part in re.split(r"\\cup|\s+or\s+", body):
        inner, interval = _interval(part.strip())
        if interval is None or (name and inner and inner != name):
            return name, None
        name = name or inner
        found.append(interval)
    return name, found


def _interval(text: str) -> tuple[str, str | None]:
    """`1 < x <= 2` as `(1,2]`; French brackets as ours; a finite set as it is."""
    signs = RELATION.findall(text)
    if not signs:
        if text.startswith(r"\{"):
            return "", text
        if len(text) > 2 and text[0] in "([]" and text[-1] in ")][" and len(split(text[1:-1], ",")) == 2:
            return "", {"]": "("}.get(text[0], text[0]) + text[1:-1] + {"[": ")"}.get(text[-1], text[-1])
        return "", None
    sides = [side.strip() for side in RELATION.split(text)]
    if len({sign[0] for sign in signs}) > 1 or "!" in text:
        return "", None
    if signs[0][0] == ">":
        sides, signs = sides[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    variable = re.compile(r"[A-Za-z]|\\[a-z]+")
    places = [k for k, side in enumerate(sides) if variable.fullmatch(side) and side != r"\infty"]
    if len(sides) > 3 or len(places) != 1 or (len(sides) == 3 and places != [1]):
        return "", None
    place = places[0]
    low = ("[" if "=" in signs[place - 1] else "(") + sides[place - 1] if place > 0 else r"(-\infty"
    high = sides[place + 1] + ("]" if "=" in signs[place] else ")") if place + 1 < len(sides) else r"\infty)"
    return sides[place], f"{low},{high}"


def _clock(match: re.Match[str] | None) -> tuple[int, int, str] | None:
    return match and (int(match[1]), int(match[2] or 0), match[3].lower())


def _key(text: str) -> str:
    """The words of a text, apart from case, articles and punctuation."""
    said = re.sub(r"(?<=\w)\.(?=\s|\w|$)", "", text.casefold())
    said = re.sub(r"[^\w:%/+*^=<>|&\\{}()\[\]-]+", " ", said)
    if not re.search(r"[a-z]{2,}|[^\x00-\x7f]", said):
        return ""
    return " ".join(word for word in said.split() if word not in ("a", "an", "the"))


def _wordy(text: str) -> bool:
    """Whether it is words, not mathematics."""
    if re.search(r"[^\x00-\x7f°]", text):
        return True
    inside = re.sub(r"\\[A-Za-z]+|\{[A-Za-z]*matrix\}", " ", text)
    return any(len(word) >= 3 and word.lower() not in FUNCTIONS for word in WORD.findall(inside))


def _alters(left: str, right: str) -> bool:
    """Whether leaving out spaces changes what is said: `1 1/2` and `11/2`, `1 2` and `12`."""
    return left != right and re.findall(r"\d+", left) != re.findall(r"\d+", right)


def within(value: Fraction, rival: Fraction, tolerance: float) -> bool:
    """Whether `value` is `rival` to a relative tolerance."""
    return abs(value - rival) <= Fraction(tolerance) * abs(rival)


def rounds(value: Fraction, places: int) -> tuple[Decimal, Decimal]:
    """`value` rounded half up, and cut, to so many places."""
    whole = Decimal(value.numerator) / Decimal(value.denominator)
    step = Decimal(1).scaleb(-places)
    return whole.quantize(step, ROUND_HALF_UP), whole.quantize(step, ROUND_DOWN)
