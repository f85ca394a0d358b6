"""A worker process: takes tasks from a pipe, does them, says what it is doing. `python -m factory.engine.worker FD`."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from factory.engine import files
from factory.engine.errors import FactoryError
from factory.engine.gather import ExchangeTask, run_exchange_task
from factory.engine.guard import Suspicion
from factory.engine.stage import Opened, Stage
from factory.engine.task import run_stage_task


class Workbench:
    """Does tasks one after another and keeps the steps of the last stage open."""

    def __init__(self) -> None:
        self._folder = ""
        self._opened: Opened | None = None
        self._read: tuple[str, Stage | None] = ("", None)

    def opened(self, folder: str) -> Opened:
        if folder != self._folder or self._opened is None:
            self.close()
            self._opened = Opened(Stage.load(folder))
            self._folder = folder
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened, self._folder = None, ""

    def stage(self, folder: str) -> Stage:
        """The stage of a folder, read once: while an exchange runs it does not change."""
        if folder != self._read[0]:
            self._read = (folder, Stage.load(folder))
        assert self._read[1] is not None
        return self._read[1]

    def do(self, task: Any, suspicion: Suspicion, say: Any) -> None:
        """Do a task: ("warm", folder), ("stage", folder, number), ("again", folder, number) after the stage's splits
        changed, or an ExchangeTask."""
        try:
            self._do(task, suspicion, say)
        except OSError as error:
            raise files.told(error, task.output if isinstance(task, ExchangeTask) else task[1]) from error

    def _do(self, task: Any, suspicion: Suspicion, say: Any) -> None:
        if isinstance(task, ExchangeTask):
            stage = self.stage(task.stage)
            assert stage.emits is not None
            shards = [files.join(stage.folder, stage.output("rows", number)) for number in range(stage.tasks)]
            run_exchange_task(task, stage.emits.build(), shards)  # type: ignore[arg-type]
        elif task[0] == "warm":
            self.opened(task[1]).warm()
        else:
            if task[0] == "again":  # the splits of the stage changed
                self.close()
            self._read = ("", None)
            run_stage_task(
                self.opened(task[1]),
                task[2],
                suspicion,
                lambda at: say("at", at),
                lambda *counts: say("progress", *counts),
            )


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its supervisor dies, however it dies."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def main(descriptor: int) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    import pyarrow as pa

    # A worker is one core: as many workers as cores are started.
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    pipe = Connection(descriptor)
    bench = Workbench()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (message := pipe.recv()) is not None:
            task, suspicion = message
            try:
                bench.do(task, suspicion, lambda *said: pipe.send(said))
                pipe.send(("done",))
            except FactoryError as error:
                pipe.send(("error", str(error), True, traceback.format_exc()))
            except Exception as error:
                pipe.send(("error", f"{type(error).__name__}: {error}", False, traceback.format_exc()))
        bench.close()
    # What registered for the end has its turn; but what was imported is not taken apart, for which the run would wait.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
