"""The kinds of instructions: IFEval's official verdicts, and what any kind must do."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from factory.verify.instructions import describe, draw, follows, instruction, kinds, variants, verdicts
from factory.verify.instructions.content import WORDS
from factory.verify.instructions.text import capital_words, languages, sentences
from factory.verify.verifier import Verifier

KINDS = kinds()
PUBLISHED = [id for id in KINDS if not id.startswith("more:")]
RANDOM_LETTER = {("keywords:letter_frequency", "#"), ("keywords:letter_frequency", "!")}
"""Where the official code takes a random letter in place of the one asked for, and says something else each time."""


# What IFEval says


def official(data: Path, mode: str) -> list[tuple[str, list[str], list[dict[str, Any]], str, list[bool]]]:
    folder = data / "ifeval/IFEval/data"
    asked = {row["prompt"]: row for row in map(json.loads, (folder / "input_data.jsonl").open())}
    judged = map(json.loads, (folder / f"test_output/eval_results_{mode}.jsonl").open())
    return [
        (row["prompt"], asked[row["prompt"]]["instruction_id_list"], asked[row["prompt"]]["kwargs"], row["response"],
         row["follow_instruction_list"])
        for row in judged
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_verdicts_are_those_of_the_official_code(data, mode):
    rows = official(data, mode)
    other, total = [], 0
    for prompt, ids, kwargs, response, expected in rows:
        checks = verdicts(response, ids, kwargs, prompt, strict=mode == "strict")
        total += len(checks)
        for id, given_, check, said in zip(ids, kwargs, checks, expected, strict=True):
            if check.passed != said:
                other.append((id, given_.get("letter"), f"official {said}, ours {check.passed}"))
    print(f"{mode}: {total - len(other)} of {total} instructions agree; not: {other}")
    assert total == 832
    assert all((id, letter) in RANDOM_LETTER for id, letter, _ in other), other
    assert len(other) <= 0.005 * total


def test_all_25_kinds_of_the_data_are_known(data):
    found = {id for _, ids, *_ in official(data, "strict") for id in ids}
    assert len(found) == 25
    assert found == set(PUBLISHED)


def test_follows_is_all_of_the_verdicts_on_rows_of_a_table(data):
    """In a column of Arrow each instruction has all arguments of all kinds, null where they are not its own."""
    rows = official(data, "strict")[:100]
    column = pa.array([kwargs for _, _, kwargs, *_ in rows]).to_pylist()
    assert len(column[0][0]) > 10
    for (prompt, ids, _, response, expected), kwargs in zip(rows, column, strict=True):
        check = follows(response, ids, kwargs, prompt)
        assert check.passed == all(expected)
        assert check.score == pytest.approx(sum(expected) / len(expected))
        broken = {id for id, one in zip(ids, expected, strict=True) if not one}
        assert {id for id in ids if id in check.reason} == broken


# What a text that follows looks like, and one that does not, for each kind

ENGLISH = "it was a quiet morning and the children walked slowly along the road to their school near the river"
GERMAN = "Heute scheint die Sonne und wir gehen mit den Kindern in den Garten, weil das Wetter so schön ist."
SAMPLES = {
    "de": GERMAN, "en": ENGLISH,
    "fr": "Nous sommes allés au marché ce matin pour acheter des légumes frais et du pain pour toute la famille.",
    "ja": "今日は天気がいいので、家族と一緒に公園へ散歩に行きました。とても楽しかったです。",
    "ru": "Сегодня утром мы вместе с друзьями пошли в большой парк и долго гуляли у реки.",
    "zh": "今天天气很好，我们一家人一起去公园散步，然后在河边吃了午饭。",
}  # fmt: skip


def repeated(piece: Callable[[int], str], join: str, number: str, relation: str) -> Callable[..., tuple[str, str]]:
    """Texts with as many pieces as asked for, and with too few or too many."""

    def make(arguments: dict[str, Any], rng: random.Random) -> tuple[str, str]:
        n = arguments[number]
        few, many = (join.join(piece(i) for i in range(k)) or "–" for k in (n - 1, n + rng.randint(0, 3)))
        return (many, few) if arguments[relation] == "at least" else (few, many)

    return make


def at_least(piece: Callable[[dict[str, Any], int], str], join: str, number: str) -> Callable[..., tuple[str, str]]:
    def make(arguments: dict[str, Any], rng: random.Random) -> tuple[str, str]:
        n = arguments[number]
        few, many = (
            "Here: " + join.join(piece(arguments, i) for i in range(k)) for k in (n - 1, n + rng.randint(0, 3))
        )
        return many, few

    return make


def exactly(piece: Callable[[int], str], join: str, number: str) -> Callable[..., tuple[str, str]]:
    def make(arguments: dict[str, Any], rng: random.Random) -> tuple[str, str]:
        n = arguments[number]
        good, bad = (join.join(piece(i) for i in range(k)) for k in (n, n + rng.choice((-1, 1))))
        return good, bad

    return make


def bullet_lines(n: int) -> str:
    return "A list:\n" + "\n".join(f"{'-*'[i % 2]} point {i}" for i in range(n)) + "\nand **no** more"


def paragraphs(a: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    parts = [f"This is part {i}." for i in range(a["num_paragraphs"])]
    parts[a["nth_paragraph"] - 1] = f'"{a["first_word"].title()}," he said.'
    good = "\n\n".join(parts)
    other = parts[:]
    other[a["nth_paragraph"] - 1] = f"Not {a['first_word']}."
    return good, rng.choice([good + "\n\nOne more.", "\n\n".join(other)])


def table(a: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    def rows(height: int, width: int) -> str:
        return "\n".join(
            ",".join(f'"cell,\u2028\n {r}"' if c else f"x{r}" for c in range(width)) for r in range(height)
        )

    h, w = a["num_rows"] + 1, a["num_columns"]
    return rows(h, w), rng.choice([rows(h + 1, w), rows(h, w + 1), f"```csv\n{rows(h, w)}\n```"])


MAKE: dict[str, Callable[[dict[str, Any], random.Random], tuple[str, str]]] = {
    "keywords:existence": lambda a, rng: (
        " and ".join(word.upper() for word in a["keywords"]),
        " and ".join(a["keywords"][1:]) or "nothing",
    ),
    "keywords:frequency": lambda a, rng: repeated(lambda i: a["keyword"], " is ", "frequency", "relation")(a, rng),
    "keywords:forbidden_words": lambda a, rng: (
        " and ".join(f"{word}x" for word in a["forbidden_words"]),
        f"so, {rng.choice(a['forbidden_words']).upper()}!",
    ),
    "keywords:letter_frequency": lambda a, rng: repeated(
        lambda i: rng.choice((a["letter"], a["letter"].upper())), " – ", "let_frequency", "let_relation"
    )(a, rng),
    "language:response_language": lambda a, rng: (
        SAMPLES[a["language"]],
        SAMPLES["ru" if a["language"] != "ru" else "de"],
    ),
    "length_constraints:number_sentences": repeated(
        lambda i: f"Then Mr. Smith paid 3.5 dollars, i.e. too {'much' if i % 2 else 'little'}{'.!?'[i % 3]}",
        " ", "num_sentences", "relation",
    ),
    "length_constraints:number_words": repeated(lambda i: f"word{i}", ", ", "num_words", "relation"),
    "length_constraints:number_paragraphs": exactly(lambda i: f"Part {i}.", "\n***\n", "num_paragraphs"),
    "length_constraints:nth_paragraph_first_word": paragraphs,
    "change_case:capital_word_frequency": repeated(
        lambda i: ("NASA", "A", "COVID-19")[i % 3], " said something to ", "capital_frequency", "capital_relation"
    ),
    "change_case:english_capital": lambda a, rng: (ENGLISH.upper(), rng.choice([ENGLISH, GERMAN.upper()])),
    "change_case:english_lowercase": lambda a, rng: (ENGLISH, rng.choice([ENGLISH.title(), GERMAN.lower()])),
    "detectable_content:number_placeholders": at_least(lambda a, i: f"[name {i}]", " [\n] ", "num_placeholders"),
    "detectable_content:postscript": lambda a, rng: (f"Bye.\n\n{a['postscript_marker']} and more", "Bye. PS and more"),
    "detectable_format:number_bullet_lists": lambda a, rng: (
        bullet_lines(a["num_bullets"]),
        bullet_lines(a["num_bullets"] + rng.choice((-1, 1))),
    ),
    "detectable_format:constrained_response": lambda a, rng: (
        f"  My answer is {rng.choice(['yes', 'no', 'maybe'])}.\n",
        "My answer is yes and no.",
    ),
    "detectable_format:number_highlighted_sections": at_least(
        lambda a, i: f"*one {i}*" if i % 2 else f"**two {i}**", " * \n", "num_highlights"
    ),
    "detectable_format:multiple_sections": at_least(
        lambda a, i: f"{a['section_spliter']} {i + 1}\nSome text.", "\n\n", "num_sections"
    ),
    "detectable_format:json_format": lambda a, rng: rng.choice(
        [('{"a": [1, null]}', '{"a": [1, null}'), ("```json\n[1]\n```", "Here: [1]"), ("```\n{}\n```", "{'a': 1}")]
    ),
    "detectable_format:title": lambda a, rng: ("Well:\n<<A title>>\ntext", rng.choice(["<<A\nb>>", "<< >>", "<a>"])),
    "combination:two_responses": lambda a, rng: (
        "One.\n******\nTwo.",
        rng.choice(["One.\n******\nOne.", "One.", "One.******Two.******Three.", "One.************Two."]),
    ),
    "combination:repeat_prompt": lambda a, rng: ("write A poem.\n\nRoses are red.", "Sure! Write a poem."),
    "startend:end_checker": lambda a, rng: (
        rng.choice([f"Well. {a['end_phrase'].upper()} \n", f'"Well. {a["end_phrase"]}"']),
        f"{a['end_phrase']} Bye",
    ),
    "startend:quotation": lambda a, rng: (' "All of it." ', rng.choice(['"Not all" of it', '"', "'no'"])),
    "punctuation:no_comma": lambda a, rng: ("No; not one 、.", "Yes, one."),
    "more:ends_without": lambda a, rng: ("This is the end -", f"This is it {a['endings'][-1].upper()} "),
    "more:exact_words": exactly(lambda i: f"word{i}", ", ", "num_words"),
    "more:bullets_between": lambda a, rng: (
        bullet_lines(rng.randint(a["least"], a["most"])),
        bullet_lines(rng.choice([a["least"] - 1, a["most"] + 1])),
    ),
    "more:acrostic": lambda a, rng: (
        "\n\n".join(f"- **{letter.upper()}** is a letter" for letter in a["word"]),
        "\n".join(f"{letter} is a letter" for letter in a["word"][:-1]),
    ),
    "more:csv": table,
}  # fmt: skip


def drawn(id: str, rng: random.Random) -> dict[str, Any]:
    arguments = draw(id, rng)
    if id == "language:response_language":  # of those that a text is here for
        arguments["language"] = rng.choice(sorted(SAMPLES))
    return arguments


def test_each_kind_has_texts_here():
    assert set(MAKE) == set(KINDS)


@pytest.mark.parametrize("id", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_follows_is_accepted_and_what_does_not_is_rejected(id, seed):
    rng = random.Random(seed)
    arguments = drawn(id, rng)
    good, bad = MAKE[id](arguments, rng)
    assert (follows(good, [id], [arguments], "Write a poem.").reason, good) == ("", good)
    check = follows(bad, [id], [arguments], "Write a poem.")
    assert not check.passed and check.score == 0 and id in check.reason, bad


@pytest.mark.parametrize("id", KINDS)
@settings(max_examples=20, deadline=None)
@given(text=st.text(max_size=300) | st.text("*\n -#<>[]\"',.!?aAP1S{}`", max_size=300), seed=st.integers(0, 2**32))
def test_any_text_is_judged_and_what_is_followed_strictly_is_followed_loosely(id, text, seed):
    arguments = draw(id, random.Random(seed))
    strict = follows(text, [id], [arguments], "Write a poem.")
    loose = follows(text, [id], [arguments], "Write a poem.", strict=False)
    assert strict == follows(text, [id], [arguments], "Write a poem.")
    assert loose.passed or not strict.passed


@pytest.mark.parametrize(
    "piece", ["[", "<<", ">>", "*", "\n", "\n*", " ", "a.", "-\n", "***", "******", '"', "A", ",\n", "p."]
)
def test_long_texts_that_backtracking_would_never_finish(piece):
    text = piece * (60_000 // len(piece))
    for id in KINDS:
        arguments = draw(id, random.Random(0))
        follows(text, [id], [arguments], "Write a poem.")
        follows(f"x{text}", [id], [arguments], "Write a poem.", strict=False)


@pytest.mark.parametrize("id", KINDS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_words_of_an_instruction_name_its_arguments(id, seed):
    arguments = draw(id, random.Random(seed))
    text = describe(id, arguments)
    assert re.fullmatch(r"[A-Z].{10,}[.!)\w:?\"]", text)
    for name, value in arguments.items():
        for one in value if isinstance(value, list) else [value]:
            assert str(one) in text or name == "language"
    assert json.loads(json.dumps(arguments)) == arguments
    assert draw(id, random.Random(seed)) == arguments


# Loose, blank, mistaken


def test_variants_are_the_eight_of_the_paper():
    assert variants("Sure:\n*It* is\nso.\nBye!") == (
        "Sure:\n*It* is\nso.\nBye!", "*It* is\nso.\nBye!", "Sure:\n*It* is\nso.", "*It* is\nso.",
        "Sure:\nIt is\nso.\nBye!", "It is\nso.\nBye!", "Sure:\nIt is\nso.", "It is\nso.",
    )  # fmt: skip
    assert variants("One line") == ("One line",)
    assert variants(" \n") == ()


@pytest.mark.parametrize("response", ["", " \n\t"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_blank_response_follows_nothing(response, strict):
    assert follows(response, ["punctuation:no_comma"], [{}], strict=strict) == Check(
        False, "punctuation:no_comma: the response is blank", 0.0
    )


@pytest.mark.parametrize(
    "id, arguments, said",
    [
        ("keywords:existance", {}, "did you mean 'keywords:existence'"),
        ("nonsense", {}, "'nonsense' is of no known kind"),
        ("length_constraints:number_words", {"relation": "at least"}, "'num_words' is missing"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": None}, "'num_words' is missing"),
        ("length_constraints:number_words", {"relation": "at most", "num_words": 3}, "relation = 'at most'"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": "3"}, "num_words = '3'"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": True}, "num_words = True"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": -1}, "num_words = -1"),
        ("keywords:existence", {"keyword": ["a"]}, "unknown argument 'keyword' (did you mean 'keywords'?)"),
        ("keywords:existence", {"keywords": []}, "keywords = []"),
        ("keywords:existence", {"keywords": "cat"}, "keywords = 'cat'"),
        ("startend:end_checker", {"end_phrase": " "}, "end_phrase = ' '"),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            "one character",
        ),
        ("language:response_language", {"language": "xx"}, "language = 'xx' is not known"),
        ("combination:repeat_prompt", {}, "nothing to repeat"),
        ("more:bullets_between", {"least": 4, "most": 3}, "least = 4 is more than most = 3"),
        ("punctuation:no_comma", {"commas": 1}, "it takes: none"),
    ],
)
def test_mistakes_are_named(id, arguments, said):
    with pytest.raises(FactoryError, match=re.escape(said)) as caught:
        follows("Some text.", [id], [arguments])
    assert "\n" not in str(caught.value)


def test_each_instruction_has_arguments():
    with pytest.raises(FactoryError, match="2 instructions and arguments for 1"):
        follows("Some text.", ["punctuation:no_comma", "startend:quotation"], [{}])


def test_json_text_is_read_as_a_column_of_json_lines_holds_it():
    ids, kwargs = ["keywords:existence", "punctuation:no_comma"], [{"keywords": ["cat"]}, {}]
    for text in ("A cat", "A, B"):
        assert follows(text, json.dumps(ids), json.dumps(kwargs)) == follows(text, ids, kwargs)


@pytest.mark.parametrize(
    "ids, kwargs", [("punctuation:no_comma", [{}]), ([3], [{}]), (["x"], ["{}"]), (["x"], "[{}"), (None, [])]
)
def test_what_is_no_list_is_told(ids, kwargs):
    with pytest.raises(FactoryError, match="give a list of type"):
        follows("A cat", ids, kwargs)


def test_nulls_are_not_given():
    assert follows("A cat", ["keywords:existence"], [{"keywords": ["cat"], "num_words": None}]).passed


def test_a_kind_of_ones_own():
    @instruction(
        "test:shouted", describe=lambda marks: f"Shout: end with {marks} marks!", draw=lambda rng: {"marks": 2}
    )
    def shouted(response: str, *, marks: int = 1, prompt: str) -> Check:
        return Check(response.endswith("!" * marks) and response != prompt, "not shouted")

    assert follows("Hi!!", ["test:shouted"], [{"marks": 2}]).passed
    assert follows("Hi!", ["test:shouted"], [{}]).passed
    assert follows("Hi!", ["test:shouted"], [{}], prompt="Hi!").reason == "test:shouted: not shouted"
    assert describe("test:shouted", draw("test:shouted", random.Random(0))) == "Shout: end with 2 marks!"
    with pytest.raises(FactoryError, match="have the same id"):
        instruction("test:shouted", describe=str)(lambda response: Check(True))


def test_as_a_verifier_by_name():
    verifier = Verifier("instructions:follows", columns={"instruction_ids": "instruction_id_list"})
    columns = {"instruction_id_list": [["punctuation:no_comma"], ["no"]], "kwargs": [[{}], [{}]]}
    good, bad = verifier(["A text", "A text"], columns)
    assert good == Check(True)
    assert isinstance(bad, FactoryError)
    assert verifier.libraries == ("langdetect",)


# What is counted


@pytest.mark.parametrize(
    "text, count",
    [
        ("", 0), ("One", 1), ("One. Two! Three? Four", 4), ("Mr. Green met J. Bond at 5 p.m. in the U.S. today.", 1),
        ("We left at 5 p.m. The train was late.", 2), ("He said “Stop!” and left. So…", 3),
        ("Wait... what? No... Yes.", 3), ("1. First\n2. Second\nA. Third", 4), ("3.50, i.e. nothing. Good.", 2),
        ("Use example.com or e.g. this.", 1), ("*Bold end.* **Next.** \"Quoted.\" (Bracketed.)", 4),
        ("- one\n- two\n- three", 1), ("No. 5 lives", 2),
    ],
)  # fmt: skip
def test_sentences(text, count):
    assert sentences(text) == count


def test_capital_words():
    assert capital_words("I saw NASA's A-1 and [NAME] — not Nato, U.S. or 42; I'M") == [
        "I", "NASA", "A-1", "NAME", "U.S.", "I", "M",
    ]  # fmt: skip


def test_words_to_draw_from_are_not_in_each_other():
    assert len(set(WORDS)) == len(WORDS)
    assert not [(a, b) for a in WORDS for b in WORDS if a != b and a in b]


def test_languages_known():
    assert {"en", "de", "zh-cn", "sw", "kn"} <= set(languages())
