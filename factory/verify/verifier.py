"""A verifier by its name, called on many responses: what steps and rewards are made of.

A verifier is a plain function of a response and of what it is checked against. Its name is
`factory.verify.mathematics:correct`, or `mathematics:correct` for one of this room, or `mypkg.mod:mine` for any other.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from factory.engine import files
from factory.engine.errors import FactoryError, nearest
from factory.verify.check import Check
from factory.verify.kept import Verdicts, key_of


@dataclass(frozen=True)
class Verifier:
    """`columns` names the column that a parameter is taken from, where it is not the parameter's own name; `values`
    are the same for every response.

    Raises `FactoryError` where there is no such function, or it has no such parameter.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.parameters
        for given in (*self.columns, *self.values):
            if given not in known:
                near = nearest(given, known)
                raise FactoryError(f"{self.name}: no parameter {given!r}{near}; it has {', '.join(known)}")

    @cached_property
    def module(self) -> str:
        module = self.name.partition(":")[0]
        ours = f"factory.verify.{module}"
        return ours if module.isidentifier() and importlib.util.find_spec(ours) else module

    @cached_property
    def function(self) -> Callable[..., Check]:
        _, _, attribute = self.name.partition(":")
        try:
            found = getattr(importlib.import_module(self.module), attribute, None)
        except ModuleNotFoundError as error:
            if error.name and not self.module.startswith(error.name):
                raise FactoryError(f"{self.name}: needs the package {error.name}: pip install it") from error
            raise FactoryError(f"{self.name}: no module {self.module}; write `module:function`") from error
        except ValueError as error:  # an empty module
            raise FactoryError(f"{self.name!r}: write `module:function`") from error
        if not callable(found):
            raise FactoryError(f"{self.name}: {self.module} has no function {attribute!r}")
        return found

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """What it takes besides the response: names, and the defaults of those that have one."""
        found = list(inspect.signature(self.function).parameters.values())[1:]
        return {p.name: p.default for p in found}

    @cached_property
    def libraries(self) -> tuple[str, ...]:
        """Packages that its module names in `LIBRARIES`, because their versions may change a verdict."""
        return tuple(getattr(importlib.import_module(self.module), "LIBRARIES", ()))

    @property
    def files(self) -> tuple[str, ...]:
        """The file of a function of your own: an edit of it makes other verdicts. Those of this room have versions."""
        source = inspect.getsourcefile(self.function)
        return (source,) if source and not self.module.startswith("factory.") else ()

    @property
    def kept(self) -> bool:
        """Whether its module names it in `KEPT`, because its verdicts may differ from run to run."""
        return self.name.partition(":")[2] in getattr(importlib.import_module(self.module), "KEPT", ())

    def open(self) -> None:
        """Does what its module's `ready` does: raises `FactoryError` where nothing could be verified at all."""
        ready = getattr(importlib.import_module(self.module), "ready", None)
        if ready:
            ready()

    def default(self, parameter: str) -> Any:
        """The default of a parameter, None where it has none."""
        default = self.parameters[parameter]
        return None if default is inspect.Parameter.empty else default

    def required(self, parameter: str) -> bool:
        """Whether a parameter has no default."""
        return inspect.signature(self.function).parameters[parameter].default is inspect.Parameter.empty

    def takes_text(self, parameter: str) -> bool:
        """Whether a parameter is annotated as text, and nothing else."""
        return inspect.signature(self.function).parameters[parameter].annotation in (str, "str")

    @cached_property
    def needs(self) -> dict[str, str]:
        """Parameters that have no default and no value here, with the columns that they are taken from."""
        return {
            name: self.columns.get(name, name)
            for name, default in self.parameters.items()
            if name not in self.values and (default is inspect.Parameter.empty or name in self.columns)
        }

    def __call__(
        self,
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        verdicts: Verdicts | None = None,
        version: int = 0,
    ) -> list[Check | FactoryError]:
        """A check a response; the error where what it should be checked against makes no sense.

        `columns` has a value a response for each column in `needs`. A null is an error, or the parameter's default.
        With `verdicts`, what is known there of this `version` is not judged again, and what is judged is kept there.
        """
        given = [{name: columns[column][row] for name, column in self.needs.items()} for row in range(len(responses))]
        rows = [self._arguments(one) for one in given]
        if verdicts is None:
            return [self._check(response, arguments) for response, arguments in zip(responses, rows, strict=True)]
        identity = [self.name, version, dict(self.values), [files.file_identity(path, "") for path in self.files]]
        keys = [key_of(identity, response, arguments) for response, arguments in zip(responses, rows, strict=True)]
        known: dict[bytes, Check | FactoryError] = {**verdicts.get(keys)}
        judged = {}
        for key, response, arguments in zip(keys, responses, rows, strict=True):
            if key not in known:
                known[key] = judged[key] = self._check(response, arguments)
        known |= verdicts.put({key: check for key, check in judged.items() if isinstance(check, Check)})
        return [known[key] for key in keys]

    def _arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the function is called with: a null is left to the parameter's default."""
        return {name: value for name, value in given.items() if value is not None or self.required(name)}

    def _check(self, response: str, given: Mapping[str, Any]) -> Check | FactoryError:
        try:
            nulls = [self.needs[name] for name, value in given.items() if value is None]
            if response is None or nulls:
                raise FactoryError(f"{self.name}: {'the response' if response is None else nulls[0]} is null")
            check = self.function(response, **given, **self.values)
            if not isinstance(check, Check):
                raise FactoryError(f"{self.name}: gives a {type(check).__name__}; return a Check")
            return check
        except FactoryError as error:
            return error


def reward(
    name: str, columns: Mapping[str, str] | None = None, values: Mapping[str, Any] | None = None
) -> Callable[..., list[float | None]]:
    """A verifier as a reward function of TRL: scores from 0 to 1, a completion each.

    TRL calls it with `completions`, as texts or as lists of messages of which the last is judged, and with the other
    columns of the dataset. Raises `FactoryError` where a column is missing, or a row's makes no sense.
    """
    verifier = Verifier(name, columns or {}, values or {})
    verifier.open()

    def score(completions: Sequence[Any], **given: Sequence[Any]) -> list[float | None]:
        for column in verifier.needs.values():
            if column not in given:
                raise FactoryError(f"reward {name}: needs the column {column!r}{nearest(column, given)}")
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        scores: list[float | None] = []
        for check in verifier(texts, given):
            if isinstance(check, FactoryError):
                raise check
            scores.append(check.score)
        return scores

    score.__name__ = name.rpartition(":")[2]  # TRL logs it by this name
    return score
