"""A stage that lasts until the model answers right: its end, the stages behind it, kills around it, processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from model import train
from model.checkpoint import load_hf
from model.config import ProbeConfig
from model.data import open_datasets
from model.pretrain import Pretraining, Stopped
from model.probe import Probe
from model.recipe import load_recipe
from tests.model.conftest import RECIPE, SENTENCES
from tests.model.test_parallel import alone, rows, torchrun
from tests.model.test_pretrain import same, weights

REWARD = "tests.model.test_probe:begins"
EARLY = ("probe.reward=tests.model.test_probe:speaks", "probe.columns={}")
STAGES = f"""
[probe]
reward = "{REWARD}"
columns = {{ expected = "gold" }}
every = 5
max_new_tokens = 12

[[stage]]
name = "learn"
tokens = 51200
until = 0.8

[[stage]]
name = "anneal"
tokens = 2560
[stage.optimizer]
schedule = "linear"
warmup_steps = 0
final_share = 0.0
"""


def begins(response: str, expected: str) -> Check:
    """A verifier: the response begins with these words."""
    return Check(response.startswith(expected))


def speaks(response: str) -> Check:
    """A verifier that a model satisfies early."""
    return Check("e" in response)


def write_questions(folder: Path, **columns: list) -> Path:
    """A dataset in two shards: the beginnings of the sentences, and the words that follow."""
    words = [sentence.split() for sentence in SENTENCES]
    columns = columns or {
        "prompt": [" ".join(one[:3]) for one in words],
        "gold": [" " + " ".join(one[3:5]) for one in words],
    }
    table = pa.table(columns)
    shards = []
    (folder / "rows").mkdir(parents=True)
    for number, begin in enumerate((0, 2)):
        part = table.slice(begin, 2 if not begin else None)
        pq.write_table(part, folder / "rows" / f"{number}.parquet")
        shards.append({"path": f"rows/{number}.parquet", "rows": part.num_rows})
    manifest = {"key": "77", "rows": shards, "columns": {field.name: str(field.type) for field in table.schema}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "questions")


@pytest.fixture
def probed(tmp_path: Path, dataset: Path, questions: Path) -> Path:
    path = tmp_path / "probed.toml"
    text = RECIPE.replace("steps = 40\n", "").replace("[optimizer]", '[optimizer]\nschedule = "constant"')
    path.write_text(text + STAGES.replace("[probe]", f"[probe]\ndata = {str(questions)!r}"))
    return path


@pytest.fixture
def begin(probed: Path, dataset: Path, tmp_path: Path) -> Callable[..., Pretraining]:
    def start(name: str, *words: str) -> Pretraining:
        recipe = load_recipe(probed, [f"data={dataset}", *words])
        data = open_datasets(recipe.data)
        return Pretraining(train.fit(recipe, data), data, tmp_path / name)

    return start


def test_a_stage_ends_when_the_answers_are_right_and_the_next_begins_there(begin: Callable[..., Pretraining]) -> None:
    work = begin("run")
    work.run()
    learn = [row for row in work.metrics if row["stage"] == "learn"]
    anneal = [row for row in work.metrics if row["stage"] == "anneal"]
    asked = {row["step"]: row["probe_accuracy"] for row in work.metrics if row["probe_accuracy"] is not None}
    end = len(learn)
    assert 5 < end < 200 and not end % 5 and work.ends == {"learn": end}
    assert asked[end] >= 0.8 > max(accuracy for step, accuracy in asked.items() if step < end)
    assert asked.keys() == {*range(5, end + 10, 5), end + 10}
    assert learn[-1]["evaluation_loss"] is not None, "as at the end of any stage"
    assert [row["learning_rate"] for row in learn[5:]] == [1e-2] * (end - 5)
    assert [row["learning_rate"] for row in anneal] == pytest.approx([1e-2 * share / 10 for share in range(9, -1, -1)])
    assert work.steps == work.step == end + 10
    stored = load_hf(work.folder / "checkpoint" / "stage-learn")
    assert Probe(work.recipe.probe, work.tokenizer.tokenizer, 64)(stored) == asked[end]


def test_a_training_killed_around_the_end_goes_on_bit_for_bit(begin: Callable[..., Pretraining]) -> None:
    """Stopped with its state saved; or killed when the probe has answered and nothing of it is saved."""
    whole = begin("whole")
    whole.run()
    end = whole.ends["learn"]

    def stop(row: dict) -> None:
        if row["step"] == at:  # the step that the loop below is at
            os.kill(os.getpid(), signal.SIGTERM)

    def kill(row: dict) -> None:
        if row["step"] == at:
            raise KeyboardInterrupt

    for at, how, done in ((end, stop, end), (end, kill, (end - 1) // 7 * 7), (end + 1, kill, end)):
        name = f"{how.__name__}{at}"
        with pytest.raises((Stopped, KeyboardInterrupt)):
            begin(name, "save_every=7").run(how)
        again = begin(name, "save_every=7")
        assert again.step == done
        again.run()
        assert same(weights(whole), weights(again)), name
        assert again.ends == whole.ends
        assert [row["loss"] for row in again.metrics] == [row["loss"] for row in whole.metrics]


def test_what_the_next_stage_reads_does_not_depend_on_where_this_one_ended(begin: Callable[..., Pretraining]) -> None:
    first, second = (begin(f"every{steps}", "stage.learn.until=0.2", f"every={steps}", *EARLY) for steps in (3, 8))
    for work in (first, second):
        work.run()
    assert first.ends == {"learn": 3} and second.ends == {"learn": 8}
    for position in (0, 8, 72):
        (one,), (other,) = (work.mixture.batch(position, 8) for work in (first, second))
        assert np.array_equal(one, other)


def test_a_stage_that_does_not_get_there_is_told(
    probed: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data={dataset}", f"out={tmp_path / 'run'}", "stage.learn.tokens=2560", "stage.learn.until=1.0"]
    assert train.main([str(probed), *words]) == 0
    told = capsys.readouterr()
    warning = r"^warning: stage learn ended after its 2,560 tokens with a probe of \d+\.0%, below until = 1\.0$"
    assert len(re.findall(warning, told.err, re.MULTILINE)) == 1
    assert "10 steps of 8 sequences of 32 tokens, or until the probe reaches 100%" in told.out
    assert re.search(r"step 20/20 .*  probe \d+\.\d%", told.err) and ", probe " in told.out
    assert train.main([str(probed), *words, "probe.every=6"]) == 2, "the probes are part of what the metrics mean"
    assert "begun with probe.every = 5, now it is 6" in capsys.readouterr().err


def test_two_processes_get_the_answers_of_one(probed: Path, dataset: Path, tmp_path: Path) -> None:
    """Sharded, and sharing each sequence; they end where one ends."""
    words = (*EARLY, "stage.learn.tokens=5120", "stage.anneal.tokens=512", "stage.learn.until=0.2", "every=4")
    out = tmp_path / "two"
    launcher = torchrun(2, "-m", "model.train", probed, f"data={dataset}", f"out={out}", *words, "context_parallel=2")
    _, told = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, told
    one = alone(probed, dataset, tmp_path / "one", *words)
    one.run()
    found, expected = ([row["probe_accuracy"] for row in part] for part in (rows(out), one.metrics))
    assert found == expected and one.ends["learn"] + 2 == len(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f'reward = "{REWARD}"\n', "", r"\[probe\] needs both: data, the questions, and reward"),
        ("until = 0.8", "until = 1.5", r"stage learn: until = 1\.5: must be from 0 to 1"),
        ('schedule = "constant"', 'schedule = "wsd"', r"stage learn: until = 0\.8 with schedule = 'wsd': how long"),
        ("begins", "beginz", r"tests\.model\.test_probe has no function 'beginz'"),
        ('expected = "gold"', 'expcted = "gold"', r"no parameter 'expcted' \(did you mean 'expected'"),
        ('expected = "gold"', 'expected = "golden"', r"a probe needs the column 'golden' \(did you mean 'gold'"),
        ("max_new_tokens = 12", "max_new_tokens = 62", r"probe\.max_new_tokens = 62, but model\.max_position"),
        ("every = 5", "every = 0", r"probe\.every = 0: must be above 0"),
    ],
)
def test_bad_probes_are_one_line(
    probed: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    text = probed.read_text()
    assert old in text
    probed.write_text(text.replace(old, new))
    assert train.main([str(probed), f"data={dataset}", f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error


def test_until_without_questions_is_refused(probed: Path) -> None:
    with pytest.raises(FactoryError, match=r"stage learn: until = 0\.8, but nothing is asked"):
        load_recipe(probed, ["data=x", "probe.data=", "probe.reward="])


def test_the_first_rows_are_asked(questions: Path, dataset: Path, tmp_path: Path) -> None:
    config = ProbeConfig(data=str(questions), reward=REWARD, columns={"expected": "gold"}, count=3)
    probe = Probe(config, dataset / "tokenizer", 100)
    assert [probe.tokenizer.decode(ids) for ids in probe.prompts] == [" ".join(s.split()[:3]) for s in SENTENCES[:3]]
    assert probe.columns["gold"][2] == " " + " ".join(SENTENCES[2].split()[3:5]), "also from the second shard"
    talks = write_questions(tmp_path / "talks", prompt=[[{"role": "user"}]] * 3, gold=["a"] * 3)
    with pytest.raises(FactoryError, match="a prompt is no text"):
        Probe(ProbeConfig(data=str(talks), reward=REWARD, columns={"expected": "gold"}), dataset / "tokenizer", 100)
    shutil.rmtree(questions / "rows")
    (questions / "manifest.json").write_text(
        json.dumps({"rows": [], "columns": {"prompt": "string", "gold": "string"}})
    )
    with pytest.raises(FactoryError, match="has no rows: nothing to ask"):
        Probe(config, dataset / "tokenizer", 100)
