"""Prepares test sources of public sets for judging."""

from __future__ import annotations

import ast

from factory.engine.errors import FactoryError


def with_helpers(prompt: str, tests: str, entry_point: str) -> str:
    """Tests with what they use of a problem's own text put before them.

    Some tests call helpers that the prompt defines, as HumanEval/32 does `poly`. Taken of the program they could be
    anything; here they are the prompt's. FactoryError where prompt or tests do not parse.
    """
    try:
        given, wanted = ast.parse(prompt), ast.parse(tests)
    except (SyntaxError, ValueError) as error:
        raise FactoryError(f"{entry_point}: the prompt and its tests must parse: {error}") from error
    defined = {name: node for node in given.body for name in _defines(node)}
    own = {name for node in wanted.body for name in _defines(node)}
    needed: list[ast.stmt] = []
    todo: list[ast.AST] = [wanted]
    while todo:
        for name in {node.id for node in ast.walk(todo.pop()) if isinstance(node, ast.Name)} - own - {entry_point}:
            node = defined.get(name)
            if node is not None and node not in needed:
                needed.append(node)
                todo.append(node)
    lines = [ast.unparse(node) for node in given.body if node in needed]
    return "\n".join([*lines, tests]) if lines else tests


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []
