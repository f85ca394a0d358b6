"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer.

Momentum's direction is replaced by the nearest matrix with orthogonal rows, O = U V^T of its singular value
decomposition, so that a step moves all directions alike (Jordan, https://kellerjordan.github.io/posts/muon/, whose
five Newton-Schulz steps leave singular values of 0.7 to 1.2 instead of 1). With O's entries scaled to the size of
AdamW's, 0.2 sqrt(max(A, B)) for a matrix [A, B], one learning rate and one weight decay serve both halves (Moonlight,
arXiv 2502.16982, section 2.2).

torch.optim.Muon (torch 2.13) computes the same, matrix by matrix in bfloat16, for two dimensions alone. bfloat16 is
fast on a GPU and on few CPUs (benchmarks/muon.py: from 0.8 to 15 times the time of float32, by the CPU); so this
one computes in float32 on a CPU and takes all matrices of a shape in one product, experts [E, A, B] as E of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw

from factory.engine.errors import FactoryError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: the steepest at 0 that stay near 1
STEPS = 5
AT_ONCE = 1 << 27  # numbers in one product: 256 MB in bfloat16, and a few times that while it is computed


class Muon(torch.optim.Optimizer):
    """Muon on the parameters below `layers` with two dimensions or three, AdamW on all others: embeddings, the output
    layer, norms, biases.

    `named` are a model's named_parameters(). `betas` and `eps` are AdamW's, `momentum` Muon's; `weight_decay` is of
    both, on matrices only. A schedule sets the same `lr` for all groups. Parameters may be DTensors that
    fully_shard made: each rank gathers the matrices, some at a time, and computes all of them; experts are not
    gathered, since they are cut between matrices. Raises FactoryError where there is nothing for Muon.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        layers: list[Tensor] = []
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, one in named:
            kind = others if one.ndim < 2 else layers if "layers" in name.split(".") else matrices
            kind.append(one)
        if not layers:
            raise FactoryError("muon: the model has no matrices below `layers`: use the optimizer adamw")
        groups: list[dict[str, Any]] = [
            {"params": layers, "muon": True},
            {"params": matrices},
            {"params": others, "weight_decay": 0.0},
        ]
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(groups, {**defaults, "muon": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs = [(one, one.grad) for one in group["params"] if one.grad is not None]
            if pairs:
                params, gradients = map(list, zip(*pairs, strict=True))
                (self._muon if group["muon"] else self._adamw)(params, gradients, group)
        return loss

    def _muon(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for one in params:
            if not self.state[one]:
                self.state[one]["momentum_buffer"] = torch.zeros_like(one)
        momentum = group["momentum"]
        buffers = [self.state[one]["momentum_buffer"] for one in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov's
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for numbers in _alike(params):
            found = orthogonal([_whole(directions[number]) for number in numbers])
            for number, change in zip(numbers, found, strict=True):
                _add(params[number], change, -group["lr"] * 0.2 * math.sqrt(max(change.shape[-2:])))

    def _adamw(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for one in params:
            if not self.state[one]:
                moments = {name: torch.zeros_like(one) for name in ("exp_avg", "exp_avg_sq")}
                self.state[one].update(step=torch.zeros((), device=one.device), **moments)
        beta1, beta2 = group["betas"]
        state = {name: [self.state[one][name] for one in params] for name in ("exp_avg", "exp_avg_sq", "step")}
        adamw(
            params,
            gradients,
            state["exp_avg"],
            state["exp_avg_sq"],
            [],
            state["step"],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """For each matrix [A, B], or stack of matrices [E, A, B], all of one shape but for being turned, the nearly
    orthogonal ones: U S V^T with S between about 0.7 and 1.2."""
    dtype = torch.bfloat16 if matrices[0].is_cuda else torch.float32
    turned = [one.shape[-2] > one.shape[-1] for one in matrices]  # the smaller products are those of the short side
    wide = [one.mT if turn else one for one, turn in zip(matrices, turned, strict=True)]
    x = torch.cat([one.reshape(-1, *one.shape[-2:]).to(dtype) for one in wide])
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # no singular value above 1
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    parts = x.split([one.shape[0] if one.ndim == 3 else 1 for one in matrices])
    return [
        (part.mT if turn else part).reshape(one.shape) for part, one, turn in zip(parts, matrices, turned, strict=True)
    ]


def _alike(params: list[Tensor]) -> Iterator[list[int]]:
    """The numbers of parameters whose matrices have one shape, turned or not, as many as may be computed at once."""
    groups: dict[Any, list[int]] = {}
    for number, one in enumerate(params):
        groups.setdefault((one.device, *sorted(one.shape[-2:])), []).append(number)
    for numbers in groups.values():
        size = max(1, AT_ONCE // max(params[number].numel() for number in numbers))
        yield from (numbers[at : at + size] for at in range(0, len(numbers), size))


def _whole(x: Tensor) -> Tensor:
    """Whole matrices: of a sharded one all, of sharded experts this rank's."""
    if not isinstance(x, DTensor):
        return x
    return x.to_local() if x.ndim == 3 else x.full_tensor()


def _add(parameter: Tensor, change: Tensor, factor: float) -> None:
    """Add what was computed of _whole(parameter)."""
    if isinstance(parameter, DTensor):
        if parameter.ndim == 2:  # each rank has it: nothing is sent
            mesh, placements = parameter.device_mesh, parameter.placements
            change = distribute_tensor(change, mesh, placements, src_data_rank=None).to_local()
        parameter = parameter.to_local()
    parameter.add_(change, alpha=factor)
