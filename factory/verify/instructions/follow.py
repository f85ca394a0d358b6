"""Whether a response follows its instructions, strictly or loosely, as IFEval judges (arXiv 2311.07911, section 2)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from factory.verify.instructions.kind import kind


def variants(response: str) -> tuple[str, ...]:
    """The texts of which one must follow an instruction for it to be followed loosely.

    The response as it is, without its first line, without its last, without both (an opening, a closing remark); each
    also without asterisks (Markdown's emphasis). Those that are blank or equal to another are left out.
    """
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return tuple(text for text in dict.fromkeys([*cut, *(one.replace("*", "") for one in cut)]) if text.strip())


def verdicts(
    response: str,
    instruction_ids: Sequence[str] | str,
    kwargs: Sequence[Mapping[str, Any]] | str,
    prompt: str = "",
    strict: bool = True,
) -> tuple[Check, ...]:
    """Whether the response follows each instruction. A blank response follows none.

    `kwargs` holds the arguments of each instruction. Both may be JSON text, as a column of JSON lines holds it.
    FactoryError where a kind is unknown, or an argument is unknown, missing or of another type. `prompt` is what was
    asked, for the kinds that judge by it.
    """
    instruction_ids, kwargs = _list(instruction_ids, "instruction_ids", str), _list(kwargs, "kwargs", dict)
    if len(instruction_ids) != len(kwargs):
        raise FactoryError(
            f"{len(instruction_ids)} instructions and arguments for {len(kwargs)}: give each its own, {{}} for none"
        )
    texts = variants(response) if not strict else (response,) if response.strip() else ()
    return tuple(_judge(texts, id, given, prompt) for id, given in zip(instruction_ids, kwargs, strict=True))


def _list(value: Any, name: str, kind: type) -> list[Any]:
    """A list of one type, or its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, kind) for one in value):
        raise FactoryError(f"{name}: give a list of type {kind.__name__}, or its JSON text")
    return list(value)


def _judge(texts: Sequence[str], id: str, given: Mapping[str, Any], prompt: str) -> Check:
    found = kind(id)
    arguments = found.arguments(given)
    if found.asks_prompt:
        arguments["prompt"] = prompt
    first = Check(False, "the response is blank")
    for number, text in enumerate(texts):
        check = found.function(text, **arguments)
        if check.passed:
            return Check(True)
        if number == 0:
            first = check
    return first


def follows(
    response: str,
    instruction_ids: Sequence[str] | str,
    kwargs: Sequence[Mapping[str, Any]] | str,
    prompt: str = "",
    strict: bool = True,
) -> Check:
    """Whether the response follows all instructions; the reason names those that it does not.

    The score is the share of instructions that are followed. Errors as of `verdicts`, and where there is none.
    """
    instruction_ids = _list(instruction_ids, "instruction_ids", str)
    if not instruction_ids:
        raise FactoryError("instruction_ids: there is no instruction to follow")
    checks = verdicts(response, instruction_ids, kwargs, prompt, strict)
    broken = [f"{id}: {check.reason}" for id, check in zip(instruction_ids, checks, strict=True) if not check.passed]
    return Check(not broken, "; ".join(broken), 1 - len(broken) / len(checks))
