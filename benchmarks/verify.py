"""Verifying mathematics: verdicts a second of one core and agreement with other verdicts, beside math-verify.

    python benchmarks/verify.py [--rows 1000] [--disagreements]

The sets: gsm8k's example solutions of four models with `is_correct` (5,276), and Qwen2.5-Math's chains on MATH with
its scores (800), against the reference as it was normalised for them ("as scored") and as MATH has it ("as written").
math-verify is called plainly, `verify(parse(answer), parse(response))` with its own timeouts, on the first --rows of a
set. CPU seconds include those of the symbolic process, apart from its start, which is told.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from factory.verify import symbolic
from factory.verify.arithmetic import equations, shown
from factory.verify.mathematics import correct, ready
from factory.verify.notation import clean, exact
from tests.verify.graded import Graded, chains, gsm8k, math_maj

DATA = Path(os.environ.get("FACTORY_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
SYMBOLIC = (
    ("(x+1)^2", "x^2+2x+1"),
    ("4a-2", "2(2a-1)"),
    (r"\sqrt{34}+3\sqrt{10}", "28"),
    (r"\frac{\sqrt{3}}{2}", r"\frac{3}{2\sqrt{3}}"),
    (r"\sin(2x)", r"2\sin x\cos x"),
    ("2x-y+3=0", "y=2x+3"),
    (r"7\pi", r"\frac{22\pi}{3}"),
    (r"\log_2 8", "3"),
)


def start() -> float:
    """CPU seconds that starting the symbolic process takes, and ending it: it is counted when it has ended."""
    ready()
    symbolic.SERVER.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ours(rows: list[Graded]) -> tuple[float, list[bool]]:
    """The second of two passes, each without what the first remembered of texts; with the CPU time of the forks."""
    spent: list[float] = []

    def counted(one: str, other: str) -> tuple[str, float]:
        found = symbolic.SERVER.ask(one, other)
        spent.append(found[1])
        return found

    remembered, symbolic.compare = symbolic.compare, counted  # type: ignore[assignment]
    try:
        for _ in range(2):
            clean.cache_clear()
            exact.cache_clear()
            spent.clear()
            begun = time.process_time()
            found = [correct(row.response, row.answer).passed for row in rows]
            taken = time.process_time() - begun + sum(spent)
    finally:
        symbolic.compare = remembered
    return taken, found


def plain(rows: list[Graded]) -> tuple[float, list[bool]]:
    """math-verify as its page shows it; LaTeX references between dollar signs."""
    from math_verify import parse, verify

    def judge(row: Graded) -> bool:
        gold = parse(row.answer if row.answer.replace(",", "").lstrip("-").isdigit() else f"${row.answer}$")
        return bool(verify(gold, parse(row.response)))

    judge(rows[0])
    begun = time.process_time()
    found = [judge(row) for row in rows]
    return time.process_time() - begun, found


def share(rows: list[Graded], found: list[bool]) -> float:
    return sum(row.verdict == passed for row, passed in zip(rows, found, strict=True)) / len(found)


def listed(rows: list[Graded], found: list[bool]) -> None:
    for row, passed in zip(rows, found, strict=True):
        if passed != row.verdict:
            said = f"{'right' if passed else 'wrong'} here, {'right' if row.verdict else 'wrong'} there"
            print(f"    {said}: {row.answer!r}: …{row.response[-90:]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rows", type=int, default=1000, help="rows of each set that math-verify is timed on")
    parser.add_argument("--disagreements", action="store_true", help="list verdicts that differ, wrong equations")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)

    sets: dict[str, Callable[[], list[Graded]]] = {
        "gsm8k": lambda: list(gsm8k(options.data)),
        "MATH, as scored": lambda: list(math_maj(options.data, written=False)),
        "MATH, as written": lambda: list(math_maj(options.data, written=True)),
    }
    starting = start()
    print(f"{'':18}{'verdicts':>9}{'agree':>10}{'a CPU s':>10}   math-verify:{'agree':>9}{'a CPU s':>9}{'times':>8}")
    for name, read in sets.items():
        rows = read()
        taken, found = ours(rows)
        sample = rows[: options.rows]
        slow, plainly = plain(sample)
        rate, beside = len(rows) / taken, len(sample) / slow
        print(
            f"{name:18}{len(rows):9,}{share(rows, found):10.3%}{rate:10,.0f}"
            f"{share(sample, plainly):24.3%}{beside:9,.0f}{rate / beside:8,.0f}"
        )
        if options.disagreements:
            listed(rows, found)

    costs = sorted(symbolic.compare(*pair)[1] for pair in SYMBOLIC)
    median = 1e3 * costs[len(costs) // 2]
    print(f"\nsymbolic process: {starting:.1f} CPU s to start, {median:.0f} ms a comparison (median)")

    solutions = chains(options.data)
    begun = time.process_time()
    judged = [list(equations(chain)) for chain in solutions]
    taken = time.process_time() - begun
    wrong = [[e for e in found if not e.holds] for found in judged]
    print(
        f"steps: gsm8k's {len(solutions):,} training solutions, {sum(map(len, judged)):,} equations, "
        f"{sum(map(bool, wrong))} solutions with one that fails, {len(solutions) / taken:,.0f} solutions a CPU s"
    )
    if options.disagreements:
        for equation in (found[0] for found in wrong if found):
            print(f"    {equation.text} should be {shown(equation.right)}")


if __name__ == "__main__":
    main()
