"""The process that compares symbolic answers: `python -P symbolic_server.py CPU_SECONDS MEMORY_BYTES`.

A line of JSON, two answers, comes in on stdin; a line comes out on stdout: equal, different, timeout, memory or error.
Each comparison runs in a fork of the process that has sympy and math-verify loaded, so it starts from the same state
whatever came before. The kernel ends it at its limit of CPU time (which the load of the machine does not use up), even
inside a computation in C. The process itself does nothing but wait: it ends, with its fork, when stdin is closed, as it
is when the process that started it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
WARM = (
    (r"\frac{x}{2}+\sqrt{2}", "0.5x+2^{1/2}"),
    (r"\sin(2x)", r"2\sin x\cos x"),
    (r"x^2+2x+1", r"(x+1)^2"),
    (r"y=2x+3", r"2x-y+3=0"),
    (r"7\pi", r"\frac{21\pi}{4}"),
    (r"\log_2 8", r"e^{3}"),
)
PATIENCE = 40
"""Wall-clock seconds for each second of CPU time: only a machine that stands still, or a comparison that sleeps."""
POINTS = (0.7390851, 1.3247179, 0.5671432, 2.2360679, 1.9021605, 0.3183098)
"""Values for the unknowns, where two answers called equal are evaluated."""


def compare(one: str, other: str) -> bool:
    """Whether math-verify finds the answers equal in either order, and their values agree."""
    import math_verify
    import sympy

    config = (math_verify.LatexExtractionConfig(boxed_match_priority=-1),)
    left, right = (math_verify.parse(f"${x}$", config, parsing_timeout=None) for x in (one, other))
    if not left or not right:
        return False
    options = {"timeout_seconds": None, "allow_set_relation_comp": True}
    equal = math_verify.verify(left, right, **options) or math_verify.verify(right, left, **options)
    if not equal:
        return False
    if isinstance(left[0], sympy.Expr) and isinstance(right[0], sympy.Expr):
        return agree(left[0], right[0])
    return True


def agree(left, right) -> bool:  # type: ignore[no-untyped-def]
    """Whether two expressions have the same value at a point, to 12 digits, or 6 where one has a decimal in it.

    math-verify rounds to 6 places after the point, by which 1e-7 is 0.
    """
    import sympy

    names = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {name: sympy.Float(POINTS[k % len(POINTS)] + k // len(POINTS), 30) for k, name in enumerate(names)}
    values = [complex(sympy.N(side.subs(point), 30)) for side in (left, right)]
    if any(value != value or abs(value) == float("inf") for value in values):
        return values[0] == values[1] or left == right
    tolerance = 1e-6 if left.atoms(sympy.Float) or right.atoms(sympy.Float) else 1e-12
    return abs(values[0] - values[1]) <= tolerance * max(abs(value) for value in values)


def work(line: str, out: int, seconds: float, memory: int, parent: int) -> None:
    """One comparison, in the fork."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, seconds)  # CPU time of the process; SIGPROF ends it
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            found = "equal" if compare(*json.loads(line)) else "different"
    except MemoryError:
        found = "memory"
    except Exception as error:  # what math-verify and sympy raise on odd texts is of every kind
        found = f"error: {type(error).__name__}"
    os.write(out, found.encode())


def answer(line: str, stdin: int, seconds: float, memory: int) -> str:
    """The verdict of a fork on `line`. Ends the process where stdin is closed meanwhile."""
    receive, send = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            work(line, send, seconds, memory, parent)
        finally:
            os._exit(0)
    os.close(send)
    ready, _, _ = select.select([receive, stdin], [], [], seconds * PATIENCE)
    if receive not in ready:  # too late, or stdin is closed: nothing is sent while an answer is awaited
        os.kill(child, signal.SIGKILL)
    found = os.read(receive, 200).decode()
    os.close(receive)
    _, status, usage = os.wait4(child, 0)
    if stdin in ready:
        sys.exit()
    if not found:
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        found = "timeout" if ended in (signal.SIGPROF, signal.SIGKILL) else "error: crashed"
    return json.dumps([found, usage.ru_utime + usage.ru_stime])


def main() -> None:
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for one, other in WARM:  # tables, caches and lazy imports are made once, before the forks
        compare(one, other)
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads stderr from here on: it must not fill up
    stdin = sys.stdin.fileno()
    while line := sys.stdin.readline():
        print(answer(line, stdin, seconds, memory), flush=True)


if __name__ == "__main__":
    main()
