"""How much memory the processes of a box hold."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection

PAGE = resource.getpagesize()
INODE = 1 << 10  # bytes of the kernel's memory that an empty file takes
SOCKET = 1 << 19  # bytes that the buffers of a socket may hold, and that belong to no process
_FEW = 64  # sockets that do not count


def below(root: int, without: Collection[int] = ()) -> list[str]:
    """A process and its descendants, but those that are or come from the children `without`."""
    children: dict[str, list[str]] = {}
    for pid in everyone():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent = file.read().rpartition(b")")[2].split()[1].decode()
        except OSError:  # it ended
            continue
        if int(pid) not in without:
            children.setdefault(parent, []).append(pid)
    found = [str(root)]
    for pid in found:  # grows while it is read
        found += children.get(pid, [])
    return found


def everyone() -> list[str]:
    """All processes that can be seen but the first."""
    return [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def used(pids: list[str], limit: int) -> int:
    """Bytes that processes hold.

    The sum of their resident sets while that is within `limit`: pages that they share count more than once in it, and
    it is cheap to read. Beyond, the sum of their proportional sets.
    """
    found = []
    for pid in pids:
        path = f"/proc/{pid}"
        try:
            held = _resident(path)
            if not held:  # its main thread may have ended before others
                for thread in os.listdir(f"{path}/task"):
                    if held := _resident(f"{path}/task/{thread}"):
                        path = f"{path}/task/{thread}"
                        break
        except OSError:  # it ended
            continue
        found.append((path, held))
    total = sum(held for _, held in found)
    return total if total <= limit else sum(_proportional(path, held) for path, held in found)


def _resident(path: str) -> int:
    with open(f"{path}/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def _proportional(path: str, resident: int) -> int:
    try:
        with open(f"{path}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:  # it ended, or may not be read: then what is known counts
        pass
    return resident


def in_files(paths: list[str]) -> int:
    """Bytes that file systems in memory hold."""
    total = 0
    for path in paths:
        held = os.statvfs(path)
        total += (held.f_blocks - held.f_bfree) * held.f_frsize + (held.f_files - held.f_ffree) * INODE
    return total


def in_room(pids: list[str], path: str, most: int) -> int:
    """Bytes of the file system that processes have at `path`; `most` where none of them shows it."""
    for pid in pids:
        try:
            # A first thread that has ended has no files any more; others of its process may.
            for thread in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
                try:
                    return in_files([f"/proc/{pid}/task/{thread}/root{path}"])
                except OSError:
                    continue
        except OSError:  # it ended
            continue
    return most


def in_sockets(pids: list[str], all_of_them: bool) -> int:
    """Bytes that sockets may hold: of `all_of_them` in this network namespace, or of these processes alone."""
    with open("/proc/net/sockstat", "rb") as file:
        number = int(file.readline().split()[2])
    if number <= _FEW:
        return 0
    if not all_of_them:
        number = len({link for pid in pids for link in _links(pid) if link.startswith("socket:")})
    return number * SOCKET


def _links(pid: str) -> list[str]:
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
            except OSError:  # closed
                continue
    except OSError:  # it ended
        pass
    return found
