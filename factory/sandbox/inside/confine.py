"""What a process does to itself before it runs what is not trusted."""

from __future__ import annotations

import ctypes
import os
import resource

from factory.sandbox.inside.wire import ROOM

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
_NOSUID_NODEV, _NOSUID_NODEV_NOEXEC = 6, 14
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 4, 22, 36, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_ADDRESS_SPACE = 4 << 30  # bytes: a backstop; runtimes reserve far more than they use
_INODES = 1 << 14  # files in the file system of a room

_libc = ctypes.CDLL(None, use_errno=True)
_CALLS = {name: getattr(_libc, name) for name in ("capset", "mount", "prctl", "setns", "unshare")}


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


# Made once, not in each process: a type of ctypes takes longer to make than all that it is used for.
_CAPABILITIES = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()


def _call(name: str, *arguments: object) -> None:
    """A function of the C library that returns 0; OSError names it where it does not."""
    if _CALLS[name](*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def dumpable(yes: bool) -> None:
    """Whether others of this user may look into this process's memory and descriptors."""
    _call("prctl", _PR_SET_DUMPABLE, int(yes), 0, 0, 0)


def adopt() -> None:
    """Become the parent of descendants whose own has ended."""
    _call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Filter:
    """A filter of system calls: an array of struct sock_filter."""

    def __init__(self, program: bytes) -> None:
        self._text = ctypes.create_string_buffer(program, len(program))
        self._program = _Program(len(program) // 8, ctypes.cast(self._text, ctypes.c_void_p))
        self._place = ctypes.byref(self._program)

    def install(self) -> None:
        """In this process and its children, for good."""
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._place, 0, 0)


def new_processes(own: int) -> None:
    """Let the next child be the first process of a namespace; `own` is a descriptor of this process's namespace."""
    _call("setns", own, CLONE_NEWPID)
    _call("unshare", CLONE_NEWPID)


def room(size: int) -> None:
    """Give this process a room: mounts, shared memory and identity of its own, and no rights over anything.

    Its files are one file system of `size` bytes, to which /work, /tmp and /dev/shm lead. The user namespace comes
    last, for the mounts need the rights of the one before; it makes the count of processes the room's own.
    """
    _call("unshare", CLONE_NEWNS | CLONE_NEWIPC)
    options = f"size={size},nr_inodes={_INODES},mode=0755".encode()
    _call("mount", b"room", ROOM.encode(), b"tmpfs", _NOSUID_NODEV, options)
    _call("mount", b"proc", b"/proc", b"proc", _NOSUID_NODEV_NOEXEC, None)
    for name in ("work", "tmp", "shm"):
        os.mkdir(f"{ROOM}/{name}")
    _call("unshare", CLONE_NEWUSER)
    _call("capset", *_CAPABILITIES)


def limit_always() -> None:
    """The limits that are the same for all, the first process of the box among them."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    _limit(resource.RLIMIT_NICE, 0)
    _limit(resource.RLIMIT_NOFILE, 1024)
    _limit(resource.RLIMIT_RTPRIO, 0)
    _limit(resource.RLIMIT_SIGPENDING, 1024)


def limit(seconds: float, memory: int, processes: int, files: int) -> None:
    """Limit this process and its children, for good."""
    _limit(resource.RLIMIT_AS, max(_ADDRESS_SPACE, 4 * memory))
    _limit(resource.RLIMIT_CPU, int((seconds + 1) * len(os.sched_getaffinity(0))) + 1)  # all threads on all processors
    _limit(resource.RLIMIT_FSIZE, files)
    _limit(resource.RLIMIT_NPROC, processes)


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))
