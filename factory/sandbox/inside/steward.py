"""The first process of a box: it takes commands from outside, runs them, and reports how they ended.

It runs inside, under whatever Python 3.9 or newer is there, without the factory's modules: box.py sends it compiled.
Outside speaks to it over one socket of packets. Each packet starts a job: its header, and four descriptors, which are
the job's channel and its standard input, output and error. The channel carries the job's body in (read by the job's
own process), and out of it an error text, if the job could not start, and the report. When the other end of the
channel is shut the job is killed; when the socket is, the box ends, and with process 1 all that is in it.

What runs here cannot forge a report: the descriptors close on exec, process 1 ignores signals from inside its
namespace, and it is not dumpable, so that its memory and descriptors cannot be opened.
"""

import _signal
import _socket
import ctypes
import marshal
import os
import resource
import select
import struct
import time

HEADER = struct.Struct("=cdqqq")  # kind, seconds, memory, processes, files
REPORT = struct.Struct("=cidqd")  # status, code, seconds, memory, CPU seconds
EXITED, TIMEOUT, MEMORY, BROKEN = b"exit", b"time", b"memory", b"broken"
WRITABLE = ("/work", "/tmp", "/dev/shm")
POLL = 0.02  # seconds between two looks at the memory of a job
ADDRESS_SPACE = 4 << 30  # bytes: a backstop; runtimes reserve far more than they use
INODE = 1 << 10  # bytes of the kernel's memory that a file of no bytes takes
PAGE = resource.getpagesize()
HANG_UP = select.POLLHUP | select.POLLRDHUP
PR_SET_DUMPABLE = 4

libc = ctypes.CDLL(None, use_errno=True)


class Job:
    def __init__(self, channel, header):
        self.channel = channel
        self.kind, self.seconds, self.memory, self.processes, self.files = HEADER.unpack(header)
        self.status, self.peak, self.pid, self.pidfd = EXITED, 0, 0, -1
        self.started = time.monotonic()
        self.deadline = self.started + self.seconds
        self.next_look = self.started + POLL

    def end(self, status):
        """Kill it for a reason; how it ends is seen when its process does."""
        self.status = status
        self.deadline = self.next_look = float("inf")
        os.kill(self.pid, _signal.SIGKILL)

    def look(self):
        """Its memory, against its limit."""
        began = time.monotonic()
        used = memory(processes(), self.memory - (held := in_files())) + held
        self.peak = max(self.peak, used)
        now = time.monotonic()
        self.next_look = now + max(POLL, 10 * (now - began))
        if used > self.memory:
            self.end(MEMORY)

    def report(self, code, cpu, peak):
        message = REPORT.pack(self.status[:1], code, time.monotonic() - self.started, max(self.peak, peak), cpu)
        try:
            self.channel.sendall(message)
        except OSError:  # nobody waits for it any more
            pass
        self.channel.close()


def processes():
    """The processes of this box but this one."""
    return [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def resident(path):
    with open(path + "/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def memory(pids, limit):
    """Bytes of these processes: the sum of their resident sets while that is within the limit, for a shared page is
    counted twice in it; else of their proportional sets. A process whose main thread has ended is read through another.
    """
    total, found = 0, []
    for pid in pids:
        path = "/proc/" + pid
        try:
            held = resident(path)
            if not held:
                for thread in os.listdir(path + "/task"):
                    held = max(held, resident(path + "/task/" + thread))
                    if held:
                        path += "/task/" + thread
                        break
        except OSError:  # it ended
            continue
        total += held
        found.append((path, held))
    if total <= limit:
        return total
    return sum(proportional(path, held) for path, held in found)


def proportional(path, resident_set):
    try:
        with open(path + "/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:  # it ended, or it is hidden: then what is known counts
        pass
    return resident_set


def in_files():
    """Bytes that the writable file systems hold."""
    total = 0
    for path in WRITABLE:
        s = os.statvfs(path)
        total += (s.f_blocks - s.f_bfree) * s.f_frsize + (s.f_files - s.f_ffree) * INODE
    return total


def receive(channel):
    """The body of a job: its length in 8 bytes, then marshalled."""
    data = b""
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "little"):
        piece = channel.recv(1 << 20)
        if not piece:
            os._exit(1)  # outside gave up
        data += piece
    return marshal.loads(data[8:])


def limit(job):
    """Set the limits of this process and its children, for good."""
    seconds = int(job.seconds) + 2
    for name, value in (
        ("CORE", 0),
        ("CPU", seconds),
        ("FSIZE", job.files),
        ("NPROC", job.processes + 1),
        ("AS", max(ADDRESS_SPACE, 4 * job.memory)),
        ("NOFILE", 1024),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("SIGPENDING", 1024),
        ("RTPRIO", 0),
        ("NICE", 0),
    ):
        which = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def write(files):
    """Write files below /work; what is there under the name goes first, so that no link and no pipe is followed."""
    for name, data in files.items():
        path = "/work/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "wb") as file:
            file.write(data)


def become(job, standard):
    """In the process of a job: do it; never return."""
    try:
        body = receive(job.channel)
        if job.kind == b"w":
            write(body)
            os._exit(0)
        os.setsid()
        for signal in (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(signal, _signal.SIG_DFL)
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        os.chdir("/work")
        command, environment = body
        limit(job)
    except BaseException as error:
        job.channel.sendall(f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    try:
        os.execvpe(command[0], command, environment)
    except (OSError, ValueError) as error:
        os.write(2, f"{command[0]}: {getattr(error, 'strerror', None) or error}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


class Steward:
    def __init__(self, control):
        self.control = _socket.socket(fileno=control)
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self.by_process, self.by_channel = {}, {}

    def loop(self):
        while True:
            now = time.monotonic()
            for job in self.by_process.values():
                if now >= job.deadline:
                    job.end(TIMEOUT)
                elif now >= job.next_look:
                    job.look()
            due = min((min(job.deadline, job.next_look) for job in self.by_process.values()), default=float("inf"))
            wait = None if due == float("inf") else max(0.0, due - time.monotonic()) * 1000 + 0.5
            for descriptor, _ in self.poll.poll(wait):
                if descriptor == self.control.fileno():
                    if not self.accept():
                        return
                elif descriptor in self.by_process:
                    self.ended(self.by_process[descriptor])
                elif descriptor in self.by_channel:  # outside gave up
                    self.by_channel[descriptor].end(EXITED)
                    self.poll.unregister(descriptor)

    def accept(self):
        """Start a job; False where outside has gone."""
        space = _socket.CMSG_SPACE(16)
        header, ancillary, _, _ = self.control.recvmsg(HEADER.size, space, _socket.MSG_CMSG_CLOEXEC)
        if not header:
            return False
        channel, *standard = struct.unpack("4i", ancillary[0][2])
        job = Job(_socket.socket(fileno=channel), header)
        try:
            job.pid = os.fork()
        except OSError as error:
            job.channel.sendall(f"fork: {error.strerror}".encode())
            job.status = BROKEN
            job.report(0, 0.0, 0)
            return True
        finally:
            if job.pid:
                for descriptor in standard:
                    os.close(descriptor)
        if not job.pid:
            become(job, standard)
        job.pidfd = os.pidfd_open(job.pid)
        self.by_process[job.pidfd] = self.by_channel[channel] = job
        self.poll.register(job.pidfd, select.POLLIN)
        self.poll.register(channel, HANG_UP)
        return True

    def ended(self, job):
        """Its process has ended: end what it left, and report."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _, status, usage = os.wait4(job.pid, 0)
        peak = usage.ru_maxrss << 10
        try:
            os.kill(-1, _signal.SIGKILL)
        except ProcessLookupError:
            pass
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        descriptor = job.channel.fileno()
        del self.by_process[job.pidfd], self.by_channel[descriptor]
        if job.deadline != float("inf"):  # else its hang-up has gone already
            pass
        try:
            self.poll.unregister(descriptor)
        except KeyError:
            pass
        self.poll.unregister(job.pidfd)
        os.close(job.pidfd)
        job.report(os.waitstatus_to_exitcode(status), cpu, peak)


def main(control):
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    os.set_inheritable(control, False)
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.closerange(3, control)
    os.closerange(control + 1, 1 << 16)
    Steward(control).loop()
    os._exit(0)
