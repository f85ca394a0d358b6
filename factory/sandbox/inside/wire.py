"""What a box and the outside say to each other: see steward.py. Both sides have this text."""

import struct

HEADER = struct.Struct("=cdqqq")
"""Kind, seconds, memory, processes, files: a packet, with the descriptors of channel, stdin, stdout, stderr."""
REPORT = struct.Struct("=cidqd")
"""Status, exit code, seconds, bytes of memory, CPU seconds: the last that a channel says."""
RUN, WRITE, PYTHON = b"r", b"w", b"p"
EXITED, TIMEOUT, MEMORY, BROKEN = b"e", b"t", b"m", b"b"
STATUSES = {EXITED: "exited", TIMEOUT: "timeout", MEMORY: "memory", BROKEN: "sandbox_error"}
ROOM = "/room"
"""Where the files of a job of the zygote lie."""
