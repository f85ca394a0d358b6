"""One spelling for the many ways to write a mathematical answer, and the exact value of an arithmetic expression.

`clean` turns Unicode and LaTeX variants into one plain LaTeX; `exact` evaluates what is made of rational numbers and
`+ - * / ^ % !`, fractions, mixed numbers and roots of squares. Both are bounded in time and memory on any text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

DEPTH = 40
"""Brackets may be nested so deep,"""
DIGITS = 400
"""a number may have so many digits,"""
BITS = 4096
"""and a value so many bits above and below the line: beyond, the value is not known here."""


def words(text: str) -> frozenset[str]:
    """The words of a list that is written with spaces."""
    return frozenset(text.split())


HALVES = (
    "½1/2",
    "⅓1/3",
    "⅔2/3",
    "¼1/4",
    "¾3/4",
    "⅕1/5",
    "⅖2/5",
    "⅗3/5",
    "⅘4/5",
    "⅙1/6",
    "⅚5/6",
    "⅛1/8",
    "⅜3/8",
    "⅝5/8",
    "⅞7/8",
)
DECIMAL = re.compile(r"-?\d{1,50}(?:\.\d{1,50})?")
SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True))
SPELLINGS = {
    **{fraction[0]: f" {fraction[1:]}" for fraction in HALVES},
    **{sign: f"^{digit}" for sign, digit in SUPERSCRIPTS.items()},
    **{chr(0xFF01 + k): chr(0x21 + k) for k in range(94)},  # full-width forms
    **dict.fromkeys("−–—﹣", "-"),
    **dict.fromkeys("×·⋅∙", "*"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u3000", " "),
    **{"÷": "/", "⁄": "/", "∕": "/", "≤": "<=", "≥": ">=", "≠": "!=", "∞": r"\infty", "π": r"\pi", "√": r"\sqrt"},
    **{"∪": r"\cup", "∩": r"\cap", "∈": r"\in", "±": r"\pm", "≈": r"\approx", "∅": r"\emptyset", "º": "°"},
    **{"、": ",", "。": "."},
    **{"\u200b": "", "\ufeff": "", "’": "'", "‘": "'", "“": '"', "”": '"', "θ": r"\theta", "α": r"\alpha"},
}
TRANSLATION = str.maketrans(SPELLINGS)
COMMANDS = {
    **dict.fromkeys(("times", "cdot", "ast"), "*"),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac"),
    **dict.fromkeys(("leq", "le", "leqslant"), "<="),
    **dict.fromkeys(("geq", "ge", "geqslant"), ">="),
    **dict.fromkeys(("lt",), "<"),
    **dict.fromkeys(("gt",), ">"),
    **dict.fromkeys(("neq", "ne"), "!="),
    **dict.fromkeys(("left", "right", "displaystyle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "limits"), ""),
    **dict.fromkeys(("quad", "qquad"), " "),
    **{
        "div": "/",
        "lbrace": r"\{",
        "rbrace": r"\}",
        "lbrack": "[",
        "rbrack": "]",
        "degree": "°",
        "varnothing": r"\emptyset",
    },
    **{"percent": "%", "land": " and ", "lor": " or ", "textdollar": r"\$", "infin": r"\infty"},
}
COMMAND = re.compile(r"\\([a-zA-Z]+)")
WRAPPED = re.compile(
    r"\\(?:text|textrm|textbf|textit|textsf|texttt|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|rm|bf)"
    r"\s*\{([^{}]*)\}"
)
SPACES = re.compile(r"(?<!\\)\\[;:> ]|~|\\hspace\s*\{[^{}]*\}")
THIN = re.compile(r"(?<=\d)\s*(?:,\\!|\{,\}|\\,|,\\,|\\!,|\\;)\s*(?=\d{3}(?!\d))")
THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,])")
SPACED = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?: \d{3})+)(?![\d,]| ?[\d/])")
SHORT = re.compile(r"\\frac\s*(?:\{(\w)\}|(\w))\s*(?:\{(\w+)\}|(\w))")
ROOT = re.compile(r"\\sqrt\s*(\d+|[a-zA-Z])")
DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]")
LEFT, RIGHT = " \t\r\n,;:\"'`", " \t\r\n.,;:\"'`"
MARKDOWN = re.compile(r"^\s*([*_]{1,3})(.*?)\1[\s.,;:]*$", re.DOTALL)


def _command(match: re.Match[str]) -> str:
    return COMMANDS.get(match[1], match[0])


@lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """`text` in plain LaTeX: Unicode signs, spacing, text commands, sizes of brackets and short fractions unified.

    Dollar signs around mathematics go; one that stands for money is kept as `\\$`.
    """
    text = text.translate(TRANSLATION)
    if text.isascii() and text.isdigit():
        return text
    text = THIN.sub("", MARKDOWN.sub(r"\2", text))
    text = DELIMITERS.sub(" ", text)
    text = text.replace(r"\%", "%").replace(r"\!", "").replace(r"\,", " ")
    for _ in range(3):  # \text{} in \mathrm{} happens; deeper is nobody's answer
        changed = WRAPPED.sub(r" \1 ", text)
        if changed == text:
            break
        text = changed
    text = DEGREE.sub("°", SPACES.sub(" ", text))
    text = COMMAND.sub(_command, text)
    text = SHORT.sub(lambda m: rf"\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = ROOT.sub(r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac\s+\{", r"\\frac{", text)
    text = re.sub(r"(?<!\\)\$(?=\s*-?[\d.])(?=[^$]*$)", r"\\$", text)  # a lone dollar sign before a number is money
    text = re.sub(r"(?<!\\)\$", " ", text)
    text = text.lstrip(LEFT).rstrip(RIGHT)
    if text[:1] not in ("(", "[", "{") and not text.startswith("\\{"):
        text = THOUSANDS.sub(lambda m: m[1].replace(",", ""), text)
    text = SPACED.sub(lambda m: m[1].replace(" ", ""), text)
    return re.sub(r"\s+", " ", text)


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is number, word, command, space or the sign itself; `at` and `end` are its place in the text."""

    kind: str
    text: str
    at: int
    end: int


TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,4}(?![\w.]))?|\.\d+)"
    r"|(?P<command>\\[a-zA-Z]+)"
    r"|(?P<word>[^\W\d_]+)"
    r"|(?P<space>\s+)"
    r"|(?P<power>\*\*)"
    r"|(?P<sign>.)",
    re.DOTALL,
)


def tokens(text: str) -> list[Token]:
    """`text` cut into numbers, words, LaTeX commands, runs of space and single signs."""
    found = []
    for match in TOKEN.finditer(text):
        kind, word = match.lastgroup or "", match[0]
        if kind == "sign":
            kind = word
        elif kind == "power":
            kind = "^"
        found.append(Token(kind, word, match.start(), match.end()))
    return found


class Unknown(Exception):
    """The text is not an arithmetic expression that can be evaluated exactly here."""


def number(text: str) -> Fraction:
    """The value of a number token: `1,000`, `.5`, `3e8`."""
    if len(text) > DIGITS:
        raise Unknown
    value = Fraction(text.replace(",", "") if text[0] != "." else "0" + text)
    return _bounded(value)


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > BITS or value.denominator.bit_length() > BITS:
        raise Unknown
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 2 and base >= 0:
        base, exponent = _root(base), exponent * 2
    if exponent.denominator != 1 or abs(exponent) > BITS or (base == 0 and exponent <= 0):
        raise Unknown
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent) > BITS:
        raise Unknown
    return base ** int(exponent)


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise Unknown
    above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if above * above != value.numerator or below * below != value.denominator:
        raise Unknown
    return Fraction(above, below)


REPEATING = re.compile(r"(-?)(\d{1,20})\.(\d{0,20})\\overline\s*\{(\d{1,20})\}")
CLOSES = {"(": ")", "{": "}", "[": "]"}


class Arithmetic:
    """A reader of arithmetic expressions over tokens without spaces, by recursive descent, in exact fractions.

    What a number, a power and a root are is said by the methods at its end; `approximate` says it for complex numbers.
    """

    def __init__(self, found: list[Token]) -> None:
        self.tokens = found
        self.place = 0
        self.depth = 0
        self.divided = False
        """Whether the last factor stands below a slash: 1/2x has two readings."""

    def kind(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place].kind if place < len(self.tokens) else ""

    def take(self, kind: str) -> Token:
        if self.kind() != kind:
            raise Unknown
        self.place += 1
        return self.tokens[self.place - 1]

    def sum(self) -> Fraction:
        value = self.product()
        while self.kind() in ("+", "-"):
            sign = self.take(self.kind()).kind
            other = self.product()
            value = self.bounded(value + other if sign == "+" else value - other)
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while True:
            kind = self.kind()
            if kind in ("*", "/"):
                self.place += 1
                other = self.factor()
                value = self.bounded(value * other if kind == "*" else self.quotient(value, other))
                self.divided = kind == "/"
            elif self.joins():
                value = self.bounded(value * self.power())
            else:
                return value

    def factor(self) -> Fraction:
        self.depth += 1
        if self.depth > DEPTH:
            raise Unknown
        if self.kind() in ("+", "-"):
            sign = self.take(self.kind()).kind
            value = self.factor() if sign == "+" else -self.factor()
        else:
            value = self.power()
        self.depth -= 1
        return value

    def power(self) -> Fraction:
        value = self.primary()
        while self.kind() in ("%", "!"):
            value = value / 100 if self.take(self.kind()).kind == "%" else self.factorial(value)
        if self.kind() == "^":
            self.place += 1
            value = self.raised(value, self.factor())
        return value

    def primary(self) -> Fraction:
        kind = self.kind()
        if kind == "number":
            return self.mixed()
        if kind in CLOSES:
            self.place += 1
            value = self.sum()
            self.take(CLOSES[kind])
            return value
        if kind == "command":
            name = self.take("command").text
            if name == r"\frac":
                return self.bounded(self.quotient(self.group(), self.group()))
            if name == r"\sqrt":
                return self.root(self.group())
            self.place -= 1
        return self.unknown()

    def group(self) -> Fraction:
        self.take("{")
        self.depth += 1
        if self.depth > DEPTH:
            raise Unknown
        value = self.sum()
        self.depth -= 1
        self.take("}")
        return value

    def mixed(self) -> Fraction:
        """A number, with the fraction of a mixed number where one follows: `12\\frac{3}{5}`, `1 1/2`."""
        whole = self.take("number")
        value = number(whole.text)
        if value.denominator != 1 or not whole.text.isdigit():
            return value
        if self.kind() == "command" and self.tokens[self.place].text == r"\frac":
            start = self.place
            self.place += 1
            inside = self.tokens[self.place : self.place + 6]
            if [t.kind for t in inside] == ["{", "number", "}", "{", "number", "}"]:
                return value + _positive(self.group(), self.group())
            self.place = start
        elif self.kind() == "number" and self.kind(1) == "/" and self.kind(2) == "number":
            above, _, below = self.tokens[self.place : self.place + 3]
            self.place += 3
            part = _positive(number(above.text), number(below.text))
            if part < 1:
                return value + part
            raise Unknown
        return value

    def joins(self) -> bool:
        """Whether what comes next is a factor without a sign of multiplication before it."""
        return self.kind() == "(" or (self.kind() == "command" and self.tokens[self.place].text in (r"\frac", r"\sqrt"))

    def unknown(self) -> Fraction:
        """The value of what is no number."""
        raise Unknown

    def bounded(self, value: Fraction) -> Fraction:
        return _bounded(value)

    def quotient(self, above: Fraction, below: Fraction) -> Fraction:
        if below == 0:
            raise Unknown
        return above / below

    def raised(self, base: Fraction, exponent: Fraction) -> Fraction:
        return _power(base, exponent)

    def root(self, value: Fraction) -> Fraction:
        return _root(value)

    def factorial(self, value: Fraction) -> Fraction:
        if value.denominator != 1 or not 0 <= value <= 100:
            raise Unknown
        return Fraction(math.factorial(int(value)))


def _positive(above: Fraction, below: Fraction) -> Fraction:
    if below == 0:
        raise Unknown
    return above / below


def evaluate(found: list[Token]) -> Fraction:
    """The exact value of all of the tokens (spaces left out). Raises `Unknown` where it has none that is known."""
    reader = Arithmetic(found)
    value = reader.sum()
    if reader.place != len(found):
        raise Unknown
    return value


@lru_cache(maxsize=8192)
def exact(text: str) -> Fraction | None:
    """The rational value of a cleaned expression, None where it has none that is known."""
    if len(text) > 4 * DIGITS:
        return None
    match = REPEATING.fullmatch(text)
    if match:
        start, cycle = match[3], match[4]
        value = Fraction(
            int(match[2] + start + cycle) - int(match[2] + start), (10 ** len(cycle) - 1) * 10 ** len(start)
        )
        return -value if match[1] else value
    try:
        return evaluate([token for token in tokens(text) if token.kind != "space"])
    except Unknown:
        return None
