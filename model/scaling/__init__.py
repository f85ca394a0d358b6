"""Scaling laws for hyper-parameters: the best learning rate and batch size as power laws of size and tokens.

Read in this order: law (what a law says, and `learning_rate = "scaling"` in a recipe), grid (many small trainings),
fit (their optima and the law through them), picture, __main__ (the command line).
"""

from __future__ import annotations

from dataclasses import dataclass

from factory.engine.errors import FactoryError

SCALING = "scaling"
"""The word in a recipe that stands for what a law says."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The section [scaling] of a training recipe: every combination of these is trained, see model/scaling/grid.py."""

    sizes: tuple[dict, ...] = ()
    """Tables of keys of [model], such as {hidden_size = 64, num_hidden_layers = 2}; the rest is as in [model]."""
    tokens: tuple[int, ...] = ()
    """How many tokens a model is trained on."""
    learning_rates: tuple[float, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    """Sequences in a step."""
    seeds: int = 1
    """Trainings of each combination, with train.seed, train.seed + 1, ..."""
    batch_by_size: bool = False
    """The law of the batch size depends on the size too; else on the tokens alone, as Step Law's."""

    def check(self) -> None:
        """Raises FactoryError where a value makes no sense; an empty list is right where no grid is asked for."""
        for name in ("tokens", "learning_rates", "batch_sizes"):
            values = getattr(self, name)
            if any(not 0 < value < float("inf") for value in values):
                raise FactoryError(f"scaling.{name} = {list(values)}: each must be above 0")
            if len(set(values)) < len(values):
                raise FactoryError(f"scaling.{name} = {list(values)}: one is given twice")
        if self.seeds <= 0:
            raise FactoryError(f"scaling.seeds = {self.seeds}: must be above 0")
