"""Labels for the steps of chains by Monte Carlo: what comes of it when a model goes on from each step.

`Split` makes of a chain its prefixes, `respond.Respond` goes on from each with n roll-outs, `Join` puts prefix and
roll-out together, `verify.Verify` judges them, and `Labels` brings the roll-outs of a chain together again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from annotated_types import Ge, Le

from factory.engine.errors import FactoryError
from factory.engine.shard import with_column
from factory.engine.step import Failure, Map, Memo, Regroup
from factory.teacher.samples import check_whole
from factory.verify.check import check_verdict, columns
from factory.verify.steps import Rule, split

STEPS = pa.list_(pa.large_string())
MADE = ("chain_id", "chain_verdict", "chain_steps", "chain_step")
ASKED = ("response", "finish_reason", "prompt_tokens", "completion_tokens", "sample", "logprobs")
CHAINS_OUT = 512


@dataclass(frozen=True, kw_only=True)
class Split(Regroup):
    """Make of each chain its prefixes, a row each, to go on from: `prompt` is the prompt with the first steps of it.

    A text is made longer; to messages comes one of the assistant, for the model to continue. The prefixes are those of
    1 step to all but the last (of a single step: that one), with the ids `{id}-{step}`. `chain_steps` are all steps of
    the chain, `chain_step` is how many stand in the prompt, `chain_id` and `chain_verdict` are the chain's. One without
    a prompt, a step or a verdict goes to failed/.
    """

    rule: Rule = "lines"
    """What a step is: a line, or a sentence."""
    verdict: str = "verdict"
    """The column that says whether the chain's answer is right."""

    version: ClassVar[int] = 1
    """Of the rule too (factory/verify/steps.py)."""

    def needs(self) -> tuple[str, ...]:
        return ("id", "prompt", "response", self.verdict)

    def adds(self) -> dict[str, pa.DataType]:
        return {
            "chain_id": pa.large_string(),
            "chain_verdict": pa.bool_(),
            "chain_steps": STEPS,
            "chain_step": pa.int32(),
        }

    def schema(self, schema: pa.Schema) -> pa.Schema:
        check_verdict(schema, self.verdict)
        return super().schema(schema)

    def prepare(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        check_whole(batch.filter(pa.array(memo.alive)), "prompt")
        return batch

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Failure]:
        for batch in batches:
            given = [batch.column(name).to_pylist() for name in self.needs()]
            at: list[int] = []
            failed: list[Failure] = []
            made: dict[str, list[Any]] = {"id": [], "prompt": [], **{name: [] for name in MADE}}
            for row, (id_, prompt, response, verdict) in enumerate(zip(*given, strict=True)):
                why = "no verdict" if verdict is None else "" if (response or "").strip() else "no step: it is empty"
                if why:
                    data = (response or "").encode(errors="replace")
                    failed.append(Failure(id_, f"the chain has {why}", "", data))
                    continue
                steps = split(response, self.rule)
                for step in range(1, max(2, len(steps))):
                    at.append(row)
                    prefix = "".join(steps[:step])
                    values = (f"{id_}-{step}", _continued(prompt, prefix), id_, verdict, steps, step)
                    for column, value in zip(made.values(), values, strict=True):
                        column.append(value)
            if at:
                out = batch.take(pa.array(at))
                types = {"id": pa.large_string(), "prompt": out.schema.field("prompt").type, **self.adds()}
                for name, type_ in types.items():
                    out = with_column(out, name, pa.array(made[name], type_))
                yield out
            yield from failed


@dataclass(frozen=True, kw_only=True)
class Join(Map):
    """Put the steps that a roll-out went on from before it: `response` is a whole chain, and is judged as one."""

    def needs(self) -> tuple[str, ...]:
        return ("chain_steps", "chain_step", "response")

    def adds(self) -> dict[str, pa.DataType]:
        return {"response": pa.large_string()}

    def __call__(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        rows = zip(*(batch.column(name).to_pylist() for name in self.needs()), strict=True)
        whole = ["".join(steps[:step]) + (response or "") for steps, step, response in rows]
        return with_column(batch, "response", pa.array(whole, pa.large_string()))


@dataclass(frozen=True, kw_only=True)
class Labels(Regroup):
    """Label the steps of each chain by what came of its roll-outs (Math-Shepherd, arXiv 2312.08935, section 3).

    A row a chain, in TRL's stepwise form: `prompt`, `completions` (the steps) and `labels`, with `shares`, the share of
    right roll-outs from each step, and `rollouts`, how many they were. A step is right where any roll-out from it came
    to the right answer; the last is what the chain's own verdict says, and has no roll-outs. The row has the chain's id
    and verdict, and its columns but those of the samples. A chain of which a roll-out is missing goes to failed/.
    """

    verdict: str = "verdict"
    """The column that says whether a roll-out's answer is right."""
    threshold: Annotated[float, Ge(0), Le(1)] = 0.0
    """A step is right where the share is at least this, and above 0."""
    after: Literal["estimated", "wrong", "cut"] = "estimated"
    """What follows the first wrong step keeps its labels, is wrong too, or is left out."""
    rollouts: Annotated[int, Ge(0)] = 0
    """Roll-outs from each step, `n` of the step that made them: a chain with fewer goes to failed/. 0: as many as the
    sample numbers of the chain show, which show none of the last where it is missing from every step."""

    def needs(self) -> tuple[str, ...]:
        return ("prompt", "sample", *MADE, self.verdict)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        check_verdict(schema, self.verdict)
        gone = {*MADE, *ASKED, *columns(self.verdict)}
        for name, type_ in self._made().items():
            gone.discard(name)
            at = schema.get_field_index(name)
            schema = schema.append(pa.field(name, type_)) if at < 0 else schema.set(at, pa.field(name, type_))
        return pa.schema([one for one in schema if one.name not in gone])

    def _made(self) -> dict[str, pa.DataType]:
        return {
            "id": pa.large_string(),
            "completions": STEPS,
            "labels": pa.list_(pa.bool_()),
            "shares": pa.list_(pa.float32()),
            "rollouts": pa.list_(pa.int32()),
            self.verdict: pa.bool_(),
        }

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch | Failure]:
        held: list[pa.RecordBatch] = []
        for chain in _chains(batches, self.verdict, self.rollouts):
            if lost := chain.lost():
                if held:
                    yield pa.concat_batches(held)
                    held = []
                yield Failure(chain.id, lost, "", "".join(chain.steps).encode(errors="replace"))
                continue
            held.append(self._row(chain))
            if len(held) >= CHAINS_OUT:
                yield pa.concat_batches(held)
                held = []
        if held:
            yield pa.concat_batches(held)

    def _row(self, chain: _Chain) -> pa.RecordBatch:
        counts = [len(chain.found[step]) for step in chain.rolled]
        shares = [sum(chain.found[step].values()) / count for step, count in zip(chain.rolled, counts, strict=True)]
        labels = [share > 0 and share >= self.threshold for share in shares] + [chain.verdict]
        wrong = labels.index(False) if False in labels else len(labels)
        if self.after == "wrong":
            labels = [place < wrong for place in range(len(labels))]
        end = wrong + 1 if self.after == "cut" else len(labels)
        values: dict[str, Any] = {
            "id": chain.id,
            "completions": chain.steps[:end],
            "labels": labels[:end],
            "shares": [*shares, float(chain.verdict)][:end],
            "rollouts": [*counts, 0][:end],
            self.verdict: chain.verdict,
        }
        out = chain.first
        for name, type_ in self._made().items():
            out = with_column(out, name, pa.array([values[name]], type_))
        out = with_column(out, "prompt", pa.array([chain.prompt()], out.schema.field("prompt").type))
        return out.select(self.schema(chain.first.schema).names)


@dataclass
class _Chain:
    """A chain with what is known of its roll-outs."""

    id: str
    first: pa.RecordBatch
    """Its first row."""
    steps: list[str]
    verdict: bool
    found: dict[int, dict[int, bool]] = field(default_factory=dict)
    """Of each step, by the number of the sample: whether it came to the right answer."""
    seen: set[tuple[int, int]] = field(default_factory=set)
    """The roll-outs that are there, with a verdict or without: step and number of the sample."""
    asked: int = 0
    """Roll-outs from a step: what was told, or as far as the rows show."""

    @property
    def rolled(self) -> range:
        """The steps that are judged by roll-outs."""
        return range(1, len(self.steps))

    def lost(self) -> str:
        """What is missing; empty where nothing is."""
        for step in self.rolled:
            if (there := len(self.found.get(step, ()))) < self.asked:
                return (
                    f"step {step} has {there} of {self.asked} roll-outs: the others failed, have no verdict, or were "
                    'dropped (verify.Verify: keep = "all")'
                )
        return ""

    def prompt(self) -> Any:
        """Without the steps that were put to it."""
        return _asked(self.first.column("prompt")[0].as_py(), self.steps, self.first.column("chain_step")[0].as_py())


def _chains(batches: Iterator[pa.RecordBatch], verdict: str, rollouts: int) -> Iterator[_Chain]:
    """The chains of a shard, one after the other. FactoryError where the rows of one do not stand together, or two have
    the same id."""
    seen: set[str] = set()
    chain: _Chain | None = None
    of: Any = None  # its prompt
    for batch in batches:
        names = ("chain_id", "chain_step", "sample", verdict, "chain_steps", "prompt")
        given = [batch.column(name).to_pylist() for name in names]
        for row, (id_, step, sample, right, steps, prompt) in enumerate(zip(*given, strict=True)):
            if chain is None or chain.id != id_:
                if chain is not None:
                    yield chain
                if id_ in seen:
                    raise FactoryError(
                        f"the roll-outs of chain {id_} do not stand together: keep the rows in order, and where two "
                        "chains have this id give them other ids"
                    )
                seen.add(id_)
                first = batch.take(pa.array([row]))  # a copy: a slice would hold the batch
                chain = _Chain(id_, first, steps, first.column("chain_verdict")[0].as_py(), asked=rollouts)
                of = chain.prompt()
            if (step, sample) in chain.seen or steps != chain.steps or _asked(prompt, steps, step) != of:
                raise FactoryError(f"two chains have the id {id_}: give them other ids")
            chain.seen.add((step, sample))
            chain.asked = max(chain.asked, sample + 1)
            if right is not None:
                chain.found.setdefault(step, {})[sample] = right
    if chain is not None:
        yield chain


def _continued(prompt: Any, prefix: str) -> Any:
    return prompt + prefix if isinstance(prompt, str) else [*prompt, {"role": "assistant", "content": prefix}]


def _asked(prompt: Any, steps: list[str], step: int) -> Any:
    """The prompt of which the first steps were put to it."""
    return prompt[: len(prompt) - len("".join(steps[:step]))] if isinstance(prompt, str) else prompt[:-1]
