"""Programs that attack their box. Each prints `held` where it was stopped, and what it got where it was not."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from factory.sandbox.seccomp import ARCHITECTURES, REFUSED, SILENT

_COLUMN = list(ARCHITECTURES).index(platform.machine()) if platform.machine() in ARCHITECTURES else 0
NUMBERS = {name: numbers[_COLUMN] for name, numbers in REFUSED.items() if numbers[_COLUMN] is not None}

PRELUDE = f"""
import ctypes, errno, mmap, os, signal, socket, sys, threading, time
N = {NUMBERS!r}
SILENT = {sorted(SILENT)!r}
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    made = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(x) if isinstance(x, int) else x for x in arguments])
    return made, ctypes.get_errno()
def tries(*works):
    got = []
    for work in works:
        try:
            got.append(str(work()))
        except (OSError, ValueError) as error:
            pass
    print('got ' + ' '.join(got) if got else 'held')
"""


@dataclass(frozen=True)
class Attack:
    """A program, how it must end, and what it must print (nothing to check where None)."""

    name: str
    source: str
    status: str = "exited"
    """The statuses that are right, with spaces between them."""
    printed: str | None = "held"
    seconds: float = 20.0
    box_only: bool = False
    slow: bool = False


ATTACKS = [
    # as much as there is
    Attack(
        "fork bomb",
        """
while True:
  try: os.fork()
  except OSError: pass
""",
        "timeout",
        printed=None,
        seconds=0.7,
    ),
    Attack(
        "5,000 threads",
        """
n = 0
try:
  for _ in range(5000):
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    n += 1
except RuntimeError: pass
print('held' if n < 32 else n, flush=True); os._exit(0)
""",
    ),
    Attack(
        "memory bomb",
        """
x = []
while True: x.append(bytearray(1 << 20))
""",
        "memory",
        printed=None,
    ),
    Attack(
        "memory in many small processes",
        """
for _ in range(24):
  if not os.fork():
    x = bytearray(b'x') * (10 << 20); time.sleep(60)
time.sleep(60)
""",
        "memory",
        printed=None,
    ),
    Attack(
        "memory in a thread whose first thread has ended",
        """
def eat():
  x = []
  while True: x.append(bytearray(1 << 20)); time.sleep(0.001)
threading.Thread(target=eat).start(); ctypes.CDLL(None).pthread_exit(None)
""",
        "memory",
        printed=None,
    ),
    Attack(
        "memory hidden from dumps",
        """
libc.prctl(4, 0, 0, 0, 0); x = []
while True: x.append(bytearray(1 << 20))
""",
        "memory",
        printed=None,
        slow=True,
    ),
    Attack(
        "mapping of /dev/zero",
        """
m = mmap.mmap(-1, 1 << 30)
for k in range(0, 1 << 30, 4096): m[k] = 1
""",
        "memory",
        printed=None,
        slow=True,
    ),
    Attack(
        "reserving a tebibyte",
        """
tries(lambda: mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
""",
    ),
    Attack(
        "filling /work",
        """
n = 0
try:
  for k in range(100):
    with open('/work/%d' % k, 'wb', buffering=0) as f:
      for _ in range(4): n += f.write(bytes(1 << 20))
except OSError: pass
print('held' if n <= 8 << 20 else n)
""",
    ),
    Attack(
        "filling /tmp",
        """
n = 0
try:
  for k in range(100):
    with open('/tmp/%d' % k, 'wb', buffering=0) as f:
      for _ in range(4): n += f.write(bytes(1 << 20))
except OSError: pass
print('held' if n <= 8 << 20 else n)
""",
    ),
    Attack(
        "filling /dev/shm",
        """
n = 0
try:
  for k in range(100):
    with open('/dev/shm/%d' % k, 'wb', buffering=0) as f:
      for _ in range(4): n += f.write(bytes(1 << 20))
except OSError: pass
print('held' if n <= 8 << 20 else n)
""",
    ),
    Attack(
        "a million empty files",
        """
n = 0
try:
  for k in range(10**6): os.close(os.open('/tmp/%d' % k, os.O_CREAT | os.O_WRONLY)); n += 1
except OSError: print('held')
""",
        "exited memory",
        printed=None,
        slow=True,
    ),
    Attack(
        "a sparse file",
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tries(lambda: os.truncate(os.open('/work/s', 65), 1 << 40))
""",
    ),
    Attack(
        "endless output",
        """
while True: print('x' * 1000)
""",
        "output_limit",
        printed=None,
    ),
    Attack(
        "endless errors",
        """
while True: os.write(2, b'x' * 1000)
""",
        "output_limit",
        printed=None,
    ),
    Attack(
        "a loop",
        """
while True: pass
""",
        "timeout",
        printed=None,
        seconds=0.7,
    ),
    Attack(
        "sleep",
        """
time.sleep(1000)
""",
        "timeout",
        printed=None,
        seconds=0.7,
    ),
    Attack(
        "ignored signals",
        """
for s in range(1, 65):
  try: signal.signal(s, signal.SIG_IGN)
  except (OSError, ValueError): pass
while True: pass
""",
        "timeout",
        printed=None,
        seconds=0.7,
        slow=True,
    ),
    Attack(
        "standard output closed, then a loop",
        """
os.close(1); os.close(2)
while True: pass
""",
        "timeout",
        printed=None,
        seconds=0.7,
        slow=True,
    ),
    Attack(
        "stopping itself",
        """
os.kill(os.getpid(), signal.SIGSTOP); print('held')
""",
        "timeout exited",
        printed=None,
        seconds=0.7,
        slow=True,
    ),
    Attack(
        "recursion",
        """
sys.setrecursionlimit(10**9)
def f(): return f()
f()
""",
        "exited memory",
        printed=None,
    ),
    Attack(
        "stack overflow",
        """
threading.stack_size(1 << 28)
sys.setrecursionlimit(10**9)
x = []
for _ in range(10**6): x = [x]
print(len(repr(x)))
""",
        "exited memory",
        printed=None,
        slow=True,
    ),
    Attack(
        "giant arguments",
        """
tries(lambda: os.execv('/bin/true', ['true', *['x' * 100000] * 100]))
""",
    ),
    Attack(
        "a giant environment",
        """
tries(lambda: os.execve('/bin/true', ['true'], {str(k): 'x' * 100000 for k in range(100)}))
""",
        slow=True,
    ),
    Attack(
        "thousands of descriptors",
        """
n = 0
try:
  while True: os.pipe(); n += 2
except OSError: print('held' if n < 1100 else n)
""",
    ),
    Attack(
        "higher limits",
        """
import resource as r
def more(w):
  s, h = r.getrlimit(w); r.setrlimit(w, (h + 1, h + 1)); return w
tries(*[lambda w=w: more(w) for w in (r.RLIMIT_NPROC, r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_FSIZE, r.RLIMIT_CORE)])
""",
    ),
    Attack(
        "memory in sockets",
        """
pairs = []
def fill():
  while True:
    pair = socket.socketpair()
    pairs.append(pair)
    for one in pair:
      one.setblocking(False)
      try:
        while True: one.send(bytes(1 << 14))
      except OSError: pass
    time.sleep(0.001)
for _ in range(4): os.fork()
try: fill()
except OSError: time.sleep(20)
""",
        "memory",
        printed=None,
    ),
    # what stays behind
    Attack(
        "a daemon",
        """
if not os.fork():
  os.setsid()
  if not os.fork():
    time.sleep(1000)
  os._exit(0)
print('held')
""",
    ),
    Attack(
        "children that hold the pipes",
        """
for _ in range(5):
  if not os.fork(): time.sleep(1000)
print('held')
""",
    ),
    Attack(
        "orphans of orphans",
        """
for _ in range(10):
  if os.fork(): os._exit(0)
time.sleep(1000)
""",
        printed=None,
    ),
    Attack(
        "a core dump",
        """
os.chdir('/work'); os.kill(os.getpid(), signal.SIGSEGV); libc.abort()
""",
        printed=None,
    ),
    Attack(
        "deep folders",
        """
for _ in range(2000): os.mkdir('d'); os.chdir('d')
print('held')
""",
        "exited memory",
        printed=None,
    ),
    Attack(
        "odd names",
        """
for n in (b'\\n', b'-rf', b'*', b'\\xff\\xfe', b'a' * 255, b' ', '\\u202e'.encode()): open(n, 'w').close()
print('held')
""",
    ),
    Attack(
        "folders closed to the next",
        """
for p in ('/work', '/tmp', '/dev/shm'): os.chmod(p, 0)
print('held')
""",
    ),
]
