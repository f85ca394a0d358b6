"""The closed loop under several seeds fixed beforehand: does the model get better at every stage?

    python benchmarks/loop.py [--seeds 0 1 2] [--fast] [--out FOLDER]

Runs recipes/loop.sh once a seed, with other problems, weights and samples each time, and prints accuracy at
temperature 1 on held-out problems by stage, with 95% intervals (bootstrap over problems), the differences between
stages on the same problems (paired bootstrap, one-sided p), and which claims hold on how many seeds, those that fail
too. Controls: as many steps on the corpus with its mistakes and garbage, and SFT on as many samples that nobody
verified. A run that was killed goes on. About seven minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
MEASURE = "T=1"
CLAIMS = (  # what must be above what
    ("sft", "base"),
    ("dpo", "sft"),
    ("grpo", "dpo"),
    ("base", "noisy"),
    ("sft", "unverified"),
)
LEVEL = 0.05  # one-sided


def run(seed: int, folder: Path, first: Path, fast: bool) -> float:
    """The loop under one seed; returns wall seconds. The text of the quickstart is the same for all seeds."""
    begun = time.monotonic()
    environment = {**os.environ, "FACTORY_RUNS": str(folder), "SEED": str(seed), "FAST": "1" if fast else ""}
    text = "quickstart@2026.11.20"
    if folder != first and not (folder / text).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(first / text, folder / text)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (["factory", "run", "recipes/quickstart.toml"], ["recipes/loop.sh"]):
        with open(folder.with_suffix(".log"), "a") as log:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            print(f"seed {seed}: {' '.join(command)} ended with {done.returncode}: see {log.name}")
            break
    return time.monotonic() - begun


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of the accuracy table by label; none where the loop did not come so far."""
    path = folder / "accuracy" / "accuracy.parquet"
    rows = pq.read_table(path).to_pylist() if path.exists() else []
    return {row["label"]: row for row in rows if row["measure"] == MEASURE}


def difference(rows: dict[str, dict[str, Any]], better: str, than: str) -> dict[str, Any] | None:
    """The paired difference that the loop reckoned, wherever it stands in the table."""
    return next((row for row in rows.values() if row["better"] == better and row["than"] == than), None)


def main() -> None:
    parser = argparse.ArgumentParser(description="The closed loop under several seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fast", action="store_true", help="the numbers of FAST=1")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "loop")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    folders = {seed: out / f"seed-{seed}" for seed in options.seeds}
    first = folders[options.seeds[0]]
    found = {}
    for seed, folder in folders.items():
        seconds = run(seed, folder, first, options.fast)
        found[seed] = results(folder)
        print(f"seed {seed}: {seconds:,.0f} s", flush=True)

    labels = list(dict.fromkeys(label for rows in found.values() for label in rows))
    print(f"\naccuracy at {MEASURE}, held-out problems\n{'':12s}" + "".join(f"{f'seed {s}':>24s}" for s in found))
    for label in labels:
        cells = [
            f"{row['accuracy']:.3f} ({row['low']:.3f}-{row['high']:.3f})" if (row := rows.get(label)) else "none"
            for rows in found.values()
        ]
        print(f"{label:12s}" + "".join(f"{cell:>24s}" for cell in cells))
    print(f"\n{'paired':20s}" + "".join(f"{f'seed {s}':>36s}" for s in found))
    for better, than in CLAIMS:
        told, higher, sure = [], 0, 0
        for rows in found.values():
            row = difference(rows, better, than)
            if row is None:
                told.append("none")
                continue
            higher += row["difference"] > 0
            sure += row["difference"] > 0 and row["p"] < LEVEL
            spread = f"({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
            told.append(f"{row['difference']:+.3f} {spread} p {row['p']:.4f}")
        print(f"{f'{better} - {than}':20s}" + "".join(f"{one:>36s}" for one in told))
        print(f"{'':20s}above on {higher} of {len(found)} seeds, with p < {LEVEL} on {sure}")


if __name__ == "__main__":
    main()
