"""The tasks: prompts of the very length, what is hidden lies where it should, right answers score 1, wrong ones 0."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from factory.corpus.tokens import train_bpe
from factory.engine.errors import FactoryError
from model.evaluate import retrieval, ruler, text
from model.evaluate.needle import NEEDLE, Needle
from model.evaluate.perplexity import Perplexity
from model.evaluate.retrieval import Retrieval
from model.evaluate.ruler import Ruler
from model.evaluate.task import Question, Task, build, find, names
from model.evaluate.text import Filler, count, fit, insert, most

BOOK = "books/Alice-s-Adventures-in-Wonderland_11/11-0.txt"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KEYS = "kv-retrieval/lost-in-the-middle/kv_retrieval_data/kv-retrieval-75_keys.jsonl.gz"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [text.noise(np.random.default_rng(number), 40) for number in range(20)]
    train_bpe(iter(texts), 800, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def check(task: Task, tokenizer: Tokenizer) -> list[Question]:
    """What holds of the questions of every task; returns them."""
    questions = list(task.questions(tokenizer))
    assert questions == list(task.questions(tokenizer)), "the same each time"
    assert len({(one.subtask, one.id) for one in questions}) == len(questions)
    for one in questions:
        if one.length:
            assert one.length - 1 <= count(tokenizer, one.prompt) + one.tokens <= one.length
        assert task.score(" and ".join(one.answers), one) == 1.0
        assert task.score(f"It is {one.answers[0].upper()}, I think.", one) > 0
        assert task.score("I do not know.", one) == task.score("", one) == 0.0
    others = [one for one in questions if not set(one.answers) & set(questions[0].answers)]
    assert others and all(task.score(" ".join(one.answers), questions[0]) == 0.0 for one in others)
    return questions


@pytest.mark.parametrize("book", [False, True])
def test_the_needle_lies_at_its_depth(book: bool, tokenizer: Tokenizer, request: pytest.FixtureRequest) -> None:
    files = (str(request.getfixturevalue("data") / BOOK),) if book else ()
    task = Needle(lengths=(300, 1000, 3000), depths=(0.0, 0.25, 0.5, 0.9, 1.0), samples=2, files=files)
    questions = check(task, tokenizer)
    assert len(questions) == 30
    prompts = {one.prompt for one in questions}
    assert len(prompts) == 30
    for one in questions:
        (code,) = one.answers
        begin = one.prompt.index("\n\n") + 2
        end = one.prompt.rindex("\n\nQuestion:")
        match = re.search(r"The code of \w+ is \d{7}\. ?", one.prompt[begin:end])
        assert match and code in match[0] and one.prompt.count(code) == 1
        hay = one.prompt[begin : begin + match.start()] + one.prompt[begin + match.end() : end]
        assert one.depth is not None
        assert abs(match.start() - one.depth * len(hay)) <= text.NEAR
        if not book:  # sentences of noise are short
            assert abs(match.start() - one.depth * len(hay)) < 60
        before = one.prompt[begin : begin + match.start()].rstrip()
        assert not before or one.depth == 1 or before[-1] in '.!?”"’)*' or book


def test_a_haystack_is_the_book(data: Path, tokenizer: Tokenizer) -> None:
    (one,) = Needle(lengths=(2000,), depths=(0.5,), files=(str(data / BOOK),)).questions(tokenizer)
    book = (data / BOOK).read_text("utf-8-sig")
    left, right = re.split(r"The code of \w+ is \d{7}\. ", one.prompt[one.prompt.index("\n\n") + 2 :], maxsplit=1)
    hay = left + right[: right.rindex("\n\nQuestion")]
    assert hay in book


@settings(max_examples=30, deadline=None)
@given(length=st.integers(30, 3000), seed=st.integers(0, 9), depth=st.floats(0, 1))
def test_every_length_is_met(length: int, seed: int, depth: float, tokenizer: Tokenizer) -> None:
    """Within one token, also where the filler has to begin anew."""
    filler = Filler(tokenizer, (), np.random.default_rng(seed))
    filler.text = filler.text[:2000]
    start = filler.start(np.random.default_rng(seed), length)
    prompt = fit(tokenizer, length, lambda hay: f"Go.\n{insert(hay, ['HERE 7.'], [depth])}\nWhat?", filler, start)
    assert length - 1 <= count(tokenizer, prompt) <= length
    assert prompt.count("HERE 7.") == 1


def test_characters_of_several_tokens_leave_a_gap(tokenizer: Tokenizer) -> None:
    """Each of three tokens, and no other filler: two of three lengths cannot be met."""
    filler = Filler(tokenizer, (), np.random.default_rng(0))
    filler.text = "港口的灯塔在夜里照亮了整个海湾" * 40
    for length in range(200, 206):
        found = count(tokenizer, fit(tokenizer, length, lambda hay: f"Go.\n{hay}\nWhat?", filler, 0))
        assert length - 2 <= found <= length


def test_lengths_that_are_too_short_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(FactoryError, match="24 tokens are too few"):
        list(Needle(lengths=(40,)).questions(tokenizer))
    with pytest.raises(FactoryError, match="too few"):
        list(Ruler(lengths=(600,), subtasks=("cwe",)).questions(tokenizer))
    with pytest.raises(FactoryError, match="too few"):
        list(Ruler(lengths=(100,), subtasks=("niah_multikey_2",)).questions(tokenizer))
    with pytest.raises(FactoryError, match="no such file"):
        list(Needle(files=("nowhere/*.txt",)).questions(tokenizer))
    with pytest.raises(FactoryError, match="between 0 and 1"):
        list(Needle(depths=(50.0,)).questions(tokenizer))


def test_no_two_questions_have_the_same_id(tokenizer: Tokenizer) -> None:
    """Also where depths lie close together or a length is named twice."""
    check(Needle(lengths=(300, 300), depths=(0.5, 0.501, 0.502, 0.5)), tokenizer)
    check(Retrieval(keys=(4, 4, 6), positions=2), tokenizer)
    check(Ruler(lengths=(700, 700), subtasks=("vt", "niah_single_1", "vt"), samples=2), tokenizer)


def test_most_is_the_most(tokenizer: Tokenizer) -> None:
    def make(units: int) -> str:
        return "Say: " + "again and " * units

    for length in (20, 100, 1000):
        units = most(tokenizer, length, make)
        assert count(tokenizer, make(units)) <= length < count(tokenizer, make(units + 1))


def test_retrieval_reads_the_benchmark(data: Path, tokenizer: Tokenizer) -> None:
    task = Retrieval(files=(str(data / KEYS),), samples=3, positions=4)
    questions = check(task, tokenizer)
    assert [one.details["position"] for one in questions] == [0, 25, 49, 74] * 3
    for one in questions:
        pairs = json.loads(one.prompt[one.prompt.index("{") : one.prompt.index("}") + 1])
        key = re.search(r'Key: "([^"]+)"', one.prompt)
        assert key and len(pairs) == 75 and list(pairs).index(key[1]) == one.details["position"]
        assert one.answers == (pairs[key[1]],) and one.subtask == "75 keys"
    with pytest.raises(FactoryError, match=r"11-0\.txt, line 1: not a row of key-value retrieval"):
        list(Retrieval(files=(str(data / BOOK),)).questions(tokenizer))


@pytest.mark.parametrize("options", [{"keys": (10, 140)}, {"lengths": (700, 2500)}])
def test_retrieval_is_made_anew(options: dict, tokenizer: Tokenizer) -> None:
    questions = check(Retrieval(positions=3, samples=2, **options), tokenizer)
    assert len(questions) == 12 and [one.depth for one in questions[:3]][::2] == [0.0, 1.0]
    for one in questions:
        pairs = json.loads(one.prompt[one.prompt.index("{") : one.prompt.index("}") + 1])
        assert list(pairs.values()).index(one.answers[0]) == one.details["position"]
        uuids = [*pairs, *pairs.values()]
        assert len(set(uuids)) == len(uuids) and all(
            re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", u) for u in uuids
        )


def questions_file(folder: Path, data: Path) -> Path:
    """Questions on lines of a book: which word comes after the first five of a paragraph."""
    paragraphs = [" ".join(p.split()) for p in (data / BOOK).read_text("utf-8-sig").split("\n\n")]
    rows = []
    for paragraph in [p for p in paragraphs if 100 < len(p) < 400][20:60]:
        words = paragraph.split()
        rows.append(
            {
                "question": f"What follows {' '.join(words[:5])}?",
                "answers": [words[5], "x" * 9],
                "passages": [paragraph],
            }
        )
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_ruler_has_thirteen_tasks(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = str(questions_file(tmp_path, data))
    task = Ruler(lengths=(4500,), samples=2, files=(str(data / BOOK),), questions_1=path, questions_2=path)
    questions = check(task, tokenizer)
    assert list(dict.fromkeys(one.subtask for one in questions)) == list(ruler.SUBTASKS) and len(questions) == 26
    by_name = {one.subtask: one for one in questions}
    for one in questions:
        if one.subtask.startswith("niah"):
            assert all(one.prompt.count(f"is {answer}.") == 1 for answer in one.answers)
        if one.subtask.startswith("qa"):
            assert one.prompt.count("\n\nPassage ") > 5 and one.answers[0] in one.prompt
    values = {name: len(one.answers) for name, one in by_name.items()}
    assert values["niah_multivalue"] == values["niah_multiquery"] == 4 and values["niah_single_1"] == 1
    assert values["vt"] == 5 and values["cwe"] == 10 and values["fwe"] == 3
    assert by_name["niah_multikey_1"].prompt.count("A value of") == 4
    assert by_name["niah_multikey_2"].prompt.count("A value of") > 50
    assert len(Ruler(subtasks=("vt",), samples=1).subtasks) == 1
    assert {one.subtask for one in Ruler(samples=1, lengths=(4500,)).questions(tokenizer)} == set(ruler.SUBTASKS[:-2])


def test_ruler_counts_and_chains(tokenizer: Tokenizer) -> None:
    """What is asked for can be worked out from the prompt alone."""
    for one in Ruler(subtasks=("vt", "cwe", "fwe"), lengths=(5000, 9000), samples=3).questions(tokenizer):
        if one.subtask == "vt":
            value = re.search(r"have the value (\d+)", one.prompt)
            assert value
            same = {value[1]}
            for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", one.prompt):
                same |= {name} if source in same else set()
            assert same == {value[1], *one.answers}, "each assignment stands behind the one that it needs"
        elif one.subtask == "cwe":
            counts = Counter(re.findall(r"\d+\. ([a-z]+)", one.prompt))
            assert {word for word, _ in counts.most_common(10)} == set(one.answers)
            assert sorted(set(counts.values())) == [ruler.OTHER_TIMES, ruler.COMMON_TIMES]
        else:
            counts = Counter(one.prompt.partition("mean nothing.")[2].partition("Question")[0].split())
            assert [word for word, _ in counts.most_common(4)] == ["....", *one.answers]
            assert counts.most_common(5)[3][1] > counts.most_common(5)[4][1]


def test_ruler_scores_shares(tokenizer: Tokenizer) -> None:
    question = Question(task="ruler", subtask="vt", id="0", prompt="", answers=("AAA", "BBB", "CCC", "DDD"), tokens=1)
    assert Ruler().score("aaa, then DDD", question) == 0.5
    any_of = Question(task="ruler", subtask="qa_1", id="0", prompt="", answers=("one", "another"), tokens=1)
    assert Ruler().score("It is Another.", any_of) == 1.0 and Ruler().score("on", any_of) == 0.0


def test_questions_in_the_forms_of_others(tmp_path: Path) -> None:
    squad = {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": "It rains.",
                        "qas": [
                            {"question": "What?", "answers": [{"text": "rain"}, {"text": "rain"}]},
                            {"question": "No?", "answers": []},
                        ],
                    }
                ]
            }
        ]
    }
    hotpot = [
        {
            "question": "Who?",
            "answer": "Ann",
            "supporting_facts": [["A", 0]],
            "context": [["A", ["Ann ", "came."]], ["B", ["Bob went."]]],
        }
    ]
    for given_, expected in (
        (squad, ("What?", ("rain",), ("It rains.",))),
        (hotpot, ("Who?", ("Ann",), ("Ann came.",))),
    ):
        path = tmp_path / "q.json"
        path.write_text(json.dumps(given_))
        assert ruler.read_questions(path) == [expected]
    lines = tmp_path / "q.jsonl"
    lines.write_text('{"question": "a\u2028b?", "answers": ["c"], "passages": ["d"]}\n', "utf-8")
    assert ruler.read_questions(lines) == [("a\u2028b?", ("c",), ("d",))]
    path.write_text('{"data": 3}')
    with pytest.raises(FactoryError, match=r"q\.json: not questions in a form that is known"):
        ruler.read_questions(path)


def test_tasks_by_name() -> None:
    assert {"needle", "perplexity", "retrieval", "ruler"} <= set(names())
    assert find("needle") is Needle and find("model.evaluate.needle:Needle") is Needle
    assert build("needle", {"lengths": [100], "depths": [0, 1]}) == Needle(lengths=(100,), depths=(0.0, 1.0))
    assert build("perplexity", {"data": "x"}) == Perplexity(data="x")
    for name, options, message in (
        ("needl", {}, r"no task 'needl' \(did you mean 'needle'\?\); tasks: "),
        ("results", {}, "no class TASK"),
        ("nowhere:Task", {}, "no module 'nowhere'"),
        ("needle", {"length": [1]}, r"needle\.length: no such option \(did you mean 'lengths'\?\)"),
        ("needle", {"lengths": ["x"]}, r"needle\.lengths\.0: .*integer.*, not 'x'"),
        ("needle", {"seed": 1.5}, r"needle\.seed"),
    ):
        with pytest.raises(FactoryError, match=message):
            build(name, options)


def test_the_needle_is_a_sentence_of_its_own() -> None:
    hay = "One is here. Two is there. Three is gone."
    assert insert(hay, [NEEDLE.format(city="Oslo", code=1)], [0.4]) == (
        "One is here. The code of Oslo is 1. Two is there. Three is gone."
    )
    assert insert(hay, ["A.", "B."], [1.0, 0.0]) == f"B. {hay} A. "
    assert retrieval.moved([("a", "1"), ("b", "2"), ("c", "3")], "a", 1) == [("b", "2"), ("a", "1"), ("c", "3")]
