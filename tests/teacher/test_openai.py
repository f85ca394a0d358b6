"""The engine for OpenAI-compatible servers, over real HTTP, with a server that misbehaves on command."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections import Counter
from email.utils import formatdate

import pytest

from factory.engine.errors import FactoryError
from factory.teacher.budget import Budget, Use
from factory.teacher.openai import OpenAI, seconds_of
from factory.teacher.request import Failed, Logprob, Message, Request, Response, Sampling
from factory.teacher.teacher import Teacher
from tests.teacher.server import Reply, Server, answer, text_of


def ask(server, *requests, **options):
    with Teacher(OpenAI("m", server.url, **options), cache=None) as teacher:
        return list(teacher.ask(requests))


def test_messages_and_raw_prompts_are_sent_with_their_sampling():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    full = Sampling(
        n=2, temperature=0.5, top_p=0.9, max_tokens=7, seed=3, stop=("END",), logprobs=2, json_schema=json.dumps(schema)
    )
    talk = (Message("system", "Be kind."), Message("user", "Hi"))
    with Server() as server:
        chat, raw = ask(
            server,
            Request(messages=talk, sampling=full),
            Request(prompt="Once", sampling=Sampling(seed=None)),
            extra='{"top_k": 5}',
        )
        sent = dict(server.calls)
    assert sent["/v1/chat/completions"] == {
        "model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "n": 2, "seed": 3, "stop": ["END"], "top_k": 5,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "logprobs": True, "top_logprobs": 2,
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}
        },
    }  # fmt: skip
    assert sent["/v1/completions"] == {
        "model": "m", "temperature": 1.0, "top_p": 1.0, "max_tokens": 512, "top_k": 5, "prompt": "Once",
    }  # fmt: skip
    assert [choice.text for choice in chat.choices] == [text_of("Be kind.\nHi", 3), text_of("Be kind.\nHi", 4)]
    assert [choice.tokens for choice in chat.choices] == [3, 3]
    assert (chat.prompt_tokens, chat.model, chat.fingerprint) == (3, "scripted-7b", "fp_1")
    assert raw.choices[0].finish_reason == "stop" and raw.choices[0].text == text_of("Once", None)


def test_log_probabilities_of_both_forms():
    chat = {"token": " a", "logprob": -0.5, "top_logprobs": [{"token": " a", "logprob": -0.5}]}
    plain = {
        "tokens": ["x", "y"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"z": -3.0, "x": -1.0}, {"y": -2.0}],
    }

    def script(path, body):
        said = answer(body)
        said["choices"][0]["logprobs"] = {"content": [chat]} if "chat" in path else plain
        return Reply(body=said)

    with Server(script) as server:
        first, second = ask(server, Request(messages=(Message("user", "q"),)), Request(prompt="q"))
    assert first.choices[0].logprobs == (Logprob(" a", -0.5, ((" a", -0.5),)),)
    assert second.choices[0].logprobs == (
        Logprob("x", -1.0, (("x", -1.0), ("z", -3.0))),
        Logprob("y", -2.0, (("y", -2.0),)),
    )
    assert second.choices[0].tokens == 2, "counted, where the server's sum of 3 would be of something else"


def test_what_a_model_thought_is_kept_apart():
    said = {"choices": [{"message": {"content": "4", "reasoning_content": "2 + 2"}, "finish_reason": "stop"}]}
    with Server(lambda path, body: Reply(body=said)) as server:
        (found,) = ask(server, Request(messages=(Message("user", "2 + 2?"),)))
    assert (found.choices[0].text, found.choices[0].reasoning) == ("4", "2 + 2")


MISHAPS = {
    "500": Reply(500),
    "503": Reply(503),
    "429": Reply(429),
    "408": Reply(408),
    "cut": Reply(cut=20),
    "no body": Reply(cut=0),
    "truncated": Reply(body=b'{"choices": [{"index": 0, "mess'),
    "html": Reply(body=b"<html>busy</html>"),
    "empty": Reply(body={"choices": []}),
    "null": Reply(body={"choices": [{"message": None}]}),
    "error": Reply(body={"error": {"message": "upstream"}}),
    "abort": Reply(body={"choices": [{"text": "half an ans", "finish_reason": "abort"}]}),
    "list": Reply(body=b"[]"),
    "hangs": Reply(hang=True),
    "no UTF-8": Reply(body=b'{"choices": [{"text": "\xff"}]}'),
    "no gzip": Reply(body=b"{}", headers={"content-encoding": "gzip"}),
    "half a gzip": Reply(body=gzip.compress(b"{}")[:12], headers={"content-encoding": "gzip"}),
    "no brotli": Reply(body=b"{}", headers={"content-encoding": "br"}),
    "deep": Reply(body=b"[" * 200_000),
    "infinite": Reply(body=b'{"choices": [{"text": ""}], "usage": {"prompt_tokens": Infinity}}'),
}


def test_what_may_pass_is_tried_again():
    tries = Counter()

    def script(path, body):
        """Each prompt meets its mishap twice, then it is answered."""
        if not body:
            return Reply()
        tries[body["prompt"]] += 1
        return MISHAPS[body["prompt"]] if tries[body["prompt"]] <= 2 else Reply()

    with Server(script) as server:
        found = ask(server, *[Request(prompt=mishap) for mishap in MISHAPS], timeout=1.0)
    assert [one.choices[0].text for one in found] == [text_of(mishap, 0) for mishap in MISHAPS]
    assert tries == dict.fromkeys(MISHAPS, 3)


@pytest.mark.parametrize(("reply", "why"), [(Reply(status=500), "says 500"), (Reply(body=b"{"), "malformed")])
def test_what_does_not_pass_is_a_failed_row(reply, why):
    with Server(lambda path, body: reply if body.get("prompt") == "bad" else Reply()) as server:
        found = ask(server, *[Request(prompt=prompt, id=prompt) for prompt in ("a", "bad", "b")], tries=2)
    assert [type(one) for one in found] == [Response, Failed, Response]
    assert why in found[1].error and found[1].request.id == "bad"
    assert len(server.calls) == 4


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 10**30, "completion_tokens": -5}])
def test_where_a_server_does_not_count_the_budget_does(usage):
    said = {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": usage}
    requests = [Request(prompt=f"{n:03}", sampling=Sampling(max_tokens=10)) for n in range(50)]
    with (
        Server(lambda path, body: Reply(body=said)) as server,
        Teacher(OpenAI("m", server.url), cache=None, budget=Budget(completion_tokens=100)) as teacher,
    ):
        with pytest.raises(FactoryError, match="completion_tokens = 100"):
            list(teacher.ask(requests))
        assert len(server.calls) == 10 and teacher.spent == Use(10, 10, 10, 100)


def test_a_server_that_is_overloaded_for_longer_than_the_tries_take():
    begun = time.monotonic()

    def script(path, body):
        return Reply(503) if body and time.monotonic() - begun < 4 else Reply()

    with Server(script) as server:
        found = ask(server, *[Request(prompt=str(number)) for number in range(5)], tries=1)
    assert all(isinstance(one, Response) for one in found)


def test_a_request_that_is_wrong_fails_at_once():
    said = {"error": {"message": "the context is 4,096 tokens", "code": "context_length_exceeded"}}
    with Server(lambda path, body: Reply(400, said) if body["prompt"] == "long" else Reply()) as server:
        long, schema, good = ask(
            server,
            Request(prompt="long"),
            Request(prompt="x", sampling=Sampling(json_schema="{")),
            Request(prompt="fine"),
        )
    assert "4,096" in long.error and "400" in long.error
    assert "json_schema is not JSON" in schema.error
    assert isinstance(good, Response)
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    ("status", "cure"), [(401, "api_key"), (402, "money"), (403, "api_key"), (404, "model"), (301, "url")]
)
def test_a_wrong_key_or_model_ends_the_run(status, cure, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")

    def script(path, body):
        return Reply(status, {"error": {"message": "Incorrect API key provided: sk-very-secret"}})

    with Server(script) as server, pytest.raises(FactoryError, match=cure) as error:
        ask(server, *[Request(prompt=str(number)) for number in range(50)], api_key="MY_KEY", in_flight=1)
    assert "sk-very-secret" not in str(error.value) and str(status) in str(error.value)
    assert len(server.calls) == 1
    assert b"bearer sk-very-secret" in server.heads[0]


def test_no_part_of_a_key_is_shown(monkeypatch):
    """Also where a long text is cut off within it."""
    monkeypatch.setenv("MY_KEY", "sk-very-secret\n")
    said = {"error": {"message": "x" * 290 + " sk-very-secret"}}
    with Server(lambda path, body: Reply(400, said)) as server:
        (found,) = ask(server, Request(prompt="x"), api_key="MY_KEY")
    assert "sk-" not in found.error


def test_a_quota_that_is_used_up_ends_the_run():
    said = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    with Server(lambda path, body: Reply(429, said)) as server, pytest.raises(FactoryError, match="quota"):
        ask(server, Request(prompt="x"))


def test_a_key_that_is_not_there_is_told():
    with pytest.raises(FactoryError, match="NO_SUCH_KEY"):
        OpenAI("m", "http://127.0.0.1:1/v1", api_key="NO_SUCH_KEY")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://me:secret@127.0.0.1/v1"])
def test_an_address_that_is_none_is_told(url):
    with pytest.raises(FactoryError, match="base URL"):
        OpenAI("m", url)


def test_nothing_is_sent_before_the_time_that_a_server_says():
    came = []

    def script(path, body):
        came.append(time.monotonic())
        return Reply(429, headers={"Retry-After": "2"}) if len(came) == 1 else Reply()

    with Server(script) as server:
        found = ask(server, *[Request(prompt=str(number)) for number in range(20)], in_flight=1)
    assert all(isinstance(one, Response) for one in found)
    assert came[1] - came[0] >= 2


def test_a_server_that_only_refuses_is_not_waited_for_forever():
    with Server(lambda path, body: Reply(429)) as server, pytest.raises(FactoryError, match="lower in_flight"):
        ask(server, Request(prompt="x"), patience=1.0)
    with (
        Server(lambda path, body: Reply(429, headers={"Retry-After": "86400"})) as server,
        pytest.raises(FactoryError, match="86,400"),
    ):
        ask(server, Request(prompt="x"))


def test_retry_after_is_seconds_or_a_date():
    assert seconds_of("7") == 7
    assert 55 < seconds_of(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert seconds_of("-3") == seconds_of(None) == seconds_of("soon") == 0


def test_a_server_that_dies_and_returns_loses_nothing():
    prompts = [f"prompt {number}" for number in range(300)]
    with Server(lambda path, body: Reply(delay=0.02)) as server:

        def restart():
            while len(server.calls) < 100:
                time.sleep(0.01)
            server.stop()
            time.sleep(1.5)
            server.start()

        other = threading.Thread(target=restart)
        other.start()
        found = ask(server, *[Request(prompt=prompt) for prompt in prompts], in_flight=20, tries=3)
        other.join()
    assert [one.choices[0].text for one in found] == [text_of(prompt, 0) for prompt in prompts]


def test_a_server_that_stays_away_ends_the_run():
    with Server() as server:
        server.stop()
        begun = time.monotonic()
        with pytest.raises(FactoryError, match=r"no server answers at .*start it"):
            ask(server, *[Request(prompt=str(number)) for number in range(50)], patience=1.0)
        assert time.monotonic() - begun < 20


def test_patience_begins_when_the_last_server_goes():
    """One is away for longer; the other, which did all meanwhile, restarts."""
    with Server() as one, Server(lambda path, body: Reply(delay=0.05)) as other:
        one.stop()
        with Teacher(OpenAI("m", [one.url, other.url], in_flight=1, patience=2.0), cache=None) as teacher:
            begun = time.monotonic()
            answers = teacher.ask(Request(prompt=f"{number:07}") for number in range(10**6))
            while time.monotonic() - begun < 2.6:
                next(answers)
            other.stop()
            threading.Timer(1.0, other.start).start()
            assert sum(isinstance(next(answers), Response) for _ in range(40)) == 40


def test_several_servers_share_the_work_and_the_loss_of_one():
    with Server(lambda path, body: Reply(delay=0.01)) as one, Server(lambda path, body: Reply(delay=0.01)) as other:
        with Teacher(OpenAI("m", [one.url, other.url], in_flight=16), cache=None) as teacher:
            assert all(isinstance(x, Response) for x in teacher.ask(Request(prompt=str(n)) for n in range(100)))
            assert min(len(one.calls), len(other.calls)) > 25
            one.stop()
            assert all(isinstance(x, Response) for x in teacher.ask(Request(prompt=f"b{n}") for n in range(100)))
        assert len(other.calls) > 125


def test_a_server_that_ignores_n_is_asked_for_the_rest():
    def script(path, body):
        return Reply(body=answer({**body, "n": min(body.get("n", 1), 2)}))

    with Server(script) as server:
        (found,) = ask(server, Request(prompt="x", sampling=Sampling(n=5, seed=10)))
    assert [choice.text for choice in found.choices] == [text_of("x", seed) for seed in range(10, 15)]


def test_a_sample_that_lacks_is_not_taken_for_the_next():
    """Of three samples the second was filtered away."""

    def script(path, body):
        said = answer(body)
        if body.get("n") == 3:
            del said["choices"][1]
        said["choices"].reverse()
        return Reply(body=said)

    with Server(script) as server:
        (found,) = ask(server, Request(prompt="x", sampling=Sampling(n=3)))
    assert [choice.text for choice in found.choices] == [text_of("x", seed) for seed in range(3)]


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    with Server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with Teacher(OpenAI("m", "http://model.invalid/v1"), cache=None) as teacher:
            (found,) = teacher.ask([Request(prompt="x")])
        with Server() as direct:
            ask(direct, Request(prompt="x"))
            assert len(direct.calls) == 1
    assert isinstance(found, Response)
    assert [path for path, _ in proxy.calls] == ["http://model.invalid/v1/completions"]


def test_no_more_are_in_flight_than_allowed():
    with Server(lambda path, body: Reply(delay=0.05)) as server:
        ask(server, *[Request(prompt=str(number)) for number in range(40)], in_flight=8)
    assert server.most_busy == 8
