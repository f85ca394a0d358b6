"""Executions a second of each kind of isolation, beside a bare process.

    python benchmarks/boxes.py [--seconds 3] [--workers 2] [--repeats 3]

Each kind runs the same small program again and again in `workers` threads. `bare process`: `python -I -S` as a
subprocess, nothing isolated. `box, one each`: a box is started and ended for each execution; `box, kept`: a command in
a box that stays; `zygote`: a fork in a room of its own. In turn, `repeats` times; medians. CPU is of this process and
all that it started, until that has ended. It is what to compare on a machine that others use too: `a second of 2 cores`
is made of it.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from factory.sandbox.box import Box
from factory.sandbox.limits import Limits
from factory.sandbox.machine import steward_python
from factory.sandbox.selftest import why_not
from factory.sandbox.zygote import PythonZygote

PROGRAM = "print(sum(k * k for k in range(100)))"
ANSWER = b"328350\n"
Run = Callable[[], bytes]


@contextlib.contextmanager
def bare(workers: int) -> Iterator[list[Run]]:
    command = [steward_python(), "-I", "-S", "-c", PROGRAM]
    yield [lambda: subprocess.run(command, capture_output=True, check=True).stdout] * workers


@contextlib.contextmanager
def box_each(workers: int) -> Iterator[list[Run]]:
    def run() -> bytes:
        with Box() as box:
            return box.run([steward_python(), "-I", "-S", "-c", PROGRAM]).stdout

    yield [run] * workers


@contextlib.contextmanager
def box_kept(workers: int) -> Iterator[list[Run]]:
    with contextlib.ExitStack() as stack:
        boxes = [stack.enter_context(Box()) for _ in range(workers)]
        yield [lambda box=box: box.run([steward_python(), "-I", "-S", "-c", PROGRAM]).stdout for box in boxes]  # type: ignore[misc]


def zygote_of(isolation: str) -> Callable[[int], contextlib.AbstractContextManager[list[Run]]]:
    @contextlib.contextmanager
    def kept(workers: int) -> Iterator[list[Run]]:
        with PythonZygote(limits=Limits(processes=1000), isolation=isolation) as zygote:
            yield [lambda: zygote.run({}, ["-c", PROGRAM]).stdout] * workers

    return kept


def cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(kind: Callable[[int], contextlib.AbstractContextManager[list[Run]]], workers: int, seconds: float):
    """Executions a second, and CPU milliseconds of one."""
    counts = [0] * workers
    began = cpu()
    with kind(workers) as runs:
        for run in runs:
            assert run() == ANSWER
        start = time.monotonic()

        def work(place: int) -> None:
            while time.monotonic() - start < seconds:
                assert runs[place]() == ANSWER
                counts[place] += 1

        threads = [threading.Thread(target=work, args=(place,)) for place in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - start
    return sum(counts) / took, (cpu() - began) * 1000 / sum(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3, help="of each kind in each repeat")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    kinds = {"bare process": bare, "box, one each": box_each, "box, kept": box_kept, "zygote": zygote_of("bubblewrap")}
    if not why_not("degraded", True):
        kinds["zygote, degraded"] = zygote_of("degraded")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(options.repeats):
        for name, kind in kinds.items():
            found[name].append(measured(kind, options.workers, options.seconds))
    print(f"{'':20}{'a second':>10}{'CPU ms each':>13}{'a second of 2 cores':>21}{'CPU of a bare one':>19}")
    base = statistics.median(each for _, each in found["bare process"])
    for name, rows in found.items():
        rate, each = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:20}{rate:10.0f}{each:13.2f}{2000 / each:21.0f}{each / base:18.2f}x")


if __name__ == "__main__":
    main()
