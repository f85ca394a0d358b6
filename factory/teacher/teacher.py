"""The teacher: requests in, answers out, in order; each is looked up, asked at most once, kept, and paid for.

The thread that asks takes requests, looks them up and puts asks out. The engine runs in a thread of the teacher's,
which keeps each answer as it comes, whatever the asker is doing meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from factory.engine.errors import FactoryError
from factory.teacher.budget import POLL, Budget, Ledger, Spent, Use, sum_of
from factory.teacher.cache import Cache, Sample, key_of
from factory.teacher.engine import Ask, Asks, Engine
from factory.teacher.reply import CUT
from factory.teacher.request import Failed, Request, Response

WINDOW = 4096
"""Requests that are taken and not given back yet, at most: one slow answer holds up so many. At least twice what the
engine has in flight."""
CHUNK = 1024
"""Requests that are taken, looked up and sorted at once, at most."""


AHEAD = 64
"""Requests that wait for the engine under a budget, at most: where a worker is killed they count as spent."""


class Run:
    """One call of `ask`: what it has taken, in order, and what it has to send."""

    def __init__(self) -> None:
        self.order: deque[Slot] = deque()
        self.again: list[Slot] = []
        """Waited for the same request with fewer samples, which are there now."""
        self.to_send: dict[Slot, None] = {}
        """In order: of equal requests one. What another asker has sent is not sent, but stays until it is answered."""
        self.in_flight = 0
        self.spent: Spent | None = None


class Slot:
    """A request with what is known of it so far."""

    __slots__ = ("answer", "held", "key", "known", "request", "run", "sent")

    def __init__(self, run: Run, request: Request, key: bytes) -> None:
        self.run, self.request, self.key = run, request, key
        self.known: list[Sample] = []
        self.held = Use()
        self.sent = False
        self.answer: Response | Failed | None = None

    def settle(self, cached: bool) -> bool:
        """Make the answer of what is known; False where that is not enough."""
        n = self.request.sampling.n
        if len(self.known) < n:
            return False
        first = self.known[0]
        self.answer = Response(
            choices=tuple(sample.choice for sample in self.known[:n]),
            prompt_tokens=first.prompt_tokens,
            model=first.model,
            fingerprint=first.fingerprint,
            cached=cached,
        )
        return True


class Teacher:
    """Asks an engine. A context manager; safe in threads.

    `cache` is a folder of this machine where every answer is kept, shared by all workers; None keeps none. `budget`
    limits what is asked. FactoryError where the engine cannot be used (a wrong key, a server that stays away), or the
    budget is spent: what was answered is in the cache, and the same run goes on from there.
    """

    def __init__(
        self, engine: Engine, *, cache: str | None, budget: Budget | None = None, window: int = WINDOW
    ) -> None:
        if window < 1:
            raise FactoryError(f"window = {window}: give at least 1")
        self.engine, self.window = engine, window
        self.cache = Cache(cache)
        self.ledger = Ledger(self.cache, budget or Budget())
        self._asks = Asks()
        self._changed = threading.Condition()
        self._asked: dict[bytes, list[Slot]] = {}
        """By key: those that wait for the same, of which one at most is sent."""
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._broken: BaseException | None = None

    @property
    def identity(self) -> str:
        """Of the model."""
        return self.engine.identity

    @property
    def spent(self) -> Use:
        """What was spent under the budget's name with this cache, by all workers, ever."""
        return self.ledger.spent()

    def ask(self, requests: Iterable[Request]) -> Iterator[Response | Failed]:
        """The answers in the order of the requests, which are taken lazily, `window` at a time at most.

        Equal requests that are under way at once are asked once. Requests are sent in the order of their texts within
        each 1,024, so that those which begin alike reach the server together.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a Teacher has threads and files: make it in the process that asks")
        run, source, more, taken, given = Run(), iter(requests), True, 0, 0
        chunk = max(1, min(CHUNK, self.window // 4))
        try:
            while True:
                while more and len(run.order) + chunk <= self.window:
                    slots = [Slot(run, request, key_of(self.identity, request)) for request in islice(source, chunk)]
                    more, taken = len(slots) == chunk, taken + len(slots)
                    run.order += slots
                    self._look_up(sorted(slots, key=text_of))
                    self._send(run)
                if not run.order:
                    return
                if run.order[0].answer is None:
                    self._wait(run, taken, given)
                while run.order and (answer := run.order[0].answer) is not None:
                    run.order.popleft()
                    given += 1
                    yield answer
                    if more and len(run.order) + chunk <= self.window:
                        break
        finally:
            self._forget(run)

    def _look_up(self, slots: Sequence[Slot]) -> None:
        """Answer from the cache what it knows; of the rest, the first of each request may be sent."""
        mine = []
        with self._changed:
            for slot in slots:
                same = self._asked.setdefault(slot.key, [])
                if not any(other.run is slot.run for other in same):
                    mine.append(slot)
                same.append(slot)
        found = self.cache.get([(slot.key, slot.request.sampling.n) for slot in mine])
        with self._changed:
            for slot, known in zip(mine, found, strict=True):
                if slot not in self._asked.get(slot.key, ()):  # another's answer came meanwhile
                    continue
                slot.known = max(slot.known, known, key=len)
                if not self._under_way(slot) and slot.settle(cached=True):
                    self._release(slot)
                else:
                    slot.run.to_send[slot] = None

    def _under_way(self, slot: Slot) -> bool:
        """Whether the same is being asked."""
        return any(other.sent for other in self._asked[slot.key])

    def _release(self, slot: Slot) -> None:
        """A slot has its answer: those that wait for the same have it too, or ask for the samples that lack."""
        for other in self._asked.pop(slot.key):
            other.run.to_send.pop(other, None)
            if other is slot:
                continue
            if isinstance(slot.answer, Failed):
                other.answer = Failed(slot.answer.error, other.request)
            else:
                other.known = slot.known
                if not other.settle(cached=True):
                    other.run.again.append(other)

    def _send(self, run: Run) -> float:
        """Put out what may be sent now; returns the seconds after which to try again, 0 where nothing can be."""
        with self._changed:
            again, run.again = run.again, []
        self._look_up(again)
        while run.spent is None:
            with self._changed:
                if (room := AHEAD - len(self._asks) if self.ledger.limited else CHUNK) <= 0:
                    return POLL
                free = (slot for slot in run.to_send if not self._under_way(slot))
                batch = [Ask(slot.request, len(slot.known), slot) for slot in islice(free, room)]
                if not batch:
                    break
                try:
                    granted, wait = self.ledger.reserve(batch)
                except Spent as error:
                    run.spent = error
                    break
                for ask, held in zip(batch, granted, strict=False):
                    ask.slot.held, ask.slot.sent = held, True
                    del run.to_send[ask.slot]
                run.in_flight += len(granted)
            self._start()
            self._asks.put(batch[: len(granted)])
            if len(granted) < len(batch):
                return wait
        return 0.0

    def _wait(self, run: Run, taken: int, given: int) -> None:
        """Until the first request in order is answered, sending what may be sent meanwhile."""
        head = run.order[0]
        while head.answer is None:
            wait = self._send(run)
            with self._changed:
                if self._broken is not None:
                    raise self._broken
                if head.answer is not None:
                    return
                if run.spent is not None and not run.in_flight and not run.again:
                    raise FactoryError(
                        f"{run.spent}. {given + sum(slot.answer is not None for slot in run.order):,} of the first "
                        f"{taken:,} requests are answered"
                        + (f" and kept in {self.cache.folder}" if self.cache.folder else "")
                        + ": raise the limit, or give the budget a new name, and run again to go on"
                    )
                if not run.again:
                    self._changed.wait(wait or None)

    def _start(self) -> None:
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._pump, name="teacher", daemon=True)
                self._thread.start()

    def _pump(self) -> None:
        """The engine's thread."""
        broken: BaseException = RuntimeError("the engine has ended")
        try:
            self.engine.answer(self._asks, self._done)
        except BaseException as error:
            broken = error
        self._break(broken)

    def _break(self, error: BaseException) -> None:
        with self._changed:
            self._broken = error
            self._changed.notify_all()

    def _done(self, answers: Sequence[tuple[Ask, Response | Failed]]) -> None:
        """Keep what came, count what it took, and tell those who wait."""
        made: list[tuple[Ask, list[Sample]]] = []
        taken: list[Use] = []
        answers = [(ask, _whole(ask, answer)) for ask, answer in answers]
        for ask, answer in answers:
            if isinstance(answer, Failed):
                taken.append(Use(requests=1))
                continue
            if len(answer.choices) != ask.count:
                raise RuntimeError(f"{len(answer.choices)} samples for a request of {ask.count}")
            of = (answer.prompt_tokens, answer.model, answer.fingerprint)
            made.append((ask, [Sample(choice, *of) for choice in answer.choices]))
            tokens = sum(choice.tokens for choice in answer.choices)
            guess = ask.slot.held  # where a server does not say
            prompt, completion = answer.prompt_tokens or guess.prompt_tokens, tokens or guess.completion_tokens
            taken.append(Use(1, ask.count, prompt, completion))
        held = sum_of([ask.slot.held for ask, _ in answers])

        def settle(db: sqlite3.Connection) -> None:
            self.ledger.settle(db, sum_of(taken), held)

        kept = self.cache.put([(ask.slot.key, ask.first, samples) for ask, samples in made], settle)
        with self._changed:
            for ask, _ in answers:
                ask.slot.run.in_flight -= 1
            for (ask, _), samples in zip(made, kept, strict=True):
                ask.slot.known = [*ask.slot.known, *samples]
                ask.slot.settle(cached=False)
                self._release(ask.slot)
            for ask, answer in answers:
                if isinstance(answer, Failed):
                    ask.slot.answer = answer
                    self._release(ask.slot)
            self._changed.notify_all()

    def _forget(self, run: Run) -> None:
        """The asker has ended. What was sent is still answered and kept; what was not is no longer wanted."""
        with self._changed:
            for slot in run.order:
                same = self._asked.get(slot.key, [])
                if slot in same and not slot.sent:
                    same.remove(slot)
                    if not same:
                        del self._asked[slot.key]

    def close(self) -> None:
        """Give up what is in flight (it counts as spent), and let go of engine and cache."""
        unsent = self._asks.close()
        if self._thread is not None:
            self._thread.join()
        self.engine.close()
        self.ledger.close(sum_of([ask.slot.held for ask in unsent]))
        self.cache.close()

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole(ask: Ask, answer: Response | Failed) -> Response | Failed:
    """A text that the engine could not finish is no answer."""
    reasons = [] if isinstance(answer, Failed) else [choice.finish_reason for choice in answer.choices]
    if cut := [reason for reason in reasons if reason in CUT]:
        return Failed(f"the engine gave up (finish_reason {cut[0]})", ask.request)
    return answer


def text_of(slot: Slot) -> tuple[str, ...]:
    """What requests are sorted by: the texts from their beginning, as a prefix cache compares them."""
    request = slot.request
    return (request.prompt, *(text for message in request.messages for text in message))
