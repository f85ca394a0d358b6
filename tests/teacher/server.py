"""A scripted server that speaks as an OpenAI-compatible one does, over real HTTP, and misbehaves on command.

It is written on asyncio's protocols, and costs a fraction of what any client does: `python -m tests.teacher.server`
serves for benchmarks. Sample i of a prompt asked with seed s is the same text for the same (prompt, s + i).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any


@dataclass
class Reply:
    """What the server does with a request."""

    status: int = 200
    body: Any = None
    """JSON, or bytes as they are; None: a good answer."""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    """The connection is dropped after so many bytes of the body."""
    hang: bool = False
    """No reply at all."""


Script = Callable[[str, dict[str, Any]], Reply]
"""Told the path and the JSON that was sent."""


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["prompt"]) if "prompt" in body else "\n".join(m["content"] for m in body["messages"])


def text_of(prompt: str, seed: int | None) -> str:
    """What the server answers."""
    return f"{len(prompt)} characters, {hashlib.sha256(f'{prompt}|{seed}'.encode()).hexdigest()[:12]}"


def answer(body: dict[str, Any]) -> dict[str, Any]:
    seed, prompt, choices = body.get("seed"), prompt_of(body), []
    for index in range(body.get("n", 1)):
        text = text_of(prompt, None if seed is None else seed + index)
        said: dict[str, Any] = {"text": text} if "prompt" in body else {"message": {"content": text}}
        choices.append({"index": index, "finish_reason": "stop", **said})
    counts = {"prompt_tokens": len(prompt.split()), "completion_tokens": 3 * len(choices)}
    return {"model": "scripted-7b", "system_fingerprint": "fp_1", "choices": choices, "usage": counts}


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time on a connection, kept alive."""

    def __init__(self, server: Server) -> None:
        self.server, self.held = server, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.held += data
        end = self.held.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.held[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.held) < end + 4 + length:
            return
        path = self.held.split(b" ", 2)[1].decode()
        body, self.held = self.held[end + 4 : end + 4 + length], b""
        self.server.received(self, path, head, body)

    def send(self, reply: Reply, body: bytes) -> None:
        if self.transport.is_closing():
            return
        lines = "".join(f"{key}: {value}\r\n" for key, value in reply.headers.items())
        phrase = HTTPStatus(reply.status).phrase
        head = f"HTTP/1.1 {reply.status} {phrase}\r\ncontent-type: application/json\r\n{lines}"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[: reply.cut])
        if reply.cut is not None:
            self.transport.close()


class Server:
    """Runs in a thread of its own while its block lasts. `script` may be changed at any time.

    `calls` are the requests that came, `answered` counts the (prompt, seed) of every sample that went out whole.
    With `hold` nothing is answered before so many requests are there.
    """

    def __init__(self, script: Script | None = None, hold: int = 0) -> None:
        self.script, self.hold = script, hold
        self.held: list[tuple[Connection, dict[str, Any], Reply]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.heads: list[bytes] = []
        self.answered: Counter[tuple[str, int | None]] = Counter()
        self.open: set[asyncio.Transport] = set()
        self.busy = self.most_busy = self.port = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        self.thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def start(self) -> None:
        """Listen; after `stop`, again on the same port."""
        make = self.loop.create_server(lambda: Connection(self), "127.0.0.1", self.port, backlog=4096)
        self.listening = asyncio.run_coroutine_threadsafe(make, self.loop).result()
        self.port = self.listening.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Refuse connections, and drop those that are there."""

        async def end() -> None:
            self.listening.close()
            for transport in list(self.open):
                transport.abort()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()

    def received(self, connection: Connection, path: str, head: bytes, raw: bytes) -> None:
        if not raw:  # GET /models
            reply = self.script(path, {}) if self.script else Reply()
            connection.send(reply, b"{}")
            return
        body = json.loads(raw)
        self.calls.append((path, body))
        self.heads.append(head)
        reply = self.script(path, body) if self.script else Reply()
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        if not reply.hang:
            self.held.append((connection, body, reply))
        if self.most_busy >= self.hold:
            for one in self.held:
                self.loop.call_later(one[2].delay, self.send, *one)
            self.held.clear()

    def send(self, connection: Connection, body: dict[str, Any], reply: Reply) -> None:
        self.busy -= 1
        good = reply.body is None and reply.status == 200
        said = answer(body) if good else reply.body if reply.body is not None else {"error": {"message": "as told"}}
        if good and reply.cut is None and not connection.transport.is_closing():
            seed = body.get("seed")
            for index in range(body.get("n", 1)):
                self.answered[prompt_of(body), None if seed is None else seed + index] += 1
        connection.send(reply, said if isinstance(said, bytes) else json.dumps(said).encode())


class Fast(Server):
    """Answers everything with the same bytes after `delay` seconds, and remembers nothing."""

    def __init__(self, delay: float, words: int = 200) -> None:
        super().__init__()
        self.delay = delay
        said = answer({"prompt": "a b c"})
        said["choices"][0] |= {"text": "word " * words, "message": {"content": "word " * words}}
        self.bytes, self.reply = json.dumps(said).encode(), dataclasses.replace(Reply())

    def received(self, connection: Connection, path: str, head: bytes, raw: bytes) -> None:
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        self.loop.call_later(self.delay, self.end, connection)

    def end(self, connection: Connection) -> None:
        self.busy -= 1
        connection.send(self.reply, self.bytes)


if __name__ == "__main__":
    with Fast(float(sys.argv[1])) as server:
        print(server.url, flush=True)
        sys.stdin.read()
        print(server.most_busy, time.process_time(), flush=True)
