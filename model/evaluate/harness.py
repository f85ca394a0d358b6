"""The tasks of lm-eval (EleutherAI's harness) on a checkpoint, through our own model.

    python -m model.evaluate CHECKPOINT harness 'harness.tasks=["retention"]' out=FOLDER

`tasks` are lm-eval's own names, the groups below, or names from `include`, a folder of task files (YAML) whose data may
lie in files: such a task needs no hub. Leaves `harness.parquet` (a row for each task and metric) and `harness.json`
(all that lm-eval reports). Needs the package lm-eval: `pip install 'factory[evaluate]'`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.engine.errors import FactoryError, nearest
from factory.engine.files import aside, make_folder, write_atomic

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from model.generate import Generator

GROUPS = {
    "core": (
        "mmlu",
        "mmlu_pro",
        "bbh",
        "gpqa_main_n_shot",
        "arc_challenge",
        "hellaswag",
        "winogrande",
        "truthfulqa_mc2",
        "gsm8k",
        "minerva_math",
    ),
    "multilingual": ("mmmlu", "belebele", "xcopa", "xwinograd", "xstorycloze", "pawsx", "mgsm_direct"),
    "retention": ("mmlu", "gsm8k", "hellaswag", "arc_easy", "arc_challenge", "winogrande", "truthfulqa_mc2"),
}
"""Short benchmarks of the Qwen2 and Qwen2.5 reports, those in many languages, and those by which a model that was
trained on for longer contexts is held against the one before. Tasks that run generated code are not in them."""

SHOTS = {
    "mmlu": 5,
    "mmlu_pro": 5,
    "bbh": 3,
    "gpqa_main_n_shot": 5,
    "arc_challenge": 25,
    "hellaswag": 10,
    "winogrande": 5,
    "gsm8k": 4,
    "minerva_math": 4,
}
"""Examples before a question, as the Qwen2 report has them; lm-eval's own number for the others."""

SCHEMA = pa.schema(
    {
        "model": pa.string(),
        "task": pa.string(),
        "metric": pa.string(),
        "filter": pa.string(),
        "value": pa.float64(),
        "stderr": pa.float64(),
        "shots": pa.int64(),
        "questions": pa.int64(),
    }
)


@dataclass(frozen=True, kw_only=True)
class Harness:
    """A run of lm-eval."""

    tasks: tuple[str, ...] = ("retention",)
    include: str = ""
    """A folder of task files of your own."""
    shots: int = -1
    """Examples before each question; -1 takes the numbers of the Qwen2 report, else those of lm-eval."""
    questions_each: int = 0
    """So many questions of each task at most, to try something out; 0 takes all."""
    seed: int = 0

    def names(self) -> list[str]:
        """The tasks with groups replaced by what is in them."""
        return list(dict.fromkeys(name for task in self.tasks for name in GROUPS.get(task, (task,))))

    def measure(self, generator: Generator, name: str, out: Path) -> str:
        if importlib.util.find_spec("lm_eval") is None:
            raise FactoryError("the task harness needs the package lm-eval: pip install 'factory[evaluate]'")
        from lm_eval.utils import make_table

        results = self.run(adapter(generator))
        make_folder(str(out))
        write_atomic(str(out / "harness.json"), json.dumps(results, indent=2, default=str) + "\n")
        with aside(str(out / "harness.parquet")) as path:
            pq.write_table(pa.Table.from_pylist(records(name, results), SCHEMA), path)
        return str(make_table(results))

    def run(self, model: LM) -> dict[str, Any]:
        """What lm-eval reports of all tasks, without the single answers."""
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        if self.include and not Path(self.include).is_dir():
            raise FactoryError(f"harness.include: {self.include} is no folder: give one of lm-eval task files (YAML)")
        manager = TaskManager(include_path=self.include or None, include_defaults=False)
        if not set(self.names()) <= set(manager.all_tasks):  # reading lm-eval's thousands of files takes seconds
            manager = TaskManager(include_path=self.include or None)
        by_shots: dict[int, list[str]] = {}
        for task in self.names():
            if task not in manager.all_tasks:
                known = nearest(task, [*GROUPS, *manager.all_tasks])
                raise FactoryError(f"harness.tasks: lm-eval has no task {task!r}{known}; groups: {', '.join(GROUPS)}")
            shots = self.shots if self.shots >= 0 else SHOTS.get(task, -1)
            by_shots.setdefault(shots, []).append(task)
        together: dict[str, Any] = {}
        for shots, tasks in by_shots.items():
            logging.getLogger("lm_eval").setLevel(logging.WARNING)
            try:
                found = simple_evaluate(
                    model=model,
                    tasks=tasks,
                    num_fewshot=shots if shots >= 0 else None,
                    limit=self.questions_each or None,
                    bootstrap_iters=1000,  # of standard errors that have no formula
                    log_samples=False,
                    task_manager=manager,
                    random_seed=self.seed,
                    numpy_random_seed=self.seed,
                    torch_random_seed=self.seed,
                    fewshot_random_seed=self.seed,
                )
            except OSError as error:  # no hub within reach, or files that are not where a task says
                raise FactoryError(
                    f"{', '.join(tasks)}: the data cannot be loaded ({error}): fill the cache of the package datasets "
                    "where the hub is within reach, or give tasks with files of your own by harness.include"
                ) from error
            for key, value in (found or {}).items():
                if isinstance(value, Mapping):
                    together.setdefault(key, {}).update(value)
                else:
                    together.setdefault(key, value)
        return together


def records(name: str, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each task and metric of lm-eval's results."""
    found = []
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, which = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{which}")
            shots = results.get("n-shot", {}).get(task)
            counts = results.get("n-samples", {}).get(task) or {}
            found.append(
                {
                    "model": name,
                    "task": task,
                    "metric": metric,
                    "filter": which,
                    "value": float(value),
                    "stderr": error if isinstance(error, float) else None,
                    "shots": shots if isinstance(shots, int) else None,
                    "questions": counts.get("effective"),
                }
            )
    return found


def adapter(generator: Generator) -> LM:
    """The model as lm-eval asks it: log-likelihoods and greedy or sampled continuations of texts.

    A text that is longer than the model's positions loses its beginning, as with lm-eval's own `hf` model. A text
    alone is scored behind the id that begins texts (or, as Qwen has none, the one that ends them).
    """
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from model.generate import END, Sampling

    tokenizer, positions = generator.tokenizer, generator.model.config.max_position_embeddings
    begin = tokenizer.encode("").ids
    known = tokenizer.token_to_id(END)
    if not begin and known is None and not generator.end:
        raise FactoryError(f"the tokenizer has no id that begins or ends a text, such as {END}: lm-eval needs one")

    class Adapter(TemplateLM):
        max_length = positions - 1
        """Of what is conditioned on; the last token scored comes after it."""

        @property
        def eot_token_id(self) -> int:
            return known if known is not None else min(generator.end, default=begin[0])

        @property
        def prefix_token_id(self) -> int:
            return begin[0] if begin else self.eot_token_id

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return list(tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids)

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            prompts, continuations = [], []
            for _texts, prompt, continuation in requests:
                kept = max(1, positions - len(continuation))
                prompts.append(prompt[-kept:])
                continuations.append(continuation)
            return generator.score(prompts, continuations)

        def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
            windows, owners = [], []
            for number, request in enumerate(requests):
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ):
                    windows.append(("", *make_disjoint_window(window)))
                    owners.append(number)
            sums = [0.0] * len(requests)
            for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
                sums[owner] += value
            return sums

        def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
            groups: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
            out = [""] * len(requests)
            for options, numbers in groups.items():
                asked = normalize_gen_kwargs(json.loads(options))
                tokens = int(asked["max_gen_toks"])
                if tokens >= positions:
                    raise FactoryError(f"a task asks for {tokens:,} new tokens: the model is made for {positions:,}")
                sampling = Sampling(
                    tokens=tokens,
                    temperature=float(asked["temperature"]) if asked["do_sample"] else 0.0,
                    top_p=float(asked.get("top_p", 1.0)),
                    stop=tuple(stop for stop in asked["until"] if stop),
                )
                texts = (requests[number].args[0] for number in numbers)
                prompts = [(self.tok_encode(text) or [self.prefix_token_id])[tokens - positions :] for text in texts]
                for number, (found,) in zip(numbers, generator.complete(prompts, sampling), strict=True):
                    out[number] = found.text
            return out

    return Adapter()


TASK = Harness
