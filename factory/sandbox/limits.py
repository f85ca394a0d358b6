"""What a command in a box may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one command in a box."""

    seconds: float = 10.0
    """Wall clock."""
    memory: int = 1 << 30
    """Bytes: the proportional set size of all processes of the box, and what its writable file systems hold."""
    processes: int = 64
    """Processes and threads at once."""
    output: int = 1 << 20
    """Bytes of standard output, and of standard error."""
    files: int = 64 << 20
    """Bytes in each writable file system (/work, /tmp, /dev/shm), and in one file."""
