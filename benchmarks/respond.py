"""Tokens a second through the step Respond, beside the same requests sent straight to the same vLLM server.

    make vllm
    python benchmarks/respond.py [--rows 64] [--in-flight 16] [--rounds 11] [--url URL --model NAME]

Without --url a server is started in the environment that `make vllm` makes (FACTORY_VLLM, else .vllm), with a model of
random weights. The plain client is aiohttp with as many requests in flight and nothing around it. The two take turns;
each time the prompts are new, and the step's cache is empty. Medians of the rounds and of their ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from factory.engine.step import Context, Failure, Memo
from factory.synth.respond import Respond
from tests.teacher.small import make_checkpoint
from tests.teacher.vllm_server import serving

TEMPLATE = "{# user #}\nContinue this text, whatever it says, in about as many words: {{ text }}\n"
WORDS = ("reads", "a text", "that has", "some words", "and keeps", "the ones", "worth", "reading", "twice", "or more")
TOKENS = 128


def rows(count: int, turn: int) -> pa.RecordBatch:
    texts = [" ".join([f"{turn} {n}", *(WORDS[(n * k + turn) % len(WORDS)] for k in range(40))]) for n in range(count)]
    ids = [f"{turn}-{n}" for n in range(count)]
    return pa.record_batch({"id": pa.array(ids, pa.large_string()), "text": pa.array(texts, pa.large_string())})


def through_the_step(url: str, model: str, batch: pa.RecordBatch, in_flight: int, folder: str) -> float:
    """New tokens a second, from the rows as they come to the rows as they go."""
    prompt = Path(folder) / "prompt.jinja"
    prompt.write_text(TEMPLATE)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        step = Respond(
            model=model, urls=(url,), prompt=str(prompt), max_tokens=TOKENS, in_flight=in_flight, cache=cache
        )
        step.open(Context())
        begun, tokens = time.perf_counter(), 0
        for made in step(iter([step.prepare(batch, Memo(batch.num_rows))])):
            if isinstance(made, Failure):
                raise SystemExit(made.error)
            tokens += sum(made.column("completion_tokens").to_pylist())
        taken = time.perf_counter() - begun
        step.close()
    return tokens / taken


async def straight(url: str, model: str, batch: pa.RecordBatch, in_flight: int) -> float:
    """The same of a plain client."""
    text = TEMPLATE.split("\n", 1)[1].strip("\n")
    source = iter(batch.column("text").to_pylist())
    tokens = 0
    sampling = {"model": model, "temperature": 1.0, "top_p": 1.0, "max_tokens": TOKENS, "seed": 0}

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for value in source:
            messages = [{"role": "user", "content": text.replace("{{ text }}", value)}]
            async with session.post(f"{url}/chat/completions", json={**sampling, "messages": messages}) as reply:
                tokens += json.loads(await reply.read())["usage"]["completion_tokens"]

    begun = time.perf_counter()
    limits = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
        await asyncio.gather(*[one(session) for _ in range(in_flight)])
    return tokens / (time.perf_counter() - begun)


@contextlib.contextmanager
def server(url: str, model: str, folder: str) -> Iterator[tuple[str, str]]:
    if url:
        yield url, model
        return
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    checkpoint = make_checkpoint(Path(folder) / "model", positions=2048, **shape)
    with serving(checkpoint, Path(folder) / "log") as own:
        yield own.url, "small"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--url", default="", help="of a server that runs already, ending in /v1")
    parser.add_argument("--model", default="", help="its model's name")
    options = parser.parse_args()
    found: dict[str, list[float]] = {"straight": [], "through the step": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        server(options.url, options.model, folder) as (url, model),
    ):
        through_the_step(url, model, rows(options.in_flight, 0), options.in_flight, folder)  # warm, unmeasured
        print(f"{options.rows} requests of {TOKENS} new tokens at most, {options.in_flight} in flight\n")
        print(f"{'round':>5}{'straight':>12}{'step':>12}{'ratio':>8}   (tokens/s)")
        for turn in range(1, options.rounds + 1):
            for which in sorted(found, reverse=turn % 2 == 0):
                batch = rows(options.rows, 2 * turn + (which == "straight"))
                if which == "straight":
                    found[which].append(asyncio.run(straight(url, model, batch, options.in_flight)))
                else:
                    found[which].append(through_the_step(url, model, batch, options.in_flight, folder))
            a, b = found["straight"][-1], found["through the step"][-1]
            print(f"{turn:5}{a:12,.1f}{b:12,.1f}{b / a:8.3f}", flush=True)
    plain, step = found["straight"], found["through the step"]
    ratio = statistics.median(b / a for a, b in zip(plain, step, strict=True))
    print(f"{'all':>5}{statistics.median(plain):12,.1f}{statistics.median(step):12,.1f}{ratio:8.3f}   medians")


if __name__ == "__main__":
    main()
