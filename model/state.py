"""The state of a training, to go on from: weights and optimizer, by torch.distributed.checkpoint.

Each rank writes its shards in a thread while training goes on, into a folder aside, which is renamed when all are
whole; only then is the one before it removed. Any number of ranks can read it.

    checkpoint/step-0000200/          one file of each rank, .metadata, training.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.storage import WriteResult

from factory.engine.errors import FactoryError
from factory.engine.files import told
from model.parallel import World, lost

# One process needs no group: torch warns of it all the same.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")
NAME = re.compile(r"step-(\d+)")


class States:
    """The checkpoints below a folder, of which the last whole one stays."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self._writing: Future | None = None

    def last(self) -> Path | None:
        """The folder of the last whole checkpoint."""
        found = [path for path in self.folder.glob("step-*") if NAME.fullmatch(path.name)]
        return max(found, key=_step, default=None)

    def description(self) -> dict[str, Any] | None:
        """What was given to `save` as the description of the last checkpoint, and its `step`."""
        path = self.last()
        if path is None:
            return None
        try:
            description: dict[str, Any] = json.loads((path / "training.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        return description

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, description: dict[str, Any]) -> None:
        """Copy the state and write the copy in a thread; returns once it is copied. All ranks call it.

        Waits for the save before this one; raises its error, a FactoryError with the cure. The copy takes 12 bytes a
        parameter of host memory (divided by the ranks) until it is written.
        """
        self.wait()
        weights, moments = get_state_dict(model, optimizer)
        writer = _Writer(self.folder, step, description)
        state = {"model": weights, "optimizer": moments}
        alone = self.world.size == 1
        future = dcp.async_save(state, storage_writer=writer, process_group=self.world.saving, no_dist=alone)
        assert isinstance(future, Future)
        self._writing = future

    def wait(self) -> None:
        """Until the last save is whole. Raises its error."""
        if self._writing is None:
            return
        future, self._writing = self._writing, None
        try:
            future.result()
        except CheckpointException as error:
            if self.world.first:
                _clear(self.folder)  # what fills a disk
            causes = [cause for cause, _ in error.failures.values()]
            if all(map(lost, causes)):
                raise causes[0] from error
            cause = next(cause for cause in causes if not lost(cause))
            raise self._told(cause) from error

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give model and optimizer the last checkpoint's state. FactoryError where it is damaged."""
        path = self.last()
        assert path is not None
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        try:
            dcp.load(state, checkpoint_id=path, process_group=self.world.saving, no_dist=self.world.size == 1)
        except CheckpointException as error:
            raise _damaged(path, next(iter(error.failures.values()))[0]) from error
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)

    def _told(self, cause: BaseException) -> BaseException:
        if isinstance(cause, OSError):
            told_ = told(cause, str(self.folder))
            if told_ is not cause:
                return told_
            return FactoryError(f"{self.folder}: cannot write the checkpoint: {cause.strerror or cause}")
        # torch hides a full disk: its writer's own message says only that fewer bytes were written than expected.
        return FactoryError(f"{self.folder}: cannot write the checkpoint (is the disk full?): {cause}")


class _Writer(dcp.FileSystemWriter):
    """Writes into a folder aside; the coordinator, once all ranks have written, renames it."""

    def __init__(self, folder: Path, step: int, description: dict[str, Any]) -> None:
        self.folder, self.place = folder, folder / f"step-{step:07d}"
        self.description = {**description, "step": step}
        super().__init__(folder / f".{self.place.name}.tmp")

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        if is_coordinator:
            _clear(self.folder)  # of a process that was killed

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        with (Path(self.path) / "training.json").open("w", encoding="utf-8") as file:
            json.dump(self.description, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if self.place.exists():
            shutil.rmtree(self.place)
        os.rename(self.path, self.place)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)  # the name is on disk before the old one goes
        finally:
            os.close(handle)
        for old in self.folder.glob("step-*"):
            if old != self.place and NAME.fullmatch(old.name):
                shutil.rmtree(old)


def _clear(folder: Path) -> None:
    """Remove what was begun and never renamed."""
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left)


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _damaged(path: Path, error: BaseException) -> FactoryError:
    reason = str(error).partition("\n")[0][:80]
    return FactoryError(f"{path}: cannot read the checkpoint ({reason}): remove it to begin again")
