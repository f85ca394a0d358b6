"""The loss by position: how much of a long context helps, and where it begins to harm."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.errors import FactoryError
from factory.engine.files import aside
from model.data import find
from model.evaluate.text import read_texts
from model.generate import Generator, load_tokenizer
from model.sample import log_probabilities

COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("begin", pa.int64()),
        ("end", pa.int64()),
        ("tokens", pa.int64()),
        ("loss", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Sequences of one length, cut one after another from a token dataset or from text files. perplexity.parquet has a
    row for each bucket of positions: the mean loss in nats a token, and its 95% interval over the sequences (normal;
    null for one sequence)."""

    data: str = ""
    """A dataset folder made by a recipe with tokens.Pack, of the model's own tokenizer."""
    files: tuple[str, ...] = ()
    """Text files, instead of a dataset."""
    length: int = 0
    """Tokens in a sequence; 0 for the longest that the model is made for."""
    sequences: int = 16
    """At most so many."""
    buckets: int = 16
    """Equal parts of the positions."""

    def measure(self, generator: Generator, name: str, out: Path) -> str:
        longest = generator.model.config.max_position_embeddings
        length = self.length or longest
        if not 2 <= length <= longest:
            raise FactoryError(
                f"perplexity.length = {length}: must lie between 2 and the model's max_position_embeddings = {longest}"
            )
        losses = self.losses(generator, length)
        rows = []
        edges = np.unique(np.linspace(1, length, self.buckets + 1).astype(int)).tolist()
        for begin, end in itertools.pairwise(edges):
            means = losses[:, begin - 1 : end - 1].mean(axis=1)
            mean, half = means.mean(), None
            if len(means) > 1:
                half = 1.96 * means.std(ddof=1) / np.sqrt(len(means))
            rows.append(
                {
                    "model": name,
                    "begin": begin,
                    "end": end,
                    "tokens": means.size * (end - begin),
                    "loss": mean,
                    "low": None if half is None else mean - half,
                    "high": None if half is None else mean + half,
                }
            )
        with aside(str(out / "perplexity.parquet")) as scratch:
            pq.write_table(pa.Table.from_pylist(rows, COLUMNS), scratch)
        picture(rows, out / "perplexity.png", f"{name}, {len(losses)} sequences")
        lines = [f"{'position':>17} {'loss':>7} {'perplexity':>11}"]
        lines += [
            f"{row['begin']:>8,}-{row['end'] - 1:>8,} {row['loss']:>7.3f} {np.exp(row['loss']):>11.2f}" for row in rows
        ]
        return "\n".join(lines)

    def losses(self, generator: Generator, length: int) -> np.ndarray:
        """The loss of each token but the first of each sequence: [sequences, length - 1]."""
        if bool(self.data) == bool(self.files):
            raise FactoryError("perplexity: give either perplexity.data=DATASET or perplexity.files=[...]")
        ids = self._dataset(generator, length) if self.data else np.array(generator.encode(read_texts(self.files)))
        count = min(self.sequences, len(ids) // length)
        if not count:
            raise FactoryError(f"perplexity: {len(ids):,} tokens are less than one sequence of {length:,}")
        found = []
        for row in ids[: count * length].reshape(count, length).tolist():
            values, _ = log_probabilities(generator.model, [row], [1])
            found.append(-values[0].double().numpy())
        return np.stack(found)

    def _dataset(self, generator: Generator, length: int) -> np.ndarray:
        """The first tokens of the dataset, as many as are needed."""
        folder = find(self.data)
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if "input_ids" not in manifest.get("columns", {}):
            raise FactoryError(f"{folder} holds no tokens: give a dataset of a recipe that ends in tokens.Pack")
        theirs = load_tokenizer(folder / manifest.get("artifacts", {}).get("tokenizer", "tokenizer"))
        if theirs.get_vocab() != generator.tokenizer.get_vocab():
            raise FactoryError(f"{folder} was made with another tokenizer than the model's")
        parts: list[np.ndarray] = []
        wanted = self.sequences * length
        for shard in manifest["rows"]:
            file = pq.ParquetFile(folder / shard["path"])
            for batch in file.iter_batches(batch_size=64, columns=["input_ids"]):
                parts.append(batch.column(0).flatten().to_numpy())
                if (wanted := wanted - len(parts[-1])) <= 0:
                    return np.concatenate(parts)
        return np.concatenate(parts)


def picture(rows: list[dict], path: Path, title: str) -> None:
    """The loss by position as a PNG, the interval as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    at = [(row["begin"] + row["end"]) / 2 for row in rows]
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    axes.plot(at, [row["loss"] for row in rows], "o-", color="#1f5fa8", markersize=3)
    if rows[0]["low"] is not None:
        axes.fill_between(at, [row["low"] for row in rows], [row["high"] for row in rows], color="#1f5fa8", alpha=0.2)
    axes.set(xlabel="position, tokens", ylabel="loss, nats a token", title=title)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    with aside(str(path)) as scratch:
        figure.savefig(scratch, format="png")
    plt.close(figure)


TASK = Perplexity
