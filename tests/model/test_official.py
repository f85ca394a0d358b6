"""LV-Eval, InfiniteBench and NeedleBench: their files read, their questions made, their scores given."""

from __future__ import annotations

import dataclasses
import importlib.util
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


def asked(task: str, subtask: str, *answers: str, **details: Any) -> Question:
    return Question(task=task, subtask=subtask, id="1", prompt="?", answers=answers, tokens=8, details=details)


# Scores


def test_f1_is_of_words_counted_with_repetition() -> None:
    # "the" goes, "cat" is shared once: precision 1/3, recall 1/2.
    assert metrics.f1(metrics.words("The cat, cat ran."), metrics.words("a cat sat")) == pytest.approx(0.4)
    assert metrics.f1(metrics.words("dog"), metrics.words("cat")) == 0
    assert metrics.f1([], ["cat"]) == 0
    assert metrics.normalise_chinese("“港口”的 灯塔！OK。") == "港口的灯塔ok"


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcde")), st.lists(st.sampled_from("abcde")))
def test_f1_is_symmetric_and_1_for_the_same_words(one: list[str], other: list[str]) -> None:
    assert metrics.f1(one, other) == pytest.approx(metrics.f1(other, one))
    assert 0 <= metrics.f1(one, other) <= 1
    if one:
        assert metrics.f1(one, sorted(one)) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=12),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=12),
)
def test_rouge_l_is_that_of_the_package_that_lv_eval_uses(answer: list[str], truth: list[str]) -> None:
    rouge = pytest.importorskip("rouge")
    theirs = rouge.Rouge(metrics=["rouge-l"]).get_scores([" ".join(answer)], [" ".join(truth)], avg=True)
    assert metrics.rouge_l(answer, truth) == pytest.approx(theirs["rouge-l"]["f"], abs=1e-12)


@settings(deadline=None)
@given(st.text("abc ", max_size=12), st.text("abc ", max_size=12))
def test_edit_distance_is_that_of_rapidfuzz(one: str, other: str) -> None:
    distance = pytest.importorskip("rapidfuzz.distance").Levenshtein
    assert metrics.edit_distance(one, other) == distance.distance(one, other)


def test_edit_score_leaves_white_space_out() -> None:
    assert metrics.edit_score("ki t\nten", "sitting") == pytest.approx(1 - 3 / 7)
    assert metrics.edit_score(" ", "") == 1
    assert metrics.edit_score("", "ab") == 0


def test_rouge_lsum_takes_lines_for_sentences_and_the_best_truth() -> None:
    pytest.importorskip("rouge_score")
    # By hand: 2 of 3 words of the answer lie in a truth of 4, in order.
    assert metrics.rouge_lsum("alice saw rabbits", ["alice saw a cat"]) == pytest.approx(
        2 * (2 / 3) * (2 / 4) / (7 / 6)
    )
    assert metrics.rouge_lsum("she fell\nalice ran", ["alice ran\nshe fell", "nothing"]) == 1


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        (r"It is \boxed{Ada Byron}.", "Ada Byron"),
        (r"\boxed{no}, rather \boxed{\text{Ben  Okri}}", "Ben Okri"),
        (r"\boxed{{Cora~Lund}}", "Cora Lund"),
        (r"\boxed{'Dan'}", "Dan"),
        (r"\boxed{never closed", ""),
        ("no box", ""),
    ],
)
def test_boxed_takes_the_last_box_and_its_marks_away(answer: str, held: str) -> None:
    assert metrics.boxed(answer) == held


@pytest.mark.parametrize(
    ("dataset", "answer", "score"),
    [
        ("hotpotwikiqa_mixup", "Ruth Sorley", 0.8),  # 2 of 2 words, 2 of 3 of the truth
        ("hotpotwikiqa_mixup", "The baker", 0.0),  # no keyword
        ("hotpotwikiqa_mixup", "the baker Ruth Sorley", 1.0),
        ("factrecall_en", "The baker", 0.5),  # no keywords are asked for: 1 of 1, 1 of 3
    ],
)
def test_lv_eval_scores_english_behind_its_keywords(dataset: str, answer: str, score: float) -> None:
    question = asked("lveval", dataset, "The baker Ruth Sorley", dataset=dataset, keywords="Ruth Sorley")
    assert LVEval(path="").score(answer, question) == pytest.approx(score)


def test_lv_eval_counts_no_blacklisted_keyword_and_needs_a_fifth_of_them() -> None:
    question = asked("lveval", "", "he was in it", dataset="loogle_SD_mixup", keywords="he was in it")
    assert LVEval(path="").score("he was in it", question) == 0  # all four on the blacklist
    words = "one two three four five six"
    question = asked("lveval", "", words, dataset="loogle_SD_mixup", keywords=words)
    assert LVEval(path="").score("one", question) == 0  # 1 of 6
    question = asked("lveval", "", words, dataset="loogle_SD_mixup", keywords="one two three four five")
    assert LVEval(path="").score("one", question) == pytest.approx(2 / 7)  # 1 of 5 is enough


def test_lv_eval_scores_chinese_words() -> None:
    pytest.importorskip("jieba")
    task = LVEval(path="")
    question = asked("lveval", "", "面包师王芳建成了灯塔", dataset="lic_mixup", keywords="王芳")
    assert task.score("面包师王芳建成了灯塔。", question) == 1
    assert task.score("灯塔很高", question) == 0
    assert 0 < task.score("是王芳", question) < 1
    question = asked("lveval", "", "面包师王芳建成了灯塔", dataset="cmrc_mixup", keywords="")
    assert task.score("灯塔", question) == 0  # the truth is the keywords then, and less than 0.4 of it is there
    question = asked("lveval", "", "面包师王芳建成了灯塔", dataset="dureader_mixup", keywords="")
    assert task.score("面包师王芳建成了灯塔", question) == pytest.approx(1, abs=1e-6)
    assert task.score("的和是", question) == 0


@pytest.mark.parametrize(
    ("dataset", "truths", "answer", "score"),
    [
        ("passkey", ("71432",), " 71432. Or 5.", 1),
        ("passkey", ("71432",), "5, no, 71432", 0),
        ("number_string", ("0033445",), "0033445", 1),
        ("number_string", ("0033445",), "33445", 0),
        ("kv_retrieval", ("a-1",), '{"k": "a-1"}', 1),
        ("kv_retrieval", ("a-1",), "a-12", 0),
        ("longbook_choice_eng", ("Bill", "C"), "C", 1),
        ("longbook_choice_eng", ("Bill", "C"), "C. Bill", 1),
        ("longbook_choice_eng", ("the Dodo", "C"), "the Dodo", 1),
        ("longbook_choice_eng", ("Bill", "C"), "Bill", 0),  # the released code takes the first character for a letter
        ("longbook_choice_eng", ("Bill", "C"), "The answer is: Bill the lizard", 1),
        ("longbook_choice_eng", ("Bill", "C"), "A or rather C", 1),
        ("longbook_choice_eng", ("Bill", "C"), "A", 0),
        ("longbook_choice_eng", ("Bill", "C"), "", 0),
        ("longbook_qa_eng", ("the White Rabbit", "a rabbit"), "White Rabbit!", 1),
        ("longbook_qa_eng", ("the White Rabbit",), "the rabbit", 2 / 3),
        ("longbook_qa_chn", ("一只白兔",), "白兔。", 2 / 3),
        ("longdialogue_qa_eng", ("ALICE",), "It is Alice", 1),
        ("longdialogue_qa_eng", ("ALICE",), "HATTER", 0),
        ("math_find", ("41",), "it is 41", 1),
        ("math_find", ("2.5",), "2.5", 1),
        ("math_find", ("41",), "40, 41", 0),
        ("math_calc", ("1", "4", "8", "6"), "[1, 4, 9, 6]", 0.5),
        ("math_calc", ("1", "4"), "[1, 4, 8]", 1),
        ("code_run", ("-4",), "func_1(2) is -4.", 1),
        ("code_run", ("-4",), "-4 it is", 0),
        ("code_run", ("-4",), "", 0),
        ("code_debug", ("func_2", "B"), "B. func_2", 1),
        ("code_debug", ("func_2", "B"), "func_2", 1),
        ("code_debug", ("func_2", "B"), "the correct option is: func_2", 1),
        ("code_debug", ("func_2", "B"), "A", 0),
    ],
)
def test_infinitebench_scores(dataset: str, truths: tuple[str, ...], answer: str, score: float) -> None:
    assert InfiniteBench(path="").score(answer, asked("infinitebench", dataset, *truths)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("dataset", "process"),
    [
        ("passkey", "int_match"),
        ("kv_retrieval", "kv"),
        ("code_run", "code_run"),
        ("math_find", "math"),
        ("longbook_qa_eng", "qa_en"),
        ("longdialogue_qa_eng", ""),
    ],
)
def test_infinitebench_scores_are_those_of_lm_eval(dataset: str, process: str) -> None:
    found = importlib.util.find_spec("lm_eval")
    if found is None:
        pytest.skip("lm-eval is not installed: pip install 'factory[evaluate]'")
    path = Path(str(found.origin)).parent / "tasks" / "infinitebench" / "utils.py"
    spec = importlib.util.spec_from_file_location("theirs", path)
    theirs = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(theirs)  # type: ignore[union-attr]
    process_results = getattr(theirs, "process_results" + (f"_{process}" if process else ""))
    answers = [
        "41",
        "is 41.",
        " 041",
        "",
        "the value: 41",
        '"41"',
        "41 or 7",
        "7 or 41",
        "HATTER",
        "it is Hatter 41!",
        "-41",
    ]
    scores = set()
    for truth in ("41", "Hatter") if dataset not in ("code_run", "math_find") else ("41",):
        for answer in answers:
            question = asked("infinitebench", dataset, truth)
            expected = process_results({"answer": [truth], "options": []}, [answer])["score"]
            assert InfiniteBench(path="").score(answer, question) == pytest.approx(expected), (truth, answer)
            scores.add(expected)
    assert len(scores) > 1


def test_needlebench_scores_by_version() -> None:
    single = asked("needlebench", "", "hidden rope", form="single", needle="Under Lima lies hidden rope.")
    one, two = NeedleBench(path="", version=1), NeedleBench(path="")
    assert one.score("It is hidden rope", single) == two.score("It is hidden rope", single) == 1
    assert two.score("rope", single) == 0
    near = "Under Lima lies hidden silk."  # 4 of 24 characters differ
    assert one.score(near, single) == pytest.approx(0.2 * (1 - 4 / 24))
    many = asked("needlebench", "", "rope", "silk", "salt", form="retrieval")
    assert two.score("silk and salt", many) == pytest.approx(2 / 3)
    reasoning = asked("needlebench", "", "Port Ellen Harbour", form="reasoning")
    assert one.score("the harbour of port X", reasoning) == pytest.approx(2 / 3)
    assert two.score("Port Ellen Harbour", reasoning) == 0
    assert two.score(r"So \boxed{Port Ellen Harbour}", reasoning) == 1


# Questions


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


# Mistakes


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
    with pytest.raises(FactoryError, match="no such file: give the files of LV-Eval"):
        list(LVEval(path=str(tmp_path / "factrecall_en_16k.jsonl")).questions(tokenizer))
    with pytest.raises(FactoryError, match=r"no 'pass_key' .did you mean 'passkey'"):
        InfiniteBench(path=str(tmp_path), datasets=("pass_key",)).files()
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
