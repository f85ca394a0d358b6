"""Programs in answers: taken out of Markdown, and judged by the sandbox."""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections.abc import Sequence

from factory.engine.errors import FactoryError
from factory.sandbox.judge import Sandbox
from factory.sandbox.languages import language as language_of
from factory.sandbox.limits import Limits
from factory.sandbox.verdict import Call, Case, Task
from factory.verify.check import Check
from factory.verify.fences import fences

KEPT = ("passes",)
"""Verifiers whose verdicts may differ from run to run, by a limit of time: verify.Verify keeps them on disk."""

_MARK = re.compile(r"[^\s{]*")
"""The language in an info string, before attributes."""
_THOUGHT = "</think>"
_sandboxes: dict[int, Sandbox] = {}
_lock = threading.Lock()


def passes(
    response: str,
    tests: str = "",
    language: str = "python",
    entry_point: str = "",
    *,
    cases: Sequence[Case] = (),
    calls: Sequence[Call] = (),
    limits: Limits | None = None,
) -> Check:
    """Whether the program in a response passes its tests: their source, `cases` of input and output, or `calls`.

    Tests in Python call the program from another box, with `entry_point` as its function (tier A, see
    factory.sandbox.judge); in other languages tests run beside the program (tier B or C), cases do not. The score is
    1 or 0, or with cases and calls alone the share that passed: cases end at the first that fails. FactoryError where
    the toolchain is not here, the boxes do not work, or there is nothing to judge by.
    """
    program = extract(response, language, entry_point)
    if not program.strip():
        return Check(False, "no program in the response")
    given = {"cases": tuple(cases), "calls": tuple(calls), "tests": tests, "entry_point": entry_point}
    verdict = sandbox().judge(Task(language=language, program=program, limits=limits, **given))  # type: ignore[arg-type]
    if verdict.status in ("sandbox_error", "toolchain_missing"):
        raise FactoryError(f"code: {verdict.status}: {verdict.detail}")
    count = len(cases) + len(calls)
    share = sum(verdict.cases) / count if count and not tests else float(verdict.passed)
    reason = "" if verdict.passed else " ".join(f"{verdict.status}: {verdict.detail}".split())
    return Check(verdict.passed, reason[:500], share)


def extract(response: str, language: str = "python", entry_point: str = "") -> str:
    """The program in a response: the last fenced block that has `entry_point` in it, else the longest one; of blocks
    marked as of the language, where any is, else of those without a mark. A response without fences is a program. What
    stands before the end of a thought (`</think>`) does not count."""
    answer = response.rpartition(_THOUGHT)[2]
    blocks = [(_MARK.match(block.info)[0], block.body) for block in fences(answer)]  # type: ignore[index]
    if not blocks:
        return answer
    row = language_of(language)
    names = {row.name, *row.aliases, os.path.splitext(row.file)[1].lstrip(".")}
    of_language = [text for mark, text in blocks if mark.lower() in names] or [
        text for mark, text in blocks if not mark
    ]
    word = re.compile(rf"(?<!\w){re.escape(entry_point)}(?!\w)")
    naming = [text for text in of_language if word.search(text)] if entry_point else []
    return naming[-1] if naming else max(of_language, key=len, default="")


def sandbox() -> Sandbox:
    """That of this process: made at first use, closed at its end. A forked process makes its own."""
    with _lock:
        if os.getpid() not in _sandboxes:
            _sandboxes[os.getpid()] = Sandbox()
        return _sandboxes[os.getpid()]


@atexit.register
def _close() -> None:
    if made := _sandboxes.pop(os.getpid(), None):
        made.close()


def _forked() -> None:
    """A lock that another thread held when this process was forked will never be free."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)
