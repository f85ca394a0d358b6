"""The tests' box: a process for each task's tests, forked from one that has all loaded.

Runs as a program of the zygote, in a room that the tests of many tasks share: tests of one task could disturb those of
another, and programs are in another box and can do nothing here. Outside speaks over a socket of packets: each brings
two descriptors, the socket to the program's box, and a channel, on which the task comes and the verdict goes. A process
that ends without one says nothing, and outside runs those tests again in a room of their own.
"""

from __future__ import annotations

import _signal
import _socket
import gc
import os
import struct

from factory.sandbox.inside import confine
from factory.sandbox.inside.driver import judge
from factory.sandbox.inside.literals import literal, parse
from factory.sandbox.inside.peer import receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

SECONDS = struct.Struct("=d")
"""What a packet says: the seconds that the tests may take."""


def main() -> None:
    """Until outside has gone, and then until the last process has ended."""
    control = _socket.socket(fileno=os.dup(0))
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    confine.dumpable(False)  # they may not look into each other
    gc.disable()
    gc.freeze()
    while True:
        packet, ancillary, _, _ = control.recvmsg(SECONDS.size, _socket.CMSG_SPACE(8))
        if not packet:
            break
        program, channel = struct.unpack("2i", ancillary[0][2])
        pid = os.fork()
        if not pid:
            control.close()
            _hear(program, channel, SECONDS.unpack(packet)[0])
        os.close(program)
        os.close(channel)
        _reap(os.WNOHANG)
    _reap(0)
    os._exit(0)


def _reap(options: int) -> None:
    """Forget the processes that have ended."""
    try:
        while os.waitpid(-1, options)[0]:
            pass
    except ChildProcessError:
        pass


def _hear(program: int, channel: int, seconds: float) -> NoReturn:
    """In the process of a task: run its tests."""
    try:
        _signal.setitimer(_signal.ITIMER_REAL, seconds)
        folder = str(os.getpid())  # below the court's own, wherever that lies
        os.mkdir(folder)
        os.chdir(folder)
        os.dup2(program, 0)
        os.close(program)
        gc.enable()
        task = parse(receive(channel))
        nonce = task.pop("nonce")
        message = nonce + literal(judge(0, task))
        while message:
            message = message[os.write(channel, message) :]
    finally:
        os._exit(0)  # whatever threads the tests have left
