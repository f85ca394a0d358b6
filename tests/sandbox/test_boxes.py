"""Boxes: what a command finds, what comes back, the self-test, and the mode without a box."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import platform
import resource
import shutil
import struct
import tempfile
import threading
from pathlib import Path

import pytest

from factory.engine.errors import FactoryError
from factory.sandbox import machine, selftest
from factory.sandbox.box import Box
from factory.sandbox.limits import Limits
from factory.sandbox.machine import ENVIRONMENT
from factory.sandbox.seccomp import ARCHITECTURES, REFUSED, filter_program
from factory.sandbox.selftest import require_isolation, why_not
from factory.sandbox.zygote import PythonZygote
from tests.sandbox.conftest import let_in

has_box = pytest.mark.skipif(not shutil.which("bwrap") or bool(why_not("bubblewrap")), reason="no bubblewrap here")
has_degraded = pytest.mark.skipif(bool(why_not("degraded")), reason="no Python that another user may run here")
ISOLATIONS = [pytest.param("bubblewrap", marks=has_box), pytest.param("degraded", marks=has_degraded)]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_commands_in_turn_share_a_folder(isolation):
    with Box(isolation=isolation) as box:
        box.write({"src/main.sh": "echo $1 > made; cat - made; exit 3", "b\u00e9\n": b"\xff\x00"})
        done = box.run(["sh", "src/main.sh", "two"], b"one\n")
        assert (done.status, done.code, done.stdout, done.stderr) == ("exited", 3, b"one\ntwo\n", b"")
        assert done.isolation == isolation and done.detail == ""
        assert 0 < done.seconds < 20 and 0 < done.memory < 1 << 28 and done.cpu_seconds > 0
        assert box.run(["cat", "made", "b\u00e9\n"]).stdout == b"two\n\xff\x00"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_limits_end_a_command_and_the_next_is_right(isolation):
    ends = {
        "timeout": "while True: pass",
        "memory": "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "output_limit": "while True: print('x' * 1000)",
    }
    left = "import os, time\nif not os.fork():\n  os.setsid()\n  if not os.fork(): time.sleep(1000)\n  os._exit(0)"
    with Box(isolation=isolation, limits=Limits(seconds=20, memory=128 << 20, output=1000, processes=200)) as box:
        for status, source in ends.items():
            limits = Limits(seconds=0.5) if status == "timeout" else None
            done = box.run(["python3", "-c", source], limits=limits)
            assert done.status == status
            assert done.code == -9
            assert len(done.stdout) <= 1000
        assert box.run(["python3", "-c", left]).code == 0
        assert box.run(["python3", "-c", "print(42)"]).stdout == b"42\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_command_can_be_talked_to_and_ended(isolation):
    with Box(isolation=isolation) as box:
        process = box.start(["python3", "-uc", "while True: print(int(input()) + 1)"])
        for k in range(3):
            process.stdin.write(b"%d\n" % k)
            assert process.stdout.readline() == b"%d\n" % (k + 1)
        process.kill()
        done = process.wait()
        assert (done.status, done.stdout) == ("exited", b"") and done.code != 0
        assert process.wait() is done
        assert box.run(["cat"], b"x" * 500_000).stdout == b"x" * 500_000


@has_box
def test_a_command_finds_only_what_it_was_given(tmp_path):
    let_in(tmp_path)
    (tmp_path / "given").write_text("given")
    with Box(mounts=[str(tmp_path)], environment={"NAME": "value"}) as box:
        assert box.run(["cat", str(tmp_path / "given")]).stdout == b"given"
        assert box.run(["sh", "-c", f"echo x > {tmp_path}/given"]).code != 0
        found = box.run(["env"]).stdout.decode().splitlines()
        assert dict(line.split("=", 1) for line in found) == {**ENVIRONMENT, "NAME": "value"}
        assert box.run(["pwd"]).stdout == b"/work\n"
        assert set(box.run(["ls", "/"]).stdout.decode().split()) - {"lib32", "libx32", "lib64"} == {
            *("bin", "dev", "etc", "lib", "proc", "sbin", "tmp", "usr", "work"),
            tmp_path.parts[1],
        }
        assert box.run(["id", "-u"]).stdout == b"1000\n"
        assert box.run(["cat", "/dev/stdin"], b"by its name").stdout == b"by its name"
        assert box.run(["sh", "-c", "ulimit -n"]).stdout == b"1024\n"
        processors = len(os.sched_getaffinity(0))
        assert int(box.run(["sh", "-c", "ulimit -t"], limits=Limits(seconds=5)).stdout) > 5 * processors
    assert (tmp_path / "given").read_text() == "given"


@has_box
def test_a_command_that_is_not_there_says_so():
    with Box() as box:
        done = box.run(["nonesuch"])
        assert (done.status, done.code) == ("exited", 127)
        assert b"nonesuch: No such file" in done.stderr
        assert box.run(["/etc/passwd"]).code == 126


@has_box
def test_files_beyond_the_room_are_an_error():
    with Box(limits=Limits(files=1 << 20)) as box:
        with pytest.raises(FactoryError, match=r"cannot write big into the box: .*No space left"):
            box.write({"big": bytes(2 << 20)})
        box.write({"small": "x"})
        assert box.run(["cat", "small"]).stdout == b"x"


@has_box
def test_boxes_work_in_threads_that_end():
    made: list[Box] = []
    starter = threading.Thread(target=lambda: made.append(Box()))
    starter.start()
    starter.join()
    with made[0] as box:
        assert box.run(["echo", "42"]).stdout == b"42\n"


@has_box
def test_descriptors_of_ours_stay_outside():
    """Also those whose numbers are beyond the limit that holds inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(min(hard, 4096) - 500)]
    source = "import os; print([d for d in range(5000) if os.path.exists('/proc/self/fd/%d' % d)])"
    try:
        with Box() as box, PythonZygote() as zygote:
            assert box.run(["python3", "-c", source]).stdout == b"[0, 1, 2]\n"
            assert zygote.run({}, ["-c", source]).stdout == b"[0, 1, 2]\n"
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@has_box
def test_no_descriptor_is_left_open():
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Box() as box, PythonZygote() as zygote:
            box.write({"a": "x"})
            for command in (["cat", "a"], ["nonesuch"], ["yes"]):
                box.run(command, b"input")
            zygote.run({}, ["-c", "print(1)"])
            zygote.start({}, ["-c", "input()"]).kill()
            box.start(["cat"]).wait()
        gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


@has_box
def test_a_box_that_ends_is_an_error_of_the_box():
    with Box() as box:
        process = box.start(["sleep", "100"])
        box._kill()
        done = process.wait()
        assert (done.status, done.code) == ("sandbox_error", None)
        assert box.run(["true"]).status == "sandbox_error"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_nothing_is_left_in_the_temporary_folder(isolation, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    let_in(tmp_path)
    with Box(isolation=isolation) as box:
        box.write({"a/b": "x"})
        assert box.run(["sh", "-c", "mkdir -p c/d; ln -s / c/d/e; touch c/d/f; chmod 000 c"]).code == 0
    assert os.listdir(tmp_path) == []


def test_bubblewrap_that_is_missing_is_told_with_the_cure(monkeypatch):
    why_not.cache_clear()
    monkeypatch.setenv("PATH", "/nonesuch")
    with pytest.raises(FactoryError, match=r"apt-get install bubblewrap; or, .*'degraded'"):
        require_isolation()
    why_not.cache_clear()


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("bwrap: No permissions to create a new namespace, likely because ...", "user.max_user_namespaces"),
        ("bwrap: Creating new namespace failed: Operation not permitted", "user.max_user_namespaces"),
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict_unprivileged_userns=0"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
    ],
)
@has_box
def test_what_bubblewrap_says_is_told_with_the_cure(said, cure, tmp_path, monkeypatch):
    let_in(tmp_path)
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    bwrap.chmod(0o755)
    why_not.cache_clear()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(FactoryError) as told:
        require_isolation()
    assert cure in str(told.value) and said[:30] in str(told.value)
    why_not.cache_clear()


@has_box
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be kept as root")
def test_a_box_of_the_root_of_the_host_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "dropped", lambda: [])
    why_not.cache_clear()
    with pytest.raises(FactoryError, match="is the root of the host"):
        require_isolation("bubblewrap")
    why_not.cache_clear()


@has_box
def test_a_box_with_the_network_or_without_limits_is_refused(monkeypatch):
    arguments = machine._arguments
    monkeypatch.setattr(machine, "_arguments", lambda *given: [o for o in arguments(*given) if o != "--unshare-pid"])
    assert "the box gave no report" in selftest._tried("bubblewrap", False, "") or selftest._tried(
        "bubblewrap", False, ""
    )
    shown = [*arguments((), 1 << 20, False), "--ro-bind", "/var", "/var", "--setenv", "SECRET", "x"]
    monkeypatch.setattr(machine, "_arguments", lambda *_: shown)
    monkeypatch.setattr(machine, "filter_program", lambda **_: struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
    assert any("sees of the host: /var/lib/dpkg" in line for line in selftest._tried("bubblewrap", False, ""))


def test_an_isolation_that_is_unknown_is_told():
    with pytest.raises(FactoryError, match="did you mean 'bubblewrap'"):
        require_isolation("bubblewarp")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_filters_are_programs_that_the_kernel_takes(architecture):
    """Every jump lands inside, the last instruction returns, and the filter is short enough (BPF_MAXINSNS, 4096)."""
    for program in (
        filter_program(architecture=architecture),
        filter_program(only=["mount"], architecture=architecture),
    ):
        steps = list(struct.iter_unpack("=HBBI", program))
        assert len(steps) < 4096 and steps[-1][0] == 6
        for place, (code, yes, no, _) in enumerate(steps):
            if code & 7 == 5:
                assert place + 1 + max(yes, no) < len(steps)


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_numbers_of_system_calls_are_the_kernels(architecture):
    path = Path(HEADERS[architecture])
    if not path.exists():
        pytest.skip("no headers of the kernel here: apt-get install linux-libc-dev")
    column = list(ARCHITECTURES).index(architecture)
    numbers = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "#define" and words[1].startswith("__NR") and words[2].isdigit():
            numbers[words[1].removeprefix("__NR3264_").removeprefix("__NR_")] = int(words[2])
    known = {name: number[column] for name, number in REFUSED.items() if name in numbers}
    assert len(known) > 80
    assert known == {name: numbers[name] for name in known}


def test_an_architecture_without_numbers_is_told():
    with pytest.raises(FactoryError, match="no list of system calls for riscv64"):
        filter_program(architecture="riscv64")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
@has_box
def test_calls_that_do_nothing_answer_well_and_others_say_why():
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.setpriority(0, 0, -20), libc.sched_setscheduler(0, 1, bytes(8)), os.sched_getscheduler(0))
print(libc.syscall(319, b"x", 0), ctypes.get_errno(), libc.syscall(101, 0, 0, 0, 0), ctypes.get_errno())
"""
    with Box() as box:
        said = box.run(["python3", "-c", source]).stdout.decode().split()
    assert said == ["0", "0", "0", "-1", str(errno.ENOSYS), "-1", str(errno.EPERM)]
    assert ctypes.sizeof(ctypes.c_void_p) == 8
