"""A box: one isolated machine for untrusted programs, and the commands that run in it one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from factory.engine.errors import FactoryError
from factory.sandbox.inside.wire import RUN, WRITE
from factory.sandbox.limits import Limits
from factory.sandbox.machine import Machine
from factory.sandbox.process import Execution, Process
from factory.sandbox.selftest import require_isolation

_LIMITS = Limits()


class Box(Machine):
    """One isolated machine: a writable /work, where commands start, /tmp and /dev/shm; no network; nothing of the host
    but the programs of its system and `mounts`, read only. A context manager.

    `environment` is added to machine.ENVIRONMENT. `limits` hold for commands that are given none, and their `files` for
    the box. Commands run one at a time: what one leaves running is killed when it ends, what it leaves in files stays.
    """

    def __init__(
        self,
        *,
        mounts: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        limits: Limits = _LIMITS,
        isolation: str | None = None,
    ) -> None:
        super().__init__(mounts, environment, limits, isolation=require_isolation(isolation))

    def write(self, files: Mapping[str, bytes | str]) -> None:
        """Write files below /work, with the folders that they are in. FactoryError where that cannot be done."""
        done = self.job(WRITE, encoded(files), None).wait()
        if done.detail:
            raise FactoryError(f"sandbox: cannot write {', '.join(files)} into the box: {done.detail}")

    def run(self, command: Sequence[str], stdin: bytes = b"", limits: Limits | None = None) -> Execution:
        """Run a command to its end."""
        return self.start(command, limits).communicate(stdin)

    def start(self, command: Sequence[str], limits: Limits | None = None) -> Process:
        """Start a command, to talk to it."""
        return self.job(RUN, (list(command), self.environment), limits)


def encoded(files: Mapping[str, bytes | str]) -> dict[str, bytes]:
    """Files as bytes. FactoryError where a name does not lie below /work."""
    for name in files:
        parts = name.split("/")
        if "\0" in name or ".." in parts or "" in parts or parts == ["."]:
            raise FactoryError(f"sandbox: {name!r} is not the name of a file below /work")
    # A text with half a surrogate pair, as JSON may hold one, is a bad program, and no error of ours.
    texts = {name: data.encode("utf-8", "surrogatepass") for name, data in files.items() if isinstance(data, str)}
    return {name: texts[name] if isinstance(data, str) else bytes(data) for name, data in files.items()}
