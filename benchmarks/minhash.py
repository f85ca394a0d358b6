"""Near-duplicate removal: recall, precision and speed on a corpus with planted pairs.

    python benchmarks/minhash.py [--data FOLDER] [--verify 0.525] [--seeds 1]

FOLDER holds Parquet parts 00000, 00001, ... with `id` and `text`, and truth.parquet with id, cluster, is_orig. A
planted pair is an original and one of its copies; it is found when its later row goes. Precision is the share of the
removed rows that have an exact Jaccard similarity of 0.5 or more with the row kept for them. Likeness is of word
5-grams (\\w+ in lower case). datasketch and rensa run beside it where they are installed: as usual with them, a row
goes when its bands meet an earlier row that was kept, unverified.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from factory.corpus.dedup import MinHash
from factory.engine.step import Memo
from factory.kernels.minhash import signatures
from factory.kernels.words import words
from tests.corpus.exchange import InMemory

DATA = Path(os.environ.get("FACTORY_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
BANDS = ((0.8, 1.01), (0.7, 0.8), (0.6, 0.7), (0.5, 0.6))
BANDED = {"num_perm": 112}


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def shingles(text: str) -> set[str]:
    found = tokens(text)
    return {" ".join(found[k : k + 5]) for k in range(max(1, len(found) - 4))}


class Corpus:
    """The rows in order, the planted pairs with their exact likeness, and the exact likeness of any two rows."""

    def __init__(self, folder: Path) -> None:
        schema = pa.schema([("id", pa.string()), ("text", pa.large_string())])
        parts = [pq.read_table(path, columns=["id", "text"]) for path in sorted(folder.glob("0*.parquet"))]
        self.shards = [part.cast(schema).combine_chunks().to_batches(max_chunksize=2000) for part in parts]
        self.texts = [text for shard in self.shards for batch in shard for text in batch["text"].to_pylist()]
        self.starts = np.cumsum([0] + [sum(batch.num_rows for batch in shard) for shard in self.shards])
        self.size = sum(len(text.encode()) for text in self.texts)
        ids = [id_ for shard in self.shards for batch in shard for id_ in batch["id"].to_pylist()]
        place = {id_: row for row, id_ in enumerate(ids)}
        truth = pq.read_table(folder / "truth.parquet").to_pylist()
        originals = {r["cluster"]: place[r["id"]] for r in truth if r["is_orig"] and r["cluster"] >= 0}
        copies = [(originals[r["cluster"]], place[r["id"]]) for r in truth if not r["is_orig"]]
        self._shingles = cache(lambda row: shingles(self.texts[row]))
        self.planted = [(min(pair), max(pair), self.likeness(*pair)) for pair in copies]

    def likeness(self, a: int, b: int) -> float:
        left, right = self._shingles(a), self._shingles(b)
        return len(left & right) / len(left | right)

    def row(self, doc: int) -> int:
        return int(self.starts[doc >> 32]) + (doc & 0xFFFFFFFF)

    def quality(self, gone: dict[int, int]) -> list[str]:
        """Recall by band of likeness, precision, rows removed; `gone` is each removed row and the row kept for it."""
        out = []
        for low, high in BANDS:
            inside = [later in gone for _, later, likeness in self.planted if low <= likeness < high]
            out.append(f"{np.mean(inside) if inside else np.nan:.3f}")
        right = [self.likeness(row, kept) >= 0.5 for row, kept in gone.items()]
        return [*out, f"{np.mean(right):.3f}", str(len(gone))]


def timed(call: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    made = call()
    return time.process_time() - start, made


def factory(corpus: Corpus, step: MinHash) -> tuple[float, dict[int, int]]:
    shards = [[(batch, None) for batch in shard] for shard in corpus.shards]
    taken, found = timed(lambda: InMemory(step, shards).dropped())
    return taken, {corpus.row(int(r["key"])): corpus.row(int(r["kept"])) for r in found}  # type: ignore[attr-defined]


def datasketch(corpus: Corpus) -> tuple[float, dict[int, int]]:
    import datasketch

    def work() -> dict[int, int]:
        index = datasketch.MinHashLSH(params=(14, 8), **BANDED)
        gone = {}
        for row, text in enumerate(corpus.texts):
            made = datasketch.MinHash(**BANDED)
            made.update_batch([shingle.encode() for shingle in shingles(text)])
            met = index.query(made)
            if met:
                gone[row] = min(met)
            else:
                index.insert(row, made)
        return gone

    return timed(work)  # type: ignore[return-value]


def rensa(corpus: Corpus) -> tuple[float, dict[int, int]]:
    import rensa

    def work() -> dict[int, int]:
        index = rensa.RMinHashLSH(threshold=0.0, num_bands=14, **BANDED)
        gone = {}
        for row, text in enumerate(corpus.texts):
            made = rensa.RMinHash(seed=42, **BANDED)
            made.update(list(shingles(text)))
            met = index.query(made)
            if met:
                gone[row] = min(met)
            else:
                index.insert(row, made)
        return gone

    return timed(work)  # type: ignore[return-value]


def kernels(corpus: Corpus, step: MinHash) -> Iterator[tuple[str, float]]:
    """MB a CPU-second of the parts, medians of 5."""
    array = pa.concat_arrays([batch["text"] for shard in corpus.shards for batch in shard])
    options = (step.words, step.ngram, step.bands * step.rows, step.seed)
    taken: list[tuple[float, float]] = []
    for _ in range(6):
        memo = Memo(len(array))
        first = timed(lambda memo=memo: memo(words, array, step.words))[0]  # type: ignore[misc]
        taken.append((first, timed(lambda memo=memo: memo(signatures, array, *options))[0]))  # type: ignore[misc]
    cut, hashed = (statistics.median(column) for column in zip(*taken[1:], strict=True))
    yield "words", corpus.size / 1e6 / cut
    yield "signatures, words given", corpus.size / 1e6 / hashed
    yield "words and signatures", corpus.size / 1e6 / (cut + hashed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "webtext")
    parser.add_argument("--verify", type=float, nargs="+", default=[0.0, MinHash().verify])
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to try")
    options = parser.parse_args()
    corpus = Corpus(options.data)
    print(f"{len(corpus.texts)} documents, {corpus.size / 1e6:.1f} MB, {len(corpus.planted)} planted pairs of", end=" ")
    print(", ".join(f"{sum(low <= p[2] < high for p in corpus.planted)} ({low}-{min(high, 1)})" for low, high in BANDS))

    print(f"\n{'':32}{'MB/s':>8}" + "".join(f"{f'J {low}+':>8}" for low, _ in BANDS) + f"{'precision':>11}{'gone':>7}")
    factory(corpus, MinHash())  # compile, outside the measurement
    runs: list[tuple[str, Callable[[], tuple[float, dict[int, int]]]]] = []
    for verify in options.verify:
        for seed in range(1, options.seeds + 1):
            step = MinHash(verify=verify, seed=seed)
            runs.append((f"factory, verify {verify}, seed {seed}", lambda step=step: factory(corpus, step)))  # type: ignore[misc]
    for tool in (datasketch, rensa):
        runs.append((tool.__name__, lambda tool=tool: tool(corpus)))  # type: ignore[misc]
    for name, call in runs:
        try:
            taken, gone = call()
        except ImportError:
            print(f"{name:32}   (not installed)")
            continue
        *recall, precision, count = corpus.quality(gone)
        rate = corpus.size / 1e6 / taken
        print(f"{name:32}{rate:8.1f}" + "".join(f"{x:>8}" for x in recall) + f"{precision:>11}{count:>7}")

    print(f"\n{'':32}{'MB/s':>8}")
    for name, rate in kernels(corpus, MinHash()):
        print(f"{name:32}{rate:8.0f}")


if __name__ == "__main__":
    main()
