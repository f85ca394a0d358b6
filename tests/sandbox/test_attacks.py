"""Attacks on a box, each a program in one: none gets out, none leaves anything behind, the next job is right."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factory.engine.errors import FactoryError
from factory.sandbox.box import Box
from factory.sandbox.inside.wire import EXITED, REPORT
from factory.sandbox.limits import Limits
from factory.sandbox.machine import Machine
from factory.sandbox.process import Execution
from factory.sandbox.selftest import why_not
from factory.sandbox.zygote import PythonZygote
from tests.conftest import REPOSITORY
from tests.sandbox.attacks import ATTACKS, PRELUDE, Attack
from tests.sandbox.conftest import let_in
from tests.sandbox.escapes import ESCAPES

pytestmark = pytest.mark.skipif(not shutil.which("bwrap") or bool(why_not("bubblewrap")), reason="no bubblewrap here")
LIMITS = Limits(seconds=20, memory=160 << 20, processes=32, output=1 << 16, files=8 << 20)
SECRET = uuid.uuid4().hex


def limits(seconds: float) -> Limits:
    return Limits(
        seconds=seconds, memory=LIMITS.memory, processes=LIMITS.processes, output=LIMITS.output, files=LIMITS.files
    )


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Iterator[str]:
    """What attacks look for: a file that anyone may write, a port, an abstract socket, a secret in the environment."""
    folder = tmp_path_factory.mktemp("outside")
    let_in(folder, 0o777)
    marker = folder / "marker"
    marker.write_text("marker")
    marker.chmod(0o666)
    os.environ["FACTORY_TEST_SECRET"] = SECRET[::-1]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + SECRET)
        abstract.listen()
        yield f"MARKER, PORT, SECRET = {str(marker)!r}, {server.getsockname()[1]}, {SECRET!r}\n"
        for listening in (server, abstract):
            listening.settimeout(0)
            with pytest.raises(BlockingIOError):
                listening.accept()
    del os.environ["FACTORY_TEST_SECRET"]
    assert marker.read_text() == "marker"
    assert os.listdir(folder) == ["marker"]


@pytest.fixture(scope="module")
def zygote(outside) -> Iterator[PythonZygote]:
    with PythonZygote(limits=LIMITS) as made:
        yield made


def inside(machine: Machine) -> set[int]:
    """The processes of a box, on this machine."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(name)] = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {machine._process.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def in_box(box: Box, source: str, seconds: float = 20) -> Execution:
    box.write({"program.py": source})
    return box.run(["python3", "program.py"], limits=limits(seconds))


def in_zygote(zygote: PythonZygote, source: str, seconds: float = 20) -> Execution:
    return zygote.run({"program.py": source}, ["program.py"], limits=limits(seconds))


def held(attack: Attack, machine: Machine, run: Callable[[str, float], Execution], preset: str) -> Execution:
    done = run(preset + PRELUDE + attack.source, attack.seconds)
    assert done.status in attack.status.split(), done
    if attack.printed is not None:
        assert done.stdout.decode().strip() == attack.printed.strip(), done
    assert done.seconds < attack.seconds + 10
    assert len(done.stdout) <= LIMITS.output and len(done.stderr) <= LIMITS.output
    assert len(inside(machine)) == 2, "a process was left behind"
    return done


def parameters(attacks: list[Attack]) -> list:
    return [pytest.param(a, id=a.name, marks=[pytest.mark.slow] if a.slow else []) for a in attacks]


@pytest.mark.parametrize("attack", parameters([*ATTACKS, *ESCAPES]))
def test_a_box_holds(attack, outside):
    with Box(limits=LIMITS) as box:
        done = held(attack, box, lambda source, seconds: in_box(box, source, seconds), outside)
        after = box.run(["python3", "-c", "import os; print(6 * 7, os.listdir('/proc/1/task'))"])
        # What an attack left in files may still be over the limit: then the box says so again.
        assert after.stdout == b"42 ['1']\n" or done.status == after.status == "memory", after
        first = inside(box)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in first)


@pytest.mark.parametrize("attack", parameters([a for a in (*ATTACKS, *ESCAPES) if not a.box_only]))
def test_a_room_of_the_zygote_holds(attack, zygote, outside):
    held(attack, zygote._machine, lambda source, seconds: in_zygote(zygote, source, seconds), outside)
    look = "import os; print(6 * 7, os.listdir('/work'), os.listdir('/tmp'), os.listdir('/dev/shm'))"
    after = in_zygote(zygote, look)
    assert after.stdout == b"42 ['program.py'] [] []\n", after


@pytest.mark.parametrize("kind", ["box", "zygote"])
def test_binary_output_comes_as_it_is(kind, zygote):
    source = "import os\nfor _ in range(4): os.write(1, bytes(range(256)))\nos.write(2, b'\\xff\\x00')\nos._exit(9)"
    with Box() as box:
        done = in_box(box, source) if kind == "box" else in_zygote(zygote, source)
    assert (done.status, done.code, done.stdout, done.stderr) == ("exited", 9, bytes(range(256)) * 4, b"\xff\x00")


@pytest.mark.parametrize("kind", ["box", "zygote"])
def test_a_report_cannot_be_forged(kind, zygote):
    forged = REPORT.pack(EXITED, 0, 0.0, 0, 0.0)
    source = f"""
import gc, os, socket
for d in range(3, 2000):
    try: os.write(d, {forged!r})
    except OSError: pass
for found in gc.get_objects():
    try:
        if type(found).__name__ == 'Job': found.report(0, 0, 0.0)
        if type(found).__name__ == 'Steward': found.control.sendall({forged!r})
    except Exception: pass
os._exit(7)
"""
    with Box() as box:
        done = in_box(box, source) if kind == "box" else in_zygote(zygote, source)
    assert (done.status, done.code, done.detail) == ("exited", 7, "")


@pytest.mark.parametrize(
    "trap",
    [
        "os.symlink(MARKER, 'next.py')",
        "os.symlink('/etc/passwd', 'next.py')",
        "os.mkfifo('next.py')",
        "os.link('a', 'next.py')",
    ],
    ids=["link to the host", "link in the box", "pipe", "hard link"],
)
def test_what_lies_under_a_name_is_not_followed(trap, outside):
    with Box() as box:
        assert in_box(box, f"{outside}import os\nopen('a', 'w').write('a')\n{trap}").code == 0
        box.write({"next.py": "print(open('a').read())"})
        assert box.run(["python3", "next.py"]).stdout == b"a\n"


def test_boxes_share_nothing():
    look = """
import os
found = [n for p in ('/work', '/tmp', '/dev/shm') for n in os.listdir(p)]
print(found, len([p for p in os.listdir('/proc') if p.isdigit()]))
"""
    write = "for p in ('/work', '/tmp', '/dev/shm'): open(p + '/x', 'w').close()\nprint(flush=True)\ninput()"
    with Box() as one, Box() as other, PythonZygote() as zygote:
        first = one.start(["python3", "-c", write])
        second = zygote.start({}, ["-c", write])
        assert first.stdout.readline() == second.stdout.readline() == b"\n"
        assert other.run(["python3", "-c", look]).stdout == b"[] 2\n"
        assert zygote.run({}, ["-c", look]).stdout == b"[] 1\n"
        for process in (first, second):
            process.stdin.write(b"\n")
            assert process.wait().code == 0


def test_a_fork_bomb_takes_no_processes_from_its_neighbour(zygote):
    bomb = zygote.start({}, ["-c", "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"], limits(4))
    fork = "import os\nfor _ in range(20):\n  if not os.fork(): os.read(0, 1); os._exit(0)\nprint(42)"
    assert zygote.run({}, ["-c", fork], limits=limits(60)).stdout == b"42\n"
    bomb.kill()
    assert bomb.wait().status == "exited"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a//b", ".", "a\0b"])
def test_names_outside_work_are_refused(name, zygote):
    with pytest.raises(FactoryError, match="below /work"):
        zygote.run({name: "x"}, ["x"])


def test_arguments_that_are_too_large_are_an_answer():
    with Box() as box:
        assert box.run(["true", "x" * 300_000]).code == 126
        assert box.run(["true", "a\0b"]).code == 126
        assert box.run(["true"]).code == 0


def test_nothing_outlives_a_process_that_was_killed(tmp_path):
    source = """
import sys, time
from factory.sandbox.box import Box
from factory.sandbox.zygote import PythonZygote
box, zygote = Box(), PythonZygote()
loop = "print(1, flush=True)\\nwhile True: pass"
a, b = box.start(["python3", "-c", loop]), zygote.start({}, ["-c", loop])
a.stdout.readline(), b.stdout.readline()
print(box._process.pid, zygote._machine._process.pid, flush=True)
time.sleep(1000)
"""
    runner = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True)
    assert runner.stdout
    boxes = [int(pid) for pid in runner.stdout.readline().split()]
    assert len(boxes) == 2
    everyone = [pid for box in boxes for pid in Path(f"/proc/{box}/task/{box}/children").read_text().split()]
    assert len(everyone) == 2
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    runner.stdout.close()
    waited = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in (*boxes, *everyone)) and time.monotonic() < waited:
        time.sleep(0.05)
    assert not [pid for pid in (*boxes, *everyone) if os.path.exists(f"/proc/{pid}")]
