"""Streams the token shards of a dataset in an order that depends on the seed alone.

Every position of the endless stream of sequences has its place (epoch, shard, row) worked out from the seed, so that
a training that goes on at step n reads exactly what it would have read.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.errors import FactoryError
from model.config import DataConfig

IGNORE = -1  # in a batch: no token here (only the last sequence of a shard may be short)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one row group: the unit that is read at once."""

    path: str
    group: int
    start: int
    rows: int


class TokenDataset:
    """A dataset made by a recipe with `tokens.Pack`.

    `name`, `version`, `key` are those of its manifest; `tokenizer` is the folder of its tokenizer, `vocabulary` its
    number of ids and `end` the id that ends a document; `sequence_length` is that of its rows; `training` and
    `evaluation` are the rows to learn from and those held out.
    """

    def __init__(self, folder: str | Path, evaluation_share: float = 0.02, seed: int = 0) -> None:
        self.folder = find(folder)
        manifest = self._manifest()
        self.name, self.version, self.key = (str(manifest.get(key, "")) for key in ("name", "version", "key"))
        columns = manifest.get("columns", {})
        if "input_ids" not in columns:
            holds = "text" if "text" in columns else ", ".join(columns) or "no columns"
            raise FactoryError(
                f"{self.folder} holds {holds}, not tokens: "
                "run a recipe that ends in tokens.Train and tokens.Pack (such as recipes/quickstart_tokens.toml) first"
            )
        self.tokenizer = self.folder / manifest.get("artifacts", {}).get("tokenizer", "tokenizer")
        self.vocabulary, self.end = self._vocabulary()
        shards = [shard for shard in manifest["rows"] if shard["rows"]]
        if not shards:
            raise FactoryError(f"{self.folder} has no rows: nothing to train on")
        files = [self._open(shard["path"], shard["rows"]) for shard in shards]
        self.sequence_length = _packed(manifest) or max(self._longest(shard["path"]) for shard in shards)
        self.training, self.evaluation = _divide(files, evaluation_share, seed)
        if not self.training:
            rows = sum(shard["rows"] for shard in shards)
            raise FactoryError(f"{self.folder} has too few sequences ({rows}) to hold some out: set evaluation_share=0")

    def _manifest(self) -> dict:
        path = self.folder / "manifest.json"
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise FactoryError(
                f"{self.folder} has no manifest.json: it is not a dataset, or its run has not finished (run it again)"
            ) from None
        except json.JSONDecodeError as error:
            raise FactoryError(f"{path}: not valid JSON: {error}") from error

    def _open(self, name: str, rows: int) -> list[Block]:
        path = self.folder / name
        try:
            footer = pq.read_metadata(path)
        except FileNotFoundError:
            raise FactoryError(f"{path}: named in the manifest but missing: run the recipe again") from None
        except pa.ArrowInvalid as error:
            raise FactoryError(f"{path}: not a Parquet file: {error}") from error
        if footer.num_rows != rows:
            raise FactoryError(f"{path}: {footer.num_rows} rows, but the manifest says {rows}: run the recipe again")
        groups = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        return [Block(str(path), group, 0, count) for group, count in enumerate(groups) if count]

    def _longest(self, name: str) -> int:
        lists = pq.ParquetFile(self.folder / name).read_row_group(0, columns=["input_ids"]).column(0)
        return max(int(np.diff(chunk.offsets.to_numpy()).max()) for chunk in lists.chunks)

    def _vocabulary(self) -> tuple[int, int | None]:
        """The number of ids of its tokenizer, and the id of the separator."""
        path = self.tokenizer / "tokenizer.json"
        if not path.is_file():
            raise FactoryError(f"{path} is missing: a dataset to train on needs the tokenizer that made it")
        parts = json.loads(path.read_text("utf-8"))
        ids = parts["model"]["vocab"] | {token["content"]: token["id"] for token in parts["added_tokens"]}
        return max(ids.values()) + 1, ids.get("<|endoftext|>")


def _packed(manifest: dict) -> int | None:
    """The sequence length that the dataset's recipe asked for, where it says so."""
    lengths = [step["options"].get("sequence_length") for step in manifest.get("recipe", {}).get("steps", [])]
    return next((length for length in reversed(lengths) if length), None)


def find(folder: str | Path) -> Path:
    """The dataset's folder: as given, else below FACTORY_RUNS or runs/. FactoryError names the nearest."""
    if not str(folder):
        raise FactoryError("no data given: add data=FOLDER (a dataset made with tokens.Pack)")
    root = Path(os.environ.get("FACTORY_RUNS", "runs"))
    for place in (Path(folder), root / folder):
        if place.is_dir():
            return place
    around = [root, Path(folder).parent]
    names = sorted({str(path) for place in around if place.is_dir() for path in place.iterdir() if path.is_dir()})
    close = difflib.get_close_matches(str(folder), names, n=1, cutoff=0.5)
    raise FactoryError(f"{folder}: no such dataset" + (f" (did you mean {close[0]}?)" if close else ""))


def _divide(shards: list[list[Block]], share: float, seed: int) -> tuple[list[Block], list[Block]]:
    """Blocks to learn from and blocks held out: whole shards, or where the share is less than one the end of each
    (one document a shard may then lie on both sides of the cut)."""
    if share == 0:
        return [block for shard in shards for block in shard], []
    count = round(share * len(shards))
    if count >= 1:
        out = set(np.random.default_rng([seed, 1]).permutation(len(shards))[:count].tolist())
        return (
            [block for number, shard in enumerate(shards) if number not in out for block in shard],
            [block for number, shard in enumerate(shards) if number in out for block in shard],
        )
    training: list[Block] = []
    evaluation: list[Block] = []
    for shard in shards:
        total = sum(block.rows for block in shard)
        left = total - (max(1, round(share * total)) if total > 1 else 0)
        for block in shard:
            keep = min(left, block.rows)
            left -= keep
            if keep:
                training.append(Block(block.path, block.group, block.start, keep))
            if keep < block.rows:
                evaluation.append(Block(block.path, block.group, block.start + keep, block.rows - keep))
    return training, evaluation


class Stream:
    """The endless stream of training sequences, shuffled anew in each epoch.

    Blocks are taken in a random order, as many at a time as hold `shuffle_tokens`, and the rows of these are shuffled
    together: a small dataset is shuffled as a whole, and a large one needs no more memory.
    """

    def __init__(self, blocks: Sequence[Block], length: int, config: DataConfig) -> None:
        self.blocks, self.length, self.config = list(blocks), length, config
        self.rows = sum(block.rows for block in self.blocks)
        self._window: tuple[int, int, int, np.ndarray, np.ndarray] | None = None
        self._plans: tuple[int, list[list[int]]] | None = None

    def batch(self, position: int, count: int) -> np.ndarray:
        """Sequences position .. position + count of the stream: int32 [count, length], IGNORE after a short one."""
        parts = []
        while count:
            start, order, tokens = self._load(position)
            rows = order[position - start : position - start + count]
            parts.append(tokens[rows])
            position, count = position + len(rows), count - len(rows)
        return np.concatenate(parts)

    def places(self, position: int, count: int) -> list[str]:
        """Shard and row group row of these sequences, for messages."""
        found = []
        for at in range(position, position + count):
            start, order, _ = self._load(at)
            row = int(order[at - start])
            for number in self._plan(at // self.rows)[self._window[1]]:  # type: ignore[index]
                block = self.blocks[number]
                if row < block.rows:
                    found.append(f"{Path(block.path).name} group {block.group} row {block.start + row}")
                    break
                row -= block.rows
        return found

    def _plan(self, epoch: int) -> list[list[int]]:
        """The blocks of each window of an epoch."""
        if self._plans is None or self._plans[0] != epoch:
            windows: list[list[int]] = []
            size = 0
            for number in np.random.default_rng([self.config.seed, 2, epoch]).permutation(len(self.blocks)).tolist():
                tokens = self.blocks[number].rows * self.length
                if not windows or size + tokens > self.config.shuffle_tokens:
                    windows.append([])
                    size = 0
                windows[-1].append(number)
                size += tokens
            self._plans = (epoch, windows)
        return self._plans[1]

    def _load(self, position: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(first position, order, tokens) of the window in which a position lies."""
        epoch, left = divmod(position, self.rows)
        start = epoch * self.rows
        windows = self._plan(epoch)
        window = 0
        while left >= (rows := sum(self.blocks[number].rows for number in windows[window])):
            window, left, start = window + 1, left - rows, start + rows
        if self._window is None or self._window[:2] != (epoch, window):
            tokens = read([self.blocks[number] for number in windows[window]], self.length)
            order = np.random.default_rng([self.config.seed, 3, epoch, window]).permutation(rows)
            self._window = (epoch, window, start, order, tokens)
        return self._window[2:]


def read(blocks: Sequence[Block], length: int) -> np.ndarray:
    """The rows of the blocks: int32 [rows, length], IGNORE after a short one."""
    out = np.full((sum(block.rows for block in blocks), length), IGNORE, np.int32)
    at = 0
    for block in blocks:
        table = pq.ParquetFile(block.path).read_row_group(block.group, columns=["input_ids"])
        lists = table.column(0).slice(block.start, block.rows).combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
        counts = np.diff(lists.offsets.to_numpy())
        if counts.max(initial=0) > length:
            raise FactoryError(
                f"{block.path}: a sequence of {counts.max()} tokens among sequences of {length}: "
                "make the dataset again with one tokens.Pack"
            )
        out[at : at + block.rows][np.arange(length) < counts[:, None]] = lists.flatten().to_numpy()
        at += block.rows
    return out
