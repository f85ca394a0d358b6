"""What is judged, and what the judgement says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from factory.sandbox.limits import Limits

Status = Literal[
    "passed",
    "failed",
    "static_error",
    "compile_error",
    "timeout",
    "memory",
    "output_limit",
    "toolchain_missing",
    "sandbox_error",
]
Tier = Literal["A", "B", "C", ""]


@dataclass(frozen=True)
class Verdict:
    """The judgement of one program.

    `failed`: it ran, and an answer is wrong or missing. `sandbox_error`: the machine failed, not the program; nothing
    is known of it. `toolchain_missing`: its language is not installed here.
    """

    status: Status
    detail: str = ""
    """Why, in a line or a few."""
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    """Wall clock of the program's runs."""
    memory: int = 0
    """Peak, bytes."""
    tier: Tier = ""
    """How far a cheating program can be excluded. A: the expected values never enter its box. B: tests run in its
    process, and report on a channel that it is not told of. C: its exit code. Only A filters training data."""
    isolation: str = ""
    """How the box was closed: `bubblewrap`, or one of the weaker ways that were asked for."""
    cases: tuple[bool, ...] = ()
    """Which of the task's cases, or calls, passed: as many as were run."""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class Case:
    """Input of a program, and the output that it must print. Compared outside of the box, in every language."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class Call:
    """A call of a function of a Python program, and the value that it must return: all of literals."""

    function: str
    arguments: tuple[object, ...]
    expected: object
    tolerance: float = 0.0
    """Floats may differ by so much, absolutely and relatively to the expected one. 0: equal."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A program and what it is judged by: `cases`, `calls`, or `tests`; where several are given, all must pass."""

    language: str
    """A row of languages.toml."""
    program: str
    cases: tuple[Case, ...] = ()
    calls: tuple[Call, ...] = ()
    tests: str = ""
    """Source of tests. Python: they run in a box of their own, and call the program in another."""
    entry_point: str = ""
    """The function that the tests call. Where they define `check`, it is called with this function."""
    tolerance: float | None = None
    """Numbers that cases print may differ by so much, absolutely and relatively. None: text is compared."""
    limits: Limits | None = None
    """Of each run; the sandbox's where none are given."""
    id: str = ""
