"""Symbolic equality by math-verify (sympy), in a process of its own that cannot hang or outgrow ours.

The process is started at the first question, one for each of our processes, forked or spawned; threads take turns.
See `symbolic_server` for its limits.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from factory.engine.errors import FactoryError

SECONDS = 2.0
"""CPU time of a comparison,"""
MEMORY = 1 << 30
"""and the bytes of address space that it may take (sympy loaded takes 70 MB)."""


class Server:
    """The process, started when it is first asked."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, one: str, other: str) -> tuple[str, float]:
        """The verdict, and the CPU seconds that it took."""
        with self.lock:
            for _ in range(2):  # a process that was killed from outside is started again, once
                process = self.process or self.start()
                try:
                    process.stdin.write(json.dumps([one, other]).encode() + b"\n")  # type: ignore[union-attr]
                    line = process.stdout.readline()  # type: ignore[union-attr]
                except BrokenPipeError:
                    line = b""
                except BaseException:  # interrupted: the answer that is still to come belongs to no question
                    self.stop()
                    raise
                if line:
                    verdict, taken = json.loads(line)
                    return verdict, taken
                self.stop()
        raise FactoryError("the process that compares symbolic answers was killed twice: is memory short?")

    def start(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("symbolic_server.py")
        process = subprocess.Popen(
            # -P: the modules beside the script must not hide those of the standard library.
            [sys.executable, "-P", str(script), str(SECONDS), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # no buffer, and so no lock, that a fork could inherit half used
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's order of terms hangs on it
            start_new_session=True,  # an interrupt from the keyboard is ours alone
        )
        self.process = process
        if process.stdout.readline() != b"ready\n":  # type: ignore[union-attr]
            _, errors = process.communicate()
            self.process = None
            last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise FactoryError(f"symbolic answers cannot be compared: {last}; pip install math-verify==0.9.0")
        return process

    def stop(self) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            process.kill()
            process.communicate()

    def forget(self) -> None:
        """In a fork: the process is the parent's. Its pipes are closed here, so that it ends with the parent."""
        self.lock = threading.Lock()
        if self.process is not None:
            process, self.process = self.process, None
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.returncode = 0  # not our child: nothing to wait for


SERVER = Server()
atexit.register(SERVER.stop)
os.register_at_fork(after_in_child=SERVER.forget)


@lru_cache(maxsize=4096)
def compare(one: str, other: str) -> tuple[str, float]:
    """`equal`, `different`, `timeout`, `memory` or `error: …` of two answers in LaTeX, and the CPU seconds taken."""
    one, other = sorted((one, other))
    return SERVER.ask(one, other)
