"""Token datasets: what a recipe that ends in `tokens.Pack` made, opened and checked.

A shard is read as one run of tokens, whatever the length of its rows: the packed documents follow one another, and
where a row ends is no place in the text. So a dataset serves sequences of any length.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from factory.engine.errors import FactoryError
from model.config import DataConfig

END = "<|endoftext|>"
IGNORE = -1  # in a batch: no token here (only the last sequence of a span may be short)


@dataclass(frozen=True, eq=False)
class Shard:
    """A Parquet file of token lists; row group i holds the tokens edges[i] to edges[i + 1] of it."""

    path: str
    edges: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.edges[-1])

    def read(self, begin: int, end: int) -> np.ndarray:
        """The tokens begin .. end: int32."""
        first, last = (int(np.searchsorted(self.edges, at, "right")) - 1 for at in (begin, end - 1))
        try:
            table = pq.ParquetFile(self.path).read_row_groups(range(first, last + 1), columns=["input_ids"])
        except (OSError, pa.ArrowInvalid) as error:
            reason = str(error).splitlines()[0]
            raise FactoryError(
                f"{self.path}: row groups {first} to {last} cannot be read ({reason}): run the recipe again"
            ) from error
        parts = [chunk.flatten().to_numpy() for chunk in table.column(0).chunks]
        at = int(self.edges[first])
        return np.concatenate(parts).astype(np.int32, copy=False)[begin - at : end - at]

    def row_of(self, token: int) -> str:
        """Where a token lies, for messages."""
        group = int(np.searchsorted(self.edges, token, "right")) - 1
        lists = pq.ParquetFile(self.path).read_row_group(group, columns=["input_ids"]).column(0)
        lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in lists.chunks])
        row = int(np.searchsorted(np.cumsum(lengths), token - self.edges[group], "right"))
        return f"{Path(self.path).name} group {group} row {row}"


@dataclass(frozen=True, eq=False)
class Span:
    """The tokens begin .. end of a shard."""

    shard: Shard
    begin: int
    end: int

    @property
    def tokens(self) -> int:
        return self.end - self.begin


class TokenDataset:
    """A dataset made by a recipe with `tokens.Pack`.

    `name`, `version`, `key` are those of its manifest; `tokenizer` is the folder of its tokenizer, `tokenizer_hash`
    tells tokenizers apart, `vocabulary` is the number of ids, `end` the id that ends each document and `stop` that at
    which generation ends; `row_length` is that of its rows; `training` and `evaluation` are the tokens to learn from
    and those held out.
    """

    def __init__(self, folder: str | Path, evaluation_share: float = 0.02, seed: int = 0) -> None:
        self.folder = find(folder)
        manifest = read_manifest(self.folder)
        self.name, self.version, self.key = (str(manifest.get(key, "")) for key in ("name", "version", "key"))
        columns = manifest.get("columns", {})
        if "input_ids" not in columns:
            holds = "text" if "text" in columns else ", ".join(columns) or "no columns"
            raise FactoryError(
                f"{self.folder} holds {holds}, not tokens: "
                "run a recipe that ends in tokens.Train and tokens.Pack (such as recipes/quickstart_tokens.toml) first"
            )
        self.tokenizer = self.folder / manifest.get("artifacts", {}).get("tokenizer", "tokenizer")
        self.tokenizer_hash, ids = read_tokenizer(self.tokenizer)
        self.vocabulary = max(ids.values()) + 1
        self.end = ids.get(_option(manifest, "separator") or END)
        self.stop = ids.get(_stop(self.tokenizer), self.end)
        rows = [shard for shard in manifest["rows"] if shard["rows"]]
        if not rows:
            raise FactoryError(f"{self.folder} has no rows: nothing to train on")
        with ThreadPoolExecutor(16) as pool:  # footers are small and many, and often lie far away
            shards = list(pool.map(lambda shard: self._open(shard["path"], shard["rows"]), rows))
        self.row_length = _option(manifest, "sequence_length") or self._longest(shards[0])
        self.training, self.evaluation = divide(shards, self.row_length, evaluation_share, seed)
        if not self.training:
            few = sum(shard["rows"] for shard in rows)
            raise FactoryError(f"{self.folder} has too few sequences ({few}) to hold some out: set evaluation_share=0")

    def _open(self, name: str, rows: int) -> Shard:
        path = self.folder / name
        try:
            footer = pq.read_metadata(path)
        except FileNotFoundError:
            raise FactoryError(f"{path}: named in the manifest but missing: run the recipe again") from None
        except pa.ArrowInvalid as error:
            raise FactoryError(f"{path}: not a Parquet file: {error}") from error
        if footer.num_rows != rows:
            raise FactoryError(f"{path}: {footer.num_rows} rows, but the manifest says {rows}: run the recipe again")
        paths = (footer.schema.column(at).path for at in range(footer.num_columns))
        column = next(at for at, one in enumerate(paths) if one.partition(".")[0] == "input_ids")
        counts = [footer.row_group(group).column(column).num_values for group in range(footer.num_row_groups)]
        return Shard(str(path), np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    def _longest(self, shard: Shard) -> int:
        group = int(np.searchsorted(shard.edges, 0, "right")) - 1  # the first with tokens
        lists = pq.ParquetFile(shard.path).read_row_group(group, columns=["input_ids"]).column(0)
        return max(int(np.diff(chunk.offsets.to_numpy()).max()) for chunk in lists.chunks)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a dataset's folder says of itself. FactoryError where it is none."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FactoryError(
            f"{folder} has no manifest.json: it is not a dataset, or its run has not finished (run it again)"
        ) from None
    except json.JSONDecodeError as error:
        raise FactoryError(f"{path}: not valid JSON: {error}") from error
    return manifest


def read_tokenizer(folder: Path) -> tuple[str, dict[str, int]]:
    """A hash that tells tokenizers apart, and the id of each token."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FactoryError(f"{path} is missing: a dataset to train on needs the tokenizer that made it")
    parts = json.loads(path.read_bytes())
    ids = parts["model"]["vocab"] | {token["content"]: token["id"] for token in parts["added_tokens"]}
    kept = [parts.get(key) for key in ("normalizer", "pre_tokenizer", "model")]
    return xxhash.xxh3_128_hexdigest(json.dumps([kept, sorted(ids.items())], sort_keys=True)), ids


def _stop(tokenizer: Path) -> str:
    """The token at which the tokenizer's own description says that generation ends."""
    path = tokenizer / "tokenizer_config.json"
    told = json.loads(path.read_text("utf-8")).get("eos_token") if path.is_file() else None
    return str(told["content"] if isinstance(told, dict) else told)


def open_datasets(config: DataConfig) -> dict[str, TokenDataset]:
    """The datasets of a training by name; FactoryError where they were not made by one tokenizer."""
    folders = config.sets or {"data": config.path}
    found = {
        name: TokenDataset(folder, config.evaluation_share, config.seed) for name, folder in sorted(folders.items())
    }
    first = next(iter(found.values()))
    for data in found.values():
        if data.tokenizer_hash != first.tokenizer_hash:
            raise FactoryError(
                f"{data.folder} was made with another tokenizer than {first.folder}: pack both with one "
                "(tokens.Pack: tokenizer = FOLDER)"
            )
    return found


def _option(manifest: dict, name: str) -> Any:
    """An option of the last step of the dataset's recipe that has it."""
    steps = manifest.get("recipe", {}).get("steps", [])
    return next((step["options"][name] for step in reversed(steps) if step["options"].get(name)), None)


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


def divide(shards: Sequence[Shard], row: int, share: float, seed: int) -> tuple[list[Span], list[Span]]:
    """Tokens to learn from and tokens held out: whole shards, or where the share is less than one the last rows of
    each (one document a shard may then lie on both sides of the cut)."""
    whole = [Span(shard, 0, shard.tokens) for shard in shards]
    count = round(share * len(shards))
    if share == 0 or count >= 1:
        out = set(np.random.default_rng([seed, 1]).permutation(len(shards))[:count].tolist())
        return (
            [span for number, span in enumerate(whole) if number not in out],
            [span for number, span in enumerate(whole) if number in out],
        )
    training: list[Span] = []
    evaluation: list[Span] = []
    for span in whole:
        rows = -(-span.tokens // row)
        cut = min(span.tokens, (rows - (max(1, round(share * rows)) if rows > 1 else 0)) * row)
        training.append(Span(span.shard, 0, cut))
        if cut < span.tokens:
            evaluation.append(Span(span.shard, cut, span.tokens))
    return training, evaluation


def allot(spans: Sequence[Span], demands: Sequence[int], seed: int) -> list[list[Span]]:
    """The tokens for each stage that asks for so many: no token twice where there are enough, else all for each.

    Shards are taken in an order that depends on the seed, and the one on an edge is cut in two.
    """
    total, wanted = sum(span.tokens for span in spans), sum(demands)
    if not wanted:  # a set that no stage reads
        return [[] for _ in demands]
    if len(demands) == 1 or wanted > total:
        return [list(spans) for _ in demands]
    order = np.random.default_rng([seed, 5]).permutation(len(spans)).tolist()
    edges = [total * sum(demands[:stage]) // wanted for stage in range(len(demands) + 1)]
    found: list[list[Span]] = [[] for _ in demands]
    at = 0
    for span in (spans[number] for number in order):
        for stage, part in enumerate(found):
            begin, end = max(at, edges[stage]), min(at + span.tokens, edges[stage + 1])
            if begin < end:
                part.append(Span(span.shard, span.begin + begin - at, span.begin + end - at))
        at += span.tokens
    return found


def read(spans: Iterable[Span], length: int) -> np.ndarray:
    """The spans' tokens in sequences: int32 [sequences, length]; each span's last one is filled up with IGNORE."""
    parts = []
    for span in spans:
        tokens = span.shard.read(span.begin, span.end)
        parts.append(np.pad(tokens, (0, -len(tokens) % length), constant_values=IGNORE).reshape(-1, length))
    return np.concatenate(parts) if parts else np.empty((0, length), np.int32)
