"""The first process of a box: it takes jobs from outside, runs them, and reports how they ended.

It runs under whatever Python 3.9 or newer is inside, without the factory's other modules: machine.py sends these.
Outside speaks to it over one socket of packets. Each packet starts a job: its header, and four descriptors, the job's
channel and its standard input, output and error. The channel carries the job's body in, which the job's own process
reads, and out of it an error text if the job could not start, and the report. When the other end of the channel is
shut the job is killed; when the socket is, the box ends, and with process 1 all that is in it.

What runs here cannot forge a report: the descriptors close on exec, process 1 ignores signals from inside its
namespace, and it is not dumpable, so that its memory and descriptors cannot be opened.
"""

from __future__ import annotations

import _signal
import _socket
import marshal
import os
import resource
import select
import struct
import time
from typing import Any, NoReturn

from factory.sandbox.inside import confine, landlock, memory
from factory.sandbox.inside.wire import BROKEN, EXITED, HEADER, MEMORY, PYTHON, REPORT, ROOM, TIMEOUT, WRITE

_LOOK = 0.02  # seconds between two looks at the memory of a job
_NEVER = float("inf")
_DESCRIPTORS = 1 << 20  # beyond the numbers that a process may come with, whatever its limit is now
_WORK = "/work"
_WRITABLE = [_WORK, "/tmp", "/dev/shm"]


class Job:
    """One command, from its packet to its report."""

    def __init__(self, channel: _socket.socket, header: bytes, work: str) -> None:
        self.channel, self.work = channel, work
        self.kind, self.seconds, self.memory, self.processes, self.files = HEADER.unpack(header)
        self.status, self.peak, self.pid, self.pidfd = EXITED, 0, 0, -1
        self.started = time.monotonic()
        self.deadline, self.next_look = self.started + self.seconds, self.started + _LOOK

    def end(self, status: bytes) -> None:
        """Kill it, for a reason."""
        if self.deadline < _NEVER:
            self.status = status
            self.deadline = self.next_look = _NEVER
            for pid in [str(self.pid)] if self.work == _WORK else memory.below(self.pid):
                _kill(int(pid))

    def look(self) -> None:
        """Its memory, against its limit."""
        began = time.monotonic()
        boxed = self.work == _WORK
        pids = memory.everyone() if boxed and self.kind != PYTHON else memory.below(self.pid)
        held = memory.in_sockets(pids, boxed and self.kind != PYTHON)
        if boxed:
            held += memory.in_room(pids, ROOM, self.files) if self.kind == PYTHON else memory.in_files(_WRITABLE)
        if not (now_used := memory.used(pids, self.memory - held)):  # it has ended
            return
        now_used += held
        self.peak = max(self.peak, now_used)
        now = time.monotonic()
        self.next_look = now + max(_LOOK, 10 * (now - began))  # a look at much memory takes long
        if now_used > self.memory:
            self.end(MEMORY)

    def report(self, code: int, peak: int, cpu: float) -> None:
        try:
            took = time.monotonic() - self.started
            self.channel.sendall(REPORT.pack(self.status, code, took, max(self.peak, peak), cpu))
        except OSError:  # nobody waits for it any more
            pass
        self.channel.close()


class Steward:
    """The loop of process 1. With `zygote` it runs Python programs, many at once, each in a room of its own; without,
    commands in the box, one at a time.

    With `scratch` there is no box: it is a process like others, jobs work in folders below `scratch`, and of the files
    of the machine they may read those in `readable` only.
    """

    def __init__(
        self, control: int, zygote: bool, calls: confine.Filter | None, scratch: str, readable: list[str]
    ) -> None:
        self.control = _socket.socket(fileno=control)
        self.zygote, self.calls, self.scratch, self.readable = zygote, calls, scratch, readable
        self.own = os.open("/proc/self/ns/pid", os.O_RDONLY) if zygote and not scratch else -1
        self.started = 0
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self.jobs: dict[int, Job] = {}
        """By the descriptor of the process, and of the channel."""

    def loop(self) -> None:
        """Until outside has gone."""
        while True:
            due = _NEVER
            now = time.monotonic()
            for job in self.jobs.values():
                if now >= job.deadline:
                    job.end(TIMEOUT)
                elif now >= job.next_look:
                    job.look()
                due = min(due, job.deadline, job.next_look)
            wait = None if due == _NEVER else max(0.0, due - time.monotonic()) * 1000 + 1
            # In the order in which they were registered: what is accepted cannot get the number of what ends in the
            # same round.
            for descriptor, _ in self.poll.poll(wait):
                if descriptor == self.control.fileno():
                    if not self.accept():
                        return
                elif job := self.jobs.get(descriptor):  # type: ignore[assignment]
                    if descriptor == job.pidfd:
                        self.ended(job)
                    else:  # outside gave up
                        job.end(EXITED)
                        self.poll.unregister(self.jobs.pop(descriptor).channel)

    def accept(self) -> bool:
        """Start a job; False where outside has gone."""
        space = _socket.CMSG_SPACE(16)
        header, ancillary, _, _ = self.control.recvmsg(HEADER.size, space, _socket.MSG_CMSG_CLOEXEC)
        if not header:
            return False
        channel, *standard = struct.unpack("4i", ancillary[0][2])
        self.started += 1
        work = f"{self.scratch}/{self.started if self.zygote else 0}" if self.scratch else _WORK
        job = Job(_socket.socket(fileno=channel), header, work)
        try:
            if self.scratch:
                os.makedirs(work, exist_ok=True)
            elif self.zygote:
                confine.new_processes(self.own)
            job.pid = os.fork()
        except OSError as error:
            job.channel.sendall(f"cannot start a process: {error}".encode())
            job.status = BROKEN
            job.report(0, 0, 0.0)
            return True
        finally:
            if job.pid or job.status == BROKEN:
                for descriptor in standard:
                    os.close(descriptor)
        if not job.pid:
            self.become(job, standard)
        job.pidfd = os.pidfd_open(job.pid)
        self.jobs[job.pidfd] = self.jobs[channel] = job
        self.poll.register(job.pidfd, select.POLLIN)
        self.poll.register(channel, select.POLLHUP | select.POLLRDHUP)
        return True

    def ended(self, job: Job) -> None:
        """Its process has ended: end what it left, and report."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _, status, usage = os.wait4(job.pid, 0)
        if self.scratch:
            self.sweep({other.pid for other in self.jobs.values()} - {job.pid})
            if self.zygote:
                _remove(job.work)
        elif not self.zygote:  # in a room, the kernel ends all with the first process
            _end_all()
            for path in _WRITABLE:  # which a command may have closed to the next
                os.chmod(path, 0o755)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        del self.jobs[job.pidfd]
        self.poll.unregister(job.pidfd)
        os.close(job.pidfd)
        if self.jobs.pop(job.channel.fileno(), None):
            self.poll.unregister(job.channel)
        job.report(os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10, cpu)

    def sweep(self, spared: set[int]) -> None:
        """Without a box: end all that comes from this process, but for jobs that still run."""
        while left := memory.below(os.getpid(), spared)[1:]:
            for pid in left:
                _kill(int(pid))
            for pid in left:
                try:
                    os.waitpid(int(pid), os.WNOHANG)
                except ChildProcessError:  # another's child, still
                    pass

    def become(self, job: Job, standard: list[int]) -> NoReturn:
        """In the new process of a job: do it."""
        try:
            if self.zygote:
                private = {job.channel.fileno(), *standard}
                for descriptor in (self.own, self.control.fileno(), *self.jobs):
                    if descriptor >= 0 and descriptor not in private:
                        os.close(descriptor)
                if not self.scratch:
                    confine.room(job.files)
            body = _receive(job.channel)
            if job.kind == WRITE:
                _write(job.work, body)
                os._exit(0)
            for number, descriptor in enumerate(standard):
                os.dup2(descriptor, number)
            os.chdir(job.work)
            if job.kind == PYTHON:
                self.python(job, *body)
            command, environment = body
            os.setsid()
            for signal in (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ):
                _signal.signal(signal, _signal.SIG_DFL)
            confine.limit(job.seconds, job.memory, job.processes + 1, job.files)  # the steward counts
            environment.update(self.confined(job))
            if self.calls:
                self.calls.install()
        except BaseException as error:
            try:
                job.channel.sendall(f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(1)
        _execute(command, environment)

    def confined(self, job: Job) -> dict[str, str]:
        """Without a box: restrict this process to its folder; what changes in the environment."""
        if not self.scratch:
            return {}
        landlock.restrict(self.readable, [job.work, "/dev/null"])
        return {"HOME": job.work, "TMPDIR": job.work}

    def python(self, job: Job, files: dict[str, bytes], command: list[str]) -> NoReturn:
        """In a room: become a program of Python."""
        from factory.sandbox.inside import python

        _write(job.work, files)
        if self.scratch:
            os.environ.update(self.confined(job))
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        os.setsid()
        confine.limit(job.seconds, job.memory, job.processes, job.files)
        confine.dumpable(True)
        if self.calls:
            self.calls.install()
        os.closerange(3, _DESCRIPTORS)
        try:
            os._exit(python.run(command))
        finally:
            os._exit(1)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, _signal.SIGKILL)
    except ProcessLookupError:
        pass


def _remove(folder: str) -> None:
    """A folder and all in it; links are not followed."""
    os.chmod(folder, 0o700)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(folder)


def _end_all() -> None:
    """Kill all processes of the box but this one, and wait for them."""
    try:
        os.kill(-1, _signal.SIGKILL)
    except ProcessLookupError:
        pass
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _receive(channel: _socket.socket) -> Any:
    """The body of a job: its length in 8 bytes, and what is marshalled in so many."""
    data = bytearray()
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "little"):
        piece = channel.recv(1 << 20)
        if not piece:
            os._exit(1)  # outside gave up
        data += piece
    return marshal.loads(memoryview(data)[8:])


def _write(work: str, files: dict[str, bytes]) -> None:
    """Write files below a folder. What has the name already goes first, so that no link and no pipe is followed."""
    for name, data in files.items():
        path = f"{work}/{name}"
        if "/" in name:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            with open(descriptor, "wb", buffering=0) as file:
                while data:
                    data = data[file.write(data) :]
        except OSError:
            os.unlink(path)
            raise


def _execute(command: list[str], environment: dict[str, str]) -> NoReturn:
    try:
        os.execvpe(command[0], command, environment)
    except (OSError, ValueError) as error:
        os.write(2, f"{command[0]}: {getattr(error, 'strerror', None) or error}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def main(
    control: int,
    calls: tuple[bytes, bytes] | None,
    zygote: tuple[list[str], list[tuple[str, str]]] | None,
    scratch: str,
    readable: list[str],
) -> None:
    """Serve until outside has gone.

    The first of `calls` filters the system calls of this process, the second is added for its jobs. A `zygote` has
    imported modules, and run the text of others, by name. For `scratch` and `readable` see Steward.
    """
    confine.dumpable(False)
    confine.limit_always()
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    os.set_inheritable(control, False)
    os.closerange(3, control)
    os.closerange(control + 1, _DESCRIPTORS)
    if scratch:
        confine.adopt()
    job_calls = None
    if calls:
        confine.Filter(calls[0]).install()
        job_calls = confine.Filter(calls[1])
    if zygote:
        from factory.sandbox.inside import python

        python.warm(*zygote)
    steward = Steward(control, zygote is not None, job_calls, scratch, readable)
    steward.loop()
    if scratch:
        steward.sweep(set())
        _remove(scratch)
    os._exit(0)
