"""Programs that try to get out of their box, or at the ones who watch it."""

from __future__ import annotations

from tests.sandbox.attacks import Attack

ESCAPES = [
    # out of the box
    Attack(
        "the network",
        """
tries(*[lambda a=a: socket.create_connection(a, 2) for a in (('1.1.1.1', 80), ('127.0.0.1', PORT), ('10.0.0.1', 22))])
""",
    ),
    Attack(
        "names of hosts",
        """
tries(lambda: socket.getaddrinfo('example.com', 80))
""",
    ),
    Attack(
        "an abstract socket of the host",
        """
tries(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + SECRET))
""",
    ),
    Attack(
        "other families of sockets",
        """
FAMILIES = (17, 38, 40, 29, 31, 44)  # packet, algorithms, virtual machines, CAN, Bluetooth, XDP
tries(*[lambda f=f, t=t: socket.socket(f, t) for f in FAMILIES for t in (1, 2, 3)],
      lambda: socket.socket(16, 3, 12), lambda: socket.socket(2, 3, 1))
""",
    ),
    Attack(
        "files of the host",
        """
def entries(p): return os.listdir(p)[0:1] or os.stat('/none')
FILES = ['/etc/shadow', '/etc/hostname', MARKER, '/proc/1/root' + MARKER, '/proc/kcore',
         '/dev/mem', '/dev/sda', '/dev/vda']
tries(*[lambda p=p: open(p, 'rb').read(9) for p in FILES],
      *[lambda p=p: entries(p) for p in ('/root', '/home', '/sys', '/boot', '/var')])
""",
    ),
    Attack(
        "writing outside",
        """
FILES = ['/x', '/usr/x', '/etc/x', '/etc/passwd', '/dev/x', MARKER, '/proc/sys/kernel/core_pattern',
         '/proc/sys/vm/overcommit_memory', '/proc/sysrq-trigger', '/proc/x']
tries(*[lambda p=p: open(p, 'w').write('x') for p in FILES])
""",
    ),
    Attack(
        "climbing out by ..",
        """
tries(lambda: open('/..' * 20 + MARKER).read(), lambda: os.chroot('/work'))
""",
        slow=True,
    ),
    Attack(
        "setuid",
        """
tries(lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]))
""",
    ),
    Attack(
        "a setuid program",
        """
import shutil; shutil.copy('/usr/bin/id', '/work/id'); os.chmod('/work/id', 0o6755)
import subprocess as s; a, b = [s.run([p, '-u'], capture_output=True).stdout for p in ('/usr/bin/id', '/work/id')]
su = s.run(['su', '-c', 'id'], capture_output=True, stdin=s.DEVNULL)
print('held' if a == b != b'0\\n' and su.returncode else (a, b))
""",
    ),
    Attack(
        "device nodes",
        """
tries(lambda: os.mknod('/work/mem', 0o20666, os.makedev(1, 1)))
""",
    ),
    Attack(
        "hard links to what is outside",
        """
tries(lambda: os.link('/usr/bin/env', '/work/env'), lambda: os.link('/etc/passwd', '/tmp/p'))
""",
    ),
    Attack(
        "new namespaces",
        """
libc.unshare.restype = int
SIGCHLD = 17
KINDS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
got = [f for f in KINDS if libc.unshare(f) == 0]
C = 56 if os.uname().machine == 'x86_64' else 220
for f in (0x10000000, 0x10020000, 0x20000000):
  p = call(C, f | SIGCHLD, 0, 0, 0, 0)[0]
  if p == 0: os._exit(0)
  if p > 0: got.append(p)
s = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, SIGCHLD)
p = call(435, s, 64)[0]
if p == 0: os._exit(0)
print('held' if not got and p < 0 else got)
""",
    ),
    Attack(
        "mounts",
        """
made = [libc.mount(b't', b'/work', b'tmpfs', 0, None), libc.umount2(b'/work', 2),
        libc.mount(b'/', b'/tmp', None, 4096, None), libc.mount(None, b'/', None, 32, None)]
print('held' if all(made) else made)
""",
    ),
    # at the ones who watch
    Attack(
        "signals to process 1 and to all",
        """
for s in range(1, 65):
  for p in {1, os.getppid()} - {0, os.getpid()}:
    try: os.kill(p, s)
    except OSError: pass
try: os.kill(-1, 9)
except OSError: pass
print('held')
""",
    ),
    Attack(
        "the memory of process 1",
        """
tries(*[lambda n=n: open('/proc/1/' + n, 'rb').read(9) for n in ('mem', 'environ', 'maps', 'auxv')],
      lambda: open('/proc/1/mem', 'r+b'),
      *[lambda n=n: os.listdir('/proc/1/' + n) for n in ('fd', 'map_files', 'root')])
""",
        box_only=True,
    ),
    Attack(
        "limits and processors of process 1",
        """
import resource as r
tries(lambda: r.prlimit(1, r.RLIMIT_CPU, (1, 1)), lambda: os.sched_setaffinity(1, {0}))
""",
        box_only=True,
    ),
    Attack(
        "higher priority",
        """
real_time = os.sched_param(50)
for w in (lambda: os.nice(-10), lambda: os.sched_setscheduler(0, 1, real_time), lambda: os.setpriority(0, 0, -20)):
  try: w()
  except OSError: pass
print('held' if os.sched_getscheduler(0) == 0 and os.getpriority(0, 0) >= 0 else 'got')
""",
    ),
    Attack(
        "inherited descriptors",
        """
f = sorted(map(int, os.listdir('/proc/self/fd')))
print('held' if f[:3] == [0, 1, 2] and len(f) <= 4 else f)
""",
    ),
    Attack(
        "the terminal",
        """
import fcntl
tries(lambda: open('/dev/tty'), *[lambda d=d: fcntl.ioctl(d, 0x5412, b'x') for d in (0, 1, 2)], lambda: os.openpty())
""",
    ),
    Attack(
        "secrets in environments",
        """
s = ''
for p in os.listdir('/proc'):
  try: s += open('/proc/%s/environ' % p).read()
  except OSError: pass
print('got' if SECRET[::-1] in s + str(os.environ) else 'held')
""",
    ),
    Attack(
        "every refused system call",
        """
got = []
for n, k in N.items():
  made, error = call(k, 0, 0, 0, 0, 0, 0)
  if not (made == -1 and error in (errno.EPERM, errno.ENOSYS) or n in SILENT): got.append((n, made, error))
print(got or 'held')
""",
    ),
    Attack(
        "memory of no process",
        """
tries(lambda: os.memfd_create('x'))
""",
    ),
    Attack(
        "a child under the name of another",  # /proc/PID/stat holds the name as it is
        """
if not os.fork():
  open('/proc/self/comm', 'w').write(') S 999 (x')
  held = bytearray(300 << 20)
  time.sleep(60)
os.wait()
""",
        status="memory",
        printed=None,
    ),
    Attack(
        "memory that children share",
        """
held = mmap.mmap(-1, 300 << 20)
for k in range(0, 300 << 20, 4096): held[k] = 1
for k in range(3): os.fork()
time.sleep(60)
""",
        status="memory",
        printed=None,
    ),
    Attack(
        "files without a name",
        """
files = []
def fill():
  for k in range(60):
    files.append(open('u%d' % k, 'wb', buffering=0))
    os.unlink('u%d' % k)
    if files[-1].write(bytes(1 << 20)) < 1 << 20: raise OSError
tries(fill)
""",
    ),
    Attack(
        "extended attributes",
        """
open('x', 'w').close()
def fill():
  for k in range(20000): os.setxattr('x', 'user.a%d' % k, bytes(60000))
tries(fill)
""",
        status="exited memory",  # a box counts them, a room has no place for them
        printed=None,
    ),
    Attack(
        "a program made setuid",
        """
import shutil, subprocess
shutil.copy('/usr/bin/id', 'id')
os.chmod('id', 0o4755)
who = {subprocess.run([p, '-u'], capture_output=True).stdout for p in ('./id', '/usr/bin/id')}
print('held' if len(who) == 1 and b'0\\n' not in who else who)
""",
    ),
    Attack(
        "descriptors of process 1 by number",
        """
PIDFD_OPEN, PIDFD_SIGNAL = 434, 424
made = call(PIDFD_OPEN, 1, 0)[0]
got = [call(N['pidfd_getfd'], made, k, 0)[0] for k in range(20)]
if os.getpid() != 1: call(PIDFD_SIGNAL, made, 9, 0, 0)
print('held' if set(got) == {-1} else got)
""",
    ),
    Attack(
        "more priority in memory's shortage",
        """
def write(path, value):
  with open(path, 'w') as file: file.write(value)
tries(lambda: write('/proc/self/oom_score_adj', '-1000'), lambda: write('/proc/sys/kernel/core_pattern', '|/x'),
      lambda: write('/proc/sysrq-trigger', 'b'), lambda: write('/proc/self/uid_map', '0 0 1'))
""",
    ),
    Attack(
        "many notices, timers and counters",
        """
def flood(number, *arguments):
  made = 0
  while made < 5000 and call(number, *arguments)[0] >= 0: made += 1
  return made
import platform
EVENTFD, INOTIFY = (290, 294) if platform.machine() == 'x86_64' else (19, 26)
print('held' if flood(INOTIFY, 0) < 2000 and flood(EVENTFD, 0, 0) < 1100 else 'got')
""",
    ),
    Attack(
        "system calls of another convention",
        """
print('before', flush=True)
call(0x40000000 | 39)
print('after')
""",
        printed=None,
        slow=True,
    ),
]
