"""Rewards by name: functions of the factory or anyone's, and reward models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from factory.engine.errors import FactoryError, nearest
from model.posttrain.config import SampleConfig
from model.posttrain.data import load_tokenizer, whole
from model.posttrain.heads import RewardModel, load_headed
from model.verifier import reward, verifier

Reward = Callable[..., list[float | None]]


def rewards(told: SampleConfig) -> list[Reward]:
    """The functions that TRL calls, one for each name in the recipe."""
    return [_reward(name, told) for name in told.rewards]


def needs(told: SampleConfig) -> list[str]:
    """The columns that the rewards take from the data. FactoryError where there is no such reward, or none of them has
    a parameter that sample.columns names."""
    found: list[str] = []
    known: list[str] = []
    for name in told.rewards:
        if not Path(name).is_dir():
            needed = _verifier(name, told).needs.values()
            found += [column for column in needed if column not in found]
            known += verifier(name).parameters
    for key in told.columns:
        if key not in known:
            raise FactoryError(f"sample.columns: no reward has a parameter {key!r}{nearest(key, known)}")
    return found


def _verifier(name: str, told: SampleConfig) -> Any:
    if ":" not in name or "/" in name:
        what = "no such checkpoint folder" if "/" in name else "neither a folder of a reward model nor module:function"
        raise FactoryError(f"sample.rewards: {name!r}: {what}")
    return verifier(name, _own(name, told))


def _own(name: str, told: SampleConfig) -> dict[str, str]:
    """Of sample.columns, those that this function has parameters for."""
    parameters = verifier(name).parameters
    return {key: column for key, column in told.columns.items() if key in parameters}


def _reward(name: str, told: SampleConfig) -> Reward:
    if Path(name).is_dir():
        return model_reward(name)
    return reward(name, _own(name, told))


def model_reward(folder: str) -> Reward:
    """A reward model's number for each prompt with its completion."""
    tokenizer, scorer = load_tokenizer(folder), Scorer(folder)

    def score(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        both = zip(prompts, completions, strict=True)
        return list(scorer([whole(prompt, answer, tokenizer) for prompt, answer in both]))

    score.__name__ = Path(folder).parent.parent.name or "reward_model"
    return score


class Scorer:
    """A reward model that is asked for numbers."""

    def __init__(self, folder: str | Path, batch_tokens: int = 1 << 15) -> None:
        self.model = load_headed(RewardModel, folder, "auto").eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_tokens = batch_tokens

    @torch.no_grad()
    def __call__(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each row of ids."""
        out = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        while order:
            longest = len(rows[order[-1]])
            taken = [order.pop() for _ in range(min(len(order), max(1, self.batch_tokens // max(longest, 1))))]
            ends = {rows[row][-1] for row in taken}
            # transformers reads at the last token that is not this one: it must be none that ends a row.
            pad = self.model.config.pad_token_id = next(token for token in itertools.count() if token not in ends)
            ids = torch.full((len(taken), longest), pad)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(taken):
                ids[place, : len(rows[row])] = torch.tensor(rows[row])
                mask[place, : len(rows[row])] = 1
            device = self.model.device
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            for row, value in zip(taken, logits[:, 0].tolist(), strict=True):
                out[row] = value
        return out
