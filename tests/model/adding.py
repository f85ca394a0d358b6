"""A tiny model that learns to add two digits, and problems for it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from model.checkpoint import save_hf
from model.config import ModelConfig
from model.data import END
from model.transformer import Transformer

WORDS = [END, "+", "=", " ", *map(str, range(10))]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


def tokenizer() -> Tokenizer:
    """A token for each character, and one that ends a text."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([END])
    return made


def problems() -> list[tuple[str, str]]:
    return [(f"{a}+{b}=", str(a + b)) for a, b in itertools.product(range(10), repeat=2)]


def adder(folder: Path, steps: int, seed: int = 0) -> Path:
    """A checkpoint after so many steps on all hundred sums: the more, the more of them are right."""
    config = ModelConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    model = Transformer(config)
    model.initialise(seed)
    ids, targets = _batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1).backward()
        optimizer.step()
    save_hf(model, folder, None, 0)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _batch() -> tuple[Tensor, Tensor]:
    rows = [tokenizer().encode(question + answer + END).ids for question, answer in problems()]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    targets = torch.full_like(ids, -1)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        targets[number, 3 : len(row) - 1] = torch.tensor(row[4:])
    return ids, targets


def write_problems(path: Path, messages: bool = False) -> Path:
    """The hundred sums with their answers under `gold`."""
    rows = [
        {"id": f"p{number}", "prompt": [{"role": "user", "content": asked[:-1]}] if messages else asked, "gold": answer}
        for number, (asked, answer) in enumerate(problems())
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
