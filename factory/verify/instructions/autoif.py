"""What AutoIF asks a teacher (arXiv 2406.13542): its prompts' variables, and how the answers are read.

The prompts are `recipes/prompts/autoif_*.jinja`. rewrite (`instructions`, `count`): more instructions like some that a
person wrote. verify (`instruction`): a function and cases, as `candidate` reads them. describe (`function`): what a
function checks, in words. compare (`instruction`, `description`): whether these contradict each other. judge
(`prompt`, `instruction`, `response`): how well a response suits what was asked, from 1 to 10.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from factory.teacher.prompts import Prompt
from factory.teacher.request import Failed, Request, Response, Sampling
from factory.verify.fences import fences
from factory.verify.instructions.generated import Dropped, Example, Verifiers

Relation = Literal["entailment", "neutral", "contradiction"]
Ask = Callable[[Iterable[Request]], Iterator[Response | Failed]]
"""`Teacher.ask`."""
GREEDY = Sampling(temperature=0)
Key = tuple[int, str]
"""A function: the number of its instruction, and its source."""

_FUNCTION = re.compile(r"^(?:async )?def evaluate\(", re.MULTILINE)
_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d{1,4}[.):])\s*")
_AROUND = re.compile(r"^(\*\*|[\"'`*])((?:(?!\1).)+)\1$")
_SCORE = re.compile(r"(?<![\d.])(10|[1-9])(?:\s*/\s*10)?(?![\d.]*\d)")
_CODE = ("function", "func", "code")
_RESPONSE, _FOLLOWS = ("response", "input"), ("follows", "output", "expected")
_SPELLED = {"true": True, "false": False}


class Unclear(ValueError):
    """An answer of the teacher that cannot be read: what was looked for, and what is missing."""


def rewrites(answer: str) -> list[str]:
    """The instructions of a list, one a line, without numbers, bullets and doubles. Unclear where there are none."""
    lines = [
        _AROUND.sub(r"\2", _MARK.sub("", line).strip()).strip() for line in answer.splitlines() if _MARK.match(line)
    ]
    found = list(dict.fromkeys(line for line in lines if re.search(r"\w", line)))
    if not found:
        raise Unclear("no list of instructions: no line begins with a number or a bullet")
    return found


def candidate(answer: str) -> tuple[list[str], list[Example]]:
    """The functions and the cases of an answer, from JSON or from blocks of code, with words around it or not.

    JSON: `{"function": "def evaluate…", "cases": [{"response": "…", "follows": true}]}`, also under the names of
    AutoIF (func, input, output), also several in a list. Code: any block that defines `evaluate`. Unclear where no
    function is found, or where a case has no response or no verdict.
    """
    functions: list[str] = []
    cases: list[Example] = []
    blocks = [block.body for block in fences(answer)]
    for block in blocks:
        if _FUNCTION.search(block):
            functions.append(block.strip() + "\n")
    for value in _values(blocks or [answer]) or _values([answer]):
        _collect(value, functions, cases)
    if not functions:
        raise Unclear("no function evaluate(response): neither in JSON under 'function' nor in a block of code")
    return list(dict.fromkeys(functions)), list(dict.fromkeys(cases))


def _collect(value: Any, functions: list[str], cases: list[Example]) -> None:
    """Take what is known of a value: an object with functions or cases, a case, or a list of these."""
    if isinstance(value, list):
        for one in value:
            _collect(one, functions, cases)
    elif isinstance(value, dict):
        sources = _first(value, (*_CODE, "functions"))
        for source in sources if isinstance(sources, list) else [sources]:
            if isinstance(source, str):
                inner = [block.body for block in fences(source)] or [source]
                functions += [one.strip() + "\n" for one in inner if _FUNCTION.search(one)]
        for case in value["cases"] if isinstance(value.get("cases"), list) else []:
            cases.append(_case(case))
        if _first(value, _RESPONSE) is not None and _first(value, _FOLLOWS) is not None:
            cases.append(_case(value))


def _case(value: Any) -> Example:
    response = _first(value, _RESPONSE) if isinstance(value, dict) else None
    follows = _first(value, _FOLLOWS) if isinstance(value, dict) else None
    if isinstance(follows, str):
        follows = _SPELLED.get(follows.strip().lower())
    if not isinstance(response, str) or not isinstance(follows, bool):
        raise Unclear(f"a case without a response or a verdict of true or false: {str(value)[:200]}")
    return Example(response, follows)


def _first(value: dict[str, Any], names: Sequence[str]) -> Any:
    return next((value[name] for name in names if name in value), None)


def _values(texts: Iterable[str]) -> list[Any]:
    """The JSON, or literals as Python writes them, in texts: each all of a text, or the objects and lists in it."""
    return [value for text in texts for value in (_whole(text) or _parts(text))]


def _whole(text: str) -> list[Any]:
    for read in (json.loads, lambda text: json.loads(text, strict=False), ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return [value] if isinstance(value, (dict, list)) else []
    return []


def _parts(text: str) -> list[Any]:
    """What is JSON in a text that has words around it, from the left, each the longest that begins there."""
    decoder, found, place = json.JSONDecoder(strict=False), [], 0
    for _ in range(1000):  # starts that are tried: an answer has a few
        starts = [at for at in (text.find("{", place), text.find("[", place)) if at >= 0]
        if not starts:
            break
        place = min(starts)
        try:
            value, place = decoder.raw_decode(text, place)
            found.append(value)
        except (ValueError, RecursionError):
            place += 1
    return found


def relation(answer: str) -> Relation:
    """How a description stands to its instruction. Unclear where the answer names none of the three, or several."""
    words = set(re.findall(r"entailment|neutral|contradiction", answer.lower()))
    last = re.findall(r"[a-z]+", answer.lower())[-1:]
    for name in get_args(Relation):
        if words == {name} or (words and last == [name]):
            return name
    raise Unclear(f"neither entailment, neutral nor contradiction: {answer.strip()[:100]!r}")


def score(answer: str) -> int:
    """A judge's score from 1 to 10: what stands after the last `score`, else the only number. Unclear without one."""
    behind = answer.lower().rpartition("score")
    found = [int(number) for number in _SCORE.findall(behind[2])]
    if not found or (not behind[1] and len(set(found)) > 1):
        raise Unclear(f"no score from 1 to 10: {answer.strip()[-100:]!r}")
    return found[0]


def back_translate(
    written: Sequence[tuple[str, Verifiers]],
    ask: Ask,
    describe: Prompt,
    compare: Prompt,
    sampling: Sampling = GREEDY,
) -> list[Verifiers]:
    """Drop the functions that check something else than their instruction (AutoIF: back-translation).

    `written` has instructions and their verifiers. The teacher is asked for each function what it checks, and whether
    that contradicts the instruction. A function goes where it does, and where the teacher has no clear answer.
    """
    functions = [(number, source) for number, (_, one) in enumerate(written) for source in one.functions]
    dropped: dict[Key, Dropped] = {}

    def asked(prompt: Prompt, rows: Mapping[Key, Mapping[str, str]], reason: str) -> Iterator[tuple[Key, str]]:
        requests = (Request(messages=prompt.messages(row), sampling=sampling) for row in rows.values())
        for key, answer in zip(rows, ask(requests), strict=True):
            text = "" if isinstance(answer, Failed) else answer.choices[0].text.strip()
            if text:
                yield key, text
            else:
                why = answer.error if isinstance(answer, Failed) else "an empty answer"
                dropped[key] = Dropped("function", key[1], reason, why)

    descriptions = dict(asked(describe, {key: {"function": key[1]} for key in functions}, "not described"))
    pairs = {key: {"instruction": written[key[0]][0], "description": text} for key, text in descriptions.items()}
    for key, answer in asked(compare, pairs, "not compared"):
        try:
            if relation(answer) == "contradiction":
                dropped[key] = Dropped("function", key[1], "contradicts", descriptions[key])
        except Unclear as error:
            dropped[key] = Dropped("function", key[1], "not compared", str(error))
    return [
        replace(
            one,
            functions=tuple(source for source in one.functions if (number, source) not in dropped),
            dropped=one.dropped + tuple(dropped[number, s] for s in one.functions if (number, s) in dropped),
        )
        for number, (_, one) in enumerate(written)
    ]
