"""Sampling with a key/value cache: `python -m model.generate FOLDER "prompt"`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from factory.engine.errors import FactoryError
from model.checkpoint import load_hf
from model.transformer import Cache, Transformer

END = "<|endoftext|>"


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt: Tensor,
    tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    end: int | None = None,
) -> Tensor:
    """Continue `prompt` (ids [B, T], no padding) by at most `tokens` ids: [B, new].

    Temperature 0 takes the likeliest token. `top_p` samples from the likeliest tokens that together reach this
    probability. A sequence that has given `end` is filled with it. The same seed gives the same text on one device.
    """
    total = prompt.shape[1] + tokens
    if not prompt.shape[1]:
        raise FactoryError("the prompt is empty: give at least one token to continue")
    if total > model.config.max_position_embeddings:
        raise FactoryError(
            f"{prompt.shape[1]} prompt tokens and {tokens} new ones: the model is made for "
            f"{model.config.max_position_embeddings}"
        )
    generator = torch.Generator(device=prompt.device).manual_seed(seed)
    cache = Cache(model.config, prompt.shape[0], total, like=model.lm_head.weight)
    done = torch.zeros(prompt.shape[0], dtype=torch.bool, device=prompt.device)
    out: list[Tensor] = []
    ids = prompt
    for _ in range(tokens):
        logits = model.lm_head(model.model(ids, cache)[:, -1]).float()
        chosen = pick(logits, temperature, top_p, generator)
        if end is not None:
            chosen = torch.where(done, end, chosen)
            done |= chosen == end
        out.append(chosen)
        if done.all():
            break
        ids = chosen[:, None]
    return torch.stack(out, dim=1) if out else prompt.new_empty(prompt.shape[0], 0)


def pick(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One id for each row of logits [B, vocab]."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if top_p < 1:
        ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
        # A token stays while those before it have not reached top_p; the first always does.
        beyond = ordered.cumsum(-1) - ordered >= top_p
        beyond[:, 0] = False
        ordered = ordered.masked_fill(beyond, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, places, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def encode(folder: Path, prompt: str, positions: int) -> list[int]:
    """The ids of a prompt by the tokenizer in `folder`; FactoryError where there are none, or not room for one more."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FactoryError(f"{path} is missing: the folder of a checkpoint with its tokenizer is needed")
    ids = list(Tokenizer.from_file(str(path)).encode(prompt).ids)
    if not 0 < len(ids) < positions:
        raise FactoryError(f"a prompt of {len(ids)} tokens: give one of 1 to {positions - 1}")
    return ids


def generate_text(
    model: Transformer, folder: Path, prompt: str, tokens: int, *, stop: bool = True, **options: float | int
) -> str:
    """The continuation of a text, with the tokenizer that lies in `folder`.

    `options` are those of `generate`. Without `stop` the model goes on with another document where it ends one, below
    a line of dashes.
    """
    from tokenizers import Tokenizer

    found = encode(folder, prompt, model.config.max_position_embeddings)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([found], dtype=torch.long, device=model.lm_head.weight.device)
    end = tokenizer.token_to_id(END)
    new = generate(model, ids, tokens, end=end if stop else None, **options)  # type: ignore[arg-type]
    if stop:
        return str(tokenizer.decode(new[0].tolist()))
    return str(tokenizer.decode(new[0].tolist(), skip_special_tokens=False)).replace(END, "\n-----\n")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.generate", description="Continue a text.")
    parser.add_argument("folder", type=Path, help="a checkpoint in Hugging Face's form")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=100, help="new tokens at most (100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    parser.add_argument("--top-p", type=float, default=0.95, help="sample among the likeliest (0.95)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    try:
        model = load_hf(given.folder)
        options = {"temperature": given.temperature, "top_p": given.top_p, "seed": given.seed}
        print(given.prompt + generate_text(model, given.folder, given.prompt, given.tokens, **options))
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
