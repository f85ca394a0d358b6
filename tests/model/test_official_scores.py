"""The scores of LV-Eval, InfiniteBench and NeedleBench: by hand, and against packages that define or use them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.evaluate import metrics
from model.evaluate.infinitebench import InfiniteBench
from model.evaluate.lveval import LVEval
from model.evaluate.needlebench import NeedleBench
from model.evaluate.task import Question


def asked(task: str, subtask: str, *answers: str, **details: Any) -> Question:
    return Question(task=task, subtask=subtask, id="1", prompt="?", answers=answers, tokens=8, details=details)


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
