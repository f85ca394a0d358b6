"""Verifiers that a model writes: functions and cases for an instruction, cross-checked in the sandbox as AutoIF does.

AutoIF (arXiv 2406.13542, section 3.2): of the functions `evaluate(response)` and of the cases, a response with the
verdict that is right for it, those are kept that most of the others confirm. A response is accepted where more than
half of the functions that are kept accept it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from factory.engine.errors import FactoryError
from factory.sandbox.limits import Limits
from factory.sandbox.verdict import Call, Task, Verdict
from factory.verify.check import Check

if TYPE_CHECKING:
    from factory.sandbox.judge import Sandbox

CALLS = 16
"""Calls of a function in one job of the sandbox."""
SECONDS = 2
"""Wall clock of one call."""
LIMITS = Limits(seconds=12)
"""Of one job: a function that is slow on a few of its calls comes to its end."""
STOPS = 4
"""Jobs of a function that are stopped before their end, by a limit or by its own death, until it is given up."""
_READY, _EVALUATE = "_factory_ready", "_factory_evaluate"
# Runs behind the function, in its box. What the function does to it can only cost the function its verdicts.
_AROUND = f"""

def {_READY}():
    return callable(evaluate)


def {_EVALUATE}(response):
    import signal

    class Slow(BaseException):
        pass

    def stop(number, frame):
        raise Slow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, {SECONDS})
    try:
        value = evaluate(response)
    except Slow:
        return "slower than {SECONDS} seconds"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return value if value is True or value is False else "a value of type " + type(value).__name__
"""


@dataclass(frozen=True)
class Example:
    """A test case of an instruction: a response, and whether it follows."""

    response: str
    follows: bool


@dataclass(frozen=True)
class Dropped:
    """A function (its source) or a case (its response) that was not kept, and why."""

    what: Literal["function", "case"]
    item: str
    reason: str
    """`duplicate`, `does not load`, `never ends`, `accuracy`; of back-translation: `not described`, `not compared`,
    `contradicts`."""
    detail: str = ""


@dataclass(frozen=True)
class Verifiers:
    """The functions that verify an instruction, the cases that confirm them, and what was dropped."""

    functions: tuple[str, ...]
    cases: tuple[Example, ...]
    dropped: tuple[Dropped, ...] = ()

    @property
    def survives(self) -> bool:
        """Whether the instruction can be verified: a function and a case are left."""
        return bool(self.functions and self.cases)

    @property
    def one_sided(self) -> bool:
        """Whether all cases have the same verdict: a function that always says so would have passed them."""
        return len({case.follows for case in self.cases}) < 2

    def counts(self) -> dict[str, int]:
        """How many functions and cases were kept, and dropped for each reason: `function: accuracy`."""
        kept = {"function: kept": len(self.functions), "case: kept": len(self.cases)}
        return kept | Counter(f"{one.what}: {one.reason}" for one in self.dropped)

    def check(self, response: str, sandbox: Sandbox) -> Check:
        """Whether more than half of the functions accept a response. The score is the share that does."""
        return self.check_all([response], sandbox)[0]

    def check_all(self, responses: Sequence[str], sandbox: Sandbox) -> list[Check]:
        """A check a response, in few jobs of the sandbox. A function that raises or is stopped does not accept.

        FactoryError where no function is left, or the sandbox fails.
        """
        if not self.functions:
            raise FactoryError("no verification function is left to check a response: drop instructions that have none")
        asked = list(dict.fromkeys(responses))
        outcomes = _run(self.functions, [Example(response, True) for response in asked], sandbox)
        checks = {}
        for place, response in enumerate(asked):
            accepted = sum(outcome.right[place] for outcome in outcomes)
            score = accepted / len(outcomes)
            checks[response] = Check(score > 0.5, f"{accepted} of {len(outcomes)} functions accept it", score)
        return [checks[response] for response in responses]

    def row(self) -> dict[str, Any]:
        """As plain values, for JSON or a column."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Verifiers:
        """From `row()`."""
        return cls(
            tuple(row["functions"]),
            tuple(Example(**case) for case in row["cases"]),
            tuple(Dropped(**one) for one in row["dropped"]),
        )


def accepted(response: str, verifiers: Mapping[str, Any] | str) -> Check:
    """Whether the functions of a row, `Verifiers.row()` or its JSON text, accept a response: for steps and rewards.

    They run in the sandbox of this process. Errors as of `Verifiers.check_all`, and where the row is none.
    """
    from factory.verify.code import sandbox

    try:
        found = Verifiers.of(json.loads(verifiers) if isinstance(verifiers, str) else verifiers)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FactoryError(f"verifiers: no row of Verifiers.row(): {type(error).__name__}: {error}") from error
    return found.check(response, sandbox())


@dataclass
class _Outcome:
    """What a function said of each case: whether it was right. Wrong too where it raised or was stopped."""

    right: list[bool]
    lost: str = ""
    """Why nothing is known of it."""
    detail: str = ""
    stops: int = 0


def cross_check(functions: Sequence[str], cases: Sequence[Example], sandbox: Sandbox) -> Verifiers:
    """Keep what confirms each other of the functions (sources of `def evaluate(response)`) and cases of an instruction.

    Of the functions those that load, define `evaluate` and come to an end; of the cases those that more than half of
    these functions get right; of these functions those that get more than half of these cases right. Doubles count
    once. FactoryError where the sandbox fails.
    """
    dropped = [Dropped("function", one, "duplicate") for one in _doubles(functions)]
    dropped += [Dropped("case", one.response, "duplicate") for one in _doubles(cases)]
    sources, examples = list(dict.fromkeys(functions)), list(dict.fromkeys(cases))
    outcomes = dict(zip(sources, _run(sources, examples, sandbox), strict=True))
    for source in sources:
        if lost := outcomes[source].lost:
            dropped.append(Dropped("function", source, lost, outcomes[source].detail))
            del outcomes[source]
    kept = []
    for place, example in enumerate(examples):
        right = sum(outcome.right[place] for outcome in outcomes.values())
        if right * 2 > len(outcomes):
            kept.append(place)
        else:
            said = "it follows" if example.follows else "it does not follow"
            detail = f"{right} of {len(outcomes)} functions say that {said}"
            dropped.append(Dropped("case", example.response, "accuracy", detail))
    good = []
    for source, outcome in outcomes.items():
        right = sum(outcome.right[place] for place in kept)
        if right * 2 > len(kept):
            good.append(source)
        else:
            detail = "; ".join(part for part in (f"{right} of {len(kept)} cases", outcome.detail) if part)
            dropped.append(Dropped("function", source, "accuracy", detail))
    return Verifiers(tuple(good), tuple(examples[place] for place in kept), tuple(dropped))


def _doubles(items: Sequence[Any]) -> Iterator[Any]:
    seen = set()
    for item in items:
        if item in seen:
            yield item
        seen.add(item)


def _run(functions: Sequence[str], cases: Sequence[Example], sandbox: Sandbox) -> list[_Outcome]:
    """Each function on all cases. A job has many calls; those behind one that ends the program go into another job.

    A function whose jobs are ended so again and again is wrong on what is left.
    """
    outcomes = [_Outcome([False] * len(cases)) for _ in functions]
    chunks = [range(start, min(start + CALLS, len(cases))) for start in range(0, len(cases), CALLS)] or [range(0)]
    jobs = [(number, chunk) for number in range(len(functions)) for chunk in chunks]
    while jobs:
        tasks = [_task(functions[number], [cases[place] for place in places]) for number, places in jobs]
        left = []
        for (number, places), verdict in zip(jobs, sandbox.judge_all(tasks), strict=True):
            if verdict.status in ("sandbox_error", "toolchain_missing"):
                raise FactoryError(f"verification functions could not be run: {verdict.status}: {verdict.detail}")
            if rest := _settle(outcomes[number], places, verdict):
                left.append((number, rest))
        jobs = [(number, rest) for number, rest in left if outcomes[number].stops < STOPS]
    return outcomes


def _settle(outcome: _Outcome, places: range, verdict: Verdict) -> range:
    """Note what a job says, and return the places that have to run again."""
    if not verdict.passed:
        outcome.detail = outcome.detail or f"{verdict.status}: {verdict.detail}"
    if verdict.cases[:1] != (True,):
        outcome.lost = "never ends" if verdict.status == "timeout" else "does not load"
        return range(0)
    right = verdict.cases[1:]
    for place, one in zip(places, right, strict=False):
        outcome.right[place] = one
    if len(right) < len(places):
        outcome.stops += 1
    return places[len(right) + 1 :]  # the call after the last that came back has ended the program


def _task(function: str, cases: Sequence[Example]) -> Task:
    calls = [Call(_READY, (), True), *(Call(_EVALUATE, (case.response,), case.follows) for case in cases)]
    return Task(language="python", program=function + _AROUND, calls=tuple(calls), limits=LIMITS)
