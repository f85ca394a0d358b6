"""A machine that bubblewrap makes for untrusted programs, and the steward that runs jobs in it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import marshal
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from factory.engine.errors import FactoryError
from factory.sandbox.inside.wire import HEADER, ROOM
from factory.sandbox.limits import Limits
from factory.sandbox.process import GRACE, NOBODY, Process
from factory.sandbox.seccomp import filter_program

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
"""All that a command finds in its environment, but for what its box adds."""
_OWN_CALLS = ("mount", "setns", "unshare", "capset")  # what a zygote does for a job, before it refuses that to it
_USERS = "root:x:0:0::/:/bin/sh\nbox:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n"
_GROUPS = "root:x:0:\nbox:x:1000:\nnogroup:x:65534:\n"
_INSIDE = ("wire", "memory", "landlock", "confine", "python", "steward")  # in the order in which they import each other
_COMPILE = """
import marshal, sys
sources = marshal.loads(sys.stdin.buffer.read())
code = [(name, compile(text, "<inside " + name + ">", "exec")) for name, text in sources]
sys.stdout.buffer.write(sys.base_prefix.encode() + b"\\0" + marshal.dumps(code))
"""
_START = """
import marshal, os, sys
for name, code in marshal.loads(os.pread({program}, 1 << 24, 0)):
    module = type(sys)("factory.sandbox.inside." + name)
    sys.modules[module.__name__] = module
    if name == "steward":
        sys.modules["factory.sandbox.inside"] = inside
    else:
        inside = type(sys)("inside") if name == "wire" else inside
        setattr(inside, name, module)
    exec(code, module.__dict__)
module.main({control}, {calls!r}, {zygote!r}, {scratch!r}, {readable!r})
"""


class _Program(NamedTuple):
    """The steward, compiled by the Python that will run it, in a file that has no name."""

    python: str
    prefix: str
    descriptor: int


def dropped() -> list[str]:
    """What goes before a command so that it does not run as root of this machine. FactoryError where nothing can."""
    if os.getuid() != 0:
        return []
    if not (setpriv := shutil.which("setpriv")):
        raise FactoryError("sandbox: root runs boxes as another user, through setpriv: apt-get install util-linux")
    return [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@functools.cache
def _program() -> _Program:
    sources = [(name, Path(__file__).with_name("inside").joinpath(f"{name}.py").read_text()) for name in _INSIDE]
    said = ""
    own = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    for python in ("/usr/bin/python3", "/usr/local/bin/python3", own):
        done = subprocess.run(
            [*dropped(), python, "-I", "-S", "-c", _COMPILE],
            input=marshal.dumps(sources, 2),
            capture_output=True,
            env={},
            cwd="/",
            check=False,
        )
        prefix, _, code = done.stdout.partition(b"\0")
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or said
        # One that lies where that user may not look starts all the same, with the library of another.
        if done.returncode == 0 and python.startswith(prefix.decode() + "/"):
            descriptor = os.memfd_create("steward", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(descriptor, code)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0xF)  # all boxes read it, and none may write it
            return _Program(python, prefix.decode(), descriptor)
    raise FactoryError(f"sandbox: no Python here that user {NOBODY} may run: apt-get install python3 ({said})")


def steward_python() -> str:
    """The Python that every box has: its path, outside and inside."""
    return _program().python


_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = ("/etc/alternatives", "/etc/ld.so.cache")


def _arguments(mounts: Sequence[str], files: int, zygote: bool) -> list[str]:
    """bubblewrap's options: the programs of the system and no more of it, read only, and empty writable folders."""
    options = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net"]
    options += ["--unshare-cgroup-try", "--as-pid-1", "--uid", "1000", "--gid", "1000", "--hostname", "box"]
    options += ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        if os.path.islink(name):
            options += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            options += ["--ro-bind", name, name]
    for name in _SETTINGS:
        options += ["--ro-bind-try", name, name]
    options += ["--proc", "/proc", "--size", str(1 << 16), "--tmpfs", "/dev"]
    for name in ("null", "zero", "full", "random", "urandom"):
        options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for k, name in enumerate(("stdin", "stdout", "stderr")):
        options += ["--symlink", f"/proc/self/fd/{k}", f"/dev/{name}"]
    options += ["--symlink", "/proc/self/fd", "/dev/fd"]
    if zygote:  # each job mounts a file system of its own at ROOM, and drops these rights
        options += ["--dir", ROOM, "--symlink", f"{ROOM}/shm", "/dev/shm"]
        options += ["--symlink", f"{ROOM}/work", "/work", "--symlink", f"{ROOM}/tmp", "/tmp"]
        options += ["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SYS_PTRACE"]
    else:
        for name in ("/work", "/tmp", "/dev/shm"):
            options += ["--size", str(files), "--tmpfs", name]
    for name in mounts:
        options += ["--ro-bind", name, name]
    return [*options, "--remount-ro", "/dev"]


def _pipe_of(data: bytes) -> int:
    """A descriptor from which a few bytes are read."""
    reader, writer = os.pipe()
    with open(writer, "wb") as file:
        file.write(data)
    return reader


class Machine:
    """Process 1 and its box, from start to end; a context manager. Box and PythonZygote say what runs in it.

    With `modules` the steward is a zygote that has imported them, and run `sources`. Isolation `degraded` has no box:
    the steward is a process like others, in a folder of its own.
    """

    def __init__(
        self,
        mounts: Sequence[str],
        environment: Mapping[str, str],
        limits: Limits,
        modules: Sequence[str] | None = None,
        sources: Mapping[str, str] = {},
        isolation: str = "bubblewrap",
    ) -> None:
        self.limits, self.isolation = limits, isolation
        self.environment = {**ENVIRONMENT, **environment}
        self._lock, self._said, self._why = threading.Lock(), b"", ""
        self.ended = False
        self._scratch = ""
        try:
            self._start(mounts, None if modules is None else (list(modules), list(sources.items())))
        except OSError as error:
            raise FactoryError(f"sandbox: a box cannot be started: {error}: see ulimit -a, and df of /tmp") from error

    def _start(self, mounts: Sequence[str], zygote: tuple[list[str], list[tuple[str, str]]] | None) -> None:
        """Start the steward; whether it works is seen when it takes a job."""
        program = _program()
        self._control, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends = [os.pipe() for _ in range(3)]
        self._status, self._errors = (open(end[0], "rb", buffering=0) for end in ends[:2])  # noqa: SIM115
        status, errors = ends[0][1], ends[1][1]
        data: list[int] = []
        visible = [*(() if program.prefix in ("/usr", "/usr/local") else (program.prefix,)), *mounts]
        calls, wrapped = None, dropped()
        if self.isolation == "degraded":
            self._scratch = tempfile.mkdtemp(prefix="factory-box-")
            if os.getuid() == 0:
                os.chown(self._scratch, NOBODY, NOBODY)
            calls = filter_program(only=_OWN_CALLS), filter_program(sockets=False)
            visible += ["/usr", *_SYSTEM, *_SETTINGS, "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/proc"]
        else:
            if not (bwrap := shutil.which("bwrap")):
                raise FactoryError("sandbox: bubblewrap is not here: apt-get install bubblewrap")
            data += [_pipe_of(_USERS.encode()), _pipe_of(_GROUPS.encode())]
            wrapped += [bwrap, *_arguments(visible, self.limits.files, zygote is not None)]
            wrapped += ["--file", str(data[0]), "/etc/passwd", "--file", str(data[1]), "/etc/group"]
            wrapped += ["--remount-ro", "/", "--json-status-fd", str(status)]
            if zygote:
                calls = filter_program(sockets=False, without=_OWN_CALLS), filter_program(only=_OWN_CALLS)
            else:
                data.append(_pipe_of(filter_program()))
                wrapped += ["--seccomp", str(data[-1])]
        start = _START.format(
            program=program.descriptor,
            control=inside.fileno(),
            calls=calls,
            zygote=zygote,
            scratch=self._scratch,
            readable=visible,
        )
        try:
            self._process = subprocess.Popen(
                [*wrapped, program.python, "-I", *([] if zygote else ["-S"]), "-c", start],
                # Not /dev/null: Python asks once, at its start, whether these can seek.
                stdin=ends[2][0],
                stdout=ends[2][1],
                stderr=errors,
                pass_fds=[inside.fileno(), status, program.descriptor, *data],
                env=self.environment if zygote else {},
                cwd="/",
                start_new_session=True,
            )
        finally:
            inside.close()
            for descriptor in (status, errors, *ends[2], *data):
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def job(
        self, kind: bytes, body: Any, limits: Limits | None, stdin: int | None = None, stdout: int | None = None
    ) -> Process:
        """Start a job: its header and descriptors to the steward, its body to its own process."""
        limits = limits or self.limits
        process = Process(self, limits, stdin, stdout)
        header = HEADER.pack(kind, limits.seconds, limits.memory, limits.processes, limits.files)
        try:
            socket.send_fds(self._control, [header], process.inside)
            process.started(marshal.dumps(body, 2))
        except OSError as error:  # it has ended, or ends: `communicate` says why
            process.broken = f"the box took no job ({error.strerror or error})"
        finally:
            process.detach()
        return process

    def broken(self) -> str:
        """End a box that does not work; what bubblewrap or the steward said."""
        with self._lock:
            if not self.ended:
                self.ended = True
                self._end()
                os.set_blocking(self._errors.fileno(), False)
                self._why = (self._errors.read(1 << 16) or b"").decode(errors="replace").strip()
            return self._why

    def close(self) -> None:
        """End the box and all that is in it; return when it is gone."""
        with self._lock:
            if not self._status.closed:
                self.ended = True
                self._control.close()
                self._end()
                self._status.close()
                self._errors.close()

    def _end(self) -> None:
        if self._scratch:  # the steward ends what it started and removes its folder
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
            self._process.kill()
            shutil.rmtree(self._scratch, ignore_errors=True)
        else:
            self._kill()
        self._process.wait()

    def _kill(self) -> None:
        """Kill the first process of the box, and so all others. Killing bubblewrap would leave them behind."""
        while b"\n" not in self._said and (piece := self._status.read(1 << 12)):  # it comes in pieces
            self._said += piece
        if b"\n" not in self._said:
            return
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(json.loads(self._said.partition(b"\n")[0])["child-pid"])
            if self._process.poll() is None:  # bubblewrap has not seen its end, so the number is still its own
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
