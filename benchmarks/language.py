"""Language identification: `factory.kernels.fasttext` beside the fastText library, on the same documents.

    python benchmarks/language.py [--data FILE.parquet] [--rows N] [--model FILE]

Prints MB of UTF-8 text per CPU-second (median of the repeats) and where the two differ. The library is called as
datatrove's filter calls it, once with all labels (its default) and once with the best one only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from factory.corpus.language import shipped
from factory.engine.step import Memo
from factory.kernels.fasttext import predict
from factory.kernels.fasttext_model import load

DATA = Path(os.environ.get("FACTORY_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def rate(size: int, call: Callable[[], object], repeats: int) -> float:
    """MB a CPU-second: the median of `repeats` runs."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return size / 1e6 / statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", default=str(DATA / "webtext/00000.parquet"), help="a Parquet file with a column `text`"
    )
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="", help="a fastText classifier (default: lid.176.ftz)")
    options = parser.parse_args()
    path = options.model or shipped()
    table = pq.read_table(options.data, columns=["text"]).slice(0, options.rows)
    array = table["text"].cast(pa.large_string()).combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    texts = array.to_pylist()
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts)} documents, {size / 1e6:.1f} MB of {options.data}, model {Path(path).name}")

    predict(Memo(1), array.slice(0, 1), load(path))  # compile, outside the measurement
    model = load.__wrapped__(path)
    cold = rate(size, lambda: predict(Memo(len(array)), array, model), 1)
    warm = rate(size, lambda: predict(Memo(len(array)), array, model), options.repeats)
    labels, scores = predict(Memo(len(array)), array, model)
    rows = [("factory, first sight of the text", cold), ("factory, word cache warm", warm)]

    try:
        import fasttext
    except ImportError:
        print("the fastText library is not installed (fasttext-numpy2-wheel): no comparison")
    else:
        library = fasttext.load_model(path)
        lines = [text.replace("\n", " ") for text in texts]
        few = lines[: max(1, len(lines) // 5)]
        few_size = sum(len(line.encode()) for line in few)
        rows.append(("fastText library, best label", rate(few_size, lambda: [library.predict(x) for x in few], 1)))
        rows.append(
            ("fastText library, all labels", rate(few_size, lambda: [library.predict(x, k=-1) for x in few], 1))
        )
        other, most = 0, 0.0
        for line, label, score in zip(lines, labels, scores, strict=True):
            names, probabilities = library.predict(line)
            if names and names[0] == f"__label__{model.labels[label]}":
                most = max(most, abs(probabilities[0] - float(score)))
            else:
                other += 1
        print(f"another label on {other} of {len(lines)} documents; largest difference of probability {most:.1e}")
    print(f"\n{'':36}{'MB per CPU-second':>18}")
    for name, value in rows:
        print(f"{name:36}{value:18.1f}")


if __name__ == "__main__":
    main()
