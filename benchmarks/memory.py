"""Peak memory of a worker: a JSON-lines file of 2 GB, made by repetition with changes, through the whole chain.

python benchmarks/memory.py --gigabytes 2 --data ../shared/data/webtext/bench.parquet
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parent.parent
WEBTEXT = Path(os.environ.get("FACTORY_DATA") or REPOSITORY.parent / "shared" / "data") / "webtext"
QUERY = (
    "select stage_number, count(*) as shards, sum(rows_in) as rows_in, sum(rows_kept) as kept, "
    "max(peak_memory_bytes) // 1000000 as peak_mb, round(sum(cpu_seconds), 1) as cpu_s "
    "from receipts group by 1 order by 1"
)


def write_lines(texts: list[str], path: Path, size: int) -> None:
    """`size` bytes of JSON lines: the texts again and again, each time with a share of their words exchanged."""
    chance = random.Random(0)
    words = " ".join(texts[:200]).split()
    number = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            for text in texts:
                parts = text.split(" ")
                for _ in range(max(1, len(parts) // chance.choice((2, 4, 50)))):
                    parts[chance.randrange(len(parts))] = chance.choice(words)
                file.write(json.dumps({"id": f"d{number}", "text": " ".join(parts)}, ensure_ascii=False) + "\n")
                number += 1
            if file.tell() >= size:
                return


def measure(texts: list[str], size: int, folder: Path, workers: int) -> list[dict[str, int]]:
    """Run the chain over a file of `size` bytes; a row a stage, with the peak memory of its tasks."""
    path = folder / "large.jsonl"
    write_lines(texts, path, size)
    command = [sys.executable, "-m", "factory", "run", "recipes/text_en.toml", "--set", f"glob={path}"]
    command += ["--out", str(folder / "runs"), "--workers", str(workers), "--dropped", "ids", "--memory", "1500MB"]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    from factory.engine import catalog

    result = catalog.query(str(folder / "runs"), QUERY)
    return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(WEBTEXT / "bench.parquet"), help="Parquet with a column `text`")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    texts = pq.read_table(options.data, columns=["text"]).column(0).to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(texts, int(options.gigabytes * 1e9), Path(folder), options.workers):
            print("  ".join(f"{key} {value:,}" for key, value in row.items()))


if __name__ == "__main__":
    main()
