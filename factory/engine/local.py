"""The local executor: a small supervisor of worker processes on this machine.

A process pool loses other tasks when one worker is killed, and leaves orphans when it is killed itself. Here each
worker has a pipe of its own, dies with the supervisor, and is watched: a call that takes longer than the time limit, or
a worker that holds more memory than its share, is killed, and the document at fault is looked for (see guard.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from factory.engine.errors import FactoryError
from factory.engine.guard import At, Suspicion
from factory.engine.worker import Workbench

TICK = 0.1
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")


MOMENT = 3.0
COMPILING = "compiling the kernels for this machine: some tens of seconds, once"

TOO_MUCH = "the worker held more than"
STARVED = 3
"""So many documents of one task that are too large for a worker mean that its memory is too small."""


class TaskFailed(Exception):
    """A task that cannot be done: what it was, why, and the worker's traceback."""


@dataclass
class Job:
    """A task with what is known of the workers that it ended."""

    task: Any
    name: str
    weight: int = 0
    suspicion: Suspicion = field(default_factory=Suspicion)
    losses: int = 0
    starved: int = 0
    """Documents condemned for memory."""


class Worker:
    """A worker process and the job that it has."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "TOKENIZERS_PARALLELISM": "false"}
        # A step of the user's own is importable there as it is here.
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "factory.engine.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.job: Job | None = None
        self.at: At | None = None
        self.since = time.monotonic()

    def give(self, job: Job) -> bool:
        """Hand over a job; False where the worker died while it had none."""
        try:
            self.pipe.send((job.task, job.suspicion))
        except OSError:
            return False
        self.job, self.at, self.since = job, None, time.monotonic()
        return True

    def memory(self) -> int:
        """Resident bytes, 0 where it cannot be told."""
        try:
            with open(f"/proc/{self.process.pid}/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    def stop(self) -> None:
        """Let an idle worker close what it holds; kill one that is busy or does not end."""
        if self.job is None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.pipe.send(None)
                self.process.wait(timeout=10)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.pipe.close()


def _how_it_ended(code: int) -> str:
    return f"the worker died ({signal.Signals(-code).name})" if code < 0 else f"the worker exited with {code}"


@dataclass
class Events:
    """Whom the executor tells what happens; the driver shows it."""

    started: Callable[[], None] = lambda: None
    progress: Callable[[int, int, int], None] = lambda rows, size, made: None
    finished: Callable[[Job], None] = lambda job: None
    notice: Callable[[str], None] = lambda text: None


class Local:
    """Runs jobs on `workers` processes of this machine; with 0 workers, in this process, without a guard against
    crashes. `seconds` is the time limit of a call, `memory` the bytes that a worker may hold."""

    def __init__(self, workers: int, memory: int, seconds: float) -> None:
        self.count, self.memory, self.seconds = workers, memory, seconds
        self.workers: list[Worker] = []
        self.bench = Workbench()

    def run(self, jobs: list[Job], events: Events, warm: Any = None) -> None:
        """Do all jobs, in any order. Raises FactoryError or TaskFailed for the first that cannot be done."""
        if not jobs:
            return
        if self.count == 0:

            def say(what: str, *said: Any) -> None:
                if what == "progress":
                    events.progress(*said)

            if warm is not None:  # as with workers: a step that fails on no rows fails here too
                self.bench.do(warm, Suspicion(), say)
            for job in jobs:
                self.bench.do(job.task, job.suspicion, say)
                events.finished(job)
            return
        if warm is not None and self.count > 1 and len(jobs) > 1:
            # One worker compiles the kernels; started together, each would compile them all.
            self._run([Job(warm, "opening the steps")], Events(notice=events.notice), 1, COMPILING)
        events.started()
        self._run(jobs, events, min(self.count, len(jobs)))

    def _run(self, jobs: list[Job], events: Events, count: int, patience: str = "") -> None:
        """`patience` is said once, where it takes longer than a moment."""
        waiting = deque(jobs)
        left = len(jobs)
        begun = time.monotonic()
        while left:
            if patience and time.monotonic() - begun > MOMENT:
                events.notice(patience)
                patience = ""
            while len(self.workers) < count:
                self.workers.append(Worker())
            for worker in [w for w in self.workers if w.job is None]:
                if waiting and worker.give(waiting[0]):
                    waiting.popleft()
                elif waiting:  # it died while it had nothing to do
                    worker.kill()
                    self.workers.remove(worker)
            busy = {worker.pipe: worker for worker in self.workers if worker.job}
            for pipe in wait(list(busy), timeout=TICK):
                assert isinstance(pipe, Connection)
                left -= self._listen(busy[pipe], events, waiting)
            for worker in [w for w in self.workers if w.job]:
                why = self._overstepped(worker)
                if why:
                    self._lost(worker, why, waiting, events)

    def _listen(self, worker: Worker, events: Events, waiting: deque[Job]) -> int:
        """Take one message; returns how many jobs it ends."""
        job = worker.job
        assert job is not None
        try:
            kind, *said = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._lost(worker, _how_it_ended(worker.process.wait()), waiting, events)
            return 0
        if kind == "at":
            worker.at, worker.since = said[0], time.monotonic()
        elif kind == "progress":
            events.progress(*said)
        elif kind == "error":
            message, plain, trace = said
            if plain:
                raise FactoryError(message)
            raise TaskFailed(f"{job.name}: {message}\n{trace}")
        else:
            worker.job = worker.at = None
            events.finished(job)
            return 1
        return 0

    def _overstepped(self, worker: Worker) -> str | None:
        if worker.process.poll() is not None and not worker.pipe.poll():
            # A child that it forked may hold the pipe open.
            return _how_it_ended(worker.process.returncode)
        held = worker.memory()
        if held > self.memory:
            return f"{TOO_MUCH} {self.memory >> 20} MiB (--memory)"
        if worker.at and time.monotonic() - worker.since > self.seconds:
            return f"no end after {self.seconds:g} s (--seconds)"
        return None

    def _lost(self, worker: Worker, why: str, waiting: deque[Job], events: Events) -> None:
        """A worker ended in the middle of a job: another gets it, with what was learnt."""
        job, at = worker.job, worker.at
        assert job is not None
        worker.kill()
        self.workers.remove(worker)
        if at is not None and at.end > at.start:
            job.suspicion.learn(at, why)
            if at.start in job.suspicion.condemned.get((at.step, at.batch), {}):
                events.notice(f"{job.name}: {why} at one document: it goes to failed/")
                job.starved += why.startswith(TOO_MUCH)
                if job.starved >= STARVED:
                    raise TaskFailed(f"{job.name}: {why}, at {STARVED} documents: it is the step: raise --memory")
        else:
            job.losses += 1
            if job.losses > 1:
                raise TaskFailed(f"{job.name}: {why}, twice, while it was not in a step")
        waiting.appendleft(job)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.stop()
        self.workers = []
        self.bench.close()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
