"""Questions that the model in training is asked now and then: how many it answers right, greedily.

A skill of several steps comes abruptly, at a step that depends on the seed, and the loss hardly shows it. So a stage
may last until the answers are right (`until`), however many steps that takes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from factory.engine.errors import FactoryError, nearest
from model.config import ProbeConfig
from model.data import find, read_manifest
from model.generate import Generator, load_tokenizer
from model.sample import Sampling
from model.transformer import Transformer


class Probe:
    """The first `count` rows of a dataset with `prompt` (text) and what the reward needs.

    `key` is the dataset's; `positions` how many tokens the model is made for. Raises FactoryError where the dataset or
    the reward does not serve.
    """

    def __init__(self, config: ProbeConfig, tokenizer: Path, positions: int) -> None:
        # By its name: what a reward is made of is the factory's affair, and a model is trained without it as well.
        self.verifier = importlib.import_module("factory.verify.verifier").Verifier(config.reward, config.columns)
        self.verifier.open()
        folder = find(config.data)
        manifest = read_manifest(folder)
        self.key = str(manifest.get("key", ""))
        rows = _rows(folder, manifest, ["prompt", *self.verifier.needs.values()], config.count)
        self.columns = {name: [row[name] for row in rows] for name in rows[0]}
        self.tokenizer = load_tokenizer(tokenizer)
        self.prompts: list[list[int]] = []
        for prompt in self.columns["prompt"]:
            if not isinstance(prompt, str):
                raise FactoryError(f"{folder}: a prompt is no text: a probe asks for the continuation of texts")
            self.prompts.append(list(self.tokenizer.encode(prompt).ids))
        self.sampling = Sampling(tokens=config.max_new_tokens, temperature=0)
        longest = max(map(len, self.prompts))
        if longest + config.max_new_tokens > positions:
            raise FactoryError(
                f"{folder}: prompts of up to {longest:,} tokens and probe.max_new_tokens = {config.max_new_tokens:,}, "
                f"but model.max_position_embeddings is {positions:,}: raise it, or ask for less"
            )

    def __call__(self, model: Transformer) -> float:
        """The share of the questions whose greedy answer is right."""
        found = Generator(model, self.tokenizer).complete(self.prompts, self.sampling)
        checks = self.verifier([one.text for (one,) in found], self.columns)
        for check in checks:
            if isinstance(check, FactoryError):
                raise check
        return sum(check.passed for check in checks) / len(checks)


def _rows(folder: Path, manifest: Mapping[str, Any], columns: list[str], count: int) -> list[dict[str, Any]]:
    there = manifest.get("columns", {})
    for name in columns:
        if name not in there:
            raise FactoryError(f"{folder}: a probe needs the column {name!r}{nearest(name, there)}")
    shards = (folder / shard["path"] for shard in manifest["rows"] if shard["rows"])
    wanted = list(dict.fromkeys(columns))
    rows = list(islice((row for path in shards for row in pq.read_table(path, columns=wanted).to_pylist()), count))
    if not rows:
        raise FactoryError(f"{folder} has no rows: nothing to ask")
    return rows
