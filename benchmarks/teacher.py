"""What asking costs: requests a second of a core's time, against a fast scripted server, many in flight.

    python benchmarks/teacher.py [--requests 20000] [--in-flight 2000] [--rounds 3]

The server runs in a process of its own and answers each request with 1 KB after half a second. Each client runs in a
fresh process: the teacher with its cache on disk, without it, again with all answers in the cache, and the bare HTTP
libraries with as many requests in flight and nothing around them. CPU is of the whole client process; medians of the
rounds. A slow client is given fewer requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from factory.teacher.openai import OpenAI
from factory.teacher.request import Failed, Message, Request, Sampling
from factory.teacher.teacher import Teacher

DELAY = 0.5
WORDS = "some words of a prompt as long as many are " * 20
CLIENTS = {"teacher, cache": 1, "teacher, no cache": 1, "teacher, all cached": 1, "aiohttp": 1, "httpx": 20}
"""By name: the share of the requests that each is given, as a divisor."""


def requests() -> Iterator[Request]:
    number = 0
    while True:
        text = f"{WORDS}{number}"
        yield Request(messages=(Message("user", text),), sampling=Sampling(max_tokens=256))
        number += 1


def ask(url: str, count: int, in_flight: int, cache: str | None) -> None:
    engine = OpenAI("scripted", url, in_flight=in_flight)
    with Teacher(engine, cache=cache, window=2 * in_flight + 2048) as teacher:
        failed = sum(isinstance(answer, Failed) for answer in teacher.ask(islice(requests(), count)))
    assert not failed


async def bare(name: str, url: str, count: int, in_flight: int) -> None:
    source = islice(requests(), count)
    if name == "aiohttp":
        import aiohttp

        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        async def post(body: bytes) -> bytes:
            async with session.post(url + "/chat/completions", data=body) as reply:
                return await reply.read()
    else:
        import httpx

        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        session = httpx.AsyncClient(limits=limits, timeout=600)  # type: ignore[assignment]

        async def post(body: bytes) -> bytes:
            return bytes((await session.post(url + "/chat/completions", content=body)).content)  # type: ignore[attr-defined]

    async def one() -> None:
        for request in source:
            messages = [message._asdict() for message in request.messages]
            json.loads(await post(json.dumps({"model": "scripted", "messages": messages, "max_tokens": 256}).encode()))

    async with session:
        await asyncio.gather(*[one() for _ in range(in_flight)])


def client(name: str, url: str, count: int, in_flight: int, cache: str) -> None:
    """Prints wall and CPU seconds, and peak memory in MB: with everything imported, before the first request."""
    import aiohttp  # noqa: F401

    before, start, begun = peak(), time.process_time(), time.perf_counter()
    if name.startswith("teacher"):
        ask(url, count, in_flight, None if name == "teacher, no cache" else cache)
    else:
        asyncio.run(bare(name, url, count, in_flight))
    print(json.dumps([time.perf_counter() - begun, time.process_time() - start, before, peak()]))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, count: int, in_flight: int, cache: str) -> list[float]:
    """Wall, CPU of the client, its memory before and at its peak, CPU of the server, and the most in flight there."""
    here = Path(__file__).resolve()
    command = [sys.executable, "-m", "tests.teacher.server", str(DELAY)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here.parents[1]
    ) as server:
        assert server.stdin and server.stdout
        url = server.stdout.readline().strip()
        run = [sys.executable, str(here), "--client", name, url, str(count), str(in_flight), cache]
        done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True)
        server.stdin.close()
        most, used = server.stdout.read().split()
    return [*json.loads(done.stdout), float(used), float(most)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        name, url, count, in_flight, cache = options.client
        client(name, url, int(count), int(in_flight), cache)
        return
    print(f"{options.in_flight:,} in flight, answers after {DELAY} s")
    print(f"{'':22}{'a core-second':>14}{'a second':>10}{'ms CPU':>8}{'server':>8}{'in flight':>10}{'MB':>6}{'+MB':>6}")
    taken: dict[str, list[list[float]]] = {name: [] for name in CLIENTS}
    for _ in range(options.rounds):
        folder = tempfile.mkdtemp()
        try:
            for name, divisor in CLIENTS.items():
                count = options.requests // divisor
                taken[name].append([count, *measure(name, count, options.in_flight, folder)])
        finally:
            shutil.rmtree(folder)
    for name, rounds in taken.items():
        count, wall, cpu, before, top, server, most = (
            statistics.median(column) for column in zip(*rounds, strict=True)
        )
        print(
            f"{name:22}{count / cpu:14,.0f}{count / wall:10,.0f}{cpu / count * 1e3:8.2f}{server / count * 1e3:8.2f}"
            f"{most:10,.0f}{top:6.0f}{top - before:6.0f}"
        )


if __name__ == "__main__":
    main()
