"""The problems of a dataset, asked greedily and by sampling, and each answer judged by a verifier of the factory."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash
from tokenizers import Tokenizer

from factory.engine.errors import FactoryError, nearest
from model.data import find
from model.evaluate.task import Question
from model.verifier import verifier

ROWS = 1024  # that are read at once


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An answer's score is 1 where it passes. The subtask is `greedy`, or the temperature as `T=1`."""

    data: str = ""
    """A dataset of the factory, or a Parquet file: the column `prompt` (texts, or lists of messages, which the
    checkpoint's chat template renders), what the verifier needs, and `id`, else the rows' numbers are the ids."""
    verifier: str = ""
    """The function: `factory.verify.mathematics:correct`, `mathematics:correct`, or `mypkg.mod:mine`."""
    columns: dict[str, str] = field(default_factory=dict)
    """What a parameter of the function is called in the data, where the names differ: `{answer = "gold"}`."""
    greedy: bool = True
    """Ask for the likeliest answer."""
    samples: int = 2
    """Answers drawn at `temperature`; 0 for none."""
    temperature: float = 1.0
    max_new_tokens: int = 256
    problems: int = 0
    """At most so many, the first ones; 0 takes all."""
    seed: int = 0

    def questions(self, tokenizer: Tokenizer) -> Iterator[Question]:
        if self.samples < 0 or self.temperature <= 0 or not (self.greedy or self.samples):
            raise FactoryError(
                f"verified.samples = {self.samples}, temperature = {self.temperature}, greedy = {self.greedy}: draw "
                "some answers at a temperature above 0, or be greedy, or both"
            )
        if self.problems < 0:
            raise FactoryError(f"verified.problems = {self.problems}: must not be negative; 0 takes all")
        self._verifier.open()
        asked = {"greedy": (0.0, 1)} if self.greedy else {}
        if self.samples:
            asked[f"T={self.temperature:g}"] = (self.temperature, self.samples)
        for id_, prompt, given in itertools.islice(self._rows(), self.problems or None):
            for subtask, (temperature, samples) in asked.items():
                yield Question(
                    task="verified",
                    subtask=subtask,
                    id=id_,
                    prompt=prompt,
                    answers=tuple(one if isinstance(one, str) else json.dumps(one) for one in given.values()),
                    tokens=self.max_new_tokens,
                    temperature=temperature,
                    samples=samples,
                    seed=self.seed,
                    details=given,
                )

    def score(self, answer: str, question: Question) -> float:
        (check,) = self._verifier([answer], {column: [value] for column, value in question.details.items()})
        if isinstance(check, FactoryError):
            raise FactoryError(f"{self.data}, row {question.id}: {check}")
        return float(check.passed)

    def inputs(self) -> dict[str, Any]:
        """What decides the questions and scores besides the options: the data's key, the verifier's code."""
        sources = [Path(path) for path in self._verifier.files]
        if self._verifier.module.startswith("factory.verify."):
            sources = sorted(Path(sys.modules["factory.verify"].__path__[0]).rglob("*.py"))
        return {
            "data": self._key(),
            "code": xxhash.xxh3_128_hexdigest(b"\0".join(path.read_bytes() for path in sources)),
            "libraries": {name: importlib.metadata.version(name) for name in self._verifier.libraries},
        }

    @cached_property
    def _verifier(self) -> Any:
        if ":" not in self.verifier:
            raise FactoryError(
                f"verified.verifier = {self.verifier!r}: give module:function, as factory.verify.mathematics:correct"
            )
        return verifier(self.verifier, self.columns)

    @cached_property
    def _source(self) -> Path:
        if not self.data:
            raise FactoryError("verified.data: give a dataset of the factory, or a Parquet file with prompts")
        return Path(self.data) if Path(self.data).is_file() else find(self.data)

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        path = self._source / "manifest.json"
        if not path.is_file():
            raise FactoryError(f"{path} is missing: {self._source} is not a dataset, or its run has not finished")
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found

    def _key(self) -> str:
        if self._source.is_file():
            return xxhash.xxh3_128_hexdigest(self._source.read_bytes())
        return str(self._manifest["key"])

    def _rows(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """The id and prompt of each row, and the columns that the verifier needs."""
        paths = [self._source]
        if self._source.is_dir():
            paths = [self._source / shard["path"] for shard in self._manifest["rows"]]
        needed = list(dict.fromkeys(self._verifier.needs.values()))
        number = 0
        seen: set[str] = set()
        for path in paths:
            try:
                file = pq.ParquetFile(path)
            except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
                raise FactoryError(f"{path}: not a Parquet file that can be read: {error}") from error
            there = file.schema_arrow.names
            for name in ("prompt", *needed):
                if name not in there:
                    raise FactoryError(f"{path}: no column {name!r}{nearest(name, there)}; it has {', '.join(there)}")
            wanted = [name for name in ("id", "prompt", *needed) if name in there]
            for batch in file.iter_batches(ROWS, columns=list(dict.fromkeys(wanted))):
                for row in batch.to_pylist():
                    if not row["prompt"]:
                        raise FactoryError(f"{path}, row {number}: its prompt is empty")
                    id_ = str(number if row.get("id") is None else row["id"])
                    if id_ in seen:
                        raise FactoryError(f"{path}, row {number}: another row has the id {id_!r} too: give each one")
                    seen.add(id_)
                    yield id_, row["prompt"], {name: row[name] for name in needed}
                    number += 1


TASK = Verified
