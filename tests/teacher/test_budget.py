"""The ledger: what is held for requests in flight, at workers that live and at those that were killed."""

from __future__ import annotations

import time

import pytest

from factory.engine.errors import FactoryError
from factory.teacher.budget import Budget, Ledger, Use
from factory.teacher.cache import Cache
from factory.teacher.engine import Ask
from factory.teacher.request import Request, Sampling

ASK = Ask(Request(prompt="a prompt of 24 bytes ...", sampling=Sampling(max_tokens=50)))


def ledger(folder, **limits):
    return Ledger(Cache(str(folder)), Budget(**limits))


def killed(folder, use):
    """A worker that was killed with so much in flight."""
    with Cache(str(folder)).writing() as db:
        db.execute("INSERT INTO in_flight VALUES ('gone', 'default', ?, ?, ?, ?)", use)


def test_money_is_what_the_tokens_cost():
    budget = Budget(money=1, prompt_price=2.0, completion_price=8.0)
    assert budget.cost(Use(1, 1, 500_000, 250_000)) == pytest.approx(3.0)


def test_as_much_is_granted_as_fits(tmp_path):
    one = ledger(tmp_path, completion_tokens=170)
    granted, _ = one.reserve([ASK] * 5)
    assert granted == [Use(1, 1, 6, 50)] * 3, "at first a sample is held to take all that it may"
    with one.cache.writing() as db:
        one.settle(db, Use(3, 3, 20, 30), Use(3, 3, 18, 150))
    assert one.spent() == Use(3, 3, 20, 30)
    assert one.reserve([ASK] * 20)[0] == [Use(1, 1, 6, 10)] * 14, "then what samples took so far"


def test_what_others_have_in_flight_is_waited_for(tmp_path):
    one, other = ledger(tmp_path, requests=3), ledger(tmp_path, requests=3)
    assert len(one.reserve([ASK] * 5)[0]) == 3
    assert other.reserve([ASK])[0] == [], "nothing now, and not spent either"
    with one.cache.writing() as db:
        one.settle(db, Use(3, 3, 18, 3), Use(3, 3, 18, 150))
    with pytest.raises(FactoryError, match=r"requests = 3 .* after 3 "):
        other.reserve([ASK])


def test_what_a_worker_gave_up_is_spent(tmp_path):
    one, other = ledger(tmp_path, requests=3), ledger(tmp_path, requests=3)
    one.reserve([ASK] * 3)
    one.close()
    with pytest.raises(FactoryError, match="after 3 "):
        other.reserve([ASK])


def test_what_a_killed_worker_had_in_flight_is_spent(tmp_path):
    one = ledger(tmp_path, completion_tokens=100)
    killed(tmp_path, Use(1, 1, 5, 90))
    with pytest.raises(FactoryError, match=r"completion_tokens = 100 .* 90 "):
        one.reserve([ASK])
    assert one.spent() == Use(1, 1, 5, 90)


def test_what_a_killed_worker_had_tells_what_samples_take(tmp_path):
    """Nine samples of ten tokens: another fits, which did not while nothing was known."""
    one = ledger(tmp_path, completion_tokens=100)
    killed(tmp_path, Use(1, 9, 5, 90))
    assert one.reserve([ASK])[0] == []
    assert one.reserve([ASK])[0] == [Use(1, 1, 6, 10)]


def test_a_clock_that_was_set_back_holds_nobody_up_for_long(tmp_path):
    one = ledger(tmp_path, requests_a_minute=600)
    with one.cache.writing() as db:
        db.execute("UPDATE spent SET requests_at = ?", (time.time() + 86_400,))
    granted, wait = one.reserve([ASK])
    assert granted == [] and 50 < wait <= 60


def test_without_limits_all_is_granted_and_counted():
    one = Ledger(Cache(None), Budget())
    assert len(one.reserve([ASK] * 5)[0]) == 5
    with one.cache.writing() as db:
        one.settle(db, Use(5, 5, 30, 40), Use())
    assert one.spent() == Use(5, 5, 30, 40)
