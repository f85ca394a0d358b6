"""Progress of long work: a bar with rate and time left; plain lines, now and then, where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

PLAIN_SECONDS = 10.0


def duration(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Progress of one pass: tasks done of all, rows and megabytes a second, time left by the weight of the tasks."""

    def __init__(
        self,
        title: str,
        tasks: int,
        weight: int,
        stream: TextIO | None = None,
        quiet: bool = False,
        brief: bool = False,
    ) -> None:
        """`quiet` shows nothing; `brief` leaves no line behind, for passes that are mostly over at once."""
        self.brief = brief
        self.title, self.tasks, self.weight = title, tasks, max(weight, 1)
        self.stream = stream or sys.stderr
        self.done = self.done_weight = self.rows = self.bytes = self.made = 0
        self.ratio = 1.0  # weight of a byte read, as finished tasks tell: so unfinished ones count too
        self.reached = 0.0
        self.begun = self.shown = time.monotonic()
        self.quiet = quiet
        self.bar: tqdm | None = None
        if not quiet and self.stream.isatty():
            if not brief:
                print(title, file=self.stream)
            bar_format = "{desc:>12} {percentage:3.0f}% {bar:20} {postfix}"
            desc = title.strip() if brief else ""
            self.bar = tqdm(total=self.weight, file=self.stream, desc=desc, leave=not brief, bar_format=bar_format)

    def start(self) -> None:
        """Rates and the time left count from here."""
        self.begun = self.shown = time.monotonic()

    def read(self, rows: int, size: int, made: int) -> None:
        self.rows += rows
        self.bytes += size
        self.made += made
        self._show()

    def finish_task(self, weight: int) -> None:
        self.done += 1
        self.done_weight += weight
        if self.bytes:
            self.ratio = self.done_weight / self.bytes
        self._show()

    def line(self) -> str:
        elapsed = max(time.monotonic() - self.begun, 1e-9)
        rate = f"{self.rows / elapsed:,.0f} rows/s, {self.bytes / elapsed / 1e6:,.1f} MB/s"
        if self.made:
            rate += f", {self.made:,} rows made"
        left = ""
        if self.reached and self.done < self.tasks:
            left = f", {duration(elapsed * (self.weight - self.reached) / self.reached)} left"
        elif self.done == self.tasks:
            left = f", {duration(elapsed)} in all"
        return (
            f"{self.done}/{self.tasks} shards, {rate}{left}" if self.rows else f"{self.done}/{self.tasks} tasks{left}"
        )

    def _show(self) -> None:
        estimate = max(self.done_weight, min(self.bytes * self.ratio, 0.99 * self.weight))
        self.reached = self.weight if self.done == self.tasks else max(self.reached, estimate)
        if self.bar is not None:
            self.bar.n = round(self.reached)
            self.bar.set_postfix_str(self.line())
        elif not self.quiet and time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.shown = time.monotonic()
            print(f"{self.title}: {self.line()}", file=self.stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(self.line())
            self.bar.close()
        elif not self.quiet and not self.brief:
            print(f"{self.title}: {self.line()}", file=self.stream, flush=True)
