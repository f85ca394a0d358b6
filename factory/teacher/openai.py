"""Any server that speaks as OpenAI's does: vllm serve, SGLang, llama.cpp, a provider.

Messages go to /chat/completions, a raw prompt to /completions. One event loop keeps many requests in flight. aiohttp
does the talking: with 2,000 in flight it takes about 0.3 ms of CPU a request, httpx more than 10 ms
(benchmarks/teacher.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import os
import random
import resource
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from factory.engine.errors import FactoryError
from factory.teacher import reply
from factory.teacher.engine import Ask, Asks, Done, identify
from factory.teacher.request import Choice, Failed, Request, Response

IN_FLIGHT = 256
TRIES = 6
TIMEOUT = 600.0
PATIENCE = 300.0
CONNECTING = 30.0
DOUBLINGS = 6
"""Of the longest pause between two tries, at first a second, where the server does not say when."""
GATHER = 0.005
"""Seconds in which answers are gathered before they are kept together."""
MOMENT = 2.0
"""Seconds after which it is said that a server is away."""
AWAY = (502, 503, 504)
"""Said by a proxy whose server is away; 503 also by one that is loading its model or has too much to do."""
FATAL = {
    401: "the key is refused: see api_key",
    402: "the account has no money left",
    403: "the key may not do this: see api_key",
    404: "there is no such model or address: see model and url, which ends in /v1",
    405: "this is not the address of such a server: see url, which ends in /v1",
}


class Retry(Exception):
    """A try that failed, where another may not. `after`: seconds that the server asks to wait; `away`: it may be down;
    `limited`: it had too much to do, which is no fault of the request."""

    def __init__(self, why: str, after: float = 0.0, away: bool = False, limited: bool = False) -> None:
        super().__init__(why)
        self.after, self.away, self.limited = after, away, limited


class Refused(Exception):
    """The server will not answer this request, however often it is asked."""


class Server:
    """One base URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urllib.parse.urlsplit(self.url)
        bypass = urllib.request.proxy_bypass(parts.hostname or "")
        self.proxy = None if bypass else urllib.request.getproxies().get(parts.scheme)
        self.up = True
        self.busy = 0
        self.closed_until = 0.0
        """It said that it takes nothing before (monotonic seconds)."""


class OpenAI:
    """An engine that asks servers at one or several base URLs (`http://host:8000/v1`), the least busy one first.

    `model` is sent to the server and names the cache's entries; with `revision` where that name does not say which
    weights. `api_key` names the environment variable that holds the key. `timeout` seconds are given to each try, of
    which a request has `tries`. Servers that are away or refuse everything are waited for `patience` seconds, then the
    run stops. `extra` is JSON whose fields are sent with every request (`{"top_k": 20}`; null takes a field away).
    """

    def __init__(
        self,
        model: str,
        url: str | Sequence[str],
        *,
        revision: str = "",
        api_key: str = "",
        in_flight: int = IN_FLIGHT,
        timeout: float = TIMEOUT,
        tries: int = TRIES,
        patience: float = PATIENCE,
        extra: str = "",
    ) -> None:
        self.model, self.in_flight, self.timeout = model, in_flight, timeout
        self.tries, self.patience = tries, patience
        self.servers = [Server(one) for one in ([url] if isinstance(url, str) else url)]
        if not self.servers or in_flight < 1 or tries < 1:
            raise FactoryError("an openai engine needs at least one url, in_flight and tries of 1 or more")
        for server in self.servers:
            if not server.url.startswith(("http://", "https://")) or "@" in server.url:
                raise FactoryError(f"{server.url}: give a base URL as http://127.0.0.1:8000/v1, without a password")
        try:
            self.extra = json.loads(extra or "{}")
            self.extra.items()
        except (ValueError, AttributeError) as error:
            raise FactoryError(f'extra = {extra!r}: give a JSON object, as {{"top_k": 20}}') from error
        self.identity = identify(model, revision)
        if self.extra:
            self.identity += " " + json.dumps(self.extra, sort_keys=True)
        self._key = os.environ.get(api_key, "").strip()
        if api_key and not self._key:
            raise FactoryError(f"the environment variable {api_key} (api_key) is not set: put the key there")

    def answer(self, asks: Asks, done: Done) -> None:
        _allow_files(self.in_flight + 128)
        asyncio.run(self._serve(asks, done))

    def close(self) -> None:
        """Nothing is open outside of `answer`."""

    async def _serve(self, asks: Asks, done: Done) -> None:
        """Keep up to `in_flight` requests under way, and hand over what comes in groups."""
        import aiohttp

        loop, self._news, self._some_up = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._fatal: BaseException | None = None
        self._watches: set[asyncio.Task[None]] = set()
        self._some_up.set()
        self._heard = -math.inf

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # put in the moment in which the loop ends
                loop.call_soon_threadsafe(self._news.set)

        asks.wake = wake
        under_way: set[asyncio.Task[None]] = set()
        finished: list[tuple[Ask, Response | Failed]] = []
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        connector = aiohttp.TCPConnector(limit=0)
        limit = aiohttp.ClientTimeout(total=self.timeout, sock_connect=CONNECTING)

        async def one(ask: Ask) -> None:
            try:
                finished.append((ask, await self._one(ask)))
            except Exception as error:
                self._fatal = error
            self._news.set()

        async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=limit) as self._session:
            try:
                while not asks.closed:
                    for ask in asks.take(self.in_flight - len(under_way), wait=False):
                        task = loop.create_task(one(ask))
                        under_way.add(task)
                        task.add_done_callback(under_way.discard)
                    await self._news.wait()
                    self._news.clear()
                    if finished:
                        came, finished[:] = finished[:], []
                        done(came)
                        await asyncio.sleep(GATHER)
                    if self._fatal:
                        raise self._fatal
            finally:
                left = [*under_way, *self._watches]
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)
                if finished:
                    done(finished)

    async def _one(self, ask: Ask) -> Response | Failed:
        """One request; again for the samples that lack, where a server gives fewer than n."""
        found: Response | None = None
        choices: list[Choice] = []
        try:
            while len(choices) < ask.count:
                body = self._body(ask.request, ask.count - len(choices), ask.seed, len(choices))
                chat = bool(ask.request.messages)
                more = await self._post("/chat/completions" if chat else "/completions", body)
                choices += more.choices[: ask.count - len(choices)]
                found = found or more
        except Refused as error:
            return Failed(str(error), ask.request)
        assert found is not None
        return Response(
            choices=tuple(choices),
            prompt_tokens=found.prompt_tokens,
            model=found.model,
            fingerprint=found.fingerprint,
        )

    def _body(self, request: Request, n: int, seed: int | None, further: int) -> bytes:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if request.messages:
            body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
        else:
            body["prompt"] = request.prompt
        if n > 1:
            body["n"] = n
        if seed is not None:
            body["seed"] = seed + further
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logprobs:
            chat = {"logprobs": True, "top_logprobs": sampling.logprobs}
            body |= chat if request.messages else {"logprobs": sampling.logprobs}
        if sampling.json_schema:
            try:
                schema = json.loads(sampling.json_schema)
            except ValueError as error:
                raise Refused(f"json_schema is not JSON: {error}") from error
            named = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        body |= self.extra
        return json.dumps({key: value for key, value in body.items() if value is not None}).encode()

    async def _post(self, path: str, body: bytes) -> Response:
        """Try until there is an answer. Refused where there is none to be had, FactoryError where for no request."""
        tried = failed = 0
        refused = math.inf
        while True:
            server = await self._choose()
            server.busy += 1
            try:
                found = await self._try(server, path, body)
                self._heard = time.monotonic()
                return found
            except Retry as error:
                why = error
            finally:
                server.busy -= 1
            failed += 1
            tried += not why.limited
            if tried >= self.tries:
                raise Refused(f"{why} ({self.tries} tries)")
            if why.away:
                self._watch(server, str(why))
            elif why.limited:
                refused = min(refused, time.monotonic())
                self._close(server, why, max(refused, self._heard))
            # Full jitter (Brooker 2015), so that those which failed together do not come back together.
            pause = random.random() * 2.0 ** min(failed - 1, DOUBLINGS)
            await asyncio.sleep(min(why.after, self.patience) + pause)

    async def _try(self, server: Server, path: str, body: bytes) -> Response:
        import aiohttp

        try:
            where = server.url + path
            async with self._session.post(where, data=body, allow_redirects=False, proxy=server.proxy) as got:
                raw, status, after = await got.read(), got.status, got.headers.get("Retry-After")
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Retry(self._hide(str(error)), away=True, limited=True) from error
        except TimeoutError as error:
            raise Retry(f"no answer in {self.timeout:g} s: raise timeout, or lower in_flight") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Retry(self._hide(f"the connection broke: {type(error).__name__}: {error}"), away=True) from error
        if status == 200:
            try:
                return reply.read(raw)
            except reply.Malformed as error:
                raise Retry(self._hide(f"a malformed answer: {error}")) from error
        why = f"{where} says {status}: {reply.complaint(self._hide(raw.decode(errors='replace')))}"
        if status == 429 and "insufficient_quota" not in why:
            raise Retry(why, after=seconds_of(after), limited=True)
        if status == 503:
            raise Retry(why, after=max(1.0, seconds_of(after)), limited=True)
        if status in (408, 409, 425) or status >= 500:
            raise Retry(why, after=seconds_of(after), away=status in AWAY)
        if status in FATAL or status == 429 or status < 400:
            raise FactoryError(f"{why}: {FATAL.get(status, 'see url and the account')}")
        raise Refused(why)

    def _hide(self, text: str) -> str:
        """A server may repeat the key that it refuses."""
        return text.replace(self._key, "***") if self._key else text

    async def _choose(self) -> Server:
        """The least busy server that is up and takes requests."""
        while True:
            now = time.monotonic()
            up = [server for server in self.servers if server.up]
            if ready := [server for server in up if server.closed_until <= now]:
                return min(ready, key=lambda server: server.busy)
            if up:
                await asyncio.sleep(min(server.closed_until for server in up) - now + random.random() * 0.1)
            else:
                await self._some_up.wait()

    def _close(self, server: Server, why: Retry, since: float) -> None:
        """It has too much to do: nobody sends it anything before the time that it says."""
        now = time.monotonic()
        if max(now - since, why.after) > self.patience:
            raise FactoryError(
                f"{why}: no answer for {max(now - since, why.after):,.0f} s: lower in_flight or "
                "requests_a_minute, or run again later; what was answered is kept"
            )
        server.closed_until = max(server.closed_until, now + why.after)

    def _watch(self, server: Server, why: str) -> None:
        """It may be down: nobody sends it anything until it answers again."""
        if server.up:
            server.up = False
            if not any(one.up for one in self.servers):
                self._some_up.clear()
                self._none_up = time.monotonic()
            task = asyncio.get_running_loop().create_task(self._wait_for(server, why))
            self._watches.add(task)
            task.add_done_callback(self._watches.discard)

    async def _wait_for(self, server: Server, why: str) -> None:
        try:
            await self._answers(server, why)
        except Exception as error:
            self._fatal = error
            self._news.set()
        else:
            server.up = True
            self._some_up.set()

    async def _answers(self, server: Server, why: str) -> None:
        """Return when it says anything that a server says which is there."""
        import aiohttp

        begun, pause, told = time.monotonic(), 0.1, False
        while True:
            try:
                limit = aiohttp.ClientTimeout(total=10)
                where = server.url + "/models"
                async with self._session.get(where, allow_redirects=False, timeout=limit, proxy=server.proxy) as got:
                    if got.status not in AWAY:
                        return
                    why = f"it says {got.status}"
            except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one
                why = self._hide(str(error)) or "it does not answer"
            if not self._some_up.is_set() and time.monotonic() - self._none_up > self.patience:
                raise FactoryError(
                    f"no server answers at {', '.join(one.url for one in self.servers)} for {self.patience:g} s "
                    f"({why}): start it and run again; what was answered is kept"
                )
            if not told and time.monotonic() - begun > MOMENT:
                print(f"{server.url} is away ({why}): waiting for it", file=sys.stderr)
                told = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)


def seconds_of(after: str | None) -> float:
    """A Retry-After header (RFC 9110 10.2.3): seconds or a date; 0 where there is none."""
    if not after:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(after))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _allow_files(wanted: int) -> None:
    """Each request in flight holds a connection, and each connection a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise FactoryError(
                f"{wanted:,} open files are needed, {hard:,} allowed: raise `ulimit -n` or lower in_flight"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
