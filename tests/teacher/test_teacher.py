"""The teacher: order, nothing asked twice, kills, budgets, bounded windows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from factory.engine.errors import FactoryError
from factory.teacher.budget import Budget, Use
from factory.teacher.cache import Cache, key_of
from factory.teacher.openai import OpenAI
from factory.teacher.request import Choice, Failed, Message, Request, Response, Sampling
from factory.teacher.teacher import AHEAD, Teacher
from tests.teacher.server import Reply, Server, prompt_of, text_of


def prompts(count, **sampling):
    return [Request(prompt=f"prompt {number}", sampling=Sampling(**sampling)) for number in range(count)]


def teacher(server, cache=None, budget=None, window=4096, **options):
    return Teacher(OpenAI("m", server.url, **options), cache=cache and str(cache), budget=budget, window=window)


def texts(answers):
    return [[choice.text for choice in answer.choices] for answer in answers]


def test_answers_come_in_the_order_of_the_requests():
    rng = random.Random(0)
    with Server(lambda path, body: Reply(delay=rng.random() * 0.05)) as server, teacher(server) as one:
        found = list(one.ask(prompts(300)))
    assert texts(found) == [[text_of(f"prompt {number}", 0)] for number in range(300)]


def test_what_is_in_the_cache_is_not_asked(tmp_path):
    with Server() as server:
        with teacher(server, tmp_path) as one:
            first = list(one.ask(prompts(50)))
            assert len(server.calls) == 50 and not any(answer.cached for answer in first)
        with teacher(server, tmp_path) as one:
            again = list(one.ask(prompts(50)))
    assert len(server.calls) == 50 and all(answer.cached for answer in again)
    assert texts(again) == texts(first)
    assert [answer.prompt_tokens for answer in again] == [answer.prompt_tokens for answer in first]


def test_eight_samples_after_four_ask_for_four_more(tmp_path):
    with Server() as server, teacher(server, tmp_path) as one:
        four = texts(one.ask(prompts(1, n=4, seed=7)))
        eight = texts(one.ask(prompts(1, n=8, seed=7)))
        two = list(one.ask(prompts(1, n=2, seed=7)))
        sent = [(body["n"], body["seed"]) for _, body in server.calls]
    with Server() as server, teacher(server) as one:
        at_once = texts(one.ask(prompts(1, n=8, seed=7)))
    assert sent == [(4, 7), (4, 11)]
    assert eight == at_once and eight[0][:4] == four[0]
    assert texts(two)[0] == four[0][:2] and two[0].cached


@pytest.mark.parametrize("keeps", [True, False])
def test_equal_requests_are_asked_once(tmp_path, keeps):
    """Also where one wants more samples than the other, in any order."""
    wanted = [3, 1, 2, 5, 3, 5, 1]
    requests = [Request(prompt="same", sampling=Sampling(n=n), id=str(n)) for n in wanted]
    with Server(lambda p, b: Reply(delay=0.05)) as server, teacher(server, tmp_path if keeps else None) as one:
        found = texts(one.ask(requests))
    assert found == [[text_of("same", seed) for seed in range(n)] for n in wanted]
    assert set(server.answered.values()) == {1}


def test_equal_requests_of_two_askers_are_asked_once():
    with Server(lambda p, b: Reply(delay=0.05)) as server, teacher(server) as one:
        made = []
        threads = [threading.Thread(target=lambda: made.append(texts(one.ask(prompts(40))))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert made[0] == made[1] == made[2] and len(made) == 3
    assert len(server.calls) == 40


def test_an_asker_that_is_held_up_holds_up_no_other():
    """The first asker may not send its last request yet, and is not looked at; the second wants the same."""
    with Server() as server, teacher(server, budget=Budget(requests_a_minute=120)) as one:
        first = one.ask(prompts(8))
        next(first)
        assert not server.answered["prompt 7", 0]
        assert texts(one.ask([Request(prompt="prompt 7")])) == [[text_of("prompt 7", 0)]]
        assert texts(first) == [[text_of(f"prompt {number}", 0)] for number in range(1, 8)]
    assert set(server.answered.values()) == {1}


@pytest.mark.parametrize("leaves", [True, False])
def test_two_askers_wait_in_turn_for_what_neither_may_send_yet(tmp_path, leaves):
    with Server() as server, teacher(server, tmp_path, Budget(requests_a_minute=300)) as one:
        assert len(list(one.ask([Request(prompt="known")]))) == 1
        first = one.ask(prompts(12))
        next(first)
        second = one.ask([Request(prompt="known"), Request(prompt="prompt 9")])
        assert next(second).cached
        if leaves:
            second.close()
        assert len(list(first)) == 11
        assert texts(second) == ([] if leaves else [[text_of("prompt 9", 0)]])
        assert not one._asked
    assert set(server.answered.values()) == {1}


def test_an_error_of_the_cache_is_no_spent_budget(tmp_path):
    with Server() as server, teacher(server, tmp_path, Budget(requests=10)) as one:
        one.cache._db.execute("PRAGMA query_only = 1")
        with pytest.raises(FactoryError, match=r"readonly database: move it away, or name another folder$"):
            list(one.ask(prompts(3)))
        one.cache._db.execute("PRAGMA query_only = 0")
        assert len(list(one.ask(prompts(3)))) == 3


def test_a_fork_is_told(tmp_path):
    with Server() as server, teacher(server) as one:
        list(one.ask(prompts(1)))
        child = os.fork()
        if not child:
            try:
                next(one.ask(prompts(2)))
            except RuntimeError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_equal_requests_fail_alike_and_a_failure_is_not_kept(tmp_path):
    status = 400
    with Server(lambda p, b: Reply(status)) as server, teacher(server, tmp_path) as one:
        found = list(one.ask([Request(prompt="x", id="a"), Request(prompt="x", id="b")]))
        assert [type(answer) for answer in found] == [Failed, Failed]
        assert [answer.request.id for answer in found] == ["a", "b"]
        status = 200
        assert isinstance(next(one.ask([Request(prompt="x")])), Response)


def test_requests_are_taken_as_there_is_room(tmp_path):
    """The first is slow: no more than the window is taken meanwhile; all come in order."""
    taken = 0

    def source():
        nonlocal taken
        for request in prompts(500):
            taken += 1
            yield request

    def script(path, body):
        return Reply(delay=1.0 if body["prompt"] == "prompt 0" else 0.0)

    with Server(script) as server, teacher(server, tmp_path, window=64) as one:
        given = 0
        for answer in one.ask(source()):
            assert answer.choices[0].text == text_of(f"prompt {given}", 0)
            given += 1
            assert taken - given <= 64
    assert given == 500


def test_an_asker_that_leaves_is_forgotten(tmp_path):
    with Server(lambda p, b: Reply(delay=0.02)) as server, teacher(server, tmp_path, in_flight=4) as one:
        answers = one.ask(prompts(100))
        next(answers)
        answers.close()
        assert texts(one.ask(prompts(5))) == [[text_of(f"prompt {number}", 0)] for number in range(5)]


def test_requests_that_begin_alike_go_together():
    heads = [f"{letter} is the head of a long prompt. " for letter in "abc"]
    requests = [Request(messages=(Message("user", heads[n % 3] + str(n)),)) for n in range(90)]
    with Server() as server, teacher(server, in_flight=1) as one:
        found = texts(one.ask(requests))
    assert found == [[text_of(request.messages[0].content, 0)] for request in requests]
    sent = [prompt_of(body)[0] for _, body in server.calls]
    assert sent == sorted(sent)


def test_many_are_in_flight(tmp_path):
    """The server answers nothing before 2,000 requests are there."""
    with Server(hold=2000) as server, teacher(server, tmp_path, in_flight=2000) as one:
        assert sum(isinstance(answer, Response) for answer in one.ask(prompts(2500))) == 2500
    assert server.most_busy == 2000


CLIENT = """
import sys
from factory.teacher.openai import OpenAI
from factory.teacher.request import Request
from factory.teacher.teacher import Teacher
with Teacher(OpenAI("m", sys.argv[1], in_flight=int(sys.argv[3])), cache=sys.argv[2]) as teacher:
    for answer in teacher.ask(Request(prompt=f"prompt {number}") for number in range(int(sys.argv[4]))):
        print(answer.choices[0].text)
"""


def client(server, cache, in_flight, count):
    command = [sys.executable, "-c", CLIENT, server.url, str(cache), str(in_flight), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_asks_nothing_twice_that_was_answered(tmp_path):
    count, in_flight, kills = 300, 8, 3
    rng = random.Random(1)
    kept, begun = set(), 0
    with Server(lambda p, b: Reply(delay=0.02)) as server:
        for kill in range(kills + 1):
            process = client(server, tmp_path, in_flight, count)
            if kill < kills:
                goal = sum(server.answered.values()) + 20 + rng.randrange(50)
                while sum(list(server.answered.values())) < goal:
                    time.sleep(0.001)
                process.send_signal(signal.SIGKILL)
            printed = process.communicate()[0].splitlines()
            time.sleep(0.2)  # the server notices
            asked = [body["prompt"] for _, body in server.calls[begun:]]
            assert len(set(asked)) == len(asked) and not kept & set(asked), "what was kept is not asked again"
            cache = Cache(str(tmp_path))
            kept = {r.prompt for r in prompts(count) if cache.get([(key_of("m", r), 1)])[0]}
            cache.close()
            begun = len(server.calls)
            assert sum(server.answered.values()) <= len(kept) + (kill + 1) * in_flight, (
                "lost at most what was in flight"
            )
    assert printed == [text_of(f"prompt {number}", 0) for number in range(count)]


def test_two_processes_share_a_cache(tmp_path):
    """Both ask the same at the same time: both say the same, and what one has kept the other does not ask."""
    with Server(lambda p, b: Reply(delay=0.01)) as server:
        one, other = (client(server, tmp_path, 4, 200) for _ in range(2))
        printed = one.communicate()[0], other.communicate()[0]
        asked = len(server.calls)
        third = client(server, tmp_path, 4, 200).communicate()[0]
    assert printed[0] == printed[1] == third
    assert printed[0].splitlines() == [text_of(f"prompt {number}", 0) for number in range(200)]
    assert len(server.calls) == asked


def test_processes_that_sample_at_random_agree(tmp_path):
    """Each answer of the server is another: the first that was kept stands for both."""
    numbers = iter(range(10**6))

    def script(path, body):
        choice = {"text": f"answer {next(numbers)}", "finish_reason": "stop"}
        return Reply(body={"choices": [choice]}, delay=0.01)

    with Server(script) as server:
        one, other = (client(server, tmp_path, 4, 100) for _ in range(2))
        assert one.communicate()[0] == other.communicate()[0]


def test_a_budget_of_requests_stops_and_goes_on(tmp_path):
    with Server() as server:
        with teacher(server, tmp_path, Budget(requests=30), in_flight=8) as one:
            found = []
            with pytest.raises(FactoryError, match=r"requests = 30 .* 30 of the first 100 .* raise the limit"):
                found.extend(one.ask(prompts(100)))
            assert one.spent == Use(30, 30, 60, 90)
        assert len(server.calls) == 30
        with teacher(server, tmp_path, Budget(requests=100), in_flight=8) as one:
            assert len(list(one.ask(prompts(100)))) == 100
        assert len(server.calls) == 100, "what was paid for was not asked again"
        with (
            teacher(server, tmp_path, Budget(requests=100)) as one,
            pytest.raises(FactoryError, match="is spent"),
        ):
            list(one.ask(prompts(101)))
        with teacher(server, tmp_path, Budget(requests=1, name="another")) as one:
            assert len(list(one.ask(prompts(101)))) == 101


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(completion_tokens=300), 100),
        (Budget(prompt_tokens=200), 100),
        (Budget(money=1.0, prompt_price=2000.0, completion_price=2000.0), 100),
    ],
)
def test_tokens_and_money_are_counted_as_the_server_counts_them(tmp_path, budget, limit):
    """2 prompt and 3 completion tokens each: 100 requests fit. At first only guesses are known, which are larger."""
    with Server() as server, teacher(server, tmp_path, budget, in_flight=4) as one:
        with pytest.raises(FactoryError, match="is spent"):
            list(one.ask(prompts(400, max_tokens=20)))
        assert limit - 5 <= len(server.calls) <= limit + 4
        assert one.spent.completion_tokens == 3 * len(server.calls)


BUDGETED = """
import sys
from factory.engine.errors import FactoryError
from factory.teacher.budget import Budget
from factory.teacher.openai import OpenAI
from factory.teacher.request import Request
from factory.teacher.teacher import Teacher
url, cache, name, limit = sys.argv[1:]
with Teacher(OpenAI("m", url, in_flight=8), cache=cache, budget=Budget(requests=int(limit))) as teacher:
    try:
        for _ in teacher.ask(Request(prompt=f"{name} {number}") for number in range(1000)):
            pass
    except FactoryError as error:
        print(error)
"""


def budgeted(server, cache, name, limit):
    command = [sys.executable, "-c", BUDGETED, server.url, str(cache), name, str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_budget_holds_for_all_workers(tmp_path):
    with Server(lambda p, b: Reply(delay=0.005)) as server:
        workers = [budgeted(server, tmp_path, f"worker {number}", 150) for number in range(3)]
        assert all("requests = 150" in worker.communicate()[0] for worker in workers)
        assert len(server.calls) == 150


def test_what_was_not_sent_is_not_spent(tmp_path):
    """Neither where the asker leaves, nor but for a few where it is killed."""
    with Server(lambda p, b: Reply(delay=0.1)) as server:
        with teacher(server, tmp_path, Budget(requests=5000), in_flight=8) as one:
            next(one.ask(prompts(2000)))
        left = len(server.calls)
        with Teacher(Batches(), cache=str(tmp_path), budget=Budget(requests=5000)) as one:
            assert left <= one.spent.requests <= left + 8
        worker = budgeted(server, tmp_path, "killed", 5000)
        while len(server.calls) < left + 40:
            time.sleep(0.001)
        worker.kill()
        worker.communicate()
        assert "requests = 60 " in budgeted(server, tmp_path, "buries", 60).communicate()[0]
        with Teacher(Batches(), cache=str(tmp_path), budget=Budget(requests=5000)) as one:
            assert len(server.calls) <= one.spent.requests <= len(server.calls) + AHEAD


def test_a_text_that_an_engine_could_not_finish_is_no_answer(tmp_path):
    class Gives(Batches):
        reason = "error"

        def answer(self, asks, done):
            while batch := asks.take(16):
                choice = Choice(text="half", finish_reason=self.reason, tokens=1)
                done([(ask, Response(choices=(choice,), prompt_tokens=1, model="m")) for ask in batch])

    for engine, kind in ((Gives(), Failed), (Gives(), Response), (Gives(), Response)):
        with Teacher(engine, cache=str(tmp_path)) as one:
            engine.reason = "error" if kind is Failed else "stop"
            assert [type(answer) for answer in one.ask(prompts(2))] == [kind] * 2


def test_what_was_in_flight_at_a_kill_is_counted(tmp_path):
    with Server(lambda p, b: Reply(delay=0.05)) as server:
        worker = budgeted(server, tmp_path, "killed", 100)
        while len(server.calls) < 40:
            time.sleep(0.001)
        worker.kill()
        worker.communicate()
        assert "requests = 100" in budgeted(server, tmp_path, "next", 100).communicate()[0]
        assert len(server.calls) <= 100


@pytest.mark.parametrize("budget", [Budget(requests_a_minute=600), Budget(tokens_a_minute=600 * (3 + 3))])
def test_rates_are_kept(tmp_path, budget):
    """Ten a second, with a second's worth at once: 25 take 1.4 seconds at least."""
    with Server() as server, teacher(server, tmp_path, budget) as one:
        list(one.ask(prompts(1, max_tokens=3)))
        begun = time.monotonic()
        found = list(one.ask(prompts(26, max_tokens=3)))
        assert time.monotonic() - begun >= 1.3
    assert len(found) == 26


def test_money_without_prices_is_told():
    with pytest.raises(FactoryError, match="price"):
        Budget(money=1.0)


class Batches:
    """An engine that answers in batches, as those do that hold the model themselves."""

    identity = "batches"

    def __init__(self, fails=None):
        self.sizes, self.fails, self.closed = [], fails, False

    def answer(self, asks, done):
        from factory.teacher.reply import read
        from tests.teacher.server import answer

        while batch := asks.take(16):
            self.sizes.append(len(batch))
            if self.fails:
                raise self.fails
            bodies = [{"prompt": ask.request.prompt, "seed": ask.seed, "n": ask.count} for ask in batch]
            made = [read(json.dumps(answer(body)).encode()) for body in bodies]
            done(list(zip(batch, made, strict=True)))

    def close(self):
        self.closed = True


def test_batch_engines_fit(tmp_path):
    engine = Batches()
    with Teacher(engine, cache=str(tmp_path)) as one:
        assert texts(one.ask(prompts(100, n=2))) == [
            [text_of(f"prompt {n}", seed) for seed in (0, 1)] for n in range(100)
        ]
        assert list(one.ask([])) == []
    assert engine.sizes == [16] * 6 + [4] and engine.closed


@pytest.mark.parametrize("error", [FactoryError("no model here"), ZeroDivisionError("a fault of ours")])
def test_an_engine_that_breaks_ends_every_asking(error):
    with Teacher(Batches(error), cache=None) as one:
        for _ in range(2):
            with pytest.raises(type(error), match=str(error)):
                list(one.ask(prompts(3)))


def test_a_request_is_one_of_two():
    for wrong in ({}, {"prompt": "a", "messages": (Message("user", "b"),)}):
        with pytest.raises(ValueError, match="either"):
            Request(**wrong)
    with pytest.raises(ValueError, match="1 or more"):
        Sampling(n=0)
