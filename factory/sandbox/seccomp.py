"""The system calls that a program in a box may not make, as a filter for the kernel (seccomp(2), classic BPF).

A list of refusals, not of permissions: a box runs the tools of some fifty languages. Refused is what reaches around a
limit (memory that belongs to no process, the scheduling of others), what reaches into another process, and the parts
of the kernel that no program of a judged kind needs and that were holes before.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Collection
from typing import NamedTuple

from factory.engine.errors import FactoryError

# linux/bpf_common.h and linux/seccomp.h
_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000  # numbers of x86_64's second calling convention, which would pass by the list
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Name: number on x86_64, on aarch64 (None: there is no such call).
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467), "statmount": (457, 457), "listmount": (458, 458),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "pidfd_getfd": (438, 438), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "setpriority": (141, 140), "capset": (126, 91),
    # memory that belongs to no process, or that cannot be taken back
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "mlock": (149, 228), "mlock2": (325, 284), "mlockall": (151, 230),
    "vmsplice": (278, 75), "remap_file_pages": (216, 234),
    # parts of the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "syslog": (103, 116),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    "_sysctl": (156, None), "personality": (135, 92), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "nfsservctl": (180, 42), "vhangup": (153, 58), "iopl": (172, None), "ioperm": (173, None),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "create_module": (174, None), "query_module": (178, None),
    "get_kernel_syms": (177, None), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip
# Programs and the C library try these first, and take another way where the kernel is too old to have them.
ABSENT = {"memfd_create", "memfd_secret", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd"}
# Runtimes complain on their output where they may not schedule themselves: they are told that they may.
SILENT = {"sched_setparam", "sched_setscheduler", "sched_setattr", "setpriority", "ioprio_set"}
_CLONE3 = (435, 435)
_NEW_NAMESPACE = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000


class _Argument(NamedTuple):
    """A call that is refused for some values of one argument."""

    numbers: tuple[int, int]
    place: int
    test: int
    values: tuple[int, ...]
    refuse_others: bool = False
    """Refuse every value but these."""


_TERMINAL = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD
_SCHEDULING_OF_OTHERS = _Argument((203, 122), 0, _EQUAL, (0,), True)  # sched_setaffinity
_LIMITS_OF_OTHERS = _Argument((302, 261), 0, _EQUAL, (0,), True)  # prlimit64
_ARGUMENTS_REFUSED = (
    _Argument((56, 220), 0, _ANY_BIT, (_NEW_NAMESPACE,)),  # clone
    _Argument((16, 29), 1, _EQUAL, _TERMINAL),  # ioctl
    _Argument((157, 167), 0, _EQUAL, (35,)),  # prctl(PR_SET_MM)
    _LIMITS_OF_OTHERS,
    _SCHEDULING_OF_OTHERS,
)
_SOCKET = (41, 198)
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6, which end in the box's own network namespace; AF_VSOCK does not
_NETLINK = 16  # with protocol 0 only, which lists interfaces


def _statement(code: int, k: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, k)


def _jump(code: int, k: int, yes: int, no: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def _refuse(error: int) -> bytes:
    return _statement(_RETURN, _ERRNO | error)


def _argument(index: int) -> bytes:
    """Load the low half of an argument: little-endian, as both architectures are."""
    return _statement(_LOAD, _ARGUMENTS + 8 * index)


def _when(number: int, block: list[bytes]) -> list[bytes]:
    return [_jump(_EQUAL, number, 0, len(block)), *block]


def _checked(rule: _Argument, number: int) -> list[bytes]:
    """Refuse or allow one call by one of its arguments."""
    block = [_argument(rule.place)]
    for k, value in enumerate(rule.values):
        block.append(_jump(rule.test, value, len(rule.values) - k, 0))
    last = [_refuse(errno.EPERM), _statement(_RETURN, _ALLOW)]
    return _when(number, block + (last if rule.refuse_others else last[::-1]))


def _sockets(number: int) -> list[bytes]:
    block = [_argument(0)]
    for k, family in enumerate(_FAMILIES):
        block.append(_jump(_EQUAL, family, len(_FAMILIES) - k + 3, 0))
    block += [
        _jump(_EQUAL, _NETLINK, 0, 2),
        _argument(2),
        _jump(_EQUAL, 0, 1, 0),
        _refuse(errno.EAFNOSUPPORT),
        _statement(_RETURN, _ALLOW),
    ]
    return _when(number, block)


def filter_program(
    *, sockets: bool = True, only: Collection[str] = (), without: Collection[str] = (), architecture: str | None = None
) -> bytes:
    """The filter as an array of `struct sock_filter`; a call by another architecture's convention kills its process.

    Without `sockets`, socket() is refused (socketpair() is not). `without` these calls, or `only` these, is for a
    process that must make some itself before it refuses them to what it runs. FactoryError on an architecture whose
    numbers are not here.
    """
    machine = architecture or platform.machine()
    if machine not in ARCHITECTURES:
        raise FactoryError(f"sandbox: no list of system calls for {machine}, only for {', '.join(ARCHITECTURES)}")
    column = list(ARCHITECTURES).index(machine)
    program = [
        _statement(_LOAD, _ARCHITECTURE),
        _jump(_EQUAL, ARCHITECTURES[machine], 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [_jump(_GREATER_EQUAL, _X32, 0, 1), _statement(_RETURN, _KILL)]
    if not only:
        for rule in _ARGUMENTS_REFUSED:
            program += _checked(rule, rule.numbers[column])
        number = _SOCKET[column]
        program += _sockets(number) if sockets else _when(number, [_refuse(errno.EACCES)])
        # clone3 hides its flags behind a pointer; without it the C library calls clone.
        program += _when(_CLONE3[column], [_refuse(errno.ENOSYS)])
    for name, numbers in REFUSED.items():
        if (refused := numbers[column]) is not None and name not in without and (not only or name in only):
            error = errno.ENOSYS if name in ABSENT else 0 if name in SILENT else errno.EPERM
            program += _when(refused, [_refuse(error)])
    program.append(_statement(_RETURN, _ALLOW))
    return b"".join(program)
