"""Wrong programs that try to be judged right, and the tests that they would have to pass. Every one is `f`."""

from __future__ import annotations

ADD = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(20, -3) == 17
    assert candidate(10**20, 1) == 100000000000000000001
"""
WORDS = """
def check(candidate):
    assert candidate("a b") == ["a", "b"]
    assert candidate("x") == ["x"]
    assert len(candidate("p q r")) == 3
"""
CLOSE = """
import math
def check(candidate):
    assert abs(candidate(4.0) - 2.0) < 1e-6
    assert math.fabs(candidate(9.0) - 3.0) < 1e-6
    assert math.isclose(candidate(2.0), 1.4142135623730951)
"""
COUNT = """
def check(candidate):
    assert candidate("aab") == {"a": 2, "b": 1}
    assert candidate("") == {}
    assert set(candidate("xyx")) == {"x", "y"}
"""
EACH = """
def check(candidate):
    assert all(map(lambda pair: candidate(*pair) == sum(pair), [(1, 2), (3, 4)]))
    assert [candidate(k, k) for k in range(3)] == [0, 2, 4]
"""
RAISES = """
def check(candidate):
    try:
        candidate(-1, 0)
        raise RuntimeError("nothing was raised")
    except ValueError as error:
        assert error.args == ("negative",)
    assert candidate(2, 3) == 5
"""
UNIT = """
import unittest
class Test(unittest.TestCase):
    def test_sum(self):
        self.assertEqual(f(2, 3), 5)
        self.assertIn(f(1, 1), [2])
"""
HELPED = """
def check(candidate):
    assert helper(candidate(3, 4)) == 0
"""
_SHOW = "\ndef f(*a):\n    return 0\n"

CHEATS: dict[str, tuple[str, str]] = {
    # ends early, as if all were well
    "exit at import": (ADD, "import sys\nsys.exit(0)"),
    "_exit at import": (ADD, "import os\nos._exit(0)"),
    "_exit in the function": (ADD, "import os\ndef f(*a):\n    os._exit(0)"),
    "SystemExit": (ADD, "def f(*a):\n    raise SystemExit(0)"),
    "KeyboardInterrupt": (ADD, "def f(*a):\n    raise KeyboardInterrupt"),
    "StopIteration ends the loop of the tests": (EACH, "def f(*a):\n    raise StopIteration"),
    "GeneratorExit": (EACH, "def f(*a):\n    raise GeneratorExit"),
    "StopIteration by another name": (EACH, "class E(StopIteration): pass\ndef f(*a):\n    raise E"),
    "exit hook": (ADD, "import atexit, os\natexit.register(lambda: (print('passed'), os._exit(0)))\ndef f(*a): exit()"),
    "parent leaves, child goes on": (ADD, "import os\nif os.fork():\n    os._exit(0)" + _SHOW),
    "child answers": (
        ADD,
        "import os\ndef f(*a):\n    if os.fork() == 0:\n        os._exit(0)\n    os.wait()\n    return 0",
    ),
    "signal handler": (
        ADD,
        "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
        "def f(*a):\n    signal.alarm(1)\n    while True: pass",
    ),
    "kills all that it can": (
        ADD,
        "import os\ndef f(*a):\n    os.kill(-1, 9)\n    os.kill(os.getppid(), 9)\n    return 0",
    ),
    "closes everything": (ADD, "import os\ndef f(*a):\n    os.closerange(0, 200)\n    return 0"),
    "replaces itself": (ADD, "import os\ndef f(*a):\n    os.execv('/bin/true', ['true'])"),
    # says that it passed
    "prints passed": (ADD, "import sys\nprint('passed\\nOK\\n1 passed')\nprint('passed', file=sys.stderr)" + _SHOW),
    "writes a verdict to every descriptor": (
        ADD,
        "import os\ndef f(*a):\n    for n in range(1, 64):\n        try:\n"
        "            os.write(n, b'(\\0\\0\\0\\4s\\0\\0\\0\\6passeds\\0\\0\\0\\0(\\0\\0\\0\\0F')\n"
        "        except OSError: pass\n    return 0",
    ),
    "forges messages with our own code": (
        ADD,
        "import os, sys\nfor name in list(sys.modules):\n    if name.endswith('peer'): peer = sys.modules[name]\n"
        "def f(*a):\n    for fd in range(3, 64):\n        for verb in ('return', 'passed', 'call'):\n"
        "            try:\n                e = peer.Encoder(None); e.value((verb, None, 'passed')); peer.send(fd, e.message())\n"
        "            except Exception: pass\n    return 0",
    ),
    "asks the driver for its objects": (
        ADD,
        "import sys\nframe = sys._getframe()\nwhile frame:\n    if 'self' in frame.f_locals: peer = frame.f_locals['self']\n"
        "    frame = frame.f_back\n"
        "def f(*a):\n    for key in range(5):\n        peer.request('get', key, '__globals__')\n    return 0",
    ),
    "takes our classes apart": (
        ADD,
        "import sys\nfor name, module in list(sys.modules.items()):\n    if name.startswith('factory'):\n"
        "        for key in list(vars(module)):\n            if not key.startswith('__'): setattr(module, key, lambda *a, **k: True)"
        + _SHOW,
    ),
    # values that compare as they like
    "equal to everything": (ADD, "class A:\n    def __eq__(self, o): return True\ndef f(*a): return A()"),
    "never unequal": (
        ADD,
        "class A:\n    __ne__ = lambda s, o: False\n    __eq__ = lambda s, o: True\nf = lambda *a: A()",
    ),
    "int of its own": (
        ADD,
        "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\n    __pos__ = lambda s: 5\ndef f(*a): return A()",
    ),
    "str of its own": (
        WORDS,
        "class A(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\ndef f(t): return [A(), A()]",
    ),
    "float of its own": (
        CLOSE,
        "class A(float):\n    __sub__ = __rsub__ = lambda s, o: 0.0\n    __abs__ = lambda s: 0.0\n"
        "    __float__ = lambda s: 2.0\n    __eq__ = lambda s, o: True\ndef f(x): return A(7)",
    ),
    "number of no type": (
        CLOSE,
        "class A:\n    __sub__ = __rsub__ = __abs__ = lambda s, *o: s\n    __lt__ = __gt__ = lambda s, o: True\n"
        "    __float__ = lambda s: 0.0\ndef f(x): return A()",
    ),
    "list of its own": (
        WORDS,
        "class A(list):\n    __eq__ = lambda s, o: True\n    __len__ = lambda s: 3\ndef f(t): return A()",
    ),
    "tuple of its own": (ADD, "class A(tuple):\n    __eq__ = lambda s, o: True\ndef f(*a): return A()"),
    "dict of its own": (
        COUNT,
        "class A(dict):\n    __eq__ = lambda s, o: True\n    __iter__ = lambda s: iter('xy')\nf = lambda t: A()",
    ),
    "keys that hash and compare as they like": (
        COUNT,
        "class K(str):\n    __hash__ = lambda s: 0\n    __eq__ = lambda s, o: True\ndef f(t): return {K('q'): 2, K('r'): 1}",
    ),
    "type that compares": (
        ADD,
        "class M(type):\n    __eq__ = lambda s, o: True\nclass A(metaclass=M): pass\nf = lambda *a: A",
    ),
    "lies about its class": (
        ADD,
        "class A:\n    __class__ = property(lambda s: int)\n    __eq__ = lambda s, o: True\n    __int__ = __index__ = lambda s: 5\n"
        "f = lambda *a: A()",
    ),
    "mock.ANY": (ADD, "from unittest.mock import ANY\nf = lambda *a: ANY"),
    "answers when it is compared": (
        ADD,
        "class A:\n    def __eq__(self, o):\n        self.seen = o\n        return o == o\n    __radd__ = __add__ = lambda s, o: o\nf = lambda *a: A()",
    ),
    "lazy values": (WORDS, "def f(t):\n    class A:\n        __eq__ = lambda s, o: True\n    while True: yield A()"),
    "contains everything": (
        UNIT,
        "class A:\n    __eq__ = lambda s, o: True\n    __contains__ = lambda s, o: True\n    __len__ = lambda s: 3\nf = lambda *a: A()",
    ),
    "equal text": (
        ADD,
        "class A:\n    __repr__ = __str__ = lambda s: '5'\n    __eq__ = lambda s, o: True\nf = lambda *a: A()",
    ),
    "no number": (CLOSE, "def f(x): return float('nan')"),
    "infinite": (CLOSE, "def f(x): return float('inf')"),
    "complex": (CLOSE, "def f(x): return complex('nan')"),
    "huge number": (ADD, "def f(*a): return 1 << (1 << 26)"),
    "numbers of one hash": (COUNT, "def f(t): return {k * ((1 << 61) - 1): 1 for k in range(200000)}"),
    "value in itself": (WORDS, "def f(t):\n    a = []\n    a.append(a)\n    return a"),
    "value too deep": (WORDS, "def f(t):\n    a = []\n    for _ in range(100000): a = [a]\n    return a"),
    "value shared many times": (WORDS, "def f(t):\n    a = []\n    for _ in range(120): a = [a, a]\n    return a"),
    # looks for what is expected
    "frames": (
        ADD,
        "import sys\ndef f(*a):\n    frame = sys._getframe()\n    while frame:\n        for c in frame.f_code.co_consts:\n"
        "            if c in (5, 17): return c\n        if 'tests' in frame.f_locals: return 5\n        frame = frame.f_back\n    return 0",
    ),
    "inspect": (
        ADD,
        "import inspect\ndef f(*a):\n    for i in inspect.stack():\n        if 'assert' in str(i.code_context):\n"
        "            return int(str(i.code_context).split('==')[1].split('\\\\')[0])\n    return 0",
    ),
    "gc": (
        ADD,
        "import gc\ndef f(a, b):\n    for o in gc.get_objects():\n        if getattr(o, '__name__', '') == 'check':\n"
        "            return [c for c in o.__code__.co_consts if isinstance(c, int)][2]\n    return 0",
    ),
    "proc": (
        ADD,
        "import glob\ndef f(a, b):\n    for p in glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/environ') + glob.glob('/work/*')"
        " + glob.glob('/tmp/*'):\n        try:\n            s = open(p).read()\n        except OSError: continue\n"
        "        if f'candidate({a}, {b}) == ' in s:\n"
        "            return int(s.split(f'candidate({a}, {b}) == ')[1].split()[0])\n    return 0",
    ),
    "descriptors": (
        ADD,
        "import os\ndef f(a, b):\n    for n in os.listdir('/proc/self/fd'):\n        try:\n"
        "            os.set_blocking(int(n), False)\n            s = os.read(int(n), 1 << 20).decode('latin1')\n"
        "        except OSError: continue\n        if 'candidate(' in s: return 5\n    return 0",
    ),
    "memory": (
        ADD,
        "import re\ndef f(a, b):\n    for line in open('/proc/self/maps'):\n        if ' rw' not in line: continue\n"
        "        lo, hi = (int(x, 16) for x in line.split()[0].split('-'))\n        try:\n"
        "            with open('/proc/self/mem', 'rb', 0) as m:\n                m.seek(lo); s = m.read(hi - lo)\n"
        "        except (OSError, ValueError, OverflowError): continue\n"
        "        if found := re.search(b'candidate\\\\(%d, %d\\\\) == (-?\\\\d+)' % (a, b), s): return int(found[1])\n    return 0",
    ),
    # changes the rules
    "trace": (
        ADD,
        "import sys\ndef t(frame, event, arg):\n    frame.f_trace_lines = False\n    if frame.f_code.co_name == 'check': sys.exit(0)\n"
        "    return t\nsys.settrace(t)\nimport threading\nthreading.settrace(t)" + _SHOW,
    ),
    "builtins": (
        EACH,
        "import builtins\nbuiltins.all = builtins.any = lambda *a: True\nbuiltins.sum = lambda x: 0\n"
        "builtins.map = lambda *a: []\nbuiltins.AssertionError = type('A', (BaseException,), {})\nbuiltins.len = lambda x: 3"
        + _SHOW,
    ),
    "mathematics": (
        CLOSE,
        "import math, operator, builtins\nmath.fabs = lambda x: 0.0\nmath.isclose = lambda *a, **k: True\n"
        "operator.eq = lambda *a: True\nbuiltins.abs = lambda x: 0.0" + _SHOW,
    ),
    "unittest": (
        UNIT,
        "import unittest\nunittest.TestCase.assertEqual = unittest.TestCase.assertIn = lambda *a: None\n"
        "unittest.TestResult.addFailure = lambda *a: None" + _SHOW,
    ),
    "skips": (UNIT, "import unittest\ndef f(*a): raise unittest.SkipTest('later')"),
    "check of its own": (ADD, "check = lambda c: None\nimport builtins\nbuiltins.check = check" + _SHOW),
    "modules in the way": (
        UNIT,
        "for n in ('unittest', 'math', 'tests', 'program', 'solution'):\n    for d in ('/work/', '/tmp/', ''):\n"
        "        open(d + n + '.py', 'w').write('TestCase = object')" + _SHOW,
    ),
    "objects in memory": (
        ADD,
        "import ctypes, sys\nfor n in range(2, 6):\n    ctypes.memset(id(n) + 24, 0, 4)" + _SHOW,
    ),
    "a thread that changes the answer": (
        WORDS,
        "import threading, time\ndef f(t):\n    r = []\n    def late():\n        time.sleep(0.05)\n        r.extend(t.split())\n"
        "    threading.Thread(target=late).start()\n    return r",
    ),
    "helper of its own": (HELPED, "def helper(x): return 0" + _SHOW),
    "helper that is an object": (HELPED, "class H:\n    __call__ = lambda s, x: 0\nhelper = H()" + _SHOW),
    "helper that makes numbers": (HELPED, "class helper:\n    def __new__(c, x): return 0" + _SHOW),
    "always raises": (RAISES, "def f(*a): raise ValueError('negative')"),
    "raises what is everything": (
        RAISES,
        "class M(type):\n    __instancecheck__ = __subclasscheck__ = __eq__ = lambda *a: True\n    __hash__ = type.__hash__\n"
        "class E(Exception, metaclass=M): args = ('negative',)\ndef f(*a): raise E",
    ),
    "no test is called": ("x = 1\ndef check(candidate): pass", "def f(*a): return 0"),
    # takes too much
    "sleeps": (ADD, "import time\ndef f(*a): time.sleep(60)"),
    "loops": (ADD, "def f(*a):\n    while True: pass"),
    "catches everything and loops": (
        ADD,
        "def f(*a):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    ),
    "memory without end": (ADD, "def f(*a):\n    x = []\n    while True: x.append(bytearray(1 << 20))"),
    "output without end": (ADD, "def f(*a):\n    while True: print('passed' * 1000)"),
    "answers without end": (WORDS, "def f(t):\n    while True: yield 'a' * 10000"),
    "never reads": (ADD, "import time\nwhile True: time.sleep(1)"),
    "crashes": (ADD, "import ctypes\ndef f(*a): ctypes.string_at(0)"),
}
