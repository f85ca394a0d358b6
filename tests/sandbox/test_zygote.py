"""The zygote: programs run as by Python itself, in rooms of their own, many at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from factory.sandbox.limits import Limits
from factory.sandbox.machine import steward_python
from factory.sandbox.selftest import why_not
from factory.sandbox.zygote import PythonZygote

pytestmark = pytest.mark.skipif(
    not shutil.which("bwrap") or bool(why_not("bubblewrap", True)), reason="no bubblewrap here"
)

PROGRAMS = {
    "value": "print(6 * 7)",
    "exit": "import sys; print('x', end=''); sys.exit(3)",
    "exit with a text": "raise SystemExit('why')",
    "exit with true": "exit(True)",
    "exit of 256": "import sys; sys.exit(256)",
    "exit at once": "import os; print('lost'); os._exit(5)",
    "error": "def f(): 1 / 0\nprint('before')\nf()",
    "chained": "try: 1 / 0\nexcept ZeroDivisionError as e: raise KeyError('k') from e",
    "syntax": "print('a'\nx = 1",
    "tabs": "if 1:\n\tx = 1\n        y = 2",
    "encoding": "# -*- coding: latin-1 -*-\nprint('\u00e9'.encode())",
    "group": "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
    "main": "print(__name__, __file__, __doc__, __builtins__.__name__, sorted(k for k in globals()))",
    "arguments": "import sys; print(sys.argv)",
    "input": "import sys; print(input(), sys.stdin.read(), sys.stdin.isatty(), sys.stdin.seekable())",
    "threads": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()\nprint('now')",
    "at exit": "import atexit; atexit.register(print, 'bye'); print('hi'); 1 / 0",
    "warning": "import warnings; warnings.warn('w')",
    "import": "import other; print(other.x, other.__file__)",
    "package": "from p.q import x; print(x)",
    "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n  x: int\nprint(P(1))",
    "processes": "from multiprocessing import get_context\n"
    "with get_context('fork').Pool(2) as p: print(p.map(abs, [-1, -2]))",
    "subprocess": "import subprocess; print(subprocess.run(['cat'], input=b'x', capture_output=True))",
    "asyncio": "import asyncio\nasync def f():\n  await asyncio.sleep(0.01); return 5\nprint(asyncio.run(f()))",
    "collector": "import gc; print(gc.isenabled(), gc.get_threshold())",
    "files": "open('made', 'w').write('x'); import os; print(sorted(os.listdir()), open('/tmp/t', 'w').write('y'))",
    "stdout closed": "import sys; sys.stdout.close()",
    "recursion": "def f(n): return f(n + 1)\ntry: f(0)\nexcept RecursionError as e: print(e)",
    "future": "from __future__ import annotations\ndef f(x: nonesuch): pass\nprint(f.__annotations__)",
    "no future": "def f(x: int): pass\nprint(f.__annotations__)",
    "unicode": "print('\u4f60\u597d \U0001f600'); print(ascii('\u00e9'))",
    "bytes": "import sys; sys.stdout.buffer.write(bytes(range(256)))",
    "signal": "import signal; signal.signal(signal.SIGALRM, lambda *_: print('rang')); signal.alarm(1); signal.pause()",
}  # fmt: skip
FILES = {"other.py": "x = 1", "p/__init__.py": "", "p/q.py": "x = 2"}


@pytest.fixture(scope="module")
def zygote() -> Iterator[PythonZygote]:
    with PythonZygote() as made:
        yield made


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_what_it_does_under_python(name, zygote, tmp_path):
    files = {**FILES, "program.py": PROGRAMS[name]}
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(text.encode("latin-1" if name == "encoding" else "utf-8"))
        files[path] = (tmp_path / path).read_bytes()
    expected = subprocess.run(
        [steward_python(), "program.py", "one", "two"],
        input=b"first\nrest",
        capture_output=True,
        cwd=tmp_path,
        env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    done = zygote.run(files, ["program.py", "one", "two"], b"first\nrest")
    place = str(tmp_path).encode()
    assert done.status == "exited", done
    assert done.code == expected.returncode
    assert done.stdout == expected.stdout.replace(place, b"/room/work")
    assert done.stderr == expected.stderr.replace(place, b"/room/work")


def test_a_text_can_be_run(zygote):
    done = zygote.run({}, ["-c", "import sys; print(sys.argv, __name__)", "x"])
    assert done.stdout == b"['-c', 'x'] __main__\n"
    failed = zygote.run({}, ["-c", "1 / 0"])
    assert failed.stderr.splitlines()[:2] == [
        b"Traceback (most recent call last):",
        b'  File "<string>", line 1, in <module>',
    ]


def test_programs_at_the_same_time_are_told_apart(zygote):
    def ask(k: int) -> bytes:
        source = (
            f"open('/tmp/x', 'w').write('{k}'); import time; time.sleep(0.02); print(open('/tmp/x').read(), input())"
        )
        return zygote.run({"a.py": source}, ["a.py"], b"%d\n" % k).stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(100))) == [b"%d %d\n" % (k, k) for k in range(100)]


def test_two_programs_talk_without_anybody_between(zygote):
    ask = "import sys\nfor k in range(5): print(k, flush=True); print(input(), file=sys.stderr)"
    answer = "while True: print(int(input()) ** 2, flush=True)"
    (here, there), (back, forth) = os.pipe(), os.pipe()
    first = zygote.start({}, ["-c", ask], stdin=back, stdout=there)
    second = zygote.start({}, ["-c", answer], stdin=here, stdout=forth)
    for descriptor in (here, there, back, forth):
        os.close(descriptor)
    assert first.stdin is None and first.stdout is None
    assert first.wait().stderr == b"0\n1\n4\n9\n16\n"
    assert b"EOFError" in second.wait().stderr


def test_modules_and_sources_are_there_at_the_start():
    sources = {
        "warm.module": "x = 5\nimport os\npid = os.getpid()",
        "warm.other": "from warm.module import x\ny = x + 1",
    }
    with PythonZygote(modules=["decimal"], sources=sources) as zygote:
        source = "import sys; print('decimal' in sys.modules, 'xml' in sys.modules)\nfrom warm.other import y; print(y)"
        assert zygote.run({}, ["-c", source]).stdout == b"True False\n6\n"


def test_memory_is_what_is_used_when_the_first_thread_has_ended(zygote):
    source = """
import ctypes, os, threading, time
threading.Thread(target=lambda: (time.sleep(0.3), os._exit(0))).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    done = zygote.run({}, ["-c", source], limits=Limits(files=512 << 20))
    assert done.code == 0 and 1 << 20 < done.memory < 128 << 20, done


def test_seeds_of_random_differ(zygote):
    assert len({zygote.run({}, ["-c", "import random; print(random.random())"]).stdout for _ in range(3)}) == 3


def test_what_was_asked_of_it_ends_with_the_reader(zygote):
    process = zygote.start({}, ["-c", "while True: print('x' * 1000)"], Limits(seconds=60))
    process.stdout.close()
    done = process.wait()
    assert done.status == "exited" and b"BrokenPipeError" in done.stderr


def test_a_zygote_that_ended_is_started_again():
    with PythonZygote() as zygote:
        process = zygote.start({}, ["-c", "input()"])
        zygote._machine._kill()
        done = process.wait()
        assert (done.status, done.code) == ("sandbox_error", None)
        assert zygote.run({}, ["-c", "print(42)"]).stdout == b"42\n"


def test_without_a_box_by_choice():
    if why := why_not("degraded", True):
        pytest.skip(why)
    with PythonZygote(isolation="degraded") as zygote, ThreadPoolExecutor(4) as pool:
        source = "import os; print(os.listdir('.'), flush=True)\ntry: os.listdir('..')\nexcept OSError: print('held')"
        done = list(pool.map(lambda _: zygote.run({"a.py": source}, ["a.py"]), range(8)))
    assert {d.isolation for d in done} == {"degraded"}
    assert {d.stdout for d in done} <= {b"['a.py']\nheld\n", b"['a.py']\n"}
