"""Whether the arithmetic of a chain of thought holds: every equation between numbers in it is evaluated exactly.

An equation is `12 * 3 = 36`, a calculator's `<<12*3=36>>`, `\\frac{1}{2} \\cdot 30 = 15`, `1/2 of 30 is 15`, a chain of
these, with units and dollar signs in between. What is not surely one is left alone: unknowns, functions, remainders,
units that change on the way. A false alarm would throw away a good chain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from factory.verify.check import Check
from factory.verify.notation import TRANSLATION, Token, Unknown, evaluate, number, tokens
from factory.verify.units import known
from factory.verify.wording import FOLLOWS, NOT_UNITS, ROUGH, SCALED, SCALES, plain

LONG = 200_000
"""Characters of a response that are looked at."""
SPAN = 400
"""Tokens on either side of an equals sign that are looked at."""

ANNOTATION = re.compile(r"<<([^<>\n]{1,2000})>>")
ARITHMETIC = frozenset(("number", "+", "-", "*", "/", "^", "(", ")", "{", "}", "%"))
OPERATORS = frozenset("+-*/^")


@dataclass(frozen=True)
class Equation:
    """An equation that was evaluated: its text, the line (from 1) that it stands on, and the right value."""

    text: str
    line: int
    right: Fraction
    holds: bool


def steps(response: str, least: int = 0) -> Check:
    """Whether every arithmetic equation in `response` holds. The reason names the first that does not, and its line.

    The score is the share of the equations that hold. A text without any passes, and its reason says so; `least` asks
    for so many.
    """
    found = list(equations(response))
    if len(found) < least or not found:
        return Check(len(found) >= least, f"{len(found) or 'no'} equations")
    wrong = [equation for equation in found if not equation.holds]
    if not wrong:
        return Check(True, f"{len(found)} equations hold")
    first = wrong[0]
    reason = f"line {first.line}: {first.text} should be {shown(first.right)}"
    return Check(False, reason, 1 - len(wrong) / len(found))


def shown(value: Fraction) -> str:
    """A fraction as a decimal where that has an end nearby, else as a/b."""
    for places in range(7):
        scaled = value * 10**places
        if scaled.denominator == 1:
            sign, digits = ("-" if scaled < 0 else ""), str(abs(scaled.numerator)).rjust(places + 1, "0")
            return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    return str(value)


def equations(response: str) -> Iterator[Equation]:
    """The equations of a text that can be evaluated, in order."""
    text = response[:LONG].translate(TRANSLATION)
    lines = text.split("\n")
    for at, line in enumerate(lines):
        for match in ANNOTATION.finditer(line):
            yield from _annotated(match[1], at + 1, "whole" if ROUGH.search(line) else "")
        prose = plain(ANNOTATION.sub(" ", line))
        if prose.lstrip().startswith("=") and at:
            before = plain(ANNOTATION.sub(" ", lines[at - 1]))
            prose = before[before.rfind("=") + 1 :] + prose  # a calculation that goes on in this line
        if "=" in prose or "≈" in prose:
            yield from _line(prose, at + 1, bool(ROUGH.search(line)))


def _annotated(text: str, line: int, rounds: str) -> Iterator[Equation]:
    """The equation between `<<` and `>>`: both of its sides are whole expressions."""
    found = tokens(text)
    signs = [k for k, token in enumerate(found) if token.kind == "="]
    if len(signs) == 1 and 0 < signs[0] < len(found) - 1:
        equation = _judge(text, found[: signs[0]], found[signs[0] + 1 :], line, rounds)
        if equation:
            yield equation


def _line(text: str, line: int, rough: bool) -> Iterator[Equation]:
    found = tokens(text)
    signs = [k for k, token in enumerate(found) if token.kind in ("=", "≈") and _equals(found, k)]
    chained = -1
    """The last sign whose equation was evaluated."""
    for place, sign in enumerate(signs):
        start = max(signs[place - 1] + 1 if place else 0, sign - SPAN)
        end = min(signs[place + 1] if place + 1 < len(signs) else len(found), sign + SPAN)
        left, whole = _left(found, start, sign)
        right = _right(found, sign + 1, end, len(found))
        if not left or not right:
            continue
        bare = _bare(left)
        reckoned = any(t.kind in OPERATORS for t in bare[1:]) or any(t.text == r"\frac" for t in bare)
        if not reckoned and not (whole and place and chained == signs[place - 1]):
            continue
        rounds = "about" if found[sign].kind == "≈" else "whole" if rough else ""
        equation = _judge(text, left, right, line, rounds)
        if equation and not equation.holds and place + 1 < len(signs) and _runs_on(right, equation.right):
            continue
        if equation:
            chained = sign
            yield equation


def _runs_on(right: list[Token], value: Fraction) -> bool:
    """Whether the next calculation begins with the result of this one: `100 / 5 = 20 * 2 = 40`."""
    bare = _bare(right)
    return len(bare) > 2 and bare[0].kind == "number" and bare[1].kind in OPERATORS and number(bare[0].text) == value


def _equals(found: list[Token], at: int) -> bool:
    """Whether the sign is one of equality: not part of `<=`, `!=`, `==`, `=>`."""
    near = [found[k].text for k in (at - 1, at + 1) if 0 <= k < len(found)]
    return not any(sign in ("<", ">", "!", "=", ":") for sign in near)


def _unit(found: list[Token], start: int, step: int, stop: int) -> int:
    """Past a run of up to three words that may be a unit, from `start` on in the direction `step`."""
    at, words = start, 0
    while at != stop and words < 4:
        token = found[at]
        if token.kind == "word" and len(token.text) > 1 and token.text.lower() not in NOT_UNITS:
            words += 1
        elif token.kind != "space":
            break
        at += step
    return at if 0 < words < 4 else start


def _left(found: list[Token], start: int, sign: int) -> tuple[list[Token], bool]:
    """The expression that ends at an equals sign, units included, and whether it is all that is there. [] for none."""
    at = sign - 1
    while at >= start:
        token = found[at]
        if token.kind in ARITHMETIC or token.kind == "space" or _of(found, at) or token.text == r"\frac":
            at -= 1
            continue
        before = _unit(found, at, -1, start - 1)
        if before < at and before >= start and found[before].kind in ("number", ")", "%", "}", "/"):
            at = before
            continue
        break
    span = found[at + 1 : sign]
    whole = at < start
    while span and span[0].kind == "space":
        span = span[1:]
    if not span:
        return [], False
    # Brackets that were opened before the expression began do not belong to it.
    while span and _surplus(span) > 0 and span[0].kind == "(":
        span = span[1:]
        while span and span[0].kind == "space":
            span = span[1:]
    if not span or span[0].kind in "+*/^)%}":
        return [], False
    if at >= start:
        previous = found[at]
        if previous.kind == "command" or previous.text in "\\^_|!<>'~#@≡√":
            return [], False
        if previous.end == span[0].at and previous.text not in '([,;"*':
            return [], False
        if span[0].kind == "-" and previous.kind == "word":
            return [], False
        earlier = [token.kind for token in found[max(start, at - 3) : at]]
        if previous.text == "," and "number" in earlier[-1:] and len(span[0].text) == 3:
            return [], False  # "14, 400"
        if previous.text in ".," and earlier and (earlier[-1] == "space" or previous.end == span[0].at):
            return [], False  # ". 84", "16,0000"
        if previous.text.lower() == "and" and "number" in earlier:
            return [], False  # one and a half
    return span, whole


def _surplus(span: list[Token]) -> int:
    return sum(token.kind == "(" for token in span) - sum(token.kind == ")" for token in span)


def _of(found: list[Token], at: int) -> bool:
    """Whether the word is the `of` of `1/2 of 30`."""
    if found[at].text.lower() != "of":
        return False
    near = [k for k in range(max(0, at - 4), at) if found[k].kind != "space"][-2:]
    after = next((token for token in found[at + 1 : at + 3] if token.kind != "space"), None)
    if not near or after is None or after.kind not in ("number", "("):
        return False
    return found[near[-1]].kind in ("%", "}") or [found[k].kind for k in near] == ["/", "number"]


def _right(found: list[Token], start: int, end: int, last: int) -> list[Token]:
    """The expression that begins behind an equals sign; [] where it goes on in a way that is not arithmetic."""
    at, depth = start, 0
    while at < end:
        token = found[at]
        if token.kind == "(":
            depth += 1
        elif token.kind == ")":
            if depth == 0:
                break
            depth -= 1
        elif token.kind not in ARITHMETIC and token.kind != "space" and not _of(found, at) and token.text != r"\frac":
            behind = _unit(found, at, 1, end)
            follows = found[behind].kind if behind < end else ""
            if behind > at and follows in OPERATORS and at > start:
                at = behind
                continue
            break
        at += 1
    span = found[start:at]
    while span and span[-1].kind == "space":
        span = span[:-1]
    if span and span[-1].kind == "-" and at < last and found[at].kind == "word":
        return []
    if depth or not span or span[-1].kind in "+*/^({-":
        return []
    if at < last:
        follower = found[at]
        glued = follower.at == span[-1].end
        if follower.kind == "word":
            if follower.text.lower() in FOLLOWS or (len(follower.text) == 1 and follower.text not in "aIm"):
                return []
            if glued and known(follower.text) is None:
                return []
            if follower.text.lower() == "and" and any(t.kind in ("number", "(") for t in found[at + 1 : at + 4]):
                return []  # 3 and 1/3
        elif (
            follower.kind == "command"
            or follower.text in "^_!\\√|~≡"
            or (glued and follower.text in ":/'\"" and at + 1 < last and found[at + 1].kind == "number")
            or (follower.text == "(" and at + 1 < last and found[at + 1].text.lower() == "mod")
        ):
            return []
    return span


def _judge(text: str, left: list[Token], right: list[Token], line: int, rounds: str) -> Equation | None:
    """The equation with its verdict; None where it cannot be evaluated, or there is another reading that may hold."""
    try:
        value, claimed = evaluate(_bare(left)), evaluate(_bare(right))
    except Unknown:
        return None
    holds = value == claimed or _rounded(value, claimed, right, rounds) or _propagated(value, claimed, left, rounds)
    if not holds and (_percents(left, right, rounds) or _doubtful(text, left, right)):
        return None
    if (
        not holds
        and SCALED.search(text)
        and any(
            scaled == claimed or _rounded(scaled, claimed, right, rounds)
            for scaled in (value * Fraction(10) ** power for power in (-9, -6, -3, -2, 2, 3, 6, 9))
        )
    ):
        return None  # $2.50 - $2.24 = 26 cents
    written = " ".join(text[left[0].at : right[-1].end].split())
    return Equation(written if len(written) <= 120 else written[:117] + "...", line, value, holds)


def _bare(span: list[Token]) -> list[Token]:
    """The tokens of the calculation: `of` is a product, units are left out, also those after a fraction bar."""
    kept: list[Token] = []
    unit = False
    for token in span:
        if token.text.lower() == "of" and not unit and kept and kept[-1].kind in ("%", "number", "}"):
            kept.append(Token("*", "*", token.at, token.end))
        elif token.kind == "word":
            unit = True
            if kept and kept[-1].kind == "/":
                kept.pop()
        elif token.kind != "space":
            if (unit and token.kind in ("number", "(", "{")) or re.match(r"0\d", token.text):
                token = Token("unit", token.text, token.at, token.end)  # 5 cents (.05): no product; 0900: an hour
            unit = False
            kept.append(token)
    return kept


def _rounded(value: Fraction, claimed: Fraction, right: list[Token], rounds: str) -> bool:
    """Whether the claim is the value rounded to the places that it shows, or cut there; to whole numbers where told."""
    bare = _bare(right)
    literal = [token for token in bare if token.kind == "number"]
    if len(literal) != 1 or any(token.kind not in ("number", "-", "%") for token in bare):
        return False
    digits = literal[0].text
    places = len(digits.partition(".")[2]) + (2 if bare[-1].kind == "%" else 0)
    step = Fraction(1, 10**places)
    off = abs(value - claimed)
    if places > 10 and off <= abs(value) / 10**12:
        return True  # as floating point prints it: 0.7000000000000001
    if rounds == "about" and places == 0:
        return off <= 10 ** (len(digits) - len(digits.rstrip("0,")))
    if rounds:
        return off < step or (rounds == "about" and off <= step)
    return places > 0 and (off <= step / 2 or (places >= 2 and off < step and abs(claimed) < abs(value)))


def _propagated(value: Fraction, claimed: Fraction, left: list[Token], rounds: str) -> bool:
    """Whether operands that were rounded to 3 places or more explain the difference: `18 * 3.14159 ≈ 56.54866`."""
    parts = [(number(token.text), len(token.text.partition(".")[2])) for token in left if token.kind == "number"]
    errors = [Fraction(1, 2 * 10**places) / abs(operand) for operand, places in parts if places >= 3 and operand]
    return bool(rounds and errors) and abs(value - claimed) <= abs(value) * sum(errors)


def _percents(left: list[Token], right: list[Token], rounds: str) -> bool:
    """Whether the equation holds with its percent signs as mere units, or as in `100 - 20% = 80`."""
    one, other = _bare(left), _bare(right)
    if not any(token.kind == "%" for token in one + other):
        return False
    signless, plain = ([token for token in side if token.kind != "%"] for side in (one, other))
    try:
        for side, end in ((one, plain), (signless, other), (signless, plain)):
            value, claimed = evaluate(side), evaluate(end)
            if value == claimed or _rounded(value, claimed, end, rounds):
                return True
        if len(one) > 3 and one[-1].kind == "%" and one[-3].kind in ("+", "-"):
            part = evaluate(one[-2:])
            return evaluate(other) == evaluate(one[:-3]) * (1 + part if one[-3].kind == "+" else 1 - part)
    except Unknown:
        return False
    return False


def _doubtful(text: str, left: list[Token], right: list[Token]) -> bool:
    """Whether words of scale, units of one dimension or the order of divisions may explain a difference."""
    span = [*left, *right]
    behind = re.compile(r"[\s-]*([A-Za-z¢°]*)").match(text, right[-1].end)
    words = [token.text.lower() for token in span if token.kind == "word"]
    if behind and behind[1].lower() == "of" and any(token.kind in ("%", "/") for token in right):
        return True  # 3/3 - 2/3 = 1/3 of them
    if any(token.text.lower() == "of" for token in right) or any(word in SCALES for word in words):
        return True
    bare = _bare(left)
    kinds = [token.kind for token in bare]
    if kinds == ["number", "-", "number"] and bare[0].end == bare[1].at and number(bare[0].text) < number(bare[2].text):
        return True  # weeks 1-2
    if "of" in words and ("+" in kinds or "-" in kinds):
        return True  # 10% of the $400 + $1580
    if any(kinds[k : k + 3] == ["/", "number", "/"] for k in range(len(kinds))):
        return True  # 25 / 1/3
    if len(bare) < 3 and words:
        return True  # ... = 2 hours = 120 minutes
    dimensions: dict[str, set[Fraction]] = {}
    for word in [*words, behind[1].lower() if behind else ""]:
        unit = known(word)
        if unit:
            dimensions.setdefault(unit[0], set()).add(unit[1])
    return any(len(scales) > 1 for scales in dimensions.values())
