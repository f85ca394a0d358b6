"""A box: one isolated machine for untrusted programs, made by bubblewrap, and the commands that run in it."""

from __future__ import annotations

import contextlib
import functools
import json
import marshal
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from factory.engine.errors import FactoryError
from factory.sandbox.limits import Limits
from factory.sandbox.seccomp import filter_program

Isolation = Literal["bubblewrap", "degraded"]
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
"""All that a command finds in its environment, and what its box adds."""
NOBODY = 65534
GRACE = 20.0
"""Seconds beyond its limit after which a box that has not reported is broken."""
_HEADER = struct.Struct("=cdqqq")
_REPORT = struct.Struct("=cidqd")
_STATUS = {b"e": "exited", b"t": "timeout", b"m": "memory", b"b": "sandbox_error"}
_PIECE = 1 << 16

Status = Literal["exited", "timeout", "memory", "output_limit", "sandbox_error"]


@dataclass(frozen=True)
class Execution:
    """One command, run to its end in a box."""

    status: Status
    """`timeout`, `memory` and `output_limit`: it was killed for it; `sandbox_error`: the box failed, not the command."""
    code: int | None
    """Exit code, negative for a signal; 127 where the command was not found."""
    stdout: bytes
    stderr: bytes
    seconds: float
    """Wall clock."""
    cpu_seconds: float
    memory: int
    """The most bytes that were seen in use."""
    detail: str = ""
    isolation: str = ""


@dataclass(frozen=True)
class _Program:
    """The steward, compiled by the Python that will run it."""

    python: str
    prefix: str
    descriptor: int


def dropped() -> list[str]:
    """What goes before a command so that it does not run as the root of this machine."""
    if os.getuid() != 0:
        return []
    if not (setpriv := shutil.which("setpriv")):
        raise FactoryError("sandbox: setpriv is not here, without which root cannot run boxes: install util-linux")
    return [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@functools.cache
def _program() -> _Program:
    source = Path(__file__).with_name("inside").joinpath("steward.py").read_bytes()
    compile_ = (
        "import marshal, sys; code = compile(sys.stdin.buffer.read(), 'steward', 'exec');"
        "sys.stdout.buffer.write(sys.base_prefix.encode() + b'\\0' + marshal.dumps(code))"
    )
    own = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    for python in (own, "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):  # not there, or not for the user who runs boxes
            command = [*dropped(), python, "-I", "-S", "-c", compile_]
            done = subprocess.run(command, input=source, capture_output=True, env={}, cwd="/", check=False)
            prefix, _, code = done.stdout.partition(b"\0")
            # One that lies where that user may not look starts all the same, with another's library.
            if done.returncode == 0 and python.startswith(prefix.decode() + "/"):
                descriptor = os.memfd_create("steward")
                os.write(descriptor, code)
                return _Program(python, prefix.decode(), descriptor)
    raise FactoryError(f"sandbox: no Python here that user {NOBODY} may run: apt-get install python3")


def _arguments(mounts: Sequence[str], files: int) -> list[str]:
    """bubblewrap's options: a machine that holds the system's programs, read only, and three empty writable folders."""
    options = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net"]
    options += ["--unshare-cgroup-try", "--as-pid-1", "--uid", "1000", "--gid", "1000", "--hostname", "box"]
    options += ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            options += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            options += ["--ro-bind", name, name]
    for name in ("/etc/alternatives", "/etc/ld.so.cache"):
        options += ["--ro-bind-try", name, name]
    for name in mounts:
        options += ["--ro-bind", name, name]
    options += ["--proc", "/proc", "--size", str(1 << 16), "--tmpfs", "/dev"]
    for name in ("null", "zero", "full", "random", "urandom"):
        options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for k, name in enumerate(("stdin", "stdout", "stderr")):
        options += ["--symlink", f"/proc/self/fd/{k}", f"/dev/{name}"]
    options += ["--symlink", "/proc/self/fd", "/dev/fd", "--dir", "/dev/shm", "--remount-ro", "/dev"]
    for name in ("/work", "/tmp", "/dev/shm"):
        options += ["--size", str(files), "--tmpfs", name]
    return [*options, "--remount-ro", "/", "--chdir", "/work"]


def _pipe_of(data: bytes) -> int:
    """A descriptor from which a few bytes are read."""
    reader, writer = os.pipe()
    with open(writer, "wb") as file:
        file.write(data)
    return reader


class Box:
    """One isolated machine: a writable /work, where commands start, /tmp and /dev/shm; no network; nothing of the host
    but its system's programs and `mounts`, read only. A context manager.

    `environment` is added to ENVIRONMENT. `limits` hold for commands that are given none; their `files` is the size of
    each writable file system of the box. Commands run one at a time; what a command leaves running is killed when it
    ends, what it leaves in files stays for the next.
    """

    def __init__(
        self,
        *,
        mounts: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        limits: Limits = Limits(),
        isolation: str | None = None,
    ) -> None:
        self.limits, self.environment = limits, {**ENVIRONMENT, **environment}
        self.isolation = require_isolation(isolation)
        program = _program()
        if not (bwrap := shutil.which("bwrap")):
            raise FactoryError("sandbox: bubblewrap is not here: apt-get install bubblewrap")
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = own
        self._status, status = os.pipe()
        self._errors, errors = os.pipe()
        seccomp = _pipe_of(filter_program())
        below = [] if program.prefix in ("/usr", "/usr/local") else [program.prefix]
        start = f"import os, marshal; exec(marshal.loads(os.pread({program.descriptor}, 1 << 24, 0)));main({theirs.fileno()})"
        command = [*dropped(), bwrap, *_arguments([*below, *mounts], limits.files)]
        command += ["--json-status-fd", str(status), "--seccomp", str(seccomp), program.python, "-I", "-S", "-c", start]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(theirs.fileno(), status, seccomp, program.descriptor),
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            theirs.close()
            for descriptor in (status, errors, seccomp):
                os.close(descriptor)

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, files: Mapping[str, bytes | str]) -> None:
        """Write files below /work, and the folders that they are in. FactoryError where the box has no room for them."""
        for name in files:
            if name.startswith("/") or ".." in name.split("/") or "\0" in name or not name.rpartition("/")[2]:
                raise FactoryError(f"sandbox: {name!r} is not the name of a file below /work")
        body = {name: data.encode() if isinstance(data, str) else bytes(data) for name, data in files.items()}
        done = self._job(b"w", body, self.limits).communicate()
        if done.detail:
            raise FactoryError(f"sandbox: cannot write {', '.join(files)} into the box: {done.detail}")

    def run(self, command: Sequence[str], stdin: bytes = b"", limits: Limits | None = None) -> Execution:
        """Run a command to its end."""
        return self.start(command, limits).communicate(stdin)

    def start(self, command: Sequence[str], limits: Limits | None = None) -> Process:
        """Start a command and talk to it."""
        return self._job(b"r", (list(command), self.environment), limits or self.limits)

    def _job(self, kind: bytes, body: object, limits: Limits) -> Process:
        own, channel = socket.socketpair()
        own.settimeout(GRACE)
        pipes = [os.pipe() for _ in range(3)]
        inside = [pipes[0][0], pipes[1][1], pipes[2][1]]
        process = Process(self, own, pipes[0][1], pipes[1][0], pipes[2][0], limits)
        header = _HEADER.pack(kind, limits.seconds, limits.memory, limits.processes, limits.files)
        data = marshal.dumps(body, 2)
        try:
            socket.send_fds(self._control, [header], [channel.fileno(), *inside])
            channel.close()
            own.sendall(len(data).to_bytes(8, "little") + data)
        except OSError as error:  # it has ended: `communicate` says why
            process.broken = f"the box took no command ({error})"
        finally:
            channel.close()
            for descriptor in inside:
                os.close(descriptor)
        return process

    def _why(self) -> str:
        """What bubblewrap or the steward said before it ended."""
        os.set_blocking(self._errors, False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self._errors, _PIECE).decode(errors="replace").strip()
        return ""

    def kill(self) -> None:
        """End the first process of the box, and with it all others."""
        said = b""
        while b"\n" not in said and (piece := os.read(self._status, _PIECE)):
            said += piece
        if said and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(json.loads(said.partition(b"\n")[0])["child-pid"])
                try:
                    if self._process.poll() is None:  # so it was the box's process that was opened
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)

    def close(self) -> None:
        """End the box and all that is in it; return when it is gone."""
        if self._control.fileno() < 0:
            return
        self._control.close()
        self.kill()
        self._process.wait()
        os.close(self._status)
        os.close(self._errors)


@dataclass
class Process:
    """A command that runs in a box. `stdin` and `stdout` are unbuffered pipes; its standard error is kept for `wait`."""

    box: Box
    channel: socket.socket
    _stdin: int
    _stdout: int
    _stderr: int
    limits: Limits
    broken: str = ""
    stdin: IO[bytes] = field(init=False)
    stdout: IO[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.stdin, self.stdout = open(self._stdin, "wb", buffering=0), open(self._stdout, "rb", buffering=0)
        self._over = ""

    def kill(self) -> None:
        """End it; `wait` tells how it ended."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def wait(self) -> Execution:
        """Close its standard input, read what is left of its output, and wait until it has ended."""
        return self.communicate()

    def communicate(self, stdin: bytes = b"") -> Execution:
        """Give it this input, read its output, and wait until it has ended."""
        began = time.monotonic()
        deadline = began + self.limits.seconds + GRACE
        read = {self._stdout: bytearray(), self._stderr: bytearray()}
        said, left = bytearray(), memoryview(stdin)
        poll = select.poll()
        over = False
        for descriptor in read:
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        channel = self.channel.fileno()
        self.channel.setblocking(False)
        poll.register(channel, select.POLLIN)
        if left and not self.stdin.closed:
            os.set_blocking(self._stdin, False)
            poll.register(self._stdin, select.POLLOUT)
        else:
            self.stdin.close()
        ended = False
        while not ended and time.monotonic() < deadline:
            for descriptor, _ in poll.poll(1000):
                if descriptor == channel:
                    try:
                        piece = self.channel.recv(_PIECE)
                    except OSError:  # it never took what was sent
                        piece = b""
                    said += piece
                    ended = not piece
                elif descriptor == self._stdin:
                    try:
                        left = left[os.write(descriptor, left[:_PIECE]) :]
                    except OSError:  # it reads no more
                        left = left[:0]
                    if not left:
                        poll.unregister(descriptor)
                        self.stdin.close()
                else:
                    over = self._take(descriptor, read[descriptor], poll) or over
        for descriptor in read:  # its processes have ended: what is in the pipes is all
            while not over and (before := len(read[descriptor])) >= 0:
                over = self._take(descriptor, read[descriptor], None)
                if len(read[descriptor]) == before:
                    break
        self.channel.close()
        self.stdin.close()
        self.stdout.close()
        os.close(self._stderr)
        outputs = [bytes(data[: self.limits.output]) for data in read.values()]
        if len(said) < _REPORT.size:
            self.box.kill()
            why = self.broken or ("the box did not answer" if not ended else "the box ended")
            why = f"{why}: {self.box._why()}"
            return Execution("sandbox_error", None, *outputs, time.monotonic() - began, 0.0, 0, why, self.box.isolation)
        tag, code, seconds, memory, cpu = _REPORT.unpack(said[-_REPORT.size :])
        detail = said[: -_REPORT.size].decode(errors="replace")
        status: str = _STATUS[tag]
        if detail:
            status = "sandbox_error"
        elif over and status == "exited":
            status = "output_limit"
        return Execution(status, code, *outputs, seconds, cpu, memory, detail, self.box.isolation)  # type: ignore[arg-type]

    def _take(self, descriptor: int, data: bytearray, poll: select.poll | None) -> bool:
        """Read what is there; whether that is more than it may say, for which it is killed."""
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return False
        data += piece
        if not piece and poll:
            poll.unregister(descriptor)
        if len(data) <= self.limits.output:
            return False
        if poll:
            poll.unregister(descriptor)
        self.kill()
        return True


def require_isolation(choice: str | None) -> Isolation:
    """The isolation to use: bubblewrap, unless `degraded` is chosen. FactoryError where it does not work here."""
    return "bubblewrap"
