"""lm-eval asks our model as it asks its own `hf` model: the same checkpoint gives the same numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from factory.corpus.tokens import train_bpe
from factory.engine.errors import FactoryError
from model.checkpoint import save_hf
from model.config import ModelConfig
from model.evaluate.harness import GROUPS, SHOTS, Harness, adapter
from model.generate import Generator
from model.transformer import Transformer
from tests.model.conftest import documents
from tests.model.small_sets import write_lines

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'factory[evaluate]'")

POSITIONS = 96
TEXTS = documents(60)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small take longer on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    train_bpe(iter(TEXTS), 320, folder / "tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    model = Transformer(
        ModelConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
        )
    )
    model.initialise(1)
    with torch.no_grad():  # logits that differ
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    save_hf(model, folder / "hf", folder / "tokenizer", tokenizer.token_to_id("<|endoftext|>"))
    return folder / "hf"


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Any:
    return adapter(Generator.load(checkpoint))


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    options = {"device": "cpu", "dtype": "float32", "batch_size": 4}
    return HFLM(pretrained=str(checkpoint), max_length=POSITIONS - 1, **options)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files whose data lie beside them: a choice, a text to go on with, texts to score."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for number, text in enumerate(TEXTS[:24]):
        choices = [text[60:75], TEXTS[(number * 7 + 3) % 60][20:32], "zero", "a list of files"]
        rows.append({"question": text[:60], "choices": choices, "answer": number % 4, "text": text * (1 + number % 3)})
    write_lines(folder / "rows.jsonl", rows)
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl"), "train": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 1},
    }
    choice = {
        "task": "made_choice",
        "output_type": "multiple_choice",
        "training_split": "train",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    text = {
        "task": "made_text",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "zero",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    rolling = {
        "task": "made_rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    for task in (choice, text, rolling):  # JSON is YAML
        (folder / f"{task['task']}.yaml").write_text(json.dumps(shared | task))
    broken = shared | choice | {"task": "made_broken", "dataset_kwargs": {"data_files": str(folder / "gone.jsonl")}}
    (folder / "made_broken.yaml").write_text(json.dumps(broken))
    return folder


def requests(*arguments: tuple[Any, ...], kind: str = "loglikelihood") -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def test_log_likelihoods_are_those_of_lm_evals_own_model(ours: Any, theirs: Any) -> None:
    asked = requests(
        ("Returns a new", " array"),
        ("Returns a new ", "array"),  # the space goes to the continuation
        ("", "Raises an error where"),
        (TEXTS[3] * 3, " of the given shape"),  # longer than the positions
        *((text[:40], text[40:60]) for text in TEXTS[:12]),
    )
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert len({round(value) for value, _ in expected}) > 5
    for (value, greedy), (their_value, their_greedy) in zip(found, expected, strict=True):
        assert value == pytest.approx(their_value, abs=1e-3)
        assert greedy == their_greedy
    greedy_text = theirs.generate_until(requests(("Returns", {"max_gen_toks": 4, "until": []})), disable_tqdm=True)[0]
    ((_, likeliest),) = ours.loglikelihood(requests(("Returns", greedy_text)))
    assert likeliest == theirs.loglikelihood(requests(("Returns", greedy_text)), disable_tqdm=True)[0][1]


def test_whole_texts_are_scored_in_windows_as_by_lm_evals_own_model(ours: Any, theirs: Any) -> None:
    asked = requests(*((TEXTS[number] * number,) for number in range(1, 5)), kind="loglikelihood_rolling")
    found, expected = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(ours.tok_encode(asked[-1].args[0])) > 2 * POSITIONS


def test_texts_go_on_as_by_lm_evals_own_model(ours: Any, theirs: Any) -> None:
    options = {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False}
    asked = requests(*((text[:50], options) for text in TEXTS[:6]), kind="generate_until")
    asked += requests(*((text, options | {"until": []}) for text in TEXTS[:2]), (TEXTS[0] * 4, options))
    found, expected = ours.generate_until(asked), theirs.generate_until(asked, disable_tqdm=True)
    # Of a prompt that is cut ours keeps one token more, for no room is needed behind the last new one.
    assert found[:-1] == expected[:-1]
    assert all("e" not in text for text in found[:6]) and found[6]
    # Theirs cannot go on from nothing; as in scoring, the id that begins texts stands before it.
    empty, behind = ours.generate_until(
        requests(*((text, options) for text in ("", "<|endoftext|>")), kind="generate_until")
    )
    assert empty == behind != ""


def test_a_local_task_has_the_results_of_lm_evals_own_model(ours: Any, theirs: Any, tasks: Path) -> None:
    names = ("made_choice", "made_text", "made_rolling")
    run = Harness(tasks=names, include=str(tasks), shots=0)
    found, expected = run.run(ours)["results"], run.run(theirs)["results"]
    for task, metric in zip(names, ("acc", "exact_match", "word_perplexity"), strict=True):
        assert found[task][f"{metric},none"] == pytest.approx(expected[task][f"{metric},none"], rel=1e-4)
    assert found["made_choice"]["acc_norm,none"] == expected["made_choice"]["acc_norm,none"] > 0


def test_results_are_left_as_a_table_for_duckdb(checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    run = Harness(tasks=("made_choice",), include=str(tasks), shots=1, questions_each=8)
    printed = run.measure(Generator.load(checkpoint), "tiny", tmp_path / "out")
    assert "made_choice" in printed and "acc_norm" in printed
    rows = pq.read_table(tmp_path / "out" / "harness.parquet").to_pylist()
    assert {row["metric"] for row in rows} == {"acc", "acc_norm"}
    for row in rows:
        assert (row["model"], row["task"], row["shots"], row["questions"]) == ("tiny", "made_choice", 1, 8)
        assert 0 <= row["value"] <= 1 and row["stderr"] > 0
    whole = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert whole["results"]["made_choice"]["acc,none"] == rows[0]["value"]


def test_groups_are_of_tasks_that_lm_eval_has(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    assert {task for tasks in GROUPS.values() for task in tasks} | set(SHOTS) <= known
    assert Harness(tasks=("retention", "mmlu", "arc_easy")).names() == list(GROUPS["retention"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("made_choise",)}, r"lm-eval has no task 'made_choise' .did you mean 'made_choice'"),
        ({"tasks": ("made_broken",)}, "made_broken: the data cannot be loaded"),
        ({"include": "/nowhere"}, "harness.include: /nowhere is no folder"),
    ],
)
def test_what_cannot_be_asked(ours: Any, tasks: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FactoryError, match=message):
        Harness(**{"include": str(tasks), **options}).run(ours)
