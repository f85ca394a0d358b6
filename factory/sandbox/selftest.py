"""Whether isolation works here: tried once a process, before anything that is not trusted runs."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal, cast

from factory.engine.errors import FactoryError, nearest
from factory.sandbox.inside import landlock
from factory.sandbox.inside.wire import PYTHON, RUN
from factory.sandbox.limits import Limits
from factory.sandbox.machine import Machine, steward_python

Isolation = Literal["bubblewrap", "degraded"]
ISOLATIONS = ("bubblewrap", "degraded")
_LIMITS = Limits(seconds=20, processes=16)
_HOST = ("/root", "/home", "/etc/shadow", "/etc/hostname", "/var/lib/dpkg/status", "/sys/kernel", "/boot")
# What bubblewrap says, and what to do.
_CURES = {
    "proc on": "/proc is masked here, as in most containers: give this one an unmasked one "
    "(docker: --security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked)",
    "namespace": "user namespaces are not allowed here: sysctl user.max_user_namespaces=10000 "
    "kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0, whichever of them this kernel "
    "has (docker: --security-opt seccomp=unconfined)",
    "uid map": "user namespaces are restricted here: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
}


def require_isolation(choice: str | None = None, zygote: bool = False) -> Isolation:
    """The isolation to use: bubblewrap, or the choice. FactoryError, with the cure, where it does not hold here."""
    name = choice or "bubblewrap"
    if name not in ISOLATIONS:
        raise FactoryError(f"sandbox: no isolation is called {name!r}{nearest(name, ISOLATIONS)}")
    if why := why_not(name, zygote):
        other = "" if choice else "; or, for programs that you trust, choose isolation 'degraded'"
        raise FactoryError(f"sandbox: {name} does not work here: {why}{other}")
    return cast(Isolation, name)


@functools.cache
def why_not(name: str, zygote: bool = False) -> str:
    """Why an isolation does not work on this machine, in one line with the cure; empty where it does."""
    if name == "bubblewrap" and not shutil.which("bwrap"):
        return "bubblewrap is not installed: apt-get install bubblewrap"
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o777)  # so that only the box keeps a program from it
            marker = Path(folder, "outside")
            marker.touch(0o666)
            marker.chmod(0o666)
            problems = _tried(name, zygote, str(marker))
            if marker.stat().st_size:
                problems = ["a program in it wrote outside", *problems]
    except OSError as error:
        raise FactoryError(f"sandbox: {name} cannot be tried: {error}: see ulimit -a, and df of /tmp") from error
    return "; ".join(problems)


def _tried(name: str, zygote: bool, marker: str) -> list[str]:
    """What the probe finds wrong."""
    source = Path(__file__).with_name("inside").joinpath("probe.py").read_text()
    try:
        with Machine((), {}, _LIMITS, ["socket"] if zygote else None, isolation=name) as machine:
            hidden = [path for path in _HOST if not steward_python().startswith(path + "/")]  # Python may lie in one
            if name == "degraded" and not landlock.version():  # nothing hides the files of the host
                hidden, marker = [], ""
            arguments = [marker, " ".join(machine.environment), str(_LIMITS.processes), *hidden]
            if zygote:
                process = machine.job(PYTHON, ({}, ["-c", source, *arguments]), None)
            else:
                command = [steward_python(), "-I", "-S", "-c", source, *arguments]
                process = machine.job(RUN, (command, machine.environment), None)
            done = process.wait()
    except FactoryError as error:
        if isinstance(error.__cause__, OSError):  # of this moment: not to be remembered
            raise
        return [str(error)]
    if done.status == "sandbox_error":
        return [next((f"{cure} ({done.detail})" for said, cure in _CURES.items() if said in done.detail), done.detail)]
    lines = done.stdout.decode(errors="replace").splitlines()
    if lines[-1:] != ["done"]:
        lines.append(f"its probe failed, {done.status}, exit code {done.code}: {done.stderr.decode(errors='replace')}")
    return [f"a program in it {line}" for line in lines if line != "done"]
