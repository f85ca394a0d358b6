"""The sandbox: judges programs, many at once.

A Python function is judged by two boxes. The program runs in the one; the tests, what they expect, and the verdict are
in the other, where a process calls the program's functions over a socket and gets literals back (inside/driver.py). The
verdict comes from the tests' box on a channel that the program's box does not have.
"""

from __future__ import annotations

import collections
import functools
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from factory.engine.errors import FactoryError
from factory.sandbox.box import Box
from factory.sandbox.court import Court, verdict
from factory.sandbox.inside.literals import MESSAGE, Broken, Refused, literal, parse
from factory.sandbox.languages import agrees, language, run_program
from factory.sandbox.limits import Limits
from factory.sandbox.process import Execution
from factory.sandbox.selftest import require_isolation
from factory.sandbox.verdict import Status, Task, Tier, Verdict
from factory.sandbox.wrong import mutants, wrong_programs
from factory.sandbox.zygote import PythonZygote

ATTEMPTS = 3
"""Times that a task is judged whose box has failed."""
AHEAD = 4
"""Tasks a worker that are taken before the answers to earlier ones are."""
GRACE = 2.0
"""Seconds that the tests' box may live beyond the program's."""
TOLD = 4000
"""Characters of a program's output that a verdict carries."""
_NONCE = 16
_PROGRAM, _TESTS = "candidate", "driver"
_COMMANDS = {name: ["-c", f"from factory.sandbox.inside.{name} import main\nmain()\n"] for name in (_PROGRAM, _TESTS)}
_LIMITS = Limits()


class Sandbox:
    """Judges tasks, each in boxes of its own; a context manager, safe in threads.

    `workers` tasks are judged at once. `isolation` as in Box. Python tests that cannot be run from another box (they
    compare objects of the program, or pass theirs to it) fail, and say so; with `one_process` they run in the program's
    process instead, and the verdict is of tier B. FactoryError where no isolation works here.
    """

    def __init__(
        self,
        *,
        workers: int = 0,
        limits: Limits = _LIMITS,
        isolation: str | None = None,
        one_process: bool = False,
    ) -> None:
        require_isolation(isolation)
        self.workers, self.limits, self.one_process = workers or 2 * (os.cpu_count() or 1), limits, one_process
        self._open_box = functools.partial(Box, isolation=isolation)
        self._open_zygote = functools.partial(PythonZygote, limits=limits, isolation=isolation, sources=_sources())
        self._zygotes: dict[str, PythonZygote] = {}
        self._courts: list[Court] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its boxes."""
        with self._lock:
            while self._courts:
                court = self._courts.pop()
                court.close()
                court.wait()
            while self._zygotes:
                self._zygotes.popitem()[1].close()

    def judge(self, task: Task) -> Verdict:
        """The verdict on one task. `sandbox_error` where its boxes failed three times: nothing is known of the program.
        FactoryError where the task has nothing to judge by, or its language is unknown."""
        found = Verdict("sandbox_error")
        for _ in range(ATTEMPTS):
            try:
                found = self._judge(task)
            except OSError as error:  # no descriptor, process or memory for it now
                found = Verdict("sandbox_error", f"{type(error).__name__}: {error}")
            if found.status != "sandbox_error":
                break
        return found

    def judge_all(self, tasks: Iterable[Task]) -> Iterator[Verdict]:
        """The verdicts in the order of the tasks, which are taken as they are needed."""
        waiting: collections.deque[Future[Verdict]] = collections.deque()
        with ThreadPoolExecutor(self.workers, "judge") as pool:
            try:
                for task in tasks:
                    waiting.append(pool.submit(self.judge, task))
                    if len(waiting) >= AHEAD * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def weak(self, task: Task, wrong_program: str = "") -> bool:
        """Whether what judges the task passes a wrong program, and so shows nothing: the one given, else one of those
        that are made from the task's program, which must be right: that answer nothing, one constant, their input, the
        right answer altered, or (only if all of them pass) with an operator exchanged.
        """
        if wrong_program:
            return self._pass([wrong_program], task)[0]
        if any(self._pass(wrong_programs(task).values(), task)):
            return True
        survived = self._pass(mutants(task.program), task)
        return len(survived) > 2 and all(survived)

    def _pass(self, programs: Iterable[str], task: Task) -> list[bool]:
        found = []
        for judged in self.judge_all(replace(task, program=program) for program in programs):
            if judged.status in ("sandbox_error", "toolchain_missing"):
                raise FactoryError(f"{task.id or 'task'}: cannot be judged: {judged.status}: {judged.detail}")
            found.append(judged.passed)
        return found

    def _judge(self, task: Task) -> Verdict:
        if language(task.language).name != "python":
            return run_program(self._open_box, replace(task, limits=task.limits or self.limits))
        if not task.cases and not task.calls and not task.tests.strip():
            raise FactoryError(f"{task.id or 'python'}: nothing to judge the program by: give cases, calls or tests")
        found = Verdict("passed")
        if task.cases:
            found = self._cases(task)
        if found.passed and (task.calls or task.tests.strip()):
            called = self._functions(task)
            found = replace(called, cases=found.cases + called.cases, seconds=found.seconds + called.seconds)
        return found

    def _cases(self, task: Task) -> Verdict:
        """What the program prints, compared out here."""
        limits = task.limits or self.limits
        found = Verdict("passed")
        passed: list[bool] = []
        for number, case in enumerate(task.cases, 1):
            zygote = self._zygote(_PROGRAM)
            ended = zygote.run(
                {"main.py": task.program}, ["main.py"], case.stdin.encode("utf-8", "surrogatepass"), limits
            )
            status, detail = _ran(ended)
            if status == "passed":
                printed = ended.stdout.decode(errors="replace")
                if not agrees(case.stdout, printed, task.tolerance):
                    status, detail = "failed", f"printed {_short(printed)} where {_short(case.stdout)} is expected"
            passed.append(status == "passed")
            judged = self._verdict(status, ended, f"case {number}: {detail}" if detail else "")
            found = replace(judged, seconds=found.seconds + ended.seconds, cases=tuple(passed))
            if status != "passed":
                break
        return found

    def _functions(self, task: Task) -> Verdict:
        """Calls and tests, from another box."""
        found = self._in_court(task) or self._in_a_room(task, one_process=False)
        tier: Tier = "A"
        if found.unfit and self.one_process and not task.calls:
            found, tier = self._in_a_room(task, one_process=True), "B"
        return replace(self._verdict(found.status, found.ended, found.detail), cases=found.cases, tier=tier)

    def _in_court(self, task: Task) -> _Found | None:
        """By the process that hears the tests of all tasks; None where it ends without a verdict."""
        limits = task.limits or self.limits
        nonce = os.urandom(_NONCE)
        body = _body(task, nonce, one_process=False)
        for_program, for_tests = socket.socketpair()
        with for_program, for_tests:
            program = self._zygote(_PROGRAM).start({}, _COMMANDS[_PROGRAM], limits, for_program.fileno())
            channel = self._current_court().hear(body, for_tests, limits.seconds + GRACE)
        # The program ends when the tests do: with them goes its socket. Till then what it prints is read.
        ended = program.wait()
        message = verdict(channel) if channel else b""
        return _said(message[_NONCE:], ended) if message[:_NONCE] == nonce else None

    def _in_a_room(self, task: Task, one_process: bool) -> _Found:
        """By a process in a room of its own; with `one_process` that is the program's too."""
        limits = task.limits or self.limits
        nonce = os.urandom(_NONCE)
        command = [*_COMMANDS[_TESTS], _body(task, nonce, one_process).decode("latin-1")]
        for_program, for_tests = socket.socketpair()
        with for_program, for_tests:
            if one_process:
                program = None
                tests = self._zygote(_PROGRAM).start({}, command, limits, for_tests.fileno())
            else:
                program = self._zygote(_PROGRAM).start({}, _COMMANDS[_PROGRAM], limits, for_program.fileno())
                longer = replace(limits, seconds=limits.seconds + GRACE)
                tests = self._zygote(_TESTS).start({}, command, longer, for_tests.fileno())
        ended = program.wait() if program else None
        judged = tests.wait()
        ended = ended or judged
        if judged.stdout[:_NONCE] == nonce:
            return _said(judged.stdout[_NONCE:], ended)
        return _unsaid(judged, ended)

    def _current_court(self) -> Court:
        """The court; a new one where it has heard enough."""
        zygote = self._zygote(_TESTS)
        with self._lock:
            if not self._courts or not self._courts[-1].fit():
                if len(self._courts) > 1:  # closed when its successor came, it has been through for long
                    self._courts.pop(0).wait()
                if self._courts:
                    self._courts[-1].close()
                self._courts.append(Court(zygote, self.limits, self.workers))
            return self._courts[-1]

    def _zygote(self, what: str) -> PythonZygote:
        """The box of programs, or of tests, from its first use on."""
        with self._lock:
            if what not in self._zygotes:
                self._zygotes[what] = self._open_zygote()
            return self._zygotes[what]

    def _verdict(self, status: Status, ended: Execution, detail: str) -> Verdict:
        return Verdict(
            status,
            detail,
            stdout=ended.stdout.decode(errors="replace")[:TOLD],
            stderr=ended.stderr.decode(errors="replace")[-TOLD:],
            seconds=ended.seconds,
            memory=ended.memory,
            tier="A",
            isolation=ended.isolation,
        )


@functools.cache
def _sources() -> dict[str, str]:
    """What runs in the boxes, in the order in which it is imported."""
    folder = Path(__file__).with_name("inside")
    names = ("literals", "peer", "candidate", "trial", "driver", "court")
    return {f"factory.sandbox.inside.{name}": (folder / f"{name}.py").read_text() for name in names}


def _ran(ended: Execution) -> tuple[Status, str]:
    """Status and detail of a program that was run alone: `passed` where it came to a good end."""
    if ended.status != "exited":
        return ended.status, ended.detail or ended.status
    if not ended.code:
        return "passed", ""
    last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2][:500]
    if last.startswith(("SyntaxError:", "IndentationError:", "TabError:")):
        return "static_error", last
    return "failed", f"exit code {ended.code}: {last}"


def _body(task: Task, nonce: bytes, one_process: bool) -> bytes:
    """What the tests' box is told of a task."""
    fields: dict[str, object] = {"program": task.program, "tests": task.tests, "entry_point": task.entry_point}
    try:
        fields["calls"] = tuple(
            (call.function, literal(tuple(call.arguments)), literal(call.expected), call.tolerance)
            for call in task.calls
        )
        body = literal({"nonce": nonce, "one_process": one_process, **fields})
    except Refused as error:
        raise FactoryError(f"{task.id or 'python'}: calls are of literals: {error}") from error
    if len(body) > MESSAGE:
        raise FactoryError(f"{task.id or 'python'}: program and tests of more than {MESSAGE:,} bytes")
    return body


class _Found(NamedTuple):
    """What the tests' box found, and how the program ended."""

    status: Status
    detail: str
    cases: tuple[bool, ...]
    unfit: bool
    """Whether the tests cannot be run from another box."""
    ended: Execution


def _said(message: bytes, ended: Execution) -> _Found:
    """What the tests' box says of the program."""
    try:
        status, detail, cases, unfit = parse(message)
    except (Broken, ValueError, TypeError) as error:
        return _Found("failed", f"the tests wrote over their verdict: {error}", (), False, ended)
    if status == "failed" and ended.status != "exited":
        status, detail = ended.status, ended.detail or ended.status  # why it did not answer
    return _Found(status, detail, cases, unfit, ended)


def _unsaid(judged: Execution, ended: Execution) -> _Found:
    """Where the tests' box ended without a verdict: never passed."""
    broken = next((one for one in (ended, judged) if one.status == "sandbox_error"), None)
    if broken:
        return _Found("sandbox_error", broken.detail, (), False, ended)
    if judged.status != "exited":
        return _Found(judged.status, f"the tests: {judged.status}", (), False, ended)
    return _Found("failed", f"the tests ended without a verdict, with code {judged.code}", (), False, ended)


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 80 else text[:77] + "...")
