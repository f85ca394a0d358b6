"""Respond: rows in, n rows out, none lost; what was answered is asked once, whoever is killed; limits stop a run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import xxhash

from factory.engine import manifest, plan, recipe, run
from factory.engine.errors import FactoryError
from factory.engine.manifest import Manifest
from factory.engine.step import Context, Failure, Memo
from factory.synth.respond import Respond
from factory.teacher import checkpoint as checkpoints
from model.data import read_tokenizer
from tests.conftest import REPOSITORY
from tests.engine.build import check_law, content
from tests.teacher.server import Reply, Server, prompt_of, text_of

TEMPLATE = "{# system #}\nBe brief.\n{# user #}\nRepeat: {{ text }}\n"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Forty rows in two files."""
    for half in range(2):
        rows = [{"id": f"r{n}", "text": f"text {n}", "license": "CC0"} for n in range(20 * half, 20 * half + 20)]
        (tmp_path / f"{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "repeat.jinja").write_text(TEMPLATE)
    return tmp_path


def made(folder: Path, root: str = "runs", workers: int = 0, source: str = "*.jsonl", **options: Any) -> Manifest:
    """A run of a recipe with one Respond."""
    return run.run(parsed(folder, source, **options), run.Options(str(folder / root), workers, quiet=True))


def parsed(folder: Path, source: str = "*.jsonl", **options: Any) -> recipe.Recipe:
    asked = {"model": "scripted", "prompt": str(folder / "repeat.jinja"), "patience": 1.0, "max_tokens": 12}
    asked |= {"cache": str(folder / "cache"), **options}
    read = {"use": "ingest.JsonLines", "glob": str(folder / source), "columns": ["license", "raw", "count:int64"]}
    steps = [read, {"use": "respond.Respond", **asked}]
    return recipe.build({"name": "asked", "version": "1", "step": steps}, "asked.toml")


def rows(built: Manifest, kind: str = "rows") -> list[dict[str, Any]]:
    return duckdb.sql(f"select * from '{built.folder}/{kind}/*.parquet' order by id").to_arrow_table().to_pylist()


def kept(folder: Path) -> int:
    """Samples in the cache."""
    path = folder / "cache" / "answers.sqlite"
    if not path.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            return int(db.execute("select count(*) from answers").fetchone()[0])
    except sqlite3.OperationalError:  # it is being made
        return 0


def test_each_sample_is_a_row_and_each_row_is_accounted_for(texts):
    with Server() as server:
        built = made(texts, urls=[server.url], n=3, seed=5)
        assert len(server.calls) == 40
        sent = server.calls[0][1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["n"], sent["seed"], sent["max_tokens"], sent["model"]) == (3, 5, 12, "scripted")
    check_law(built)
    counts = built.counts
    assert (counts["rows_in"], counts["rows_consumed"], counts["rows_made"], counts["rows_kept"]) == (40, 40, 120, 120)
    found = {row["id"]: row for row in rows(built)}
    assert set(found) == {f"r{n}-{sample}" for n in range(40) for sample in range(3)}
    for n in range(40):
        for sample in range(3):
            row = found[f"r{n}-{sample}"]
            prompt = f"Be brief.\nRepeat: text {n}"
            assert row["response"] == text_of(prompt, 5 + sample)
            assert (row["sample"], row["finish_reason"], row["model"]) == (sample, "stop", "scripted-7b")
            assert (row["prompt_tokens"], row["completion_tokens"]) == (len(prompt.split()), 3)
            assert (row["text"], row["license"]) == (f"text {n}", "CC0")


def test_the_same_rows_whatever_the_workers_and_from_the_cache_without_a_server(texts):
    with Server(lambda path, body: Reply(delay=0.01 * (len(prompt_of(body)) % 5)) if body else Reply()) as server:
        first = made(texts, "a", 2, urls=[server.url], in_flight=3)
        assert server.most_busy <= 6  # of two workers
        calls = len(server.calls)
        second = made(texts, "b", 0, urls=[server.url])
        assert len(server.calls) == calls == 40
    third = made(texts, "c", 1, urls=["http://127.0.0.1:9/v1"])
    assert content(first) == content(second) == content(third)
    assert first.key == second.key == third.key  # where the server is, and how it is asked, is no part of it


def test_a_request_that_is_refused_is_its_rows_in_failed(texts):
    def script(path: str, body: dict[str, Any]) -> Reply:
        return Reply(status=400) if body and prompt_of(body).endswith("7") else Reply()

    with Server(script) as server:
        built = made(texts, urls=[server.url], n=2)
    check_law(built)
    failed = rows(built, "failed")
    assert {row["id"] for row in failed} == {f"r{n}-{s}" for n in (7, 17, 27, 37) for s in (0, 1)}
    assert all(row["step"] == "respond.Respond" and "400" in row["error"] for row in failed)
    assert "Repeat: text 7" in failed[-1]["data"].decode()
    assert built.counts["rows_made"] == 80 and built.counts["rows_kept"] == 72


def test_only_requests_that_all_fail_end_the_run(texts):
    """However many samples they ask for: a request that is refused is one failure."""
    refused = Reply(400, {"error": {"message": "it is too long"}})
    with Server(lambda path, body: refused if "text 0" in prompt_of(body) else Reply()) as server:
        built = made(texts, urls=[server.url], n=128)
        assert (built.counts["rows_failed"], built.counts["rows_kept"]) == (128, 39 * 128)
    (texts / "many.jsonl").write_text("".join(f'{{"id": "m{n}", "text": "{n}"}}\n' for n in range(150)))
    with (
        Server(lambda path, body: refused) as server,
        pytest.raises(RuntimeError, match=r"all of its first 793 rows failed, the last with .*it is too long"),
    ):
        made(texts, "b", source="many.jsonl", urls=[server.url], n=8)


def test_a_spent_budget_stops_with_a_line_and_more_goes_on(texts):
    with Server() as server:
        with pytest.raises(FactoryError, match=r"the budget 'small' is spent: requests = 25 .*raise the limit") as said:
            made(texts, urls=[server.url], budget="small", budget_requests=25)
        assert "\n" not in str(said.value)
        assert len(server.calls) == kept(texts) == 25
        built = made(texts, urls=[server.url], budget="small", budget_requests=40)
        assert len(server.calls) == 40 and set(server.answered.values()) == {1}
        undisturbed = made(texts, "calm", urls=[server.url], cache=str(texts / "fresh"))
    assert content(built) == content(undisturbed)
    check_law(built)


def test_a_server_that_goes_away_stops_the_run_and_the_next_goes_on(texts):
    with Server() as server:

        def script(path: str, body: dict[str, Any]) -> Reply:
            if len(server.calls) > 15:
                server.listening.close()
                return Reply(cut=20)
            return Reply()

        server.script = script
        with pytest.raises(FactoryError, match=r"no server answers at .* start it and run again") as said:
            made(texts, urls=[server.url], in_flight=4, patience=0.3)
        assert "\n" not in str(said.value)
        answered = kept(texts)
        assert 0 < answered <= 15
        server.script = None
        server.start()
        before = len(server.calls)
        built = made(texts, urls=[server.url])
        assert len(server.calls) - before == 40 - answered
        undisturbed = made(texts, "calm", urls=[server.url], cache=str(texts / "fresh"))
    assert content(built) == content(undisturbed)


RECIPE = """
name = "asked"
version = "1"
[[step]]
use = "ingest.JsonLines"
glob = "{folder}/*.jsonl"
[[step]]
use = "respond.Respond"
model = "scripted"
prompt = "{folder}/repeat.jinja"
urls = ["{url}"]
cache = "{folder}/cache"
in_flight = 2
n = 2
max_tokens = 12
"""


def test_killed_while_it_asks_it_asks_nothing_twice_that_was_kept(texts):
    path = texts / "asked.toml"
    with Server(lambda path, body: Reply(delay=0.05) if body else Reply()) as server:
        path.write_text(RECIPE.format(folder=texts, url=server.url))
        command = [sys.executable, "-m", "factory", "run", str(path), "--workers", "1", "--out", str(texts / "rough")]
        for until in (8, 30, 55):
            process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while kept(texts) < until and time.monotonic() < deadline:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        known = kept(texts)
        assert 55 <= known < 80
        before = sum(server.answered.values())
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        assert sum(server.answered.values()) - before == 80 - known
        # What was on its way in the moment of a kill may be asked again: two requests of two samples, three times.
        assert sum(count - 1 for count in server.answered.values()) <= 12
        server.script = None
        path.write_text(path.read_text().replace('/cache"', '/fresh"'))
        calm = run.run(recipe.load(str(path)), run.Options(str(texts / "calm"), quiet=True))
    rough = manifest.load(str(texts / "rough"), "asked@1")
    assert content(rough) == content(calm)
    check_law(rough)


def test_it_shows_the_rows_made_while_it_waits(texts):
    """Without a terminal a line every ten seconds, and one at the end: all of them count the rows made."""
    path = texts / "asked.toml"
    with Server() as server:
        path.write_text(RECIPE.format(folder=texts, url=server.url))
        command = [sys.executable, "-m", "factory", "run", str(path), "--workers", "1", "--out", str(texts / "runs")]
        said = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stderr
    assert "80 rows made" in said


def test_messages_and_raw_prompts_of_a_column(tmp_path):
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "3"},
    ]
    lines = [{"id": f"r{n}", "messages": talk[: 1 + 2 * (n % 2)], "raw": f"raw {n}"} for n in range(4)]
    lines.append({"id": "empty", "messages": [], "raw": ""})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    with Server() as server:
        options: dict[str, Any] = {"urls": [server.url], "prompt": ""}
        asked = made(tmp_path, "messages", **options)
        assert {path for path, _ in server.calls} == {"/v1/chat/completions"}
        assert len(server.calls) == 2  # of four rows: equal requests are asked once
        assert sorted(len(body["messages"]) for _, body in server.calls) == [1, 3]
        raw = made(tmp_path, "raw", column="raw", **options)
        assert sum(path == "/v1/completions" for path, _ in server.calls) == 4
    for built in (asked, raw):
        check_law(built)
        assert [row["id"] for row in rows(built)] == [f"r{n}-0" for n in range(4)]
        assert [(row["id"], "nothing is asked" in row["error"]) for row in rows(built, "failed")] == [("empty", True)]
    assert [row["messages"] for row in rows(asked)] == [line["messages"] for line in lines[:4]]


def test_mistakes_are_told_before_any_work(texts):
    with pytest.raises(FactoryError, match=r"step 2 \(respond\.Respond\): needs the column 'words' and nothing before"):
        (texts / "repeat.jinja").write_text("{{ words }}")
        made(texts)
    with pytest.raises(FactoryError, match="'messages'"):
        made(texts, prompt="")
    with pytest.raises(FactoryError, match=r"column 'count' holds int64: messages or a text can be asked"):
        (texts / "0.jsonl").write_text('{"id": "a", "count": 3}\n')
        made(texts, prompt="", column="count", source="0.jsonl")
    types = {"name": pa.array([["x", "y"]]), "id": pa.array(["a"])}
    with pytest.raises(
        FactoryError, match=r"'name' holds list<.*string>: messages or a text can be asked; messages are"
    ):
        Respond(model="m", column="name").schema(pa.record_batch(types).schema)
    with pytest.raises(FactoryError, match="extra is sent to servers: engine = 'transformers' has none"):
        made(texts, engine="transformers", extra='{"top_k": 5}')
    with pytest.raises(FactoryError, match="model is empty"):
        made(texts, model="")
    with pytest.raises(FactoryError, match="no such folder"):
        made(texts, model="./nothing", engine="transformers")
    with pytest.raises(FactoryError, match=r"nothing\.json: no such file"):
        made(texts, json_schema=str(texts / "nothing.json"), prompt="", column="id")


def test_requests_are_taken_lazily(texts):
    """A shard without an end: the first rows come all the same, so what is held is bounded."""

    def endless():
        number = 0
        while True:
            ids = pa.array([f"r{n}" for n in range(number, number + 256)], pa.large_string())
            number += 256
            yield step.prepare(pa.record_batch({"id": ids, "text": ids}), Memo(256))

    with Server() as server:
        step = Respond(model="m", prompt=str(texts / "repeat.jinja"), urls=(server.url,), cache=str(texts / "cache"))
        step.open(Context())
        found = step(endless())
        first = [row for _ in range(5) for row in next(found).to_pylist()]
        found.close()
        step.close()
        assert len(server.calls) <= 8192 + len(first)
    assert [row["id"] for row in first] == [f"r{n}-0" for n in range(len(first))]


# The embedded engine.


@pytest.mark.slow  # each worker imports torch
def test_the_embedded_engine_gives_the_same_bytes_with_any_workers(texts, checkpoint):
    options: dict[str, Any] = {"engine": "transformers", "model": str(checkpoint), "n": 2}
    first = made(texts, "a", 0, cache=str(texts / "one"), **options)
    second = made(texts, "b", 2, cache=str(texts / "two"), **options)
    assert content(first) == content(second) and len(rows(first)) == 80
    check_law(first)
    assert rows(first)[0]["model"].startswith("checkpoint ")
    elsewhere = texts / "elsewhere"
    os.symlink(checkpoint, elsewhere)
    assert made(texts, "c", 0, cache=str(texts / "one"), **(options | {"model": str(elsewhere)})).key == first.key


def test_logprobs_are_a_column(texts, checkpoint):
    options: dict[str, Any] = {"engine": "transformers", "model": str(checkpoint), "logprobs": 2}
    for row in rows(made(texts, source="0.jsonl", **options)):
        assert len(row["logprobs"]) == row["completion_tokens"] > 0
        for place in row["logprobs"]:
            likeliest = [one["logprob"] for one in place["top"]]
            assert len(likeliest) == 2 and likeliest == sorted(likeliest, reverse=True)
            assert place["logprob"] <= likeliest[0] <= 0


@pytest.mark.parametrize("text", ["", "\x00", "a\x00b", "🙂 e\u0301 \ufeff", "word " * 5000], ids=range(5))
def test_hard_prompts(tmp_path, checkpoint, text):
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "r", "text": text}) + "\n")
    (tmp_path / "repeat.jinja").write_text(TEMPLATE)
    built = made(tmp_path, engine="transformers", model=str(checkpoint))
    check_law(built)
    assert built.counts["rows_kept"] + built.counts["rows_failed"] == 1
    assert built.counts["rows_kept"] == (len(text) < 1000)


def test_no_rows_make_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "repeat.jinja").write_text("{{ id }}")
    built = made(tmp_path)
    check_law(built)
    assert built.counts["rows_made"] == 0
    step = Respond(model="m", cache=str(tmp_path / "cache"))
    step.open(Context())
    assert not [item for item in step(iter([])) if isinstance(item, Failure)]
    step.close()


def test_json_answers_keep_to_the_schema_of_a_file(texts, checkpoint):
    schema = texts / "answer.json"
    schema.write_text(
        '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], '
        '"additionalProperties": false}'
    )
    options: dict[str, Any] = {"engine": "transformers", "model": str(checkpoint), "max_tokens": 100}
    built = made(texts, source="0.jsonl", json_schema=str(schema), **options)
    ended = [json.loads(row["response"]) for row in rows(built) if row["finish_reason"] == "stop"]
    assert len(ended) >= 15 and all(type(one["ok"]) is bool for one in ended)
    schema.write_text('{"type": "boolean"}')
    with pytest.raises(FactoryError, match="already built from another recipe"):
        made(texts, source="0.jsonl", json_schema=str(schema), **options)


def test_the_manifest_says_for_which_tokenizer_and_template_the_rows_are(tmp_path, checkpoint):
    (tmp_path / "0.jsonl").write_text(json.dumps({"id": "r", "text": "a", "raw": "The factory reads"}))
    options: dict[str, Any] = {"engine": "transformers", "prompt": "", "column": "raw", "max_tokens": 4}
    built = made(tmp_path, model=str(checkpoint), **options)
    template = json.loads((checkpoint / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    assert built.made_for == {
        "tokenizer": read_tokenizer(checkpoint)[0],
        "template": xxhash.xxh3_128_hexdigest(template),
    }
    source = {"use": "ingest.Dataset", "name": "asked@1"}

    def taken(*steps: dict[str, Any]) -> recipe.Recipe:
        return recipe.build({"name": "taken", "version": "1", "step": [source, *steps]}, "taken.toml")

    root = run.Options(str(tmp_path / "runs"), quiet=True)
    assert run.run(taken(), root).made_for == built.made_for
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    (other / "chat_template.jinja").write_text(template + " ")
    ask = {"use": "respond.Respond", "model": str(other), "cache": str(tmp_path / "cache"), **options}
    told = r"taken.toml: step 2 \(respond.Respond\): its rows are for another template than those of step 1 .*asked@1"
    with pytest.raises(FactoryError, match=told):
        plan.make(taken(ask), root.root)
    assert plan.make(taken({**ask, "model": str(checkpoint)}), root.root).made_for == built.made_for
    # Where a model lies, or that it is asked at a server, tells nothing of its tokenizer.
    assert checkpoints.made_for("some/model") == {}
    assert Respond(model=str(checkpoint), column="raw").made_for() == {}
