"""What a program in a box can see and do that it should not: the self-test runs this inside, and reads the lines."""

import os
import socket
import sys

CALLS_FILTERED = "2"  # seccomp's mode in /proc/self/status


def status(field: str) -> str:
    with open("/proc/self/status") as file:
        return next((line.split()[1] for line in file if line.startswith(f"{field}:")), "?")


def host_user() -> str:
    """Whether this user is the root of the host, by the map of users of its namespace."""
    with open("/proc/self/uid_map") as file:
        maps = [tuple(map(int, line.split())) for line in file]
    root = any(outside + os.getuid() - own == 0 for own, outside, count in maps if own <= os.getuid() < own + count)
    return "the root of the host" if root else ""


def environment(allowed: list[str]) -> str:
    return " ".join(sorted(set(os.environ) - {*allowed, "PWD"}))


def network() -> str:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect(("192.0.2.1", 9))  # an address kept for documentation (RFC 5737): needs a route, sends nothing
    except OSError:
        return ""
    return "has a route to the network"


def processes(limit: int) -> str:
    children = []
    try:
        for _ in range(2 * limit):
            if not (pid := os.fork()):
                os.read(0, 1)
                os._exit(0)
            children.append(pid)
    except OSError:
        return ""
    finally:
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    return f"made {2 * limit} processes where {limit} are allowed"


def writes(marker: str) -> str:
    made = []
    for path in (marker, "/usr/written", "/etc/written", "/written", "/dev/written", "/proc/sys/kernel/hostname"):
        try:
            with open(path, "w") as file:
                file.write("box")
            made.append(path)
        except OSError:
            pass
    return " ".join(made)


def sees(paths: list[str]) -> str:
    found = []
    for path in paths:
        try:
            if os.path.isdir(path):
                found += [path] if os.listdir(path) else []
            else:
                with open(path, "rb"):
                    found.append(path)
        except OSError:
            pass
    return " ".join(found)


def main() -> None:
    marker, allowed, limit, paths = sys.argv[1], sys.argv[2].split(), int(sys.argv[3]), sys.argv[4:]
    rights, filtered = status("CapEff"), status("Seccomp")
    for wrong, said in (
        ("is", host_user()),
        ("has capabilities:", rights.strip("0")),
        ("may make every system call: seccomp is", "" if filtered == CALLS_FILTERED else filtered),
        ("finds in its environment", environment(allowed)),
        ("on the network:", network()),
        ("of processes:", processes(limit)),
        ("writes outside:", writes(marker)),
        ("sees of the host:", sees(paths)),
    ):
        if said:
            print(wrong, said)
    print("done")


main()
