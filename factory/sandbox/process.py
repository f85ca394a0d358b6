"""A command that runs in a box: what goes in, what comes out, and how it ended."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal, cast

from factory.sandbox.inside.wire import REPORT, STATUSES
from factory.sandbox.limits import Limits

if TYPE_CHECKING:
    from factory.sandbox.machine import Machine

NOBODY = 65534
"""The user that runs boxes where we are root."""
GRACE = 20.0
"""Seconds beyond its limit after which a box that has not reported is broken."""
_PIECE = 1 << 16

Status = Literal["exited", "timeout", "memory", "output_limit", "sandbox_error"]


@dataclass(frozen=True)
class Execution:
    """One command, run to its end in a box."""

    status: Status
    """`timeout`, `memory`, `output_limit`: killed for it; `sandbox_error`: the box failed, and not the command."""
    code: int | None
    """Exit code, negative for a signal; 127 where the command was not found, 126 where it cannot be run."""
    stdout: bytes = b""
    stderr: bytes = b""
    seconds: float = 0.0
    """Wall clock."""
    cpu_seconds: float = 0.0
    memory: int = 0
    """The most bytes that were seen in use."""
    detail: str = ""
    """What went wrong with the box."""
    isolation: str = ""


class _Output:
    """What a pipe said, up to its limit."""

    def __init__(self, descriptor: int, limit: int) -> None:
        self.descriptor, self.limit, self.data, self.ended = descriptor, limit, bytearray(), False
        os.set_blocking(descriptor, False)

    def take(self) -> bool:
        """Read a piece; False where there is none now, or never will be."""
        try:
            piece = os.read(self.descriptor, _PIECE)
        except BlockingIOError:
            return False
        self.data += piece
        self.ended = not piece
        return bool(piece)

    @property
    def over(self) -> bool:
        return len(self.data) > self.limit


class Process:
    """A command that runs in a box.

    `stdin` and `stdout` are unbuffered pipes, or None where the caller gave a descriptor of its own. The standard error
    is kept for `wait`; one that nobody waits for stops the command after some 64 KiB. Not for several threads at once.
    """

    def __init__(self, machine: Machine, limits: Limits, stdin: int | None, stdout: int | None) -> None:
        self._machine, self.limits, self.broken = machine, limits, ""
        self._channel, self.channel_inside = socket.socketpair()
        self._channel.settimeout(GRACE)
        self._opened: list[int] = []
        self._execution: Execution | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        try:
            self._open(stdin, stdout)
        except OSError:  # no descriptor is left: those that it has go back
            self.detach()
            raise

    def _open(self, stdin: int | None, stdout: int | None) -> None:
        """Its pipes."""
        if stdin is None:
            stdin, outside = os.pipe()
            self._opened.append(stdin)
            self.stdin = open(outside, "wb", buffering=0)  # noqa: SIM115
        if stdout is None:
            outside, stdout = os.pipe()
            self._opened.append(stdout)
            self.stdout = open(outside, "rb", buffering=0)  # noqa: SIM115
        outside, stderr = os.pipe()
        self._opened.append(stderr)
        self._stderr = open(outside, "rb", buffering=0)  # noqa: SIM115
        self.inside = (self.channel_inside.fileno(), stdin, stdout, stderr)
        if os.getuid() == 0:  # so that the command may open /dev/stdin and the others by their names
            for descriptor in self._opened:
                os.fchown(descriptor, NOBODY, NOBODY)

    def started(self, body: bytes) -> None:
        """The steward has the descriptors: close ours of them, and send it the body."""
        self.detach()
        self._channel.sendall(len(body).to_bytes(8, "little") + body)

    def detach(self) -> None:
        """Close what belongs inside."""
        self.channel_inside.close()
        while self._opened:
            os.close(self._opened.pop())

    def kill(self) -> None:
        """End it; `wait` tells how it ended."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def wait(self) -> Execution:
        """Close its standard input, read what is left of its output, and wait until it has ended."""
        return self.communicate()

    def communicate(self, stdin: bytes = b"") -> Execution:
        """Give it this input, read its output, and wait until it has ended; asked again, the same answer."""
        if not self._execution:
            self._execution = self._end(stdin)
        return self._execution

    def _end(self, stdin: bytes) -> Execution:
        began = time.monotonic()
        out = None
        if self.stdout and not self.stdout.closed:
            out = _Output(self.stdout.fileno(), self.limits.output)
        err = _Output(self._stderr.fileno(), self.limits.output)
        said = self._exchange(memoryview(stdin), [output for output in (out, err) if output])
        over = bool(out and out.over) or err.over
        for pipe in (self._channel, self.stdin, self.stdout, self._stderr):
            if pipe:
                pipe.close()
        texts = bytes(out.data[: out.limit]) if out else b"", bytes(err.data[: err.limit])
        isolation = self._machine.isolation
        if len(said) < REPORT.size:
            why = f"{self.broken or 'the box gave no report'}: {self._machine.broken()}"
            return Execution("sandbox_error", None, *texts, time.monotonic() - began, detail=why, isolation=isolation)
        tag, code, seconds, memory, cpu = REPORT.unpack(said[-REPORT.size :])
        detail = said[: -REPORT.size].decode(errors="replace")
        status = "sandbox_error" if detail else STATUSES[tag]
        if over and status == "exited":
            status = "output_limit"
        return Execution(cast(Status, status), code, *texts, seconds, cpu, memory, detail, isolation)

    def _exchange(self, left: memoryview, outputs: list[_Output]) -> bytes:
        """Feed and read the pipes until the report has come; what the channel said."""
        said = bytearray()
        deadline = time.monotonic() + self.limits.seconds + GRACE
        poll = select.poll()
        reading = {output.descriptor: output for output in outputs}
        for descriptor in reading:
            poll.register(descriptor, select.POLLIN)
        channel = self._channel.fileno()
        self._channel.setblocking(False)
        poll.register(channel, select.POLLIN)
        writing = -1
        if self.stdin and not self.stdin.closed:
            if left:
                writing = self.stdin.fileno()
                os.set_blocking(writing, False)
                poll.register(writing, select.POLLOUT)
            else:
                self.stdin.close()
        while time.monotonic() < deadline:
            for descriptor, _ in poll.poll(1000):
                if descriptor == writing and self.stdin:
                    try:
                        left = left[os.write(descriptor, left[:_PIECE]) :]
                    except BlockingIOError:
                        continue
                    except OSError:  # it reads no more
                        left = left[:0]
                    if not left:
                        poll.unregister(descriptor)
                        self.stdin.close()
                elif descriptor in reading:
                    output = reading[descriptor]
                    output.take()
                    if output.ended or output.over:
                        poll.unregister(descriptor)
                    if output.over:
                        self.kill()
                elif descriptor == channel:
                    try:
                        piece = self._channel.recv(_PIECE)
                    except OSError:  # the box ended, and had not read all that was sent
                        piece = b""
                    said += piece
                    if not piece:  # nobody writes to the pipes any more: all is in them
                        for output in outputs:
                            while not output.over and not output.ended and output.take():
                                pass
                        return bytes(said)
        return b""
