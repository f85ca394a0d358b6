"""Python programs, fast: a warm interpreter in a box, which forks for each of them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from factory.sandbox.box import encoded
from factory.sandbox.inside.wire import PYTHON
from factory.sandbox.limits import Limits
from factory.sandbox.machine import Machine
from factory.sandbox.process import Execution, Process
from factory.sandbox.selftest import require_isolation

MODULES = (
    "bisect", "collections", "copy", "functools", "heapq", "io", "itertools", "math", "operator", "os", "re", "string",
    "struct", "sys", "time", "typing",
)  # fmt: skip
"""What the interpreter has imported before it forks. All else of the standard library can be imported too, but what is
here and not used costs each fork a little, and what has something to do after a fork (random, threading) much."""
_LIMITS = Limits()


class PythonZygote:
    """A warm interpreter in a box. Each program runs in a fork of it, in a room: processes, mounts, shared memory and
    count of processes of its own, and one file system of `limits.files` bytes for /work, /tmp and /dev/shm. Programs
    may run at the same time and know nothing of each other. A context manager.

    `modules` are imported before any program runs, and `sources` (name: text) are run as modules of these names: a
    program that imports them finds them made. A program is the first process of its room, so the kernel ignores signals
    that it sends itself and has no handler for. It may not open sockets; socketpair() works.
    """

    def __init__(
        self,
        *,
        mounts: Sequence[str] = (),
        limits: Limits = _LIMITS,
        modules: Sequence[str] = MODULES,
        sources: Mapping[str, str] = {},
        isolation: str | None = None,
    ) -> None:
        self.isolation = require_isolation(isolation, zygote=True)
        self._make = functools.partial(Machine, mounts, {}, limits, modules, sources, self.isolation)
        self._machine, self._lock = self._make(), threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the interpreter and all that it runs; return when it is gone."""
        self._machine.close()

    def run(
        self, files: Mapping[str, bytes | str], command: Sequence[str], stdin: bytes = b"", limits: Limits | None = None
    ) -> Execution:
        """Run `python command` to its end: a file of `files`, which lie in /work, or `-c` and a text; and arguments."""
        return self.start(files, command, limits).communicate(stdin)

    def start(
        self,
        files: Mapping[str, bytes | str],
        command: Sequence[str],
        limits: Limits | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
    ) -> Process:
        """Start a program, to talk to it: through pipes of its own, or through descriptors of the caller, who closes
        his: two programs that talk to each other need nobody between them."""
        with self._lock:
            if self._machine.ended:  # it was seen to be broken
                self._machine.close()
                self._machine = self._make()
            machine = self._machine
        return machine.job(PYTHON, (encoded(files), list(command)), limits, stdin, stdout)
