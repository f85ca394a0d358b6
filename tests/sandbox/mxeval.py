"""Judges the canonical solutions of multilingual HumanEval and MBXP, and a broken variant of each, by their own tests.

    python -m tests.sandbox.mxeval [--languages go,perl] [--problems 20] [--workers 1] [--out verdicts.jsonl]

Without --problems all of them, which takes hours. Perl, Go and Scala have no canonical solutions in these sets: ours,
to some of their problems, are in programs/mxeval_solutions.toml. What does not pass is in mxeval_exceptions.toml.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import re
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from factory.sandbox.judge import Sandbox
from factory.sandbox.languages import language
from factory.sandbox.limits import Limits
from factory.sandbox.verdict import Task
from tests.conftest import data_folder

HERE = Path(__file__).parent
LIMITS = Limits(seconds=30, memory=2 << 30)
NAMES = ["cpp", "csharp", "go", "java", "javascript", "kotlin", "perl", "php", "python", "ruby", "scala", "typescript"]
"""The 13 languages but for Swift, which has neither solutions here nor a toolchain in Debian."""
RAISE = {
    "cpp": "throw 1;", "csharp": "throw new Exception();", "java": "if (true) throw new RuntimeException();",
    "javascript": "throw 1;", "typescript": "throw 1;", "kotlin": "throw Exception()", "php": "throw new Exception();",
    "python": "raise ValueError", "ruby": 'raise "broken"', "perl": "die;", "go": 'panic("broken")',
    "scala": "throw new Exception",
}  # fmt: skip
COMPARISONS = ("< >=", "> <=", "== !=", "=== !==")


@dataclass(frozen=True)
class Problem:
    """A problem of these sets, with a solution."""

    id: str
    language: str
    prompt: str
    solution: str
    tests: str
    entry_point: str

    def task(self, solution: str | None = None, limits: Limits = LIMITS) -> Task:
        program = self.prompt + (self.solution if solution is None else solution)
        entry = self.entry_point if self.language == "python" else ""
        return Task(
            language=self.language, program=program, tests=self.tests, entry_point=entry, limits=limits, id=self.id
        )


def problems(folder: Path, name: str) -> list[Problem]:
    """Every problem of a language that has a solution, HumanEval's before MBXP's."""
    data = folder / "mxeval" / "mxeval" / "data"
    ours = tomllib.loads((HERE / "programs" / "mxeval_solutions.toml").read_text())
    found = []
    for path in sorted(data.glob("*/*.jsonl"), key=lambda path: (path.parent.name == "mbxp", path.name)):
        with path.open() as file:
            rows = [json.loads(line) for line in file]
        if rows[0]["language"] != name:
            continue
        for row in rows:
            tests = row["test"]
            if name == "csharp":
                tests += (HERE / "programs" / "CompareNetObjects.cs").read_text()
            if solution := row["canonical_solution"] or ours.get(row["task_id"]):
                found.append(Problem(row["task_id"], name, row["prompt"], solution, tests, row["entry_point"]))
    return found


def sample(found: list[Problem], count: int) -> list[Problem]:
    """So many of them, evenly spread."""
    step = max(1, len(found) // count)
    return found[::step][:count]


def variants(problem: Problem) -> Iterator[tuple[str, str]]:
    """Wrong solutions made of the right one, likely ones first: what was done, and the text. The last raises."""
    flips = [
        ("numbers", r"(?<![\w.])(\d+)(?![\w.])", lambda m: str(int(m[1]) + 1)),
        ("truth", r"\b([Tt]rue|[Ff]alse)\b", lambda m: _swap(m[1], "true false", "True False")),
        ("comparisons", r" (<|>=|>|<=|==|!=|===|!==) ", lambda m: f" {_swap(m[1], *COMPARISONS)} "),
        ("arithmetic", r" ([+-]) ", lambda m: f" {_swap(m[1], '+ -')} "),
        ("extremes", r"\b(min|max)\b", lambda m: _swap(m[1], "min max")),
    ]
    for name, pattern, change in flips:
        changed = re.sub(pattern, change, problem.solution)
        if changed != problem.solution:
            yield name, changed
    indent = re.match(r"\s*", problem.solution.lstrip("\n"))[0] if problem.language == "python" else ""
    yield "raises", f"\n{indent}{RAISE[problem.language]}\n{problem.solution}"


def _swap(found: str, *pairs: str) -> str:
    both = dict(pair.split() for pair in pairs)
    return (both | {b: a for a, b in both.items()})[found]


@dataclass(frozen=True)
class Judged:
    """The verdicts on a problem: on its solution, and on the first broken variant that does not pass."""

    id: str
    language: str
    status: str
    detail: str
    seconds: float
    broken: str = ""
    broken_status: str = ""
    survived: tuple[str, ...] = ()
    """Variants that pass, as the problem's tests are few."""


def judge(sandbox: Sandbox, problem: Problem, broken: bool = True) -> Judged:
    begun = time.monotonic()
    verdict = sandbox.judge(problem.task())
    judged = Judged(problem.id, problem.language, verdict.status, verdict.detail, round(time.monotonic() - begun, 2))
    if not (verdict.passed and broken):
        return judged
    survived: tuple[str, ...] = ()
    for name, solution in variants(problem):
        wrong = sandbox.judge(problem.task(solution, replace(LIMITS, seconds=5)))
        if not wrong.passed:
            return replace(judged, broken=name, broken_status=wrong.status, survived=survived)
        survived += (name,)
    return replace(judged, survived=survived)


def exceptions() -> dict[str, str]:
    """The problems whose solution does not pass here, and why."""
    table = tomllib.loads((HERE / "mxeval_exceptions.toml").read_text())
    return {f"{entry['set']}/{number}": entry["why"] for entry in table["exception"] for number in entry["problems"]}


def main() -> None:
    parser = argparse.ArgumentParser("mxeval", description=__doc__)
    parser.add_argument("--languages", default=",".join(NAMES))
    parser.add_argument("--problems", type=int, default=0, help="so many of each language; 0: all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only-solutions", action="store_true", help="no broken variants")
    parser.add_argument("--out", default="", help="write the verdicts here, as JSON lines")
    options = parser.parse_args()
    known = exceptions()
    for name in options.languages.split(","):
        if missing := language(name).missing():
            print(missing)
            continue
        found = problems(data_folder(), name)
        found = sample(found, options.problems) if options.problems else found
        counts: collections.Counter[str] = collections.Counter()
        seconds = 0.0
        with Sandbox(one_process=True) as sandbox, ThreadPoolExecutor(options.workers) as pool:
            one = functools.partial(judge, sandbox, broken=not options.only_solutions)
            for judged in pool.map(one, found):
                counts[judged.status] += 1
                counts["known"] += judged.status != "passed" and judged.id in known
                counts["broken failed"] += bool(judged.broken)
                counts["broken by raising only"] += judged.broken == "raises"
                seconds += judged.seconds
                if options.out:
                    with open(options.out, "a") as file:
                        file.write(json.dumps(asdict(judged)) + "\n")
                if judged.status != "passed" and judged.id not in known:
                    print(f"  {judged.id}: {judged.status}: {' '.join(judged.detail.split())[:300]}")
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        print(f"{name}: {len(found)} solutions: {told}; {seconds / max(1, len(found)):.2f} s each", flush=True)


if __name__ == "__main__":
    sys.exit(main())
