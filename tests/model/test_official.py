"""LV-Eval, InfiniteBench and NeedleBench: their files read and their questions made."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from factory.corpus.tokens import train_bpe
from factory.engine.errors import FactoryError
from model.checkpoint import save_hf
from model.config import ModelConfig
from model.evaluate import metrics
from model.evaluate.__main__ import main
from model.evaluate.files import cut_middle
from model.evaluate.infinitebench import PROMPTS as INFINITE
from model.evaluate.infinitebench import InfiniteBench
from model.evaluate.kinship import GENERATIONS, chain
from model.evaluate.lveval import PROMPTS as LV
from model.evaluate.lveval import LVEval
from model.evaluate.needlebench import NeedleBench
from model.evaluate.task import Question
from model.transformer import Transformer
from tests.model import small_sets


@pytest.fixture(scope="module")
def tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(iter(small_sets.book(data, "pride", 8000).split("\n\n")), 600, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def sets(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for make in (small_sets.lveval, small_sets.infinitebench, small_sets.needlebench):
        (folder / make.__name__).mkdir()
        make(folder / make.__name__, data)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Products this small take longer on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def right(question: Question) -> str:
    """An answer that is right in the task's form."""
    form = question.details.get("form")
    if form in ("ancestors", "reasoning"):
        return rf"\boxed{{{question.answers[0]}}}"
    return ", ".join(question.answers) if form or question.subtask == "math_calc" else question.answers[0]


def test_every_dataset_of_lv_eval_and_infinitebench_is_read_and_scored(sets: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("jieba")
    pytest.importorskip("rouge_score")
    task = LVEval(path=str(sets / "lveval"))
    found = list(task.questions(tokenizer))
    assert {question.details["dataset"] for question in found} == set(LV)
    assert {question.subtask.rsplit("_")[-1] for question in found} == {"16k", "32k", "256k"}
    other = InfiniteBench(path=str(sets / "infinitebench"))
    both = found + list(other.questions(tokenizer))
    assert {question.subtask for question in both[len(found) :]} == set(INFINITE)
    assert len({(question.task, question.subtask, question.id) for question in both}) == len(both)
    for question in both:
        judge = task if question.task == "lveval" else other
        assert judge.score(right(question), question) == pytest.approx(1, abs=1e-6), question.subtask
        assert judge.score("", question) == judge.score("xyz", question) == 0, question.subtask


def test_files_are_chosen_by_dataset_and_level(sets: Path, tokenizer: Tokenizer) -> None:
    chosen = LVEval(path=str(sets / "lveval"), datasets=("factrecall_en", "lic_mixup"), levels=("32k",))
    assert [file.name for file, _ in chosen.files()] == ["factrecall_en_32k.jsonl"]
    (question,) = chosen.questions(tokenizer)
    assert question.tokens == 16
    chosen = InfiniteBench(path=str(sets / "infinitebench"), datasets=("passkey",), questions_each=1)
    (question,) = chosen.questions(tokenizer)
    assert (question.id, question.tokens, question.answers) == ("passkey:0", 6, ("71432",))
    one = InfiniteBench(path=str(sets / "infinitebench" / "code_run.jsonl"))
    prompt = next(iter(one.questions(tokenizer))).prompt
    assert "func_7(-3) is" in prompt and "a function func_7." in prompt


def test_long_prompts_lose_their_middle(sets: Path, tokenizer: Tokenizer) -> None:
    whole = next(iter(LVEval(path=str(sets / "lveval" / "factrecall_en_32k.jsonl")).questions(tokenizer)))
    length = len(tokenizer.encode(whole.prompt).ids)
    cut = next(iter(LVEval(path=str(sets / "lveval" / "factrecall_en_32k.jsonl"), length=300).questions(tokenizer)))
    ids = tokenizer.encode(cut.prompt).ids
    assert length > 600 and 270 < len(ids) <= 300 - cut.tokens
    assert cut.prompt[:200] == whole.prompt[:200] and cut.prompt[-200:] == whole.prompt[-200:]
    assert cut_middle(tokenizer, whole.prompt, length) == whole.prompt


def test_prompts_of_ones_own(sets: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"passkey": "{context} >> {input}"}))
    task = InfiniteBench(path=str(sets / "infinitebench"), datasets=("passkey",), prompts=str(path))
    assert next(iter(task.questions(tokenizer))).prompt.endswith(" >> What is the pass key?")
    path.write_text(json.dumps({"passkey": "{contxt}"}))
    with pytest.raises(FactoryError, match=r"prompt of passkey: 'contxt': what can be filled in is \{context\}"):
        list(task.questions(tokenizer))
    path.write_text(json.dumps({"paskey": ""}))
    with pytest.raises(FactoryError, match=r"no dataset 'paskey' .did you mean 'passkey'"):
        list(task.questions(tokenizer))


@pytest.mark.parametrize("language", ["English", "Chinese"])
@pytest.mark.parametrize("length", [400, 1500])
def test_needles_lie_where_they_are_asked_for(sets: Path, tokenizer: Tokenizer, language: Any, length: int) -> None:
    depths = (0, 25, 50, 75, 100)
    task = NeedleBench(
        path=str(sets / "needlebench"),
        tasks=("single",),
        languages=(language,),
        lengths=(length,),
        depths=depths,
        repeats=2,
        tokens=16,
    )
    found = list(task.questions(tokenizer))
    assert len(found) == len(depths) * 2 and len({question.id for question in found}) == len(found)
    assert found[0].prompt == next(iter(task.questions(tokenizer))).prompt
    for question in found:
        count = len(tokenizer.encode(question.prompt).ids)
        assert length - 24 <= count + question.tokens <= length
        context = question.prompt.split("document>" if language == "English" else "文档>")[1]
        before, after = context.split(f"\n{question.details['needle']}\n")
        assert len(before) / len(before + after) == pytest.approx(question.depth, abs=0.12)
        assert task.score(question.answers[0], question) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_needlebench_asks_all_its_tasks(sets: Path, tokenizer: Tokenizer, version: Any) -> None:
    task = NeedleBench(
        path=str(sets / "needlebench"),
        version=version,
        lengths=(1200,),
        depths=(0, 50, 100),
        needles=(2, 3),
        relatives=(2, 8),
        repeats=1,
        tokens=64,
    )
    found = list(task.questions(tokenizer))
    counts = {"single": 3, "retrieval": 1, "reasoning": 6, "ancestors": 8}
    assert {form: sum(question.details["form"] == form for question in found) for form in counts} == counts
    for question in found:
        assert len(tokenizer.encode(question.prompt).ids) + 64 <= (question.length or 10_000)
        expected = (
            " ".join(question.answers) if version == 1 and question.details["form"] == "reasoning" else right(question)
        )
        assert task.score(expected, question) == 1
        assert task.score("", question) == 0
    retrieval = next(question for question in found if question.details["form"] == "retrieval")
    places = [retrieval.prompt.index(answer) for answer in retrieval.answers]
    assert places == sorted(places) and all(retrieval.prompt.count("What lies under") == 3 for _ in places)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10), st.sampled_from(["English", "Chinese"]), st.integers(0, 99))
def test_a_chain_of_relatives_leads_to_its_answer(links: int, language: str, seed: int) -> None:
    names = small_sets.NAMES[language].split(",")
    told = {kind: chain(names, links, language, kind, seed) for kind in ("eldest", "distance")}
    for kind, one in told.items():
        assert len(one.sentences) == links
        # Read the sentences back: who stands above whom, by which word.
        above = {}
        for sentence in one.sentences:
            old, young, word = read(sentence, names, language)
            assert young not in above
            above[young] = (old, GENERATIONS[language][word])
        person, generations = next(iter(set(above) - {old for old, _ in above.values()})), 0
        while person in above:
            person, step = above[person]
            generations += step
        assert one.answer == (person if kind == "eldest" else str(generations))


def read(sentence: str, names: list[str], language: str) -> tuple[str, str, str]:
    from model.evaluate.kinship import SENTENCES

    for old in names:
        for young in names:
            for word in GENERATIONS[language]:
                if sentence in (form.format(old=old, young=young, word=word) for form in SENTENCES[language]):
                    return old, young, word
    raise AssertionError(sentence)


def test_a_checkpoint_is_asked_by_the_command(
    one_thread: None, sets: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jieba")
    train_bpe(iter(small_sets.book(data, "pride", 8000).split("\n\n")), 600, tmp_path / "tokenizer")
    vocabulary = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json")).get_vocab_size()
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": vocabulary}
    model = Transformer(
        ModelConfig(hidden_size=16, intermediate_size=32, max_position_embeddings=512, **shape)  # type: ignore[arg-type]
    )
    model.initialise(1)
    save_hf(model, tmp_path / "hf", tmp_path / "tokenizer", None)
    words = [str(tmp_path / "hf"), "lveval", "infinitebench", "needlebench", f"out={tmp_path / 'out'}", "name=tiny"]
    words += [f"{task}.path={sets / task}" for task in ("lveval", "infinitebench", "needlebench")]
    words += ["length=500", 'infinitebench.datasets=["passkey", "longbook_choice_eng"]', "questions_each=1"]
    words += ["needlebench.lengths=[400]", "depths=[0, 100]", "repeats=1", "needles=[2]", "relatives=[2]", "tokens=8"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    counts = {task: sum(row["task"] == task for row in rows) for task in ("lveval", "infinitebench", "needlebench")}
    assert counts == {"lveval": 11, "infinitebench": 2, "needlebench": 2 + 1 + 2 + 4}
    assert all(row["model"] == "tiny" and 0 <= row["score"] <= 1 for row in rows)
    assert all(row["prompt_tokens"] <= 500 for row in rows) and max(row["prompt_tokens"] for row in rows) > 400
    assert "infinitebench longbook_choice_eng" in printed
    assert (tmp_path / "out" / "needlebench-single_English.png").is_file()
    assert (
        main([words[0], "infinitebench", f"path={sets / 'infinitebench'}", "length=500", "out=" + str(tmp_path)]) == 2
    )
    assert "longbook_sum_eng has answers of 1,200 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "package"),
    [
        (LVEval(path="lveval/lic_mixup_16k.jsonl"), "jieba"),
        (InfiniteBench(path="infinitebench/longbook_sum_eng.jsonl"), "rouge-score"),
    ],
)
def test_a_missing_package_is_told_before_the_model_is_asked(
    sets: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, task: Any, package: str
) -> None:
    metrics.imported.cache_clear()
    for module in ("jieba", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FactoryError, match=f"needs the package {package}"):
        next(dataclasses.replace(task, path=str(sets / task.path)).questions(tokenizer))


def spoil(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    change(rows[-1])
    return small_sets.write_lines(path.parent / "spoilt" / path.name, rows)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("passkey", lambda row: row.pop("context"), "line 2: no field 'context'"),
        ("passkey", lambda row: row.update(context=7), "line 2: field 'context' is a int, not a str"),
        ("passkey", lambda row: row.update(answer=[]), "line 2: field 'answer' is empty"),
        ("code_run", lambda row: row.update(input="Run it."), r"line 2: field 'input' has no call such as func_1\(2\)"),
        ("code_run", lambda row: row.update(answer=["four"]), "line 2: field 'answer' has 'four', which is no number"),
        ("math_find", lambda row: row.update(input="Find it."), "line 2: field 'input' does not name a number"),
        ("longbook_choice_eng", lambda row: row.update(options=["x"]), "line 2: field 'options' is not a list of 4"),
        ("code_debug", lambda row: row.update(answer=["f"]), "line 2: the answer 'f' is none of the options"),
    ],
)
def test_wrong_files_are_told_by_line(
    sets: Path, tokenizer: Tokenizer, file: str, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = spoil(sets / "infinitebench" / f"{file}.jsonl", change)
    with pytest.raises(FactoryError, match=rf"{file}\.jsonl, {message}"):
        list(InfiniteBench(path=str(path)).questions(tokenizer))


def test_files_that_are_not_those_of_the_benchmark(sets: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "passkey.jsonl"
    path.write_text('{"context": "x"\n')
    with pytest.raises(FactoryError, match=r"passkey.jsonl, line 1: not JSON .*: give the files of InfiniteBench"):
        list(InfiniteBench(path=str(path)).questions(tokenizer))
    path.write_bytes(b'{"context": "\xff\xfe"}\n')
    with pytest.raises(FactoryError, match="not whole text"):
        list(InfiniteBench(path=str(path)).questions(tokenizer))
    with pytest.raises(FactoryError, match="no file of LV-Eval that is asked for"):
        LVEval(path=str(tmp_path)).files()
    with pytest.raises(FactoryError, match=r"has the name DATASET_LEVEL\.jsonl"):
        LVEval(path=str(path)).files()
    with pytest.raises(FactoryError, match="no such file or folder: give a folder of LV-Eval"):
        list(LVEval(path=str(tmp_path / "factrecall_en_16k.jsonl")).questions(tokenizer))
    with pytest.raises(FactoryError, match=r"no 'pass_key' .did you mean 'passkey'"):
        InfiniteBench(path=str(tmp_path), datasets=("pass_key",)).files()
    with pytest.raises(FactoryError, match=r"passkey\.jsonl: no such file: give the files of InfiniteBench"):
        list(InfiniteBench(path=str(sets / "lveval"), datasets=("passkey",)).questions(tokenizer))
    folder = str(sets / "needlebench")
    cases = [
        ({"path": str(tmp_path)}, "needles.jsonl: no such file"),
        ({"path": folder, "depths": tuple(range(0, 100, 10))}, "7 different needles in English, but .* has 10"),
        ({"path": folder, "tasks": ("ancestors",)}, "11 names, but a chain of 16 needs 17"),
        ({"path": folder, "lengths": (120,)}, "no room for any haystack"),
        ({"path": folder, "lengths": (90_000,)}, "but a haystack of .* is asked for"),
        ({"path": folder, "version": 1, "tasks": ("reasoning",), "needles": (5,)}, "no question with 5 derivations"),
    ]
    for options, message in cases:
        with pytest.raises(FactoryError, match=message):
            list(NeedleBench(**{"tokens": 16, **options}).questions(tokenizer))  # type: ignore[arg-type]
