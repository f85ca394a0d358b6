"""Real solutions with the verdicts that others gave them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GSM8K = "gsm8k/grade-school-math/grade_school_math/data"
MATH = "math-maj/Qwen2.5-Math/evaluation/data/eval_rm_maj_example/math_cot_100.jsonl"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@dataclass(frozen=True)
class Graded:
    response: str
    answer: str
    verdict: bool


def _rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def gsm8k(data: Path) -> Iterator[Graded]:
    """OpenAI's example solutions of four models on the test set of gsm8k, with `is_correct`."""
    for row in _rows(data / GSM8K / "example_model_solutions.jsonl"):
        answer = row["ground_truth"].rpartition("A: ")[2]
        for model in MODELS:
            yield Graded(row[model]["solution"], answer, row[model]["is_correct"])


def math_maj(data: Path, written: bool) -> Iterator[Graded]:
    """Qwen2.5-Math's sampled chains on 100 problems of MATH, with its scores, which it gave against `gt`.

    `gt` is the reference as its script normalised it; `written` takes the reference as MATH has it.
    """
    for row in _rows(data / MATH):
        for response, score in zip(row["code"], row["score"], strict=True):
            yield Graded(response, row["answer" if written else "gt"], score)


def chains(data: Path) -> list[str]:
    """The solutions of gsm8k's training set."""
    return [row["answer"] for row in _rows(data / GSM8K / "train.jsonl")]


def svamp(data: Path) -> list[tuple[str, str]]:
    """Equation and answer of each problem of SVAMP."""
    return [(row["Equation"], str(row["Answer"])) for row in json.loads((data / "svamp/SVAMP/SVAMP.json").read_text())]
