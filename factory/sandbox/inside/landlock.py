"""Restrict the files that a process may reach, without rights of any kind (landlock(7))."""

from __future__ import annotations

import ctypes
import os

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
# linux/landlock.h: rights over files by the version that brought them; what is not handled is not restricted.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP, _SCOPES = 3, 3  # bind and connect, from version 4; abstract sockets and signals to others, from version 6

_libc = ctypes.CDLL(None, use_errno=True)


class _Rules(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """The landlock of this kernel, 0 where there is none."""
    return max(0, _libc.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION))


def restrict(readable: list[str], writable: list[str]) -> None:
    """Let this process and its children read and execute below `readable`, do all below `writable`, and no more.

    Nothing happens on a kernel without landlock. Paths that are not there are left out.
    """
    if not (found := version()):
        return
    every = max(files for since, files in _FILES.items() if since <= found)
    rules = _Rules(every, _TCP if found >= 4 else 0, _SCOPES if found >= 6 else 0)
    size = 24 if found >= 6 else 16 if found >= 4 else 8
    ruleset = _checked(_libc.syscall(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0))
    for paths, allowed in ((readable, _EXECUTE | _READ_FILE | _READ_DIR), (writable, every)):
        for path in filter(os.path.exists, paths):
            descriptor = os.open(path, os.O_PATH)
            file_only = _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14 if found >= 3 else 0)
            beneath = _Beneath(allowed if os.path.isdir(path) else allowed & file_only & every, descriptor)
            _checked(_libc.syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(beneath), 0))
            os.close(descriptor)
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.syscall(_RESTRICT, ruleset, 0))
    os.close(ruleset)


def _checked(made: int) -> int:
    if made < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"landlock: {os.strerror(error)}")
    return made
