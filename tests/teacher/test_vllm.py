"""vLLM for real, on a CPU: in its own process as a server, which is killed in the middle, and in ours as an engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.engine import recipe, run
from factory.engine.errors import FactoryError
from factory.engine.manifest import Manifest
from factory.teacher.openai import OpenAI
from factory.teacher.request import Failed, Message, Request, Response, Sampling
from factory.teacher.transformers import Transformers
from factory.teacher.vllm import VLLM
from tests.engine.build import check_law, content
from tests.teacher.small import ask
from tests.teacher.vllm_server import Counting, VLLMServer, run_there, serving

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "name": {"enum": ["Ada", "Bo"]}},
    "required": ["ok", "name"],
    "additionalProperties": False,
}
CHAT = (Message("system", "Be brief."), Message("user", "Say what 12 + 30 is."))
GREEDY = Sampling(temperature=0, max_tokens=1, logprobs=4)


def asked() -> list[Request]:
    """Chat and completion, n = 8, log-probabilities, a stop string, a JSON schema; and two that cannot be answered."""
    return [
        Request(messages=CHAT, sampling=GREEDY),
        Request(prompt="The factory", sampling=GREEDY),
        Request(messages=CHAT, sampling=Sampling(n=8, max_tokens=12)),
        Request(prompt="The factory", sampling=Sampling(n=4, max_tokens=100, stop=("e",))),
        Request(messages=CHAT, sampling=Sampling(n=4, max_tokens=150, json_schema=json.dumps(SCHEMA))),
        Request(prompt="word " * 400, sampling=Sampling(max_tokens=5)),
        Request(prompt="x", sampling=Sampling(max_tokens=5, json_schema='{"type": "nothing"}')),
    ]


def check(found: list[Response | Failed], checkpoint: Path) -> None:
    """What each of `asked` must have come to, the log-probabilities beside those of the embedded engine."""
    chat, completion, eight, stopped, structured, *failed = found
    assert all(isinstance(one, Failed) for one in failed), failed
    embedded = Transformers(str(checkpoint))
    for response, theirs in zip((chat, completion), ask(embedded, asked()[:2]), strict=True):
        assert isinstance(response, Response) and isinstance(theirs, Response)
        assert (response.prompt_tokens, response.choices[0].tokens) == (theirs.prompt_tokens, 1)
        (ours,), (reference,) = response.choices[0].logprobs or (), theirs.choices[0].logprobs or ()
        assert ours.token == reference.token or not reference.token.isascii()  # half a character has several names
        # vLLM computes in bfloat16, the embedded engine in float32.
        assert ours.logprob == pytest.approx(reference.logprob, abs=0.15)
        if response is chat:  # /completions tells the likeliest by their text: those of one text are one
            assert [value for _, value in ours.top] == pytest.approx([value for _, value in reference.top], abs=0.15)
    assert isinstance(eight, Response) and len({choice.text for choice in eight.choices}) == 8
    assert all(choice.finish_reason in ("stop", "length") for choice in eight.choices)
    assert 8 <= sum(choice.tokens for choice in eight.choices) <= 8 * 12  # a server tells the sum
    assert isinstance(stopped, Response)
    ends = [choice for choice in stopped.choices if choice.tokens < 100]
    assert ends and all("e" not in choice.text and choice.finish_reason == "stop" for choice in ends)
    assert isinstance(structured, Response)
    texts = [json.loads(choice.text) for choice in structured.choices if choice.finish_reason == "stop"]
    assert texts and all(type(one["ok"]) is bool and one["name"] in ("Ada", "Bo") for one in texts)


ENGINE = """
import json, sys
from dataclasses import asdict
from factory.teacher.vllm import VLLM
from factory.teacher.request import Request, Message, Sampling
from factory.teacher.engine import Ask, Asks
import threading

engine = VLLM(sys.argv[1], memory=0.1)
requests = []
for table in json.loads(sys.argv[2]):
    table["sampling"] = Sampling(**{**table["sampling"], "stop": tuple(table["sampling"]["stop"])})
    requests.append(Request(**{**table, "messages": tuple(Message(*m) for m in table["messages"])}))
asks, sent, found = Asks(), [Ask(request) for request in requests] + [Ask(requests[2], 6)], {}
asks.put(sent)

def done(answers):
    found.update(answers)
    if len(found) == len(sent):
        asks.close()

thread = threading.Thread(target=engine.answer, args=(asks, done))
thread.start()
thread.join()
engine.close()
print("FOUND" + json.dumps([[type(found[a]).__name__, asdict(found[a])] for a in sent]))
"""


@pytest.mark.slow
def test_the_engine_in_process(checkpoint: Path) -> None:
    from dataclasses import asdict

    said = run_there(ENGINE, str(checkpoint), json.dumps([asdict(request) for request in asked()]))
    *found, last = [_read(*one) for one in json.loads(said.split("FOUND")[1])]
    check(found, checkpoint)
    assert isinstance(last, Response) and isinstance(found[2], Response)
    assert last.choices == found[2].choices[6:]  # sample i has seed + i, whichever were known before


def _read(kind: str, table: dict[str, Any]) -> Response | Failed:
    from factory.teacher.request import Choice, Logprob

    if kind == "Failed":
        return Failed(table["error"], Request(prompt="x"))
    choices = []
    for choice in table["choices"]:
        if choice["logprobs"] is not None:
            choice["logprobs"] = tuple(Logprob(t, p, tuple(map(tuple, top))) for t, p, top in choice["logprobs"])
        choices.append(Choice(**choice))
    return Response(**{**table, "choices": tuple(choices)})


def test_without_vllm_it_says_where_it_belongs(checkpoint: Path) -> None:
    pytest.importorskip("torch")
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(FactoryError, match=r"vllm, in an environment of its own: run the factory from there, or"):
            ask(VLLM(str(checkpoint)), [Request(prompt="x")])


# A server.


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    with serving(checkpoint, tmp_path_factory.mktemp("vllm") / "log") as server:
        yield server


@pytest.mark.slow
def test_a_server_answers_all_that_can_be_asked(server: VLLMServer, checkpoint: Path) -> None:
    check(ask(OpenAI("small", server.url), asked()), checkpoint)


ROWS = 48


def respond(folder: Path, root: str, url: str, **options: Any) -> Manifest:
    step = {"use": "respond.Respond", "model": "small", "prompt": str(folder / "ask.jinja"), "urls": [url], "n": 2}
    step |= {"max_tokens": 60, "in_flight": 8, "cache": str(folder / "cache"), **options}
    steps = [{"use": "ingest.JsonLines", "glob": str(folder / "*.jsonl")}, step]
    made = recipe.build({"name": "asked", "version": "1", "step": steps}, "asked.toml")
    return run.run(made, run.Options(str(folder / root), 0, quiet=True))


@pytest.mark.slow
def test_killed_in_the_middle_it_loses_nothing(server: VLLMServer, tmp_path: Path) -> None:
    """kill -9 of the server and a new one while a run waits; then one that stays away, and a new run later.

    Nothing that was answered is asked again, and the rows are those of an undisturbed run with the same answers.
    """
    lines = [json.dumps({"id": f"r{n}", "text": f"row number {n}"}) for n in range(ROWS)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "ask.jinja").write_text("{# user #}\nRepeat: {{ text }}\n")
    with Counting(server) as proxy:

        def after(count: int, act: Any) -> threading.Thread:
            def wait() -> None:
                until = time.monotonic() + 300
                while sum(proxy.answered.values()) < count and time.monotonic() < until:
                    time.sleep(0.005)
                act()

            thread = threading.Thread(target=wait)
            thread.start()
            return thread

        gone = after(ROWS // 4, server.kill)
        with pytest.raises(FactoryError, match=r"no server answers at .* run again; what was answered is kept"):
            respond(tmp_path, "rough", proxy.url, patience=1.0)
        gone.join()
        first = sum(proxy.answered.values())
        assert ROWS // 4 <= first < ROWS, "the kill came too late to be of use"

        server.start()
        server.wait()

        def restart() -> None:
            server.kill()
            server.start()

        again = after(ROWS // 2, restart)
        rough = respond(tmp_path, "rough", proxy.url, patience=600.0)
        again.join()
        server.wait()
        assert len(proxy.answered) == ROWS
        assert set(proxy.answered.values()) == {1}, "something that was answered was asked again"
    calm = respond(tmp_path, "calm", "http://127.0.0.1:9/v1", patience=0.0)  # from the cache alone
    assert content(rough) == content(calm)
    check_law(rough)
    assert rough.counts["rows_kept"] == 2 * ROWS and rough.counts["rows_failed"] == 0
