"""Recipes: a TOML file names a dataset, its version, its parameters and a list of steps with scalars.

Everything that can be wrong in one is found before any work, and named with the file, the step and the nearest name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import re
import tomllib
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from factory.engine.errors import FactoryError, nearest
from factory.engine.step import Step

ROOMS = ("corpus", "synth", "prefer")
"""Where the short name of a step is looked up: `dedup.MinHash` is `factory.corpus.dedup.MinHash`."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DROPPED = ("full", "ids", "sample")


@dataclass(frozen=True)
class StepEntry:
    """A step of a recipe: its importable name, its options as written, its value."""

    use: str
    options: Mapping[str, Any]
    step: Step
    keep: bool = False


@dataclass(frozen=True)
class Recipe:
    """A recipe as resolved: parameters are filled in and every step is built."""

    name: str
    version: str
    steps: tuple[StepEntry, ...]
    path: str = ""
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    description: str = ""
    shard_bytes: int = 64 << 20
    dropped: str | None = None

    @property
    def dataset(self) -> str:
        return f"{self.name}@{self.version}"

    def resolved(self) -> dict[str, Any]:
        """Everything that decides what comes out, as JSON: part of the manifest, and compared field by field."""
        return {
            "name": self.name,
            "version": self.version,
            "shard_bytes": self.shard_bytes,
            "steps": [describe(entry) for entry in self.steps],
        }


def describe(entry: StepEntry) -> dict[str, Any]:
    """A step with all of its options, defaults included, its version, and those of the libraries that it rests on."""
    step = entry.step
    options = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    return {
        "use": entry.use,
        "version": step.version,
        "options": json.loads(json.dumps(options)),
        "libraries": {name: _library_version(name) for name in step.libraries()},
        "keep": entry.keep,
    }


def _library_version(name: str) -> str | None:
    """The version of an installed package, or of Python's Unicode tables; None where it is not there."""
    if name == "unicodedata":
        return unicodedata.unidata_version
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def load(path: str, settings: Mapping[str, str] | None = None, name: str = "") -> Recipe:
    """Read a recipe file. `settings` (from --set key=value) change its declared parameters, `name` its name."""
    file = Path(path)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = nearest(file.name, [p.name for p in file.parent.glob("*.toml")]) if file.parent.is_dir() else ""
        raise FactoryError(f"{path}: no such recipe file{near}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FactoryError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise FactoryError(f"{path}: cannot be read: {error.strerror}") from None
    if name:
        table["name"] = name
    return build(table, path, settings or {})


def build(table: dict[str, Any], path: str = "recipe", settings: Mapping[str, str] | None = None) -> Recipe:
    """A recipe from its TOML table."""
    declared = table.pop("params", {})
    if not isinstance(declared, dict):
        raise FactoryError(f"{path}: params is a table of names and defaults: [params]")
    params = _parameters(declared, settings or {}, path)
    steps = table.pop("step", [])
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise FactoryError(f"{path}: a recipe has a list of [[step]] tables and this one has none")
    known = {"name", "version", "description", "shard_bytes", "dropped"}
    for key in table:
        if key not in known:
            raise FactoryError(f"{path}: unknown key {key!r}{nearest(key, known | {'step', 'params'})}")
    for key, pattern in (("name", NAME), ("version", VERSION)):
        value = table.get(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise FactoryError(
                f"{path}: {key} = {value!r}: a string like {'web_en' if key == 'name' else '2026.11.20'!r}"
            )
    shard_bytes = table.get("shard_bytes", 64 << 20)
    if type(shard_bytes) is not int or shard_bytes < 1024:
        raise FactoryError(f"{path}: shard_bytes = {shard_bytes!r}: a whole number of bytes, 1024 or more")
    if table.get("dropped", "full") not in DROPPED:
        raise FactoryError(f"{path}: dropped = {table['dropped']!r}: one of {', '.join(DROPPED)}")
    entries = []
    for number, options in enumerate(steps, 1):
        options = {key: _filled(value, params, path) for key, value in options.items()}
        use = options.pop("use", None)
        keep = options.pop("keep_rows", False)
        where = f"{path}: step {number}" + (f" ({use})" if use else "")
        if not isinstance(use, str):
            raise FactoryError(f"{where}: needs `use`, the name of a step; `factory steps` lists them")
        if type(keep) is not bool:
            raise FactoryError(f"{where}: keep_rows = {keep!r}: true or false")
        entries.append(StepEntry(use, options, make_step(use, options, where), keep))
    return Recipe(
        name=table["name"],
        version=table["version"],
        steps=tuple(entries),
        path=path,
        params=params,
        description=table.get("description", ""),
        shard_bytes=shard_bytes,
        dropped=table.get("dropped"),
    )


def _parameters(declared: dict[str, Any], settings: Mapping[str, str], path: str) -> dict[str, Any]:
    values = dict(declared)
    for key, text in settings.items():
        if key not in declared:
            raise FactoryError(
                f"{path}: --set {key}: no such parameter{nearest(key, declared)}; declare it in [params]"
            )
        values[key] = parse_as(text, declared[key], f"{path}: --set {key}")
    return values


def parse_as(text: str, default: Any, where: str) -> Any:
    """A command-line value in the type of the default that it replaces."""
    if isinstance(default, str):
        return text
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise FactoryError(f"{where}={text}: expected {type(default).__name__}, like {default!r}")
    return value


def _filled(value: Any, params: Mapping[str, Any], path: str) -> Any:
    """A whole value `"$name"` stands for the parameter of that name; nothing is replaced inside a string."""
    if isinstance(value, str) and value.startswith("$"):
        name = value[1:]
        if name not in params:
            raise FactoryError(f"{path}: {value!r}: no such parameter{nearest(name, params)}; declare it in [params]")
        return params[name]
    return value


def make_step(use: str, options: Mapping[str, Any], where: str) -> Step:
    """The step of a name with its options checked."""
    bridge, _, name = use.partition(":")
    if name and (found := _room_module(bridge, where)) and hasattr(found, "step"):
        # A bridge, such as `datatrove:…`: a module of a room that makes steps of another library's parts.
        with located(where):
            return found.step(name, dict(options))
    return configure(find_step(use, where), options, where)


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Mistakes in the block are told with their place."""
    try:
        yield
    except FactoryError as error:
        raise error if str(error).startswith(where) else FactoryError(f"{where}: {error}") from error


def find_step(use: str, where: str) -> type[Step]:
    """The class of a step: `dedup.MinHash` in the factory's rooms, or `mypkg.mod:MyStep` anywhere."""
    module_name, _, class_name = use.partition(":") if ":" in use else use.rpartition(".")
    module = _import(module_name, where) if ":" in use else _room_module(module_name, where)
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, Step) and found.__module__ != Step.__module__:
        return found
    names = [] if ":" in use else list(all_steps())
    hint = nearest(use, names) or "; `factory steps` lists them, one of your own is `module:Class`, found from here"
    raise FactoryError(f"{where}: unknown step {use!r}{hint}")


def _room_module(name: str, where: str) -> ModuleType | None:
    found = (_import(f"factory.{room}.{name}", where) for room in ROOMS)
    return next((module for module in found if module), None)


def _import(name: str, where: str) -> ModuleType | None:
    """A module, None where there is none of that name; FactoryError where it needs a package that is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            return None
        raise FactoryError(f"{where}: needs the package {error.name}: pip install it") from error
    except ValueError:  # an empty part in the name
        return None
    except Exception as error:
        raise FactoryError(f"{where}: {name} cannot be imported: {type(error).__name__}: {error}") from error


def all_steps() -> dict[str, type[Step]]:
    """Every step of the factory by its short name."""
    import pkgutil

    import factory

    found: dict[str, type[Step]] = {}
    for room in ROOMS:
        folder = Path(factory.__file__).parent / room
        for info in pkgutil.iter_modules([str(folder)]) if folder.is_dir() else ():
            module = importlib.import_module(f"factory.{room}.{info.name}")
            for name, value in vars(module).items():
                if not isinstance(value, type) or not issubclass(value, Step) or name.startswith("_"):
                    continue
                if value.__module__.startswith(module.__name__) and dataclasses.is_dataclass(value):
                    found[f"{info.name}.{name}"] = value
    return found


T = typing.TypeVar("T")


def configure(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table of options: unknown names, wrong types and missing values are errors that name them."""
    from pydantic import TypeAdapter, ValidationError

    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values = {}
    for key, value in options.items():
        if key not in fields:
            known = f"; its options are {', '.join(fields)}" if fields else "; it has no options"
            raise FactoryError(f"{where}: unknown option {key!r}{nearest(key, fields) or known}")
        try:
            # JSON's strict mode: an array becomes a tuple, but "3" is no number and 3.5 no integer.
            values[key] = TypeAdapter(hints[key]).validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise FactoryError(f"{where}: option {key} = {value!r}: should be {why}") from None
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise FactoryError(f"{where}: needs the option {missing[0]!r}")
    try:
        return cls(**values)
    except (ValueError, FactoryError) as error:
        raise FactoryError(f"{where}: {error}") from error
