"""Where a checkpoint and its data come from, and whether they are for each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from factory.engine.errors import FactoryError
from factory.engine.files import digest
from model.checkpoint import file_hashes
from model.data import read_tokenizer

NAMES = {"tokenizer": "tokenizer", "template": "chat template"}


def check_made_for(folder: Path, manifest: Mapping[str, Any], checkpoint: Path) -> None:
    """FactoryError where the dataset in `folder` was rendered, sampled or cut with another tokenizer or chat template
    than the checkpoint's: what it says of itself (`made_for`), or the tokenizer that it holds."""
    made = dict(manifest.get("made_for") or {})
    inside = (manifest.get("artifacts") or {}).get("tokenizer")
    if inside:
        made |= hashes(folder / inside)
    own = hashes(checkpoint) if made else {}
    for name, what in NAMES.items():
        if made.get(name, own.get(name)) != own.get(name):
            raise FactoryError(
                f"{folder} was made for another {what} than that of {checkpoint}: make it anew with this one"
            )


def hashes(folder: Path) -> dict[str, str]:
    """What tells apart the tokenizer and the chat template of a checkpoint."""
    return {"tokenizer": read_tokenizer(folder)[0], "template": xxhash.xxh3_128_hexdigest(template_of(folder))}


def template_of(folder: Path) -> str:
    """The chat template of a tokenizer folder; empty where it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    path = folder / "tokenizer_config.json"
    return str(json.loads(path.read_text("utf-8")).get("chat_template") or "") if path.is_file() else ""


def lineage(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint is, by a hash of its files, and what it was trained on, as its run folder tells: the stage,
    the datasets with their versions and keys, and the same of the checkpoint that it began with, back to the first. Of
    a checkpoint from elsewhere its path and hash; of one that is no longer there its path."""
    told: dict[str, Any] = {"checkpoint": checkpoint}
    if (Path(checkpoint) / "config.json").is_file():
        told["content"] = digest(file_hashes(Path(checkpoint)))
    path = Path(checkpoint).parent.parent / "recipe.json"
    if not path.is_file():
        return told
    recipe = json.loads(path.read_text("utf-8"))
    stage = recipe.get("stage")
    told |= {"name": recipe.get("name"), "stage": stage if isinstance(stage, str) else "pretrain"}
    told["datasets"] = [recipe["dataset"]] if "dataset" in recipe else list(recipe.get("datasets", {}).values())
    before = recipe.get("lineage") or {}
    start = recipe.get("train", {}).get("start") or recipe.get("train", {}).get("upcycle")
    if start:  # of a pre-training
        before = {"start": lineage(start)}
    return told | before
