"""Prompts are files: Jinja templates, rendered strictly, in a sandbox.

A line `{# system #}`, `{# user #}` or `{# assistant #}` begins a message of that role; a file without such lines is one
text: the user's message, or a raw prompt. Variables are a row's columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from factory.engine import files
from factory.engine.errors import FactoryError, nearest
from factory.teacher.request import Message

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

ROLE = re.compile(r"^\{#-?\s*(system|user|assistant)\s*-?#\}[ \t]*\n*", re.MULTILINE)


class Prompt:
    """A template, compiled once. `variables` are the columns that it needs.

    FactoryError names the file, and what is wrong with it.
    """

    def __init__(self, path: str) -> None:
        from jinja2 import TemplateSyntaxError, meta

        self.path = path
        try:
            source = files.read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError) as error:
            raise FactoryError(f"{path}: cannot read this prompt: {error}") from error
        environment = _environment()
        marks = list(ROLE.finditer(source))
        if marks and source[: marks[0].start()].strip():
            raise FactoryError(f"{path}: the text before {marks[0].group().strip()} belongs to no message")
        self._roles = [mark.group(1) for mark in marks]
        edges = [mark.end() for mark in marks] or [0]
        ends = [mark.start() for mark in marks[1:]] + [len(source)]
        found: set[str] = set()
        self._parts = []
        for start, end in zip(edges, ends, strict=True):
            try:
                part = source[start:end].rstrip("\n")
                tree = environment.parse(part)
                if list(meta.find_referenced_templates(tree)):  # None: a name that a variable holds
                    raise FactoryError(f"{path}: a prompt is one file: put here what it includes")
                found |= meta.find_undeclared_variables(tree)
                self._parts.append(environment.from_string(part))
            except TemplateSyntaxError as error:
                line = source[:start].count("\n") + error.lineno
                raise FactoryError(f"{path}, line {line}: {error.message}") from error
        self.variables = tuple(sorted(found))

    def check(self, columns: Iterable[str]) -> None:
        """FactoryError where a variable is not among the columns."""
        columns = list(columns)
        for name in self.variables:
            if name not in columns:
                known = f"{nearest(name, columns)}: there are {', '.join(columns)}"
                raise FactoryError(f"{self.path}: {{{{ {name} }}}} is no column{known}")

    def messages(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """A row's messages. ValueError where something in a column is missing or of another kind: the row's fault."""
        return tuple(map(Message, self._roles or ["user"], self._render(row)))

    def text(self, row: Mapping[str, Any]) -> str:
        """A row's raw prompt, of a file without roles."""
        if self._roles:
            raise FactoryError(f"{self.path}: it has roles, which a raw prompt has not: take out the lines {{# … #}}")
        return self._render(row)[0]

    def _render(self, row: Mapping[str, Any]) -> list[str]:
        from jinja2 import TemplateError
        from jinja2.exceptions import SecurityError

        if any(name not in row for name in self.variables):
            self.check(row)
        try:
            return [part.render(row) for part in self._parts]
        except SecurityError as error:
            raise FactoryError(f"{self.path}: {error.message}: a prompt only reads what a row holds") from error
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ValueError(f"{self.path}: {error}") from error


def _finalize(value: Any) -> Any:
    if value is None:
        raise ValueError('a null where text should be: write {{ name or "" }}, or {% if name %}')
    return value


def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, finalize=_finalize, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    # The same row is the same prompt: else the cache would not know it.
    del environment.globals["lipsum"], environment.filters["random"]
    # Jinja's own tojson writes <, >, & and ' as escapes, for HTML.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment
