"""What AutoIF asks a teacher: the prompts, and the answers as models give them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.teacher.prompts import Prompt
from factory.teacher.request import Choice, Failed, Request, Response
from factory.verify.instructions.autoif import Unclear, back_translate, candidate, relation, rewrites, score
from factory.verify.instructions.generated import Example, Verifiers
from tests.conftest import REPOSITORY

PROMPTS = REPOSITORY / "recipes" / "prompts"
SOURCE = 'def evaluate(response):\n    return "," not in response\n'
CASES = [Example("No comma here", True), Example("Well, one", False)]
OBJECT = {"function": SOURCE, "cases": [{"response": c.response, "follows": c.follows} for c in CASES]}
PUBLISHED = {"func": SOURCE, "cases": [{"input": c.response, "output": str(c.follows).lower()} for c in CASES]}


def prompt(name: str) -> Prompt:
    return Prompt(str(PROMPTS / f"autoif_{name}.jinja"))


@pytest.mark.parametrize(
    "name, variables",
    [
        ("rewrite", {"instructions": ["Use no comma.", "Say <b> & 'so'."], "count": 100}),
        ("verify", {"instruction": "Use no comma & no {{ braces }}."}),
        ("describe", {"function": SOURCE}),
        ("compare", {"instruction": "Use no comma.", "description": "Avoid commas."}),
        ("judge", {"instruction": "Use no comma.", "prompt": "Who are you?", "response": "A person."}),
    ],
)
def test_prompts_hold_what_they_are_given(name, variables):
    template = prompt(name)
    assert set(template.variables) == set(variables)
    (first, _), (second, text) = template.messages(variables)
    assert (first, second) == ("system", "user")
    assert text.count("\n\n\n") == 0 and text == text.strip()
    for value in variables.values():
        for one in value if isinstance(value, list) else [value]:
            assert str(one).strip() in text


def test_the_answer_that_the_prompt_shows_can_be_read():
    text = prompt("verify").messages({"instruction": "Use no comma."})[-1].content
    functions, cases = candidate(text)
    assert functions == ["def evaluate(response):\n    ...\n"]
    assert {case.follows for case in cases} == {True, False}


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(OBJECT),
        json.dumps(PUBLISHED),
        f"Sure! Here it is:\n\n```json\n{json.dumps(OBJECT, indent=2)}\n```\nI hope this helps {{you}}.",
        f"Here it is: {json.dumps(OBJECT)} – as asked for.",
        f"```python\n{SOURCE}```\nCases:\n```json\n{json.dumps(OBJECT['cases'])}\n```",
        f"```python\n{SOURCE}```\n\nCases: {json.dumps(PUBLISHED['cases'])}",
        json.dumps(OBJECT | {"function": f"```python\n{SOURCE}```"}),
        json.dumps(OBJECT).replace("\\n", "\n"),  # line breaks within a string, as models forget to escape
        str({**OBJECT, "cases": [{"input": c.response, "output": c.follows} for c in CASES]}),  # as Python writes it
        json.dumps([{"func": SOURCE}, {"cases": OBJECT["cases"]}]),
    ],
    ids="json autoif fenced in_words two_blocks code_and_text fenced_inside raw literal list".split(),  # noqa: SIM905
)  # fmt: skip
def test_answers_are_read_as_models_give_them(answer):
    functions, cases = candidate(answer)
    assert (functions, cases) == ([SOURCE], CASES)


def test_several_functions_are_read_each_once():
    other = SOURCE.replace("not in", "in")
    assert candidate(f"```python\n{SOURCE}```\nor\n```python\n{other}```\nor\n```\n{SOURCE}```")[0] == [SOURCE, other]
    assert candidate(json.dumps({"functions": [SOURCE, other], "cases": []}))[0] == [SOURCE, other]


@pytest.mark.parametrize(
    "answer, said",
    [
        ("", "no function evaluate"),
        ("I cannot do that.", "no function evaluate"),
        ('{"function": "def check(response): return True"}', "no function evaluate"),
        (json.dumps(OBJECT | {"cases": [{"response": "A"}]}), "a case without"),
        (json.dumps(OBJECT | {"cases": [{"response": "A", "follows": "perhaps"}]}), "a case without"),
        (json.dumps(OBJECT | {"cases": ["A"]}), "a case without"),
    ],
)
def test_answers_that_say_too_little_are_told(answer, said):
    with pytest.raises(Unclear, match=said):
        candidate(answer)


def test_rewrites():
    answer = """Here are some:
1. Use no comma.
2) "End with so."

- **Write in verse.**
---
3. Use no comma.
4. "Yes" comes before "no"
That is all."""
    assert rewrites(answer) == ["Use no comma.", "End with so.", "Write in verse.", '"Yes" comes before "no"']
    with pytest.raises(Unclear):
        rewrites("I will not.")


@pytest.mark.parametrize(
    "answer, found",
    [
        ("contradiction", "contradiction"), ("**Entailment**.", "entailment"), ("It is neutral, I think.", "neutral"),
        ("It could be neutral or entailment; my answer: entailment", "entailment"),
    ],
)  # fmt: skip
def test_relation(answer, found):
    assert relation(answer) == found


@pytest.mark.parametrize("answer", ["", "no", "neutral or contradiction, hard to say"])
def test_relation_that_is_unclear(answer):
    with pytest.raises(Unclear):
        relation(answer)


@pytest.mark.parametrize(
    "answer, found",
    [
        ("Score: 7", 7), ("Good in 2 of 3 ways.\n\n**Score:** 10/10", 10), ("9", 9), ("A score of 8 out of 10.", 8),
        ("The score 3 is too low. Score: 4.", 4),
    ],
)  # fmt: skip
def test_score(answer, found):
    assert score(answer) == found


@pytest.mark.parametrize("answer", ["", "good", "Score: 0", "Score: 11", "Score: 7.5", "between 7 and 8", "Score: -"])
def test_score_that_is_unclear(answer):
    with pytest.raises(Unclear):
        score(answer)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.text("{}[]\"':,`\n 1def evaluate(response)truefalse", max_size=200))
def test_any_answer_is_read_or_unclear(text):
    for read in (candidate, rewrites, relation, score):
        try:
            assert read(text)
        except Unclear as error:
            assert str(error)


@pytest.mark.parametrize("piece", ["[", "{", '{"a":', "[1,", "-", "(", "{'a': ", "```\n", "9/", "score 1"])
def test_long_answers_come_to_an_end(piece):
    with pytest.raises(Unclear):
        candidate(piece * 50_000 + "!")
    for read in (rewrites, relation, score):
        with contextlib.suppress(Unclear):
            read(piece * 50_000 + "!")


# Back-translation, against a teacher whose answers are written here

ABOUT = {"comma": "Write without commas.", "lower": "Write in small letters.", "len": ""}


def scripted(requests: Iterable[Request]) -> Iterator[Response | Failed]:
    """Describes a function by a word in it; compares as if only commas were asked for."""
    for request in requests:
        text = request.messages[-1].content
        if (block := re.search(r"```python\n(.*?)```", text, re.DOTALL)) is not None:
            if "fail" in block[1]:
                yield Failed("the server is gone", request)
                continue
            answer = next(said for word, said in ABOUT.items() if word in block[1])
        else:
            answer = "entailment" if "<second>\nWrite without commas." in text else "Contradiction."
            answer = "who knows" if "Two things." in text else answer
        yield Response(
            choices=(Choice(text=answer, finish_reason="stop", tokens=1),), prompt_tokens=1, model="scripted"
        )


def test_functions_that_contradict_their_instruction_go():
    good, lower, empty, fails = (f"def evaluate(response): # {word}\n" for word in ("comma", "lower", "len", "fail"))
    first = Verifiers((good, lower, empty, fails), tuple(CASES))
    second = Verifiers((good,), tuple(CASES))
    one, two, three = back_translate(
        [("Use no comma.", first), ("Two things.", second), ("Nothing.", Verifiers((), ()))],
        scripted, prompt("describe"), prompt("compare"),
    )  # fmt: skip
    assert one.functions == (good,) and one.survives
    assert [(drop.item, drop.reason, drop.detail) for drop in one.dropped] == [
        (lower, "contradicts", "Write in small letters."),
        (empty, "not described", "an empty answer"),
        (fails, "not described", "the server is gone"),
    ]
    assert two.functions == () and not two.survives
    assert two.counts() == {"function: kept": 0, "case: kept": 2, "function: not compared": 1}
    assert three == Verifiers((), ())
