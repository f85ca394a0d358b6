"""A small checkpoint in Qwen2's form, made by model/, with a tokenizer that has a chat template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from factory.corpus.tokens import train_bpe
from factory.teacher.engine import Ask, Asks, Engine
from factory.teacher.request import Failed, Request, Response
from model.checkpoint import save_hf
from model.config import ModelConfig
from model.transformer import Transformer

END = 397
"""The id of <|endoftext|>."""

SENTENCES = (
    "The factory reads a text that has some words, and it keeps the ones that are worth the reading.",
    "Was kostet das? Ça va, été, naïve. 大家好, 统一码是一种字符编码标准。 Привет, мир! 😀 🙂",
    '{"name": "Ada", "age": 36, "tags": ["a", "b"], "ok": true, "none": null, "x": -1.5e3}',
    "system user assistant: You are a helpful assistant. Say what 12 + 30 is.\n\n1. First\n2. Second\n",
)


def make_checkpoint(folder: Path, positions: int = 256, seed: int = 0, **shape: int) -> Path:
    """Random weights with some spread: each context has its likely and unlikely tokens. About one token in a hundred
    ends the text."""
    train_bpe(iter(SENTENCES * 4), 400, folder.with_name(folder.name + "-tokenizer"))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ModelConfig(
        vocab_size=400,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        initializer_range=0.08,
        tie_word_embeddings=False,
        **(sizes | shape),
    )
    model = Transformer(config)
    model.initialise(seed)
    save_hf(model, folder, folder.with_name(folder.name + "-tokenizer"), end=END)
    return folder


def ask(engine: Engine, requests: Iterable[Request], first: int = 0) -> list[Response | Failed]:
    """What an engine says of some requests, in their order."""
    asks, found = Asks(), {}
    sent = [Ask(request, first) for request in requests]
    asks.put(sent)

    def done(answers):
        found.update(answers)
        if len(found) == len(sent):
            asks.close()

    engine.answer(asks, done)
    return [found[one] for one in sent]


def classifier(checkpoint: Path, folder: Path, labels: int, kind: str = "") -> Path:
    """A checkpoint with a head of random weights: one label makes a reward model, two a process reward model."""
    import torch
    import transformers

    kind = kind or ("Sequence" if labels == 1 else "Token")
    torch.manual_seed(labels)
    model = getattr(transformers, f"AutoModelFor{kind}Classification").from_pretrained(checkpoint, num_labels=labels)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder
