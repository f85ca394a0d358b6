"""Verify: what a verifier says of each response, and the rows that did not pass dropped with its reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from factory.engine.errors import FactoryError
from factory.engine.recipe import parse_as
from factory.engine.shard import with_column
from factory.engine.step import Context, Map, Mapped, Memo, reasons
from factory.teacher.database import folder_of
from factory.verify.check import columns
from factory.verify.kept import Verdicts
from factory.verify.verifier import Verifier


@dataclass(frozen=True, kw_only=True)
class Verify(Map):
    """Judge each response by a verifier, a plain function of `factory.verify` or of your own.

    What the function takes besides the response comes from the columns of the same names. A row whose response does not
    pass is dropped; one that cannot be judged, as with an answer that makes no sense, goes to failed/.
    """

    check: str
    """The function: `mathematics:correct`, `instructions:follows`, or `mypkg.mod:mine`."""
    response: str = "response"
    """The column that is judged."""
    columns: tuple[str, ...] = ()
    """`parameter=column`, where they differ in name: `["answer=gold"]`."""
    values: tuple[str, ...] = ()
    """`parameter=value`, the same for every row: `["minimum=20"]`."""
    keep: Literal["passed", "all"] = "passed"
    """`all` drops nothing: wrong responses stay, with their verdicts."""
    name: str = "verdict"
    """Begins the names of the columns added: `verdict` (it passed), `verdict_score`, `verdict_reason`, and
    `verdict_confidence`, which is 1."""
    cache: str = ""
    """A local folder for verdicts that may differ from run to run (of programs): by default FACTORY_CACHE, else
    `.answers` in the folder of the runs. None of these is judged twice."""

    version: ClassVar[int] = 2
    """Of the verdicts of `factory.verify` too: tests/verify/test_versions.py asks for another where one changes."""

    rows_a_call = 64
    located: ClassVar[tuple[str, ...]] = ("cache",)

    def __post_init__(self) -> None:
        self._verifier.needs  # noqa: B018 - a mistake shows before any work

    @cached_property
    def _verifier(self) -> Verifier:
        columns = dict(_pair(text, "columns") for text in self.columns)
        written = Verifier(self.check, columns, dict(_pair(text, "values") for text in self.values))
        values = {}
        for name, value in written.values.items():
            default = written.default(name)
            if default is None:
                values[name] = value if written.takes_text(name) else _literal(value)
            else:
                values[name] = parse_as(value, default, f"values: {name}")
        return Verifier(self.check, columns, values)

    def needs(self) -> tuple[str, ...]:
        return (self.response, *self._verifier.needs.values())

    def adds(self) -> dict[str, pa.DataType]:
        return columns(self.name)

    def libraries(self) -> tuple[str, ...]:
        return self._verifier.libraries

    def files(self) -> tuple[str, ...]:
        return self._verifier.files

    def open(self, context: Context) -> None:
        self._verifier.open()
        if self._verifier.kept:
            self.__dict__["_verdicts"] = Verdicts(folder_of(self.cache, context))

    def close(self) -> None:
        if (verdicts := self.__dict__.pop("_verdicts", None)) is not None:
            verdicts.close()

    @cached_property
    def _verdicts(self) -> Verdicts | None:
        return None

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> Mapped:
        alive = np.flatnonzero(memo.alive)
        rows = pa.array(alive)
        responses = batch.column(self.response).take(rows).to_pylist()
        given = {name: batch.column(name).take(rows).to_pylist() for name in set(self._verifier.needs.values())}
        passed: list[bool | None] = [None] * batch.num_rows
        scores: list[float | None] = [None] * batch.num_rows
        why: list[str | None] = [None] * batch.num_rows
        errors: list[str | None] = [None] * batch.num_rows
        checks = self._verifier(responses, given, self._verdicts, self.version)
        for row, check in zip(alive.tolist(), checks, strict=True):
            if isinstance(check, FactoryError):
                errors[row] = str(check)
            else:
                passed[row], scores[row], why[row] = check.passed, check.score, check.reason
        sure = [None if one is None else 1.0 for one in passed]
        for (name, type_), column in zip(self.adds().items(), (passed, scores, why, sure), strict=True):
            batch = with_column(batch, name, pa.array(column, type_))
        wrong = np.array([self.keep == "passed" and one is False for one in passed], np.bool_)
        said = reasons(np.where(wrong, 0, -1), [f"not_{self.check.rpartition(':')[2]}"])
        return Mapped(batch, said, pa.array(errors, pa.string()))


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise FactoryError(f"option {option}: {text!r}: write parameter=…")
    return name.strip(), value.strip()


def _literal(text: str) -> Any:
    """A value for a parameter without a default to tell its type, or of text: JSON where it is that, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
