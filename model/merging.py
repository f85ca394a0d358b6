"""The Online Merging Optimizer: AdamW whose every step is merged with the step from the base to the SFT model.

Alignment makes a model forget some of what it knew; merging its weights with those it began with gives a part back.
Online merging does so in each step of the training (arXiv 2405.17931, section 4), as in the DPO of Qwen2 and Qwen2.5.
With the parameter delta τ = θ_SFT - θ_base and AdamW's step Δ, after its decoupled weight decay:

    OnDARE   θ ← θ + (1-α) F(Δ) + α F(τ)     F keeps each number with probability p, and does not rescale
    OnTIES   θ ← θ + (1-α) F(Δ) ⊕ α F(τ)     F keeps the share p of a tensor's numbers that are largest in magnitude;
                                             a ⊕ b = a + b where their signs agree, else the one of larger magnitude

The paper's settings: p down to 5e-4 works, α between 1e-7 and 5e-7; 1e-4 ruins the model. α = 0 with p = 1 is AdamW.
The masks are those of the equations: drawn anew in each step, for Δ and τ apart, and survivors are not rescaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from factory.engine.errors import FactoryError

Merge = Literal["dare", "ties"]


class OnlineMerging(torch.optim.Optimizer):
    """OnDARE (`merge = "dare"`) or OnTIES (`"ties"`) over AdamW.

    `params` are the SFT model's, in tensors or groups as for any torch optimizer; `base` the base model's values in the
    same order, from which τ is taken at once. τ is held in the optimizer's state, in the parameter's number format, one
    more copy of the weights, so that a resumed training needs the state alone. The masks of step t are drawn from
    `seed`, t and the parameter's number: a resumed training draws the same.

    Raises `FactoryError` where α or p is outside 0 to 1, or a base tensor does not have its parameter's shape.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Iterable[Tensor],
        *,
        merge: Merge = "dare",
        alpha: float = 1e-7,
        p: float = 5e-4,
        lr: float = 7e-7,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value in (("alpha", alpha), ("p", p)):
            if not 0 <= value <= 1:
                raise FactoryError(f"online merging: {name} = {value}: must lie between 0 and 1")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.merge, self.alpha, self.p, self.seed = merge, alpha, p, seed
        own = [one for group in self.param_groups for one in group["params"]]
        given = list(base)
        if len(own) != len(given):
            raise FactoryError(f"online merging: {len(own)} parameters, but {len(given)} of the base model")
        for parameter, before in zip(own, given, strict=True):
            if parameter.shape != before.shape:
                raise FactoryError(
                    f"online merging: a parameter of shape {tuple(parameter.shape)} has {tuple(before.shape)} in the "
                    "base model: give the model that the SFT began with"
                )
            delta = parameter.detach() - before.detach().to(parameter)
            self.state[parameter] = {
                "step": 0,
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
                "tau": delta if merge == "dare" else largest(delta, p),
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, number)
                number += 1
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        state["step"] += 1
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        change = self._adam(parameter.grad, state, group)  # type: ignore[arg-type]
        alpha, tau = self.alpha, state["tau"]
        if self.merge == "ties":
            parameter.add_(elect(largest(change, self.p).mul_(1 - alpha), alpha * tau))
            return
        generator = torch.Generator(parameter.device).manual_seed(_seed(self.seed, state["step"], number))
        parameter.add_((1 - alpha) * keep(change, self.p, generator))
        parameter.add_(alpha * keep(tau, self.p, generator))

    @staticmethod
    def _adam(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Adam's step -η m̂ / (√v̂ + ε), in torch's order of operations: the last bits are those of its AdamW."""
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = group["lr"] / (1 - beta1 ** state["step"])
        spread = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        return (-size * state["exp_avg"]).div_(spread)


def keep(tensor: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Each number with probability p, else 0; not rescaled (arXiv 2405.17931, OnDARE)."""
    if p == 1:
        return tensor
    drawn = torch.rand(tensor.shape, generator=generator, device=tensor.device)
    return torch.where(drawn < p, tensor, torch.zeros_like(tensor))


def largest(tensor: Tensor, p: float) -> Tensor:
    """The ⌈p n⌉ numbers of a tensor that are largest in magnitude, the others 0 (OnTIES)."""
    count = math.ceil(p * tensor.numel())
    if count >= tensor.numel():
        return tensor.clone()
    flat = tensor.flatten()
    kept = flat.abs().topk(count, sorted=False).indices
    return torch.zeros_like(flat).index_put_((kept,), flat[kept]).view_as(tensor)


def elect(a: Tensor, b: Tensor) -> Tensor:
    """a ⊕ b: their sum where the signs agree, else the one of larger magnitude (OnTIES)."""
    return torch.where(a.sign() == b.sign(), a + b, torch.where(a.abs() >= b.abs(), a, b))


def _seed(seed: int, step: int, number: int) -> int:
    """A generator's seed for each step and parameter."""
    return (seed * 1_000_003 + step) * 1_000_003 + number & (2**63 - 1)
