"""What a process does to itself before it runs what is not trusted."""

from __future__ import annotations

import ctypes
import os
import resource

from factory.sandbox.inside.wire import ROOM

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
_NOSUID_NODEV, _NOSUID_NODEV_NOEXEC = 6, 14
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 4, 22, 38, 2
_CAPABILITY_VERSION_3 = 0x20080522
_ADDRESS_SPACE = 4 << 30  # bytes: a backstop; runtimes reserve far more than they use
_INODES = 1 << 14  # files in the file system of a room

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def call(name: str, *arguments: object) -> None:
    """A function of the C library that returns 0; OSError names it where it does not."""
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def dumpable(yes: bool) -> None:
    """Whether others of this user may look into this process's memory and descriptors."""
    call("prctl", _PR_SET_DUMPABLE, int(yes), 0, 0, 0)


def filter_calls(program: bytes) -> None:
    """Refuse system calls to this process and its children, for good: an array of struct sock_filter."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    text = ctypes.create_string_buffer(program, len(program))
    held = _Program(len(program) // 8, ctypes.cast(text, ctypes.c_void_p))
    call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(held), 0, 0)


def new_processes(own: int) -> None:
    """Let the next child be the first process of a namespace; `own` is a descriptor of this process's namespace."""
    call("setns", own, CLONE_NEWPID)
    call("unshare", CLONE_NEWPID)


def room(size: int) -> None:
    """Give this process a room: mounts, shared memory and identity of its own, and no rights over anything.

    Its files are one file system of `size` bytes, to which /work, /tmp and /dev/shm lead. The user namespace comes
    last, for the mounts need the rights of the one before; it makes the count of processes the room's own.
    """
    call("unshare", CLONE_NEWNS | CLONE_NEWIPC)
    options = f"size={size},nr_inodes={_INODES},mode=0755".encode()
    call("mount", b"room", ROOM.encode(), b"tmpfs", _NOSUID_NODEV, options)
    call("mount", b"proc", b"/proc", b"proc", _NOSUID_NODEV_NOEXEC, None)
    for name in ("work", "tmp", "shm"):
        os.mkdir(f"{ROOM}/{name}")
    call("unshare", CLONE_NEWUSER)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())


def limit(seconds: float, memory: int, processes: int, files: int) -> None:
    """Limit this process and its children, for good."""
    for name, value in (
        ("CORE", 0),
        ("CPU", int(seconds) + 2),
        ("FSIZE", files),
        ("NPROC", processes),
        ("AS", max(_ADDRESS_SPACE, 4 * memory)),
        ("NOFILE", 1024),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("SIGPENDING", 1024),
        ("RTPRIO", 0),
        ("NICE", 0),
    ):
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
