"""A verdict that changed has a new `Verify.version`: identities are made of it, so without one a dataset would be
called the same and be another.

`python -m tests.verify.test_versions` writes golden.json anew: bump `Verify.version` in factory/synth/verify.py first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest

from factory.engine.errors import FactoryError
from factory.synth.verify import Verify
from factory.verify import code, denotation, language, mathematics, structure, tables
from factory.verify.instructions import draw, kind, kinds, verdicts
from tests.verify import test_adversarial, test_language, test_mathematics
from tests.verify.test_mathematics import pairs

GOLDEN = Path(__file__).with_name("golden.json")
Call = tuple[Any, ...]

PROSE = (
    "The orchard lay behind the harbor, and in the evening its copper light fell on the river. We walked home slowly.",
    "ONE TWO THREE, SAID THE OLD MAN, AND THE CIRCLE CLOSED.",
    "all of this is in small letters and nothing else matters",
    "# Plan\n\n* first *point*\n* second **point**\n- third\n\nP.S. Bring [name] and [date].",
    "<<A title>>\n\nSECTION 1\nText.\n\nSECTION 2\nMore text.\n***\nAnd an end. I hope that this helps you on.",
    "My answer is yes.\n******\nMy answer is no.",
    '"A quotation around all of it."',
    "a,b\n1,2\n3,4",
    '```json\n{"a": [1, 2.5, null], "b": "x"}\n```',
    "Das ist ein deutscher Satz, und er ist lang genug, um erkannt zu werden.",
    "C'est une phrase en français. Mais ceci est court.",
    "这是一个中文句子，用来检查语言的识别。 And an English sentence follows it here.",
    "I'm sorry, but I can't help with that request.",
    "I can't help but notice that the garden is in flower.",
    "and then " * 60,
    "The same line, again and again.\n" * 9,
    "word",
    "",
    " \n ",
    "１２ ３.\u00a05\u2009cm — “quoted” …",
    "Price: $5 (about 1,200.50) = 3/4 of it; 12 * 3 = 36, 48 / 2 = 25.",
)
DATA = (
    "{}",
    '{"a": 1}',
    '{"a": -1, "b": "x"}',
    "[1, [2, {}], null]",
    '{"a": 1, "a": 2}',
    "NaN",
    '{"a": 1,}',
    "Here:\n```json\n[1]\n```\nDone.",
    "```\n[1]",
    "a: no\nb: 1e3\nc: 0o17",
    "- &x [1]\n- *x",
    "a: 1\na: 2",
    "a: b: c",
    "!!python/none x",
    "<a/>",
    '<?xml version="1.0"?><a b="1"><c>5</c></a>',
    "<a></b>",
    '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
    "a,b\n1,2",
    'a,b\n"x,y",2\n\n3,4',
    "a;b\n1;2",
    "| a | b |\n|---|:-:|\n| 1 | x |\n| 2 | y |",
    "text\n\n|b|a|\n|-|-|\n|y|2.0|\n|x|1|\n\nmore",
    "|a|b|\n|-|-|\n|1|",
    "a\n2024-01-31\n2024-02-30",
    "",
    "[" * 101 + "]" * 101,
)
SCHEMA = '{"type": "object", "properties": {"a": {"minimum": 0}}, "required": ["a"]}'
XSD = '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="a"/></xs:schema>'
ANSWERS = (
    "5",
    "5|6",
    "five",
    "5,000",
    "1990",
    "January 2, 1990",
    "2 Jan 1990",
    "1990-01-02",
    "Café (bar)",
    "not 5",
    "",
)
PROGRAMS = (
    "def f():\n    return 1",
    "Here:\n```python\ndef f():\n    return 'a\x0cb\u2028c'\n```\nand\n```\ndef g(): ...\n```",
    "```js\nf()\n```\n~~~py {.x}\ndef f(): ...\n~~~",
    "<think>```python\nno\n```</think>\n```python\ndef f(): ...",
    "````python\n```\ninner\n```\n````",
)


def calls() -> Iterator[tuple[str, Any, Iterable[Call]]]:
    """Each verifier, with some hundred responses and what they are checked against."""
    graded = [test_mathematics.RIGHT, test_mathematics.WRONG, test_adversarial.RIGHT, test_adversarial.WRONG]
    answers = [pair for table in graded for pair in pairs(table)]
    said = [response for response, _ in answers] + [response for response, _ in test_mathematics.ANSWERS]
    yield "mathematics:correct", mathematics.correct, [*answers, *product(PROSE, ("5", "36", "3/4"))]
    yield "mathematics:final_answer", mathematics.final_answer, [(text,) for text in (*said, *PROSE)]
    same = pairs(test_mathematics.EQUAL) + pairs(test_mathematics.DIFFERENT)
    yield "mathematics:equivalent", mathematics.equivalent, same
    yield "mathematics:numeric", mathematics.numeric, [*answers, *product(said, ("5", "100/3", "x"))]
    yield "mathematics:choice", mathematics.choice, product(said, "ABE", (("12", "5", "a whale", "7"),))
    yield "mathematics:steps", mathematics.steps, [(text,) for text in (*said, *PROSE)]
    ours = [id for id in kinds() if kind(id).function.__module__.startswith("factory.")]  # not those of other tests
    drawn = [(id, draw(id, rng)) for id in ours for rng in [Random(id)] for _ in range(4)]
    asked = [([id], [given], "Begin with this.", strict) for id, given in drawn for strict in (True, False)]
    yield "instructions:verdicts", verdicts, ((text, *one) for text in PROSE for one in asked)
    yield "structure:json", structure.json, product(DATA, ("", SCHEMA))
    yield "structure:yaml", structure.yaml, product((*DATA, *PROSE), ("", SCHEMA))
    yield "structure:xml", structure.xml, product(DATA, ("", "a", "b"), ("", XSD))
    columns = ((), ("a", "b"), {"a": "integer", "b": "string"}, {"a": "date"})
    yield "tables:csv", tables.csv, product((*DATA, *PROSE), columns, (None, 1, 2), ",;")
    yield "tables:markdown_table", tables.markdown_table, product((*DATA, *PROSE), columns, (None, 2))
    yield "tables:same_table", tables.same_table, product(DATA, ("a,b\n1,x\n2,y", DATA[18]), (True, False))
    yield "denotation", denotation.denotation, product((*ANSWERS, *PROSE), ([one] for one in ANSWERS))
    spoken = [test_language.ENGLISH, test_language.GERMAN, test_language.CHINESE]
    texts = [*PROSE, *spoken, *(text for some in test_language.REFUSALS.values() for text in some)]
    yield "language:is_language", language.is_language, product(texts, ("en", "de", "fr", "zh", "ja", "xx"))
    yield "language:not_mixed", language.not_mixed, product(texts, ("en", "de", "fr", "zh"))
    yield "language:not_degenerate", language.not_degenerate, [(text,) for text in texts]
    yield "language:not_refused", language.not_refused, product(texts, ("en", "de", "zh", "xx"))
    yield "language:length", language.length, product(texts, (0, 5), (None, 20), ("",), ("words", "characters"))
    yield "code:extract", code.extract, product((*PROGRAMS, *PROSE), ("python", "javascript"), ("", "f"))


def digest(function: Any, given: Iterable[Call]) -> dict[str, object]:
    """How many calls there are, and the SHA-256 of what they give; scores to 4 places, an error as its text."""
    found, count = hashlib.sha256(), 0
    for call in given:
        try:
            made = function(*call)
        except FactoryError as error:
            made = f"FactoryError: {error}"
        checks = made if isinstance(made, tuple) else (made,)
        plain = [
            one if isinstance(one, str | bool) else (one.passed, one.reason, round(one.score, 4)) for one in checks
        ]
        found.update(json.dumps(plain, ensure_ascii=False).encode())
        count += 1
    return {"calls": count, "output": found.hexdigest()}


VERIFIERS = {name: (function, given) for name, function, given in calls()}


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_changed_verdict_has_a_new_version(name):
    golden = json.loads(GOLDEN.read_text())
    found = digest(*VERIFIERS[name])
    if found != golden["verifiers"].get(name):
        assert Verify.version != golden["version"], (
            f"{name} says other than in version {golden['version']}: bump Verify.version in factory/synth/verify.py, "
            "then run python -m tests.verify.test_versions"
        )
    assert Verify.version == golden["version"], "a new version: run python -m tests.verify.test_versions"


if __name__ == "__main__":
    made = {name: digest(*one) for name, one in VERIFIERS.items()}
    GOLDEN.write_text(json.dumps({"version": Verify.version, "verifiers": made}, indent=1) + "\n")
