"""The tests' box from outside: see inside/court.py."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

from factory.sandbox.inside.court import SECONDS
from factory.sandbox.inside.peer import framed
from factory.sandbox.limits import Limits
from factory.sandbox.zygote import PythonZygote

TASKS = 1000
"""Tasks after which a court is closed: with it goes what their tests have left."""
FOREVER = 1e6
_COMMAND = ["-c", "from factory.sandbox.inside.court import main\nmain()\n"]


class Court:
    """Hears many tasks at once, in one room of a zygote."""

    def __init__(self, zygote: PythonZygote, limits: Limits, workers: int) -> None:
        """`limits` are those of each of `workers` tasks; together they may use so many times as much."""
        self.tasks = 0
        together = replace(
            limits, seconds=FOREVER, memory=limits.memory * workers, processes=limits.processes * workers
        )
        self._control, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with inside:
            self._process = zygote.start({}, _COMMAND, together, inside.fileno())

    def fit(self) -> bool:
        """Whether it may hear another task."""
        return self.tasks < TASKS

    def hear(self, body: bytes, program: socket.socket, seconds: float) -> socket.socket | None:
        """Hear a task whose program is behind a socket: the channel on which the verdict will come. None where the
        court has ended."""
        self.tasks += 1
        channel, inside = socket.socketpair()
        with inside:
            try:
                socket.send_fds(self._control, [SECONDS.pack(seconds)], [program.fileno(), inside.fileno()])
            except OSError:
                channel.close()
                self.tasks = TASKS
                return None
        channel.settimeout(seconds)
        with contextlib.suppress(OSError):  # its process has ended: that it says nothing tells
            channel.sendall(framed(body))
        return channel

    def close(self) -> None:
        """Take no further tasks; those that are heard are heard to their end."""
        self._control.close()

    def wait(self) -> None:
        """Until it has ended, after `close`."""
        self._process.kill()
        self._process.wait()


def verdict(channel: socket.socket) -> bytes:
    """What a court says on a channel, all of it; nothing where its process has ended, or did not in time."""
    parts = []
    with channel, contextlib.suppress(OSError):
        while part := channel.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)
