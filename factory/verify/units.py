"""Units after a number: taken off, and converted where both answers have one that is known."""

from __future__ import annotations

import re
from fractions import Fraction

from factory.verify.notation import words

# Of each dimension, its units in the first one.
TABLE: dict[str, dict[str, Fraction | int]] = {
    "length": {
        **{"m meter meters metre metres": 1, "cm centimeter centimeters centimetre centimetres": Fraction(1, 100)},
        **{"mm millimeter millimeters millimetre millimetres": Fraction(1, 1000)},
        **{"km kilometer kilometers kilometre kilometres": 1000, "inch inches": Fraction(254, 10000)},
        **{"ft foot feet": Fraction(3048, 10000), "yd yard yards": Fraction(9144, 10000)},
        **{"mi mile miles": Fraction(1609344, 1000)},
    },
    "mass": {
        **{"g gram grams": 1, "kg kilogram kilograms": 1000, "mg milligram milligrams": Fraction(1, 1000)},
        **{"lb lbs pound pounds": Fraction(45359237, 100000), "oz ounce ounces": Fraction(45359237, 1600000)},
    },
    "time": {
        **{"s sec secs second seconds": 1, "min mins minute minutes": 60, "h hr hrs hour hours": 3600},
        **{"day days": 86400, "week weeks": 604800},
    },
    "months": {"month months": 1, "year years": 12},
    "volume": {"l liter liters litre litres": 1, "ml milliliter milliliters millilitre millilitres": Fraction(1, 1000)},
    "money": {"dollar dollars usd": 1, "cent cents": Fraction(1, 100)},
    "euros": {"euro euros eur": 1},
    "speed": {
        "m/s": 1,
        "km/h kph kmh": Fraction(5, 18),
        "mph": Fraction(1609344, 3600000),
        "ft/s": Fraction(3048, 10000),
    },
    "angle": {"° degree degrees deg": 1},
}
KNOWN = {
    name: (dimension, Fraction(scale))
    for dimension, names in TABLE.items()
    for group, scale in names.items()
    for name in group.split()
}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SYMBOLS = frozenset(["m", "g", "s", "h", "l", "L"])
"""Letters that are units, where a space parts them from the number."""
PLAIN = words(
    "sin cos tan cot sec csc log ln exp and or not to less more than mod if either minus plus times pi sqrt "
    "squared cubed over"
)

MONEY = re.compile(r"(-?)\s*(?:\\\$|([€£¥₹]))\s*(.+)")
TRAILING = re.compile(r"(.*?[\w\d})\].%!])(?:\s+|(?<=\d)(?=[A-Za-z]{2})|(?=°))([A-Za-z°].*)")
UNIT = re.compile(r"[A-Za-z°][A-Za-z°./ -]*(?:\^\s*\{?\s*-?\d\s*\}?)?(?:\s*/\s*[A-Za-z]+(?:\^\{?\d\}?)?)?")


def unit_of(text: str) -> tuple[str, str]:
    """A cleaned answer without its unit, and the unit ('' for none): `5 cm`, `\\$6`, `48°`, `9\\pi square feet`."""
    money = MONEY.fullmatch(text)
    if money:
        value, after = unit_of(money[3])
        return money[1] + value, after if after in ("cent", "cents") else {"€": "euro"}.get(money[2] or "", "dollar")
    match = TRAILING.fullmatch(text)
    if not match or not UNIT.fullmatch(match[2]) or not re.search(r"[\d}]|\\pi|\)", match[1]):
        return text, ""
    named = match[2].split()
    if any(word.lower() in PLAIN for word in named) or len(named) > 8:
        return text, ""
    if len(named[0]) == 1 and named[0] not in SYMBOLS and named[0] != "°" and not match[2].startswith("°"):
        return text, ""
    if len(named[0]) == 2 and known(match[2]) is None:
        return text, ""  # 5 xy is a product
    if match[1][-1].isdigit() and text[len(match[1])].isalpha() and known(match[2]) is None:
        return text, ""  # and so may be 5xyz
    if named[0] in ("percent", "percentage", "pct") and len(named) <= 2:
        return match[1].rstrip("%") + "%", ""
    return match[1], match[2]


def scaled(text: str) -> tuple[str, str, int]:
    """As `unit_of`, and the scale that a word between the number and its unit says: `1.2 million dollars`."""
    value, unit = unit_of(text)
    first, _, rest = unit.partition(" ")
    return (value, rest, SCALES[first.lower()]) if first.lower() in SCALES else (value, unit, 1)


def factor(one: str, other: str) -> Fraction | None:
    """What turns a number of one unit into the other: 1 where a unit is missing or unknown, None for a contradiction.

    "apples" and "pieces of fruit" are both unknown and nothing follows from them; metres are not seconds.
    """
    if not one or not other or one == other:
        return Fraction(1)
    left, right = known(one), known(other)
    if left is None or right is None:
        return Fraction(1)
    return left[1] / right[1] if left[0] == right[0] else None


def known(unit: str) -> tuple[str, Fraction] | None:
    """The dimension and scale of a unit; squares and cubes of lengths too."""
    if unit in KNOWN:
        return KNOWN[unit]
    power = 1
    match = re.fullmatch(
        r"(?:(sq|square|cu|cubic)\.?\s+)?([A-Za-z°]+)(?:\s*\^\s*\{?\s*([23])\s*\}?)?", unit.rstrip(".")
    )
    if not match:
        return None
    if match[1]:
        power = 2 if match[1].startswith("sq") else 3
    elif match[3]:
        power = int(match[3])
    found = KNOWN.get(match[2]) or KNOWN.get(match[2].lower())
    if found is None:
        return None
    dimension, scale = found
    return (dimension, scale) if power == 1 else (f"{dimension}^{power}", scale**power)
