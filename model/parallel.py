"""Training on several processes: who they are, how the model is shared out (FSDP2), how long sequences are split.

`torchrun -m model.train …` starts the processes; each takes its part of every global batch. Losses and gradients are
sums over tokens, divided by the tokens of the whole batch, so that any number of processes computes the same step.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from factory.engine.errors import FactoryError
from model.config import ModelConfig, TrainConfig
from model.transformer import Transformer

# A process that is gone is noticed at once where its connections break; one that hangs, after this time.
TIMEOUT = datetime.timedelta(minutes=10)
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """The ranks of `group` share each sequence: rank r of n has the parts r and 2n - 1 - r of its 2n equal parts, so
    that causal attention costs each the same (Llama 3, arXiv 2407.21783, §3.3.2; there too keys and values are
    gathered, which grouped queries make few)."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def part(self, x: Tensor, dim: int = -1) -> Tensor:
        """This rank's part of whole sequences."""
        parts = x.chunk(2 * self.size, dim)
        return torch.cat([parts[self.rank], parts[-1 - self.rank]], dim)

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """The whole of what each rank has its part of. A gradient comes back as the sum over all ranks."""
        early, late = collectives.all_gather_single_autograd(x[None].contiguous(), 0, self.group).chunk(2, dim + 1)
        return torch.cat([*early.unbind(), *late.flip(0).unbind()], dim)

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Begin and end, in a sequence of `length`, of this rank's two parts."""
        size = length // (2 * self.size)
        return [(place * size, (place + 1) * size) for place in (self.rank, 2 * self.size - 1 - self.rank)]


@dataclass
class World:
    """The processes of a training, and which of them this is.

    `context` successive ranks share the sequences of one part of the batch; `part` of `parts` is this rank's part.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """The processes on this machine."""
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    context: Context | None = None
    saving: dist.ProcessGroup | None = None
    """Another group of all ranks, for what a thread says while training goes on."""

    @classmethod
    def begin(cls) -> World:
        """As torchrun's environment says; without it, one process, which opens no connection."""
        world = cls()
        if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            world.rank, world.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            world.local_size = int(os.environ["LOCAL_WORLD_SIZE"])
            if world.device.type == "cuda":
                world.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(world.device)
            try:
                world._meet()
            except (dist.DistError, RuntimeError) as error:
                raise FactoryError(
                    f"the {world.size} processes of this training did not find each other: {str(error).splitlines()[0]}"
                ) from error
        return world

    def _meet(self) -> None:
        # torchrun may keep one store over its restarts: without a name for each, the addresses of the dead are found.
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(self._backend(), store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        self.saving = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def share(self, context: int) -> None:
        """Let so many successive ranks share each sequence."""
        if self.size % context:
            raise FactoryError(
                f"train.context_parallel = {context}: {self.size} processes cannot be divided into groups of so many"
            )
        if context > 1:
            mesh = init_device_mesh(self.device.type, (self.size // context, context))
            self.context = Context(mesh.get_group(1), mesh.get_local_rank(1), context)

    def _backend(self) -> str:
        return "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"

    @property
    def parts(self) -> int:
        return self.size // (self.context.size if self.context else 1)

    @property
    def part(self) -> int:
        return self.rank // (self.context.size if self.context else 1)

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and speaks to the user."""
        return self.rank == 0

    def mesh(self) -> DeviceMesh:
        """All ranks in one row. One process gets a group of itself, through memory."""
        if not dist.is_initialized():
            dist.init_process_group(self._backend(), store=dist.HashStore(), rank=0, world_size=1)
        return init_device_mesh(self.device.type, (self.size,))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, without gradient."""
        values = values.detach()
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def sums(self, *values: float) -> list[float]:
        """Sums over all ranks, in double precision."""
        if self.size == 1:
            return list(values)
        return self.sum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def split(self, rows: np.ndarray, size: int, empty: int) -> Iterator[np.ndarray]:
        """Sequences [rows, length] in portions [parts, at most `size`, length]: one for each part of the world, filled
        up with `empty`, so that all ranks have equally many. The length grows to what a context can share."""
        count = -(-len(rows) // self.parts)
        unit = 2 * self.context.size if self.context else 1
        length = -(-(rows.shape[1] - 1) // unit) * unit + 1  # the last token is no input
        filled = np.full((self.parts * count, length), empty, rows.dtype)
        filled[: len(rows), : rows.shape[1]] = rows
        filled = filled.reshape(self.parts, count, length)
        for at in range(0, count, size):
            yield filled[:, at : at + size]

    def together(self, work: Callable[[], T]) -> T | None:
        """Rank 0 does it, the others wait and get None; its FactoryError is raised on every rank."""
        if self.size == 1:
            return work()
        result, told = None, [""]
        if self.first:
            try:
                result = work()
            except FactoryError as error:
                told = [str(error)]
        dist.broadcast_object_list(told)
        if told[0]:
            raise FactoryError(told[0])
        return result

    def says(self, message: str) -> bool:
        """Whether this rank is the first with this message: what all ranks meet with is said once."""
        if self.size == 1:
            return True
        try:
            return dist.distributed_c10d._get_default_store().add(f"said {message}", 1) == 1
        except (dist.DistError, RuntimeError):  # nobody left to ask
            return True

    def end(self) -> None:
        """Leave the group; another may begin in this process."""
        if dist.is_initialized():
            dist.destroy_process_group()


def lost(error: BaseException) -> bool:
    """Whether an error says that the connection to another process broke."""
    # gloo raises a plain RuntimeError, and a save in its thread wraps it.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def build(
    config: ModelConfig, world: World, how: TrainConfig, whole: Callable[[], Transformer] | None = None
) -> Transformer:
    """A model that computes as `how` says, each layer sharded on its own and the rest together (FSDP2).

    `whole` makes it with its weights in float32; None leaves them to be read from a checkpoint. Of several processes
    only rank 0 calls it and holds the whole in host memory for that time; each tensor is sent to all, who keep their
    shard. One process in float32 has no shards.
    """
    if world.size == 1 and how.dtype == "float32":
        model = (whole() if whole is not None else Transformer(config)).to(world.device)
        _layers(model, how)
    else:
        with torch.device("meta"):
            model = Transformer(config)
        _layers(model, how)
        _shard(model, world, how)
        weights = world.together(lambda: whole().state_dict()) if whole is not None else None
        model.to_empty(device=world.device)
        if whole is not None:
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=world.size > 1)
            set_model_state_dict(model, weights or {}, options=options)
    model.model.context = world.context
    return model


def gathered(model: Transformer, world: World, dtype: torch.dtype) -> Transformer:
    """The model for rank 0 to use without the others, with its weights as they are now, gathered where they are
    sharded; on the others without weights. Weights that one process has whole, in that dtype, are not copied."""
    weights = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.first:
            weights[name] = whole.detach().to(dtype)
    with torch.device("meta"):
        alone = Transformer(model.config)
    if world.first:
        alone.load_state_dict(weights, assign=True)
    return alone


def _layers(model: Transformer, how: TrainConfig) -> None:
    if how.checkpoint_activations:
        checkpoint_layers(model)
    if how.compile:
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward)


def checkpoint_layers(model: Transformer) -> None:
    """Keep of each layer what goes into it alone, and compute it again for the gradient."""
    # The layers keep their names and hooks: what changes is the function alone.
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _shard(model: Transformer, world: World, how: TrainConfig) -> None:
    policy = MixedPrecisionPolicy()
    if how.dtype == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = world.mesh()
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        # Gradients are summed, not averaged: each rank's loss is its part of the batch's.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def accumulate(model: nn.Module, last: bool) -> None:
    """Before a part of a batch: gradients of all but the last stay on their rank and are summed there."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)


def clip(model: nn.Module, limit: float) -> Tensor:
    """Cut the gradient to a norm; returns what the norm was."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT are put into, instead of ending the process in the middle of a step."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
