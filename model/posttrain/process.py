"""Process reward models: whether each step of a chain is right, read at the step's last token (TRL 1.16 has none)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor
from torch.nn import functional
from transformers import (
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from factory.engine.errors import FactoryError
from model.data import find
from model.posttrain.config import PostRecipe
from model.posttrain.data import IGNORE, asking, encoded, rows_of
from model.posttrain.stages import Work


def prm(work: Work) -> Trainer:
    told = work.recipe.prm
    _same_rule(work.recipe)
    training, held = work.tokenized("steps", stepwise, "chains have a null or no labelled step", 0, told.separator)
    # Whoever asks the model cuts chains in the same way (factory/verify/steps.py).
    work.model.config.step_rule, work.model.config.step_separator = told.rule, told.separator
    work.tokenizer.padding_side = "right"
    return Trainer(
        model=work.model,
        args=TrainingArguments(**work.arguments(training.num_rows, held), label_names=["labels"]),
        data_collator=DataCollatorForTokenClassification(work.tokenizer),
        train_dataset=training,
        eval_dataset=held,
        processing_class=work.tokenizer,
        optimizers=(work.optimizer(work.model), None),
        compute_loss_func=_loss,
        compute_metrics=_metrics,
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
    )


def _same_rule(recipe: PostRecipe) -> None:
    manifest = json.loads(Path(find(recipe.data.path), "manifest.json").read_text("utf-8"))
    for step in manifest.get("recipe", {}).get("steps", ()):
        if step["use"] == "steps.Split" and (rule := step["options"]["rule"]) != recipe.prm.rule:
            raise FactoryError(f"prm.rule = {recipe.prm.rule!r}, but the dataset's chains were cut by {rule!r}: say so")


def stepwise(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int, separator: str) -> pa.Table:
    """Token ids of each prompt with its steps, and labels: of a step's last token 1 or 0, else -100.

    Each step has tokens of its own, so that what is said of it does not hang on what follows. Longer rows are cut at
    the end; those that have no label then are left out. FactoryError where steps and labels are not as many, or a step
    has no token.
    """

    def encode(row: dict[str, Any]) -> tuple[list[int], list[int]] | None:
        steps, right = row["completions"], row["labels"]
        if right is None:
            return None
        if len(steps) != len(right):
            raise FactoryError(f"a chain has {len(steps)} steps and {len(right)} labels")
        one = asking(row["prompt"], tokenizer)
        said = [IGNORE] * len(one)
        for step, label in zip(steps, right, strict=True):
            text = step.rstrip("\n") + separator if separator else step
            part = tokenizer(text, add_special_tokens=False)["input_ids"]
            if not part:
                raise FactoryError(f"a chain has a step without a token, {step!r}")
            if label not in (0, 1, None):
                raise FactoryError(f"a step has the label {label!r}: it must be true, false, 1, 0 or null")
            one += part
            said += [IGNORE] * (len(part) - 1) + [IGNORE if label is None else int(label)]
        one, said = one[:max_length], said[:max_length]
        return (one, said) if any(label != IGNORE for label in said) else None

    return rows_of(("input_ids", "labels"), encoded(table, encode))


def _loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy, the mean over the steps of all micro-batches together."""
    summed = functional.cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    return summed / ((labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch)


def _metrics(told: EvalPrediction) -> dict[str, float]:
    """`accuracy` of the steps' labels; of the chains with a wrong step, the share whose first one is found
    (`first_wrong`); of the others, the share in which none is (`all_right`), as in ProcessBench (arXiv 2412.06559)."""
    labels, found = np.asarray(told.label_ids), np.asarray(told.predictions)
    there = labels != IGNORE
    metrics = {"accuracy": float((labels == found)[there].mean())}
    # The place of the first wrong step; where none is, -1.
    first, seen = (np.where(wrong.any(1), wrong.argmax(1), -1) for wrong in (there & (a == 0) for a in (labels, found)))
    for name, rows in (("first_wrong", first >= 0), ("all_right", first < 0)):
        if rows.any():
            metrics[name] = float((first == seen)[rows].mean())
    return metrics
