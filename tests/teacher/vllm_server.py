"""vLLM in its own environment: a server of a checkpoint, and a proxy before it that counts what was answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

from tests.conftest import REPOSITORY

STARTS_IN = 600.0
JSON = {"Content-Type": "application/json"}
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def vllm_python() -> str:
    """The Python of the environment that `make vllm` makes; the test is skipped where there is none."""
    folder = Path(os.environ.get("FACTORY_VLLM") or REPOSITORY / ".vllm")
    python = folder / "bin" / "python"
    if not python.exists():
        pytest.skip(f"vLLM is not at {folder}: make vllm, or set FACTORY_VLLM to its environment")
    return str(python)


class VLLMServer:
    """A server process with its children on a free port; killed and started again on the same one."""

    def __init__(self, python: str, checkpoint: Path, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        self.command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
        self.command += ["--served-model-name", "small", "--host", "127.0.0.1", "--port", str(self.port)]
        # Of the machine's memory, and without compiling: this model is small and lives for a minute.
        self.command += ["--gpu-memory-utilization", "0.1", "--enforce-eager"]
        # The build for CPUs dies of a request with a seed whose prompt it reads in pieces.
        self.command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]
        self.command += options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it, without waiting for it."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **SETTINGS}, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        until = time.monotonic() + STARTS_IN
        while time.monotonic() < until:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/models", timeout=5):
                return
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text()[-3000:])

    def kill(self) -> None:
        """kill -9 of all of its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def serving(checkpoint: Path, log: Path, *options: str) -> Iterator[VLLMServer]:
    server = VLLMServer(vllm_python(), checkpoint, log, *options)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


class Counting:
    """A proxy in a thread: passes requests on, and counts by their body those whose whole answer it has received."""

    def __init__(self, server: VLLMServer) -> None:
        self.server = server
        self.answered: Counter[bytes] = Counter()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Counting:
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _start(self) -> None:
        self.session = ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def _end(self) -> None:
        await self.runner.cleanup()
        await self.session.close()

    async def _pass(self, request: web.Request) -> web.Response:
        body = await request.read()
        url = f"http://127.0.0.1:{self.server.port}{request.path}"
        try:
            async with self.session.request(request.method, url, data=body, headers=JSON) as got:
                raw, status = await got.read(), got.status
        except (ClientError, OSError):
            return web.Response(status=502)
        if body and status == 200:
            self.answered[json.dumps(json.loads(body), sort_keys=True).encode()] += 1
        return web.Response(body=raw, status=status, content_type="application/json")


def run_there(script: str, *arguments: str) -> str:
    """What a script prints in vLLM's environment, with this checkout importable."""
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [vllm_python(), "-c", script, *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sys.stderr.write(done.stderr[-500:])
    return done.stdout
