"""Wrong programs, made from a right one: a test set that one of them passes shows nothing."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

from factory.engine.errors import FactoryError
from factory.sandbox.languages import language
from factory.sandbox.verdict import Task

MUTANTS = 12
"""Mutants that are tried at most."""
_FLIPPED: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv},
}
_PERTURB = """
def _off(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, complex)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, (list, tuple)):
        return value + type(value)([None])
    if isinstance(value, dict):
        return {**value, None: None}
    if isinstance(value, set):
        return value | {None}
    return 0 if value is None else None
"""


def wrong_programs(task: Task) -> dict[str, str]:
    """Programs that cannot be right, by what is wrong with them: they answer nothing, the input, one constant, or the
    right answer altered. FactoryError where none can be made: for another language than Python, or no function."""
    if language(task.language).name != "python":
        raise FactoryError(f"{task.id or task.language}: wrong programs are made of Python only: give one of your own")
    if task.cases and not task.calls and not task.tests:
        first = {"prints the first answer": f"print({task.cases[0].stdout!r}, end='')"}
        return {"prints nothing": "pass", "prints its input": "import sys\nprint(sys.stdin.read(), end='')"} | first
    try:
        tree = ast.parse(task.program)
        tests = ast.parse(task.tests)
    except (SyntaxError, ValueError) as error:
        raise FactoryError(
            f"{task.id or 'task'}: wrong programs need a program and tests that parse: {error}"
        ) from error
    names = _functions(task, tree, tests)
    if not names:
        raise FactoryError(f"{task.id or 'task'}: no function of the program is in its tests: give a wrong program")
    bodies = {
        "returns None": "return None",
        "returns its first argument": "return (*args, *kwargs.values(), None)[0]",
        "empties its first argument and returns it": "args[0].clear()\n    return args[0]",
    }
    for value in _constants(task, tests):
        bodies[f"returns {value[:60]}"] = f"return {value}"
    made = {
        wrong: task.program + "".join(f"\n\ndef {name}(*args, **kwargs):\n    {body}\n" for name in names)
        for wrong, body in bodies.items()
    }
    altered = "".join(
        f"\n_right_{name} = {name}\n\ndef {name}(*args, **kwargs):\n    return _off(_right_{name}(*args, **kwargs))\n"
        for name in names
    )
    made["returns the right answer altered"] = task.program + "\n" + _PERTURB + altered
    return made


def _functions(task: Task, tree: ast.Module, tests: ast.Module) -> list[str]:
    """The functions of the program that calls and tests use."""
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    used = {task.entry_point, *(call.function for call in task.calls)}
    if not task.entry_point:
        used |= {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)}
    return sorted(defined & used)


def _constants(task: Task, tests: ast.Module) -> list[str]:
    """What functions return that know no better: every value that an answer is compared with, and the simplest ones."""
    found = dict.fromkeys(["True", "False", "0", "1", "''", "[]"])
    found.update(dict.fromkeys(repr(call.expected) for call in task.calls[:3]))
    for node in ast.walk(tests):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.Is)) and len(found) < 10:
            try:
                found[repr(ast.literal_eval(node.comparators[0]))] = None
            except (ValueError, TypeError):  # no literal, or one that cannot be made
                continue
    return list(found)


def mutants(program: str) -> Iterator[str]:
    """The program with one operator or constant exchanged, at most MUTANTS of them, from all over it. Some may compute
    the same as it does. None where the program does not parse."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError):
        return
    places = [(number, node) for number, node in enumerate(ast.walk(tree)) if _mutable(node)]
    step = max(1, len(places) // MUTANTS)
    for number, _ in places[::step][:MUTANTS]:
        mutant = copy.deepcopy(tree)
        _mutate(next(node for k, node in enumerate(ast.walk(mutant)) if k == number))
        yield ast.unparse(ast.fix_missing_locations(mutant))


def _mutable(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in _FLIPPED
    if isinstance(node, (ast.BinOp, ast.BoolOp)):
        return type(node.op) in _FLIPPED
    return isinstance(node, ast.Constant) and type(node.value) is int


def _mutate(node: ast.AST) -> None:
    if isinstance(node, ast.Compare):
        node.ops = [_FLIPPED[type(node.ops[0])](), *node.ops[1:]]  # type: ignore[list-item]
    elif isinstance(node, (ast.BinOp, ast.BoolOp)):
        node.op = _FLIPPED[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1  # type: ignore[operator]
