"""What a task is: questions and how answers are scored, or a measurement of its own.

A task is a frozen dataclass whose fields are its options (`needle.lengths=[4096]` on the command line). Its module is
named as the task and names the class as `TASK`; a task of your own is `package.module:Class`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter, ValidationError

from factory.engine.errors import FactoryError, nearest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model.generate import Generator


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt and what is expected of the answer."""

    task: str
    subtask: str = ""
    id: str
    """Its own within the task and subtask: the same options give the same ids."""
    prompt: str | list[dict[str, str]]
    """A text, or messages, which the checkpoint's chat template renders."""
    answers: tuple[str, ...]
    """What is expected. Whether any or all of them is the task's to say."""
    tokens: int
    """New tokens at most."""
    temperature: float = 0.0
    """0 takes the likeliest tokens."""
    samples: int = 1
    """Answers that are drawn, each scored alone."""
    seed: int = 0
    length: int = 0
    """The tokens asked for, prompt and new ones together; 0 where the task does not choose a length."""
    depth: float | None = None
    """Where what is asked for lies: 0 at the beginning of the prompt, 1 at its end."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else scoring needs."""


class Task(Protocol):
    """Questions, and the score of an answer."""

    def questions(self, tokenizer: Tokenizer) -> Iterable[Question]:
        """The questions, the same each time. `tokenizer` is the model's, for tasks of a length in tokens."""

    def score(self, answer: str, question: Question) -> float:
        """0 to 1."""


class Measure(Protocol):
    """A task that is not made of questions."""

    def measure(self, generator: Generator, name: str, out: Path) -> str:
        """Do the work, leave the results in the folder `out` under `name`'s model, and return what is printed."""


def find(name: str) -> type:
    """The class of a task. FactoryError with the nearest name where there is none."""
    module, colon, attribute = name.partition(":")
    if not colon:
        module, attribute = f"{__package__}.{name}", "TASK"
        if not name.isidentifier() or importlib.util.find_spec(module) is None:
            raise FactoryError(f"no task {name!r}{nearest(name, names())}; tasks: {', '.join(names())}")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise FactoryError(f"task {name!r}: no module {error.name!r}: install it, or correct the name") from error
    if not isinstance(found, type):
        raise FactoryError(f"task {name!r}: {module} has no class {attribute}; tasks: {', '.join(names())}")
    return found


def names() -> list[str]:
    """The tasks of this package."""
    folder = Path(__file__).parent
    modules = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return sorted(name for name in modules if "\nTASK = " in (folder / f"{name}.py").read_text("utf-8"))


def build(name: str, options: Mapping[str, Any]) -> Any:
    """The task `name` with these options, as TOML gives them. FactoryError for one that is unknown or of wrong type."""
    class_ = find(name)
    known = [one.name for one in dataclasses.fields(class_)]
    for key in options:
        if key not in known:
            raise FactoryError(f"{name}.{key}: no such option{nearest(key, known)}; options: {', '.join(known)}")
    try:
        made: Any = TypeAdapter(class_).validate_json(json.dumps(dict(options)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise FactoryError(f"{where}: {first['msg']}, not {first['input']!r}") from error
    if getattr(made, "seed", 0) < 0:
        raise FactoryError(f"{name}.seed = {made.seed}: must not be negative")
    return made
