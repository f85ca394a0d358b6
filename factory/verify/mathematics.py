"""Whether the final answer of a response is right, and whether the arithmetic on the way holds.

`correct` finds the final answer (`answers`) and compares it with the reference: exactly and at once where both are
rational numbers, collections of them, options or words (`values`), else by math-verify in a process of its own
(`symbolic`), at most 2 seconds of CPU time a comparison and 4 a verdict. A comparison that needs more is a failed
check with the reason "timeout". Where in doubt the answer is wrong: this filters training data and is a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from factory.engine.errors import FactoryError
from factory.verify import symbolic
from factory.verify.answers import boxes, final_answer
from factory.verify.arithmetic import steps
from factory.verify.check import Check
from factory.verify.notation import clean, exact
from factory.verify.units import scaled
from factory.verify.values import Comparison, Exhausted, within

LIBRARIES = ("math-verify", "latex2sympy2_extended", "antlr4-python3-runtime", "sympy")
__all__ = ["choice", "correct", "equivalent", "final_answer", "numeric", "steps"]


def ready() -> None:
    """Starts the process that compares symbolic answers. Raises `FactoryError` where math-verify is not installed."""
    symbolic.compare("x", "y")


def correct(response: str, answer: str) -> Check:
    """Whether the final answer of `response` is `answer`: a value, or a reference solution that boxes it or has `####`.

    Raises `FactoryError` where `answer` is empty.
    """
    if not answer.strip():
        raise FactoryError("the reference answer is empty")
    found = final_answer(response)
    if not found:
        return Check(False, "no final answer")
    reference = final_answer(answer) if "####" in answer or boxes(answer) else answer
    return _compare(found, reference)


def equivalent(a: str, b: str) -> bool:
    """Whether two answers are the same value, in either order; False where that takes too long to find out."""
    return _compare(a, b).passed


def _compare(found: str, reference: str) -> Check:
    comparison = Comparison()
    try:
        same = comparison.same(found, reference)
    except Exhausted as limit:
        return Check(False, str(limit))
    if same:
        return Check(True, "symbolic" if comparison.symbolic else "")
    return Check(False, f"{_brief(found)} is not {_brief(reference)}")


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def numeric(response: str, answer: str, tolerance: float = 1e-4) -> Check:
    """Whether the final answer is a number within a relative `tolerance` of `answer`; units and percent signs aside.

    Raises `FactoryError` where `answer` is not a number.
    """
    found = final_answer(response)
    value, rival = (_value(text) for text in (found, answer))
    if rival is None:
        raise FactoryError(f"the reference answer {_brief(answer)!r} is not a number")
    if not found:
        return Check(False, "no final answer")
    if value is None:
        return Check(False, f"{_brief(found)} is not a number")
    near = within(value, rival, tolerance)
    return Check(near, "" if near else f"{_brief(found)} is not {_brief(answer)}")


def _value(text: str) -> Fraction | None:
    number, _, size = scaled(clean(text))
    value = exact(number.rstrip("%"))
    return value if value is None else value * size


def choice(response: str, answer: str, options: Sequence[str]) -> Check:
    """Whether the final answer is the option `answer` (its letter, A for the first), named by letter or by its text.

    Raises `FactoryError` where there is no such option.
    """
    letters = [chr(ord("A") + k) for k in range(len(options))]
    right = answer.strip("(). ").upper()
    if right not in letters:
        raise FactoryError(f"the reference answer {_brief(answer)!r} is none of the {len(options)} options")
    found = final_answer(response)
    if not found:
        return Check(False, "no final answer")
    label = found.strip("()[]. ").upper()
    if label in letters:
        met = [label]
    else:
        labelled = [f"({letter}) {text}" for letter, text in zip(letters, options, strict=True)]
        met = [letter for letter, text in zip(letters, labelled, strict=True) if _compare(found, text).passed]
    if met == [right]:
        return Check(True)
    return Check(False, f"{_brief(found)} is " + (f"option {met[0]}" if len(met) == 1 else "not one option"))
