"""The whole chain beside datatrove's: language, four filters, MinHash, write. MB of text per CPU-second of each.

    python benchmarks/chain.py                        # ../shared/data/webtext, both sides
    python benchmarks/chain.py --data 'mine/*.jsonl'  # your own Parquet or JSON lines, with a column `text`
    python benchmarks/chain.py --documents 3000       # fewer documents: datatrove takes minutes

Both sides read the same documents from the same Parquet file, on one core, each in processes of its own, one after
another, and all of it counts: start-up, reading, filters, four stages of MinHash, writing. Ours runs `--repeat` times,
of which the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

REPOSITORY = Path(__file__).resolve().parent.parent
WEBTEXT = Path(os.environ.get("FACTORY_DATA") or REPOSITORY.parent / "shared" / "data") / "webtext"

RECIPE = """
name = "chain"
version = "1"
shard_bytes = 33554432
[[step]]
use = "ingest.Parquet"
glob = "{data}"
[[step]]
use = "language.Keep"
[[step]]
use = "quality.GopherRepetition"
words = "{words}"
[[step]]
use = "quality.Gopher"
words = "{words}"
[[step]]
use = "quality.C4"
words = "{words}"
[[step]]
use = "quality.FineWeb"
words = "{words}"
[[step]]
use = "dedup.MinHash"
"""

DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature)
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter, LanguageFilter)
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.lid import FT176LID

folder, out, model = sys.argv[1:]
FT176LID.MODEL_URL = "file://" + model
minhash = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)


def run(name, *steps, tasks=1):
    LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, logging_dir=f"{out}/logs/{name}").run()


run("filter", ParquetReader(folder), LanguageFilter(), GopherRepetitionFilter(), GopherQualityFilter(),
    C4QualityFilter(), FineWebQualityFilter(), ParquetWriter(f"{out}/filtered"))
run("signatures", ParquetReader(f"{out}/filtered"), MinhashDedupSignature(f"{out}/signatures", config=minhash))
run("buckets", MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=minhash), tasks=14)
run("cluster", MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=minhash))
run("write", ParquetReader(f"{out}/filtered"), MinhashDedupFilter(f"{out}/remove"), ParquetWriter(f"{out}/rows"))
"""


def cpu_seconds(command: list[str], cwd: Path) -> float:
    """User and system seconds of a command and of all its children."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command[:4])} … failed:\n{result.stderr[-3000:]}")
    return spent() - before


def documents(data: list[str], limit: int, folder: Path) -> tuple[Path, int, int]:
    """The documents as one Parquet file with the columns id and text; their number, and their bytes of text."""
    lists = ", ".join(f"'{path}'" for path in data)
    reader = "read_parquet" if data[0].endswith(".parquet") else "read_json_auto"
    path = folder / "documents.parquet"
    sql = duckdb.connect()
    head = f"limit {limit}" if limit else ""
    query = f"select row_number() over ()::varchar as id, text from {reader}([{lists}]) where text is not null {head}"
    sql.execute(f"copy ({query}) to '{path}' (format parquet, row_group_size 4096)")
    count, size = sql.execute(f"select count(*), sum(strlen(text)) from '{path}'").fetchall()[0]
    return path, count, size


def ours(path: Path, words: str, folder: Path, name: str) -> tuple[float, dict[str, int]]:
    """CPU seconds of our chain, and what its manifest counted."""
    recipe = folder / f"{name}.toml"
    recipe.write_text(RECIPE.format(data=path, words=words))
    out = folder / name
    command = [sys.executable, "-m", "factory", "run", str(recipe), "--out", str(out), "--workers", "1"]
    seconds = cpu_seconds(command, REPOSITORY)
    return seconds, json.loads((out / "chain@1" / "manifest.json").read_text())["counts"]


def theirs(path: Path, folder: Path) -> tuple[float, int]:
    """CPU seconds of datatrove's chain, and the rows that it kept."""
    from factory.corpus.language import shipped

    script = folder / "datatrove_chain.py"
    script.write_text(DATATROVE)
    source = folder / "source"
    source.mkdir()
    (source / "documents.parquet").symlink_to(path)
    out = folder / "datatrove"
    seconds = cpu_seconds([sys.executable, str(script), str(source), str(out), shipped()], folder)
    kept = duckdb.connect().execute(f"select count(*) from '{out}/rows/*.parquet'").fetchall()[0][0]
    return seconds, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=sorted(map(str, WEBTEXT.glob("[0b]*.parquet"))))
    parser.add_argument("--documents", type=int, default=0, help="take only so many")
    parser.add_argument("--repeat", type=int, default=3, help="runs of ours, of which the median counts (3)")
    parser.add_argument("--alone", action="store_true", help="do not run datatrove")
    options = parser.parse_args()
    if not options.data:
        sys.exit(f"no data at {WEBTEXT}: give --data, Parquet or JSON lines with a column `text`")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path, count, size = documents(options.data, options.documents, folder)
        print(f"{count:,} documents, {size / 1e6:.1f} MB of text, one core, CPU seconds of all processes")
        print(f"{'chain':28} {'CPU s':>8} {'MB/CPU s':>9} {'kept':>8} {'ratio':>8}")
        speeds = {}
        ours(path, "unicode", folder, "warm")  # kernels are compiled once a machine, not once a run
        ours(path, "spacy", folder, "warm-spacy")
        for words in ("unicode", "spacy"):
            runs = [ours(path, words, folder, f"{words}{n}") for n in range(options.repeat)]
            seconds = statistics.median(s for s, _ in runs)
            speeds[f"factory, words = {words}"] = (seconds, runs[0][1]["rows_kept"])
        peer = None
        if not options.alone:
            peer = theirs(path, folder)
            speeds["datatrove"] = peer
        for name, (seconds, kept) in speeds.items():
            ratio = f"{peer[0] / seconds:8.1f}" if peer else ""
            print(f"{name:28} {seconds:8.2f} {size / 1e6 / seconds:9.2f} {kept:8,} {ratio}", flush=True)


if __name__ == "__main__":
    main()
