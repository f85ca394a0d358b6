"""A small token dataset in the form that a recipe with tokens.Pack leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models

from factory.corpus.tokens import Pack, train_bpe
from factory.engine.step import Context, Memo
from model.generate import Generator
from model.sample import Sampling
from model.transformer import Transformer

SENTENCES = (
    "Returns a new array of the given shape and type, filled with zeros.",
    "The axis along which the values are joined; the default is the first one.",
    "Raises an error where the file is missing or cannot be read.",
    "Parameters: x is a number, y is a list of numbers, z is optional.",
    "See also the functions that sort, select and count the elements.",
)


def numbers(count: int) -> Tokenizer:
    """A tokenizer whose tokens are the numbers below `count`."""
    return Tokenizer(models.WordLevel({str(number): number for number in range(count)}, unk_token="0"))


def greedy(model: Transformer, prompts: torch.Tensor, tokens: int) -> torch.Tensor:
    """The likeliest continuation of prompts [B, T], without an end: [B, tokens]."""
    found = Generator(model, numbers(3)).complete(prompts.tolist(), Sampling(tokens=tokens, temperature=0))
    return torch.tensor([one.ids for (one,) in found])


def documents(count: int) -> list[str]:
    return [" ".join(SENTENCES[(number * step) % 5] for step in range(1, 6)) for number in range(count)]


def write_dataset(folder: Path, shards: int = 3, length: int = 32, group: int = 7, documents_each: int = 40) -> Path:
    """A dataset folder whose sequences have `length` tokens, in row groups of `group` rows."""
    texts = documents(shards * documents_each)
    train_bpe(iter(texts), 320, folder / "tokenizer")
    pack = Pack(sequence_length=length)
    pack.open(Context(artifacts={"tokenizer": str(folder / "tokenizer")}))
    (folder / "rows").mkdir()
    rows = []
    for number in range(shards):
        ids = [f"s{number}d{one}" for one in range(documents_each)]
        part = texts[number * documents_each : (number + 1) * documents_each]
        batch = pa.record_batch({"id": pa.array(ids, pa.large_string()), "text": pa.array(part, pa.large_string())})
        table = pa.Table.from_batches(pack(iter([pack.prepare(batch, Memo(len(batch)))])))
        name = f"rows/part-{number:07d}.parquet"
        pq.write_table(table, folder / name, row_group_size=group)
        rows.append({"path": name, "rows": table.num_rows, "bytes": (folder / name).stat().st_size})
    manifest = {
        "name": "tiny",
        "version": "1",
        "key": "0123",
        "rows": rows,
        "columns": {field.name: str(field.type) for field in table.schema},
        "artifacts": {"tokenizer": "tokenizer"},
        "recipe": {"steps": [{"use": "tokens.Pack", "options": {"sequence_length": pack.sequence_length}}]},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tiny@1"))


RECIPE = """
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64

[optimizer]
learning_rate = 1e-2
warmup_steps = 5

[train]
steps = 40
batch_size = 8
evaluate_every = 20
save_every = 10
threads = 1
sample_prompt = "Returns"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """`make_dataset(name, **options)` writes one of other form."""

    def make(name: str, **options: int) -> Path:
        (tmp_path / name).mkdir()
        return write_dataset(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with a tokenizer, and datasets of sums: what post-training's tests begin with."""
    from tests.model.posttrain import make_place  # needs TRL

    return make_place(tmp_path_factory.mktemp("posttrain"))
