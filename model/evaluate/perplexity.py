"""The loss by position: how much of a long context helps, and where it begins to harm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.errors import FactoryError
from factory.engine.files import aside
from model.data import TokenDataset
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
    evaluation_share: float = 0.0
    """The share of the dataset that the training held out (its data.evaluation_share): only this is read; 0 for all."""
    seed: int = 0
    """The training's data.seed: it decides what was held out."""
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
        if self.sequences < 1 or self.buckets < 1:
            raise FactoryError(
                f"perplexity.sequences = {self.sequences}, buckets = {self.buckets}: each must be at least 1"
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
        cut = self._dataset(generator, length) if self.data else self._files(generator, length)
        found = []
        for ids in itertools.islice(cut, self.sequences):
            values, _ = log_probabilities(generator.model, [ids], [1])
            found.append(-values[0].double().numpy())
        if not found:
            raise FactoryError(f"perplexity: {self.data or ', '.join(self.files)} has no {length:,} tokens in a row")
        return np.stack(found)

    def _files(self, generator: Generator, length: int) -> Iterator[list[int]]:
        ids = generator.encode(read_texts(self.files))
        for at in range(0, len(ids) - length + 1, length):
            yield ids[at : at + length]

    def _dataset(self, generator: Generator, length: int) -> Iterator[list[int]]:
        data = TokenDataset(self.data, self.evaluation_share, self.seed)
        if load_tokenizer(data.tokenizer).get_vocab() != generator.tokenizer.get_vocab():
            raise FactoryError(f"{data.folder} was made with another tokenizer than the model's")
        for span in data.evaluation if self.evaluation_share else data.training:
            for at in range(span.begin, span.end - length + 1, length):
                yield span.shard.read(at, at + length).tolist()


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
