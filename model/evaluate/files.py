"""Reading a benchmark's released files, filling its prompts, and cutting prompts that are too long."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.engine.errors import FactoryError, nearest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


Kinds = Mapping[str, type | tuple[type, ...]]


def rows(path: Path, fields: Kinds, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file (or .jsonl.gz) with their line numbers from 1; empty lines are skipped.

    FactoryError names the file, the line and the field where one of `fields` is missing or of another type; `source`
    says in it where whole files are to be had.
    """
    if not path.is_file():
        raise FactoryError(f"{path}: no such file: give the files of {source}")
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(line, fields, f"{path}, line {number}", source)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise FactoryError(f"{path}, after line {number}: not whole text ({error}): fetch {source} again") from error


def _row(line: str, fields: Kinds, where: str, source: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise FactoryError(f"{where}: not JSON ({error}): give the files of {source} as they were released") from None
    if not isinstance(found, dict):
        raise FactoryError(f"{where}: not a JSON object: give the files of {source} as they were released")
    for name, kind in fields.items():
        if name not in found:
            known = nearest(name, found)
            raise FactoryError(f"{where}: no field {name!r}{known}: give the files of {source} as they were released")
        if not isinstance(found[name], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(one.__name__ for one in kinds)
            raise FactoryError(f"{where}: field {name!r} is a {type(found[name]).__name__}, not a {wanted}")
    return found


def templates(ours: Mapping[str, str], path: str) -> dict[str, str]:
    """The prompts by dataset: `ours`, and those of the JSON file at `path` ({dataset: template}) in their place.

    The published wording of a benchmark is used that way; what stands in braces must be known to ours.
    """
    if not path:
        return dict(ours)
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise FactoryError(f"{path}: {error.strerror}: give a JSON file of prompts by dataset") from error
    except ValueError as error:
        raise FactoryError(f"{path}: not JSON ({error}): give an object of prompts by dataset") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise FactoryError(f"{path}: not an object of strings: give {{dataset: prompt}}")
    for name in found:
        if name not in ours:
            raise FactoryError(f"{path}: no dataset {name!r}{nearest(name, ours)}; datasets: {', '.join(ours)}")
    return dict(ours) | found


def fill(template: str, values: Mapping[str, Any], where: str) -> str:
    """The template with `{name}` replaced by `values[name]`."""
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in values)
        raise FactoryError(f"prompt of {where}: {error}: what can be filled in is {names}") from None


def cut_middle(tokenizer: Tokenizer, prompt: str, tokens: int) -> str:
    """The prompt, or where it has more than `tokens` its beginning and its end of half of them each.

    Both LV-Eval and InfiniteBench give models with shorter windows their long prompts in this way.
    """
    ids = tokenizer.encode(prompt).ids
    half = tokens // 2
    while len(ids) > tokens:
        if half < 1:
            raise FactoryError(f"no room for a prompt in {tokens} tokens: give a greater length")
        prompt = tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:])
        # Where the halves meet, other tokens arise; a few less are taken until it fits.
        ids, half = tokenizer.encode(prompt).ids, half - 1
    return prompt
