"""The languages: a row each in languages.toml, and one way to judge a program by its row.

A program is checked, compiled and run in one box, by the commands of its row. What its cases print is compared out here
(tier A). Tests in its own language are put after it (tier B where its last line can be a nonce, else C: the exit code);
a program that knows how its tests are run can get round these, so they are for programs that do not try to.
"""

from __future__ import annotations

import collections
import functools
import glob
import math
import os
import secrets
import shlex
import shutil
import threading
import tomllib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from factory.engine.errors import FactoryError, nearest
from factory.sandbox.box import Box, Execution
from factory.sandbox.limits import Limits
from factory.sandbox.machine import ENVIRONMENT
from factory.sandbox.verdict import Case, Status, Task, Tier, Verdict

OpenBox = Callable[..., AbstractContextManager[Box]]
"""Makes a box of `mounts`, `environment` and `limits`: `Box`, or `Box` with an isolation of choice."""
FOLDER = Path(__file__).parent
TOLD = 4000
"""Characters of a program's output that a verdict carries."""


def tools() -> str:
    """The folder of the toolchains from npm and PyPI: FACTORY_TOOLCHAINS, else below /usr/local for root, which every
    box sees, else in the home folder."""
    home = "/usr/local/lib" if os.geteuid() == 0 else os.path.expanduser("~/.local/share")
    return os.path.abspath(os.environ.get("FACTORY_TOOLCHAINS") or f"{home}/factory/toolchains")


@dataclass(frozen=True, kw_only=True)
class Language:
    """A row of languages.toml, where each field is explained."""

    name: str
    file: str
    run: str
    version: str
    check: str = ""
    compile: str = ""
    prepare: str = ""
    between: str = ""
    end: str = ""
    tests: Literal["append", "none"] = "append"
    core: bool = False
    debian: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    pypi: tuple[str, ...] = ()
    source: str = ""
    aliases: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0
    memory: int = 0
    processes: int = 0
    files: int = 0

    def command(self, text: str) -> list[str]:
        """One of the row's commands, as the words to run."""
        return shlex.split(text.replace("{tools}", tools()))

    def missing(self) -> str:
        """The first program of the toolchain that is not on this machine, and how it comes; empty where all are."""
        for text in (self.check, self.compile, self.run):
            word = self.command(text)[0] if text else "sh"
            if not word.startswith("./") and not shutil.which(word, path=ENVIRONMENT["PATH"]):
                cure = f"see {self.source}" if self.source else "make toolchains installs it"
                return f"{self.name}: {word} is not installed: {cure}"
        return ""

    def installed(self) -> bool:
        """Whether the programs of its toolchain are on this machine; doctor says whether they work."""
        return not self.missing()

    def toolchain_limits(self, limits: Limits) -> Limits:
        """The limits of its checks and its compiler: those given, or more where the row says that they need more."""
        return replace(
            limits,
            seconds=max(limits.seconds, self.seconds),
            memory=max(limits.memory, self.memory << 20),
            processes=max(limits.processes, self.processes),
            files=max(limits.files, self.files << 20),
        )

    def box(self, open_box: OpenBox, limits: Limits) -> AbstractContextManager[Box]:
        """A box with what the toolchain needs."""
        mounts = [path for pattern in self.mounts for path in sorted(glob.glob(pattern))]
        if not tools().startswith("/usr/") and os.path.isdir(tools()):
            mounts.append(tools())
        environment = {key: value.replace("{tools}", tools()) for key, value in self.environment.items()}
        return open_box(mounts=mounts, environment=environment, limits=limits)


@functools.cache
def languages() -> dict[str, Language]:
    """All rows of languages.toml by name."""
    rows = tomllib.loads((FOLDER / "languages.toml").read_text())
    try:
        return {name: _row(name, row) for name, row in rows.items()}
    except TypeError as error:
        raise FactoryError(f"languages.toml: {error}") from error


def _row(name: str, row: dict[str, Any]) -> Language:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Language(name=name, **fields)


def language(name: str) -> Language:
    """The row of a language, by its name or another that it goes by, as `c++`."""
    rows = languages()
    wanted = name.strip().lower()
    for row in rows.values():
        if wanted == row.name or wanted in row.aliases:
            return row
    close = nearest(wanted, rows)
    raise FactoryError(f"{name}: no such language in languages.toml{close}: factory sandbox doctor lists them")


@functools.cache
def programs() -> dict[str, dict[str, Any]]:
    """programs.toml: a program in each language, by which a toolchain is tried."""
    return tomllib.loads((FOLDER / "programs.toml").read_text())


def example(name: str, kind: Literal["good", "wrong", "broken"] = "good") -> Task:
    """The program of a language, right, wrong or broken, with the cases that judge it."""
    row = programs()[name]
    program = row["good"]
    if kind != "good":
        before, after = row[kind]
        program = program.replace(before, after, 1)
    cases = zip(row.get("stdin", ["7\n", "12\n"]), row.get("stdout", ["50", "145"]), strict=True)
    return Task(language=name, program=program, cases=tuple(Case(*case) for case in cases))


def agrees(expected: str, printed: str, tolerance: float | None = None) -> bool:
    """Whether a program printed what it must: but for space at the ends of lines and empty lines at the end. With a
    tolerance, words that are numbers may differ by so much, absolutely and relatively, and space does not count."""
    if tolerance is None:
        return _lines(expected) == _lines(printed)
    wanted, given = expected.split(), printed.split()
    return len(wanted) == len(given) and all(_near(a, b, tolerance) for a, b in zip(wanted, given, strict=True))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _near(expected: str, printed: str, tolerance: float) -> bool:
    try:
        wanted, given = float(expected), float(printed)
    except ValueError:
        return expected == printed
    if wanted == given or expected == printed:  # NaN too is what was expected
        return True
    return math.isfinite(wanted) and abs(wanted - given) <= tolerance * max(1.0, abs(wanted))


def run_program(open_box: OpenBox, task: Task) -> Verdict:
    """Judge a program by the row of its language: its cases, and its tests where it has any.

    A toolchain that is absent, or that fails on the program of programs.toml, is `toolchain_missing`: the program is
    not blamed. `FactoryError` where the language is unknown, or the task has nothing to judge by.
    """
    row = language(task.language)
    if task.calls:
        raise FactoryError(f"{task.id or row.name}: calls of functions judge Python only: give cases or tests")
    if not task.cases and not task.tests.strip():
        raise FactoryError(f"{task.id or row.name}: nothing to judge the program by: give it cases or tests")
    if task.tests.strip() and row.tests == "none":
        raise FactoryError(f"{task.id or row.name}: {row.name} programs are judged by cases, not by tests")
    broken = broken_toolchain(open_box, row)
    return broken or _judge(open_box, row, task)


_tried: dict[str, Verdict | None] = {}
_trying: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)


def broken_toolchain(open_box: OpenBox, row: Language) -> Verdict | None:
    """Why the language cannot be judged here, or None where its example program passes: tried once a process."""
    if missing := row.missing():
        return Verdict("toolchain_missing", missing)
    with _trying[row.name]:
        if row.name in _tried:
            return _tried[row.name]
        verdict = _judge(open_box, row, example(row.name))
        if verdict.passed:
            _tried[row.name] = None
        elif verdict.status in ("sandbox_error", "timeout"):  # of this moment: the next program tries again
            return replace(verdict, status="sandbox_error", detail=f"{row.name}: on trial: {verdict.detail}")
        else:
            told = f"{verdict.status}: {verdict.detail or verdict.stderr}"
            _tried[row.name] = Verdict("toolchain_missing", f"{row.name}: the toolchain does not work: {told}")
        return _tried[row.name]


def _judge(open_box: OpenBox, row: Language, task: Task) -> Verdict:
    """Cases and tests are two programs, so each has a box of its own."""
    verdict = None
    if task.cases:
        verdict = _Run(open_box, row, task).verdict()
        if not verdict.passed:
            return verdict
    if task.tests.strip():
        tested = _Run(open_box, row, replace(task, cases=())).verdict()
        if verdict:  # as good as the weaker of the two
            tested = replace(tested, cases=verdict.cases, seconds=tested.seconds + verdict.seconds)
        verdict = tested
    assert verdict is not None
    return verdict


class _Run:
    """One program in one box: checked, compiled, run."""

    def __init__(self, open_box: OpenBox, row: Language, task: Task) -> None:
        self.open_box, self.row, self.task = open_box, row, task
        self.given = task.limits or Limits()
        self.nonce = "" if task.cases or not row.end else secrets.token_hex(16)
        self.tier: Tier = "A" if task.cases else "B" if self.nonce else "C"
        self.seconds = 0.0
        self.memory = 0
        self.isolation = ""

    def verdict(self) -> Verdict:
        toolchain = self.row.toolchain_limits(self.given)
        with self.row.box(self.open_box, toolchain) as box:
            self.isolation = box.isolation
            box.write({self.row.file: _bytes(self._source())})
            stages: list[tuple[Status, str]] = [("static_error", self.row.check), ("compile_error", self.row.compile)]
            for status, text in stages:
                if text:
                    done = box.run(self.row.command(text), limits=toolchain)
                    if bad := self._stopped(done, f"{text.split()[0]}: "):
                        return bad
                    if done.code:
                        return self._say(status, _tail(done.stderr) or _tail(done.stdout), done)
            return self._cases(box) if self.task.cases else self._tests(box)

    def _source(self) -> str:
        if self.task.cases:
            return self.task.program
        end = self.row.end.replace("{nonce}", self.nonce)
        return "\n".join([self.task.program, self.row.between, self.task.tests, end, ""])

    def _limits(self) -> Limits:
        """Of a run: those given; where nothing is compiled, what the toolchain needs to start is added."""
        return self.given if self.row.compile else self.row.toolchain_limits(self.given)

    def _cases(self, box: Box) -> Verdict:
        passed: list[bool] = []
        for number, case in enumerate(self.task.cases, 1):
            done = self._run(box, _bytes(case.stdin))
            if bad := self._stopped(done, f"case {number}: "):
                return replace(bad, cases=(*passed, False))
            printed = done.stdout.decode(errors="replace")
            passed.append(done.code == 0 and agrees(case.stdout, printed, self.task.tolerance))
            if not passed[-1]:
                told = f"printed {_short(printed)}, not {_short(case.stdout)}"
                told = f"exit code {done.code}: {_tail(done.stderr)}".rstrip(": ") if done.code else told
                return replace(self._say("failed", f"case {number}: {told}", done), cases=tuple(passed))
        return replace(self._say("passed", "", done), cases=tuple(passed))

    def _tests(self, box: Box) -> Verdict:
        done = self._run(box, b"")
        if bad := self._stopped(done, "tests: "):
            return bad
        if done.code:
            return self._say("failed", f"tests: exit code {done.code}: {_tail(done.stderr)}", done)
        if self.nonce and done.stdout.decode(errors="replace").rstrip().rpartition("\n")[2].strip() != self.nonce:
            return self._say("failed", "tests: they did not run to their end", done)
        return self._say("passed", "", done)

    def _run(self, box: Box, stdin: bytes) -> Execution:
        done = box.run(self.row.command(self.row.run), stdin=stdin, limits=self._limits())
        self.seconds += done.seconds
        self.memory = max(self.memory, done.memory)
        return done

    def _stopped(self, done: Execution, where: str) -> Verdict | None:
        """The verdict on a command that did not come to its own end."""
        return None if done.status == "exited" else self._say(done.status, where + (done.detail or done.status), done)

    def _say(self, status: Status, detail: str, done: Execution) -> Verdict:
        return Verdict(
            status,
            detail,
            stdout=done.stdout.decode(errors="replace")[:TOLD],
            stderr=done.stderr.decode(errors="replace")[-TOLD:],
            seconds=self.seconds,
            memory=self.memory,
            tier=self.tier,
            isolation=self.isolation,
        )


def _bytes(text: str) -> bytes:
    """As UTF-8; a lone surrogate, which a model's text may have, is no reason to stop."""
    return text.encode(errors="surrogatepass")


def _tail(output: bytes) -> str:
    """The end of what a command printed, as a line or a few."""
    return output.decode(errors="replace").strip()[-500:]


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 80 else text[:77] + "...")
