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
from model.posttrain.data import IGNORE, asking
from model.posttrain.stages import Work


def prm(work: Work) -> Trainer:
    told = work.recipe.prm
    _same_rule(work.recipe)
    training, held = work.tokenized("steps", stepwise, "chains have no labelled step", 0, told.separator)
    # Whoever asks the model cuts chains in the same way (factory/verify/steps.py).
    work.model.config.step_rule, work.model.config.step_separator = told.rule, told.separator
    work.tokenizer.padding_side = "right"
    return Trainer(
        model=work.model,
        args=TrainingArguments(**work.arguments(training.num_rows), label_names=["labels"]),
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
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for row in table.to_pylist():
        steps, right = row["completions"], row["labels"]
        if len(steps) != len(right):
            raise FactoryError(f"a chain has {len(steps)} steps and {len(right)} labels: {_brief(row['prompt'])}")
        one = asking(row["prompt"], tokenizer)
        said = [IGNORE] * len(one)
        for step, label in zip(steps, right, strict=True):
            text = step.rstrip("\n") + separator if separator else step
            part = tokenizer(text, add_special_tokens=False)["input_ids"]
            if not part:
                raise FactoryError(f"a chain has a step without a token, {step!r}: {_brief(row['prompt'])}")
            one += part
            said += [IGNORE] * (len(part) - 1) + [IGNORE if label is None else int(label)]
        if any(label != IGNORE for label in said[:max_length]):
            ids.append(one[:max_length])
            labels.append(said[:max_length])
    kind = pa.list_(pa.int32())
    return pa.table({"input_ids": pa.array(ids, kind), "labels": pa.array(labels, kind)})


def _brief(prompt: Any) -> str:
    return json.dumps(prompt, ensure_ascii=False)[:80]


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
