"""The cache: the identity of a request, what is kept of it, and that nothing tears it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.teacher.budget import Budget, Ledger
from factory.teacher.cache import Cache, Sample, key_of, pack, unpack
from factory.teacher.request import Choice, Logprob, Message, Request, Sampling

TEXT = st.text(max_size=8)
PROBABILITY = st.floats(-100, 0)
LOGPROB = st.builds(Logprob, TEXT, PROBABILITY, st.lists(st.tuples(TEXT, PROBABILITY), max_size=3).map(tuple))
CHOICE = st.builds(
    Choice,
    text=st.text(),
    finish_reason=TEXT,
    tokens=st.integers(0),
    logprobs=st.none() | st.lists(LOGPROB, max_size=3).map(tuple),
    reasoning=TEXT,
)
SAMPLE = st.builds(Sample, CHOICE, st.integers(0), TEXT, TEXT)
SAMPLING = st.builds(
    Sampling,
    n=st.integers(1, 9),
    temperature=st.sampled_from([0, -0.0, 0.5, 1.0]),
    top_p=st.sampled_from([0.5, 1]),
    max_tokens=st.integers(1, 3),
    seed=st.none() | st.integers(0, 2),
    stop=st.lists(st.sampled_from("ab"), max_size=2).map(tuple),
    logprobs=st.integers(0, 2),
    json_schema=st.sampled_from(["", "{}"]),
)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["system", "user"]), st.sampled_from(["", "a", "ab", "b"])))
REQUEST = st.builds(Request, messages=MESSAGES.filter(bool).map(tuple), sampling=SAMPLING, id=TEXT) | st.builds(
    Request, prompt=st.sampled_from(["a", "ab", "b"]), sampling=SAMPLING, id=TEXT
)


def asked(request: Request) -> tuple:
    """What a request asks: all of it but its name and how many samples."""
    sampling = dataclasses.replace(request.sampling, n=1)
    return request.messages, request.prompt, sampling


@given(REQUEST, REQUEST, st.sampled_from(["m", "m@1"]), st.sampled_from(["m", "m@1"]))
@settings(max_examples=200, deadline=None)
def test_requests_share_a_key_exactly_where_they_ask_the_same_of_the_same_model(one, other, model, another):
    same = asked(one) == asked(other) and model == another
    assert (key_of(model, one) == key_of(another, other)) == same


@given(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3), st.text(max_size=3))
def test_no_text_runs_into_the_next(a, b, c, d):
    one, other = (Request(messages=(Message("user", x), Message("user", y))) for x, y in ((a, b), (c, d)))
    assert (key_of("m", one) == key_of("m", other)) == ((a, b) == (c, d))


def test_the_key_stays_what_it_is():
    """Caches that lie on disks are found again."""
    request = Request(messages=(Message("user", "Grüße"),), sampling=Sampling(n=4, stop=("x",)))
    assert key_of("m", request).hex() == "a349638f13adb8af79a289ab177cac82"


@given(SAMPLE)
def test_what_is_packed_is_unpacked(sample):
    assert unpack(pack(sample)) == sample


def sample(text):
    return Sample(Choice(text=text, finish_reason="stop", tokens=1), 2, "m", "")


def put(cache, key, first, *texts):
    return [[s.choice.text for s in one] for one in cache.put([(key, first, [*map(sample, texts)])], lambda db: None)]


def get(cache, key, n):
    return [s.choice.text for s in cache.get([(key, n)])[0]]


def test_samples_are_found_up_to_the_first_that_lacks(tmp_path):
    cache = Cache(str(tmp_path / "cache"))
    put(cache, b"k", 0, "a", "b")
    put(cache, b"k", 3, "d")
    assert [get(cache, b"k", n) for n in (1, 2, 8)] == [["a"], ["a", "b"], ["a", "b"]]
    put(cache, b"k", 2, "c")
    assert get(cache, b"k", 8) == ["a", "b", "c", "d"]
    assert get(cache, b"other", 8) == []


def test_who_is_first_is_right(tmp_path):
    one, other = Cache(str(tmp_path)), Cache(str(tmp_path))
    assert put(one, b"k", 0, "a", "b") == [["a", "b"]]
    assert put(other, b"k", 0, "x", "y", "z") == [["a", "b", "z"]]
    assert put(other, b"k", 1, "x") == [["b"]]
    assert get(one, b"k", 3) == ["a", "b", "z"]


def test_a_transaction_that_fails_leaves_nothing(tmp_path):
    cache = Cache(str(tmp_path))

    def fail(db):
        raise KeyError

    with pytest.raises(KeyError):
        cache.put([(b"k", 0, [sample("a")])], fail)
    assert get(cache, b"k", 1) == []
    assert put(cache, b"k", 0, "b") == [["b"]]


def test_a_full_disk_is_told_and_tears_nothing(tmp_path):
    cache = Cache(str(tmp_path))
    put(cache, b"k", 0, "a")
    cache._db.execute("PRAGMA max_page_count = 12")
    noise = "".join(map(chr, range(0x4E00, 0x9FFF)))
    with pytest.raises(FactoryError, match="free some space"):
        put(cache, b"l", 0, "b", noise, noise)
    assert (get(cache, b"k", 1), get(cache, b"l", 3)) == (["a"], [])


def test_a_copy_says_the_same(tmp_path):
    cache = Cache(str(tmp_path / "here"))
    put(cache, b"k", 0, "a" * 10_000)
    cache.close()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert get(Cache(str(tmp_path / "there")), b"k", 1) == ["a" * 10_000]


WRITER = """
import sys
from factory.teacher.cache import Cache, Sample
from factory.teacher.request import Choice
cache, worker = Cache(sys.argv[1]), int(sys.argv[2])
for number in range(10**9):
    key = b"%d-%d" % (worker, number)
    made = [Sample(Choice(text=f"{worker}-{number}-{i}", finish_reason="stop", tokens=1), 1, "m", "") for i in range(3)]
    cache.put([(key, 0, made)], lambda db: None)
    print(number, flush=True)
"""


def test_kills_tear_nothing_and_lose_nothing_that_was_kept(tmp_path):
    """Three processes write at once, and all are killed while they do."""
    folder = str(tmp_path / "cache")
    started = [
        subprocess.Popen([sys.executable, "-c", WRITER, folder, str(worker)], stdout=subprocess.PIPE, text=True)
        for worker in range(3)
    ]
    for process in started:
        assert process.stdout and process.stdout.readline() == "0\n"
    time.sleep(0.5)
    for process in started:
        process.kill()
    kept = [len(process.communicate()[0].split()) + 1 for process in started]
    cache = Cache(folder)
    for worker, count in enumerate(kept):
        for number in range(count):
            assert get(cache, b"%d-%d" % (worker, number), 3) == [f"{worker}-{number}-{i}" for i in range(3)]
    with sqlite3.connect(cache.path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count(*) FROM answers GROUP BY key HAVING count(*) <> 3").fetchall() == []


def test_what_cannot_be_a_cache_is_told(tmp_path):
    with pytest.raises(FactoryError, match="folder of this machine"):
        Cache("memory://cache")
    (tmp_path / "answers.sqlite").write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(FactoryError, match="move it away"):
        Cache(str(tmp_path))


def test_files_that_cannot_be_used_are_told(tmp_path):
    cache = Cache(str(tmp_path / "damaged"))
    put(cache, b"k", 0, "a")
    cache._db.execute("UPDATE answers SET value = x'00'")
    with pytest.raises(FactoryError, match="move it away"):
        get(cache, b"k", 1)
    (tmp_path / "shut" / "answers.sqlite.lock").mkdir(parents=True)
    with pytest.raises(FactoryError, match="name another folder"):
        Cache(str(tmp_path / "shut"))
    (tmp_path / "workers").write_text("a file where a folder should be")
    with pytest.raises(FactoryError, match="name another folder"):
        Ledger(Cache(str(tmp_path)), Budget(requests=1))


def test_a_cache_of_another_version_is_told(tmp_path):
    Cache(str(tmp_path)).close()
    with sqlite3.connect(tmp_path / "answers.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(FactoryError, match="another version"):
        Cache(str(tmp_path))


def test_what_is_kept_is_json(tmp_path):
    """A cache outlives the code that wrote it."""
    import zlib

    assert json.loads(zlib.decompress(pack(sample("hi")))) == [["hi", "stop", 1, None, ""], 2, "m", ""]
