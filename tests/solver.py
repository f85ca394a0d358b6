"""A small model that does some word problems and not others: a minute of training on problems of one or two steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from factory.corpus.tokens import train_bpe
from factory.engine.step import Context
from factory.synth.problems import Problems
from model.checkpoint import save_hf
from model.config import ModelConfig
from model.data import END
from model.generate import load_tokenizer
from model.transformer import Transformer

TOP, MOST = 5, 2
"""The numbers of its problems and their operations, at most."""


def solver(folder: Path, steps: int = 300, seed: int = 0) -> Path:
    """A checkpoint after so many steps on 2,000 problems: the more, the more of them are right."""
    made = Problems(count=2000, seed=1, top=TOP, steps=MOST)
    texts = [text for split in made.splits(Context(), 0) for b in made.read(split) for text in b["text"].to_pylist()]
    words = folder.with_name(folder.name + "-tokenizer")
    train_bpe(iter(texts), 400, words)
    tokenizer = load_tokenizer(words)
    end = tokenizer.token_to_id(END)
    rows = [[*tokenizer.encode(text).ids, end] for text in texts]
    ids = np.full((len(rows), max(map(len, rows))), end)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    # One end is learnt, those that fill a row are not.
    learnt = np.arange(ids.shape[1]) < np.array([len(row) for row in rows])[:, None]
    tokens, targets = torch.from_numpy(ids), torch.from_numpy(np.where(learnt, ids, -1))
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = Transformer(config)
    model.initialise(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    order = np.random.default_rng(seed)
    for _ in range(steps):
        some = torch.from_numpy(order.integers(0, len(rows), 64))
        optimizer.zero_grad()
        logits = model(tokens[some, :-1])
        F.cross_entropy(logits.flatten(0, 1), targets[some, 1:].flatten(), ignore_index=-1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    save_hf(model, folder, words, end)
    return folder
