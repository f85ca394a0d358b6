"""Word problems made by rule, with answers and worked chains: a world small enough to learn on a laptop.

A problem is a start and one to a few operations (+, -, times 2, times 3) on whole numbers from 0 to 99, told in one of
several wordings:

    Ann has 17 marbles. Ann gets 5 more. Then the number doubles. How many marbles does Ann have?
    17+5=22
    22*2=44
    #### 44

Problems are held out by their numbers and operations, whatever the names and the wording: those of the split `test` are
in no other split, under any seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
import xxhash
from annotated_types import Ge, Le

from factory.engine.errors import FactoryError
from factory.engine.step import Context, Source, Split

LARGEST = 99
HELD_OUT = {"validation": range(0, 5), "test": range(95, 100)}
"""Of 100 parts by the hash of a problem's numbers and operations; the others are the split `train`."""
PART = 250
"""Problems in a task at least."""
PARTS = 16
"""Tasks at most, but where a task would be more than a shard."""
ROW_BYTES = 200
BATCH = 8192
TRIES = 100_000
"""Chains that are drawn for a problem, at most."""

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo")
THINGS = ("apples", "books", "coins", "eggs", "marbles", "pens", "shells", "stamps")
OPERATIONS = "++--23"
"""What is drawn from: 2 and 3 stand for times 2 and times 3."""


@dataclass(frozen=True)
class Wording:
    """How a problem is told: what stands in braces is the name, the thing and the number."""

    start: str
    operations: dict[str, str]
    question: str


WORDINGS = {
    "person": Wording(
        "{name} has {number} {thing}.",
        {
            "+": "{name} gets {number} more.",
            "-": "{name} gives away {number}.",
            "2": "Then the number doubles.",
            "3": "Then the number triples.",
        },
        "How many {thing} does {name} have?",
    ),
    "box": Wording(
        "A box holds {number} {thing}.",
        {
            "+": "{number} are added.",
            "-": "{number} are lost.",
            "2": "Then there are twice as many.",
            "3": "Then there are three times as many.",
        },
        "How many {thing} are in the box?",
    ),
    "number": Wording(
        "{name} starts with {number}.",
        {"+": "Plus {number}.", "-": "Minus {number}.", "2": "Times 2.", "3": "Times 3."},
        "What is the result?",
    ),
}


class Step(NamedTuple):
    """One operation: left ∘ right = value. `kind` is +, -, 2 or 3."""

    kind: str
    left: int
    right: int
    value: int

    def __str__(self) -> str:
        return f"{self.left}{self.kind if self.kind in '+-' else '*'}{self.right}={self.value}"


Chain = tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Problems(Source):
    """Word problems with their answers (`gold`) and worked chains, as many as asked for, the same for the same seed.

    Columns: `id` (of equal ones the problems are the same), `prompt` (the question and a line break), `gold`, `chain`,
    `text` (prompt and chain: a document to learn from), `wording`, `steps`, `kind`. Of a corpus a share of the chains
    may be wrong, as on the web: `kind` is `right`, `slip` (a result is miscalculated, what follows builds on it),
    `operation` (a step does another operation than the text says), or `garbage` (a document that is no problem; it has
    neither prompt, gold nor chain). `gold` is the true answer whatever the chain says.

    Names and wordings repeat a problem: `dedup.Exact` takes out those that are the same text.
    """

    count: Annotated[int, Ge(1)] = 10_000
    """Rows."""
    split: Literal["train", "validation", "test"] = "train"
    """The numbers and operations of `test` (5%) and `validation` (5%) are in no other split."""
    seed: int = 0
    top: Annotated[int, Ge(2), Le(LARGEST)] = 29
    """The largest number in a question."""
    steps: Annotated[int, Ge(1)] = 3
    """Operations in a problem at most."""
    slips: Annotated[float, Ge(0), Le(1)] = 0.0
    """The share of documents with a miscalculated step."""
    operations: Annotated[float, Ge(0), Le(1)] = 0.0
    """The share of documents with a wrong operation, where another one fits at all."""
    garbage: Annotated[float, Ge(0), Le(1)] = 0.0
    """The share of documents that are no problem."""

    version: ClassVar[int] = 2
    located: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.slips + self.operations + self.garbage > 1:
            raise FactoryError("slips, operations and garbage: their sum is above 1")

    def splits(self, context: Context, target: int) -> list[Split]:
        parts = max(1, min(self.count // PART, PARTS), self.count * ROW_BYTES // max(target, ROW_BYTES))
        cuts = [self.count * part // parts for part in range(parts + 1)]
        return [Split(f"{self.split}-{a}", a, b, (b - a) * ROW_BYTES) for a, b in itertools.pairwise(cuts)]

    def identities(self, context: Context, splits: list[Split]) -> list[dict[str, Any]]:
        """None: the options are all there is."""
        return []

    def start(self, context: Context) -> pa.Schema:
        texts = ("id", "prompt", "gold", "chain", "text", "wording", "kind")
        return pa.schema([(name, pa.large_string()) for name in texts] + [("steps", pa.int32())])

    def read(self, split: Split) -> Iterator[pa.RecordBatch]:
        schema = self.start(Context())
        for first in range(split.start, split.end, BATCH):
            rows = [self._row(number) for number in range(first, min(first + BATCH, split.end))]
            columns = zip(*rows, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _row(self, number: int) -> tuple[str | int | None, ...]:
        rng = random.Random(f"{self.split}-{self.seed}-{number} {self.top} {self.steps}")
        id_ = f"{self.split}-{self.top}-{self.steps}-{self.seed}-{number}"  # all that the problem depends on
        chain = draw(rng, self.top, self.steps, self.split)
        wording = rng.choice(sorted(WORDINGS))
        prompt, gold = tell(chain, WORDINGS[wording], rng), str(chain[-1].value)
        kind, written = "right", chain
        share = rng.random()
        if share < self.garbage:
            return id_, None, None, None, garbage(prompt, rng), wording, "garbage", 0
        if share < self.garbage + self.slips:
            kind, written = "slip", slip(chain, rng)
        elif share < self.garbage + self.slips + self.operations:
            kind, written = "operation", other_operation(chain, rng)
        if not written:  # no change leads to another answer
            kind, written = "right", chain
        text = worked(written)
        return id_, prompt, gold, text, prompt + text, wording, kind, len(chain)


def draw(rng: random.Random, top: int, most: int, split: str) -> Chain:
    """A chain of 1 to `most` steps of the split, its numbers up to `top`, its values from 0 to 99.

    FactoryError where there is none, or hardly any.
    """
    length = rng.randint(1, most)
    for _ in range(TRIES):
        chain: list[Step] = []
        value = rng.randint(1, top)
        for _ in range(length):
            kind = rng.choice(OPERATIONS)
            right = int(kind) if kind in "23" else rng.randint(1, top)
            after = apply(kind, value, right)
            if not 0 <= after <= LARGEST:
                break
            chain.append(Step(kind, value, right, after))
            value = after
        if len(chain) == length and split_of(chain) == split:
            return tuple(chain)
    raise FactoryError(
        f"problems.Problems: no problem of the split {split!r} with {length} operations on numbers up to {top} is "
        f"found: raise top = {top}, or change steps = {most}"
    )


def apply(kind: str, left: int, right: int) -> int:
    return left + right if kind == "+" else left - right if kind == "-" else left * right


def split_of(chain: Sequence[Step | str]) -> str:
    """Where a problem belongs, by its numbers and operations."""
    part = xxhash.xxh3_64_intdigest(" ".join(map(str, chain))) % 100
    return next((name for name, parts in HELD_OUT.items() if part in parts), "train")


def tell(chain: Chain, wording: Wording, rng: random.Random) -> str:
    """The question in words, with the line break that ends it."""
    told = {"name": rng.choice(NAMES), "thing": rng.choice(THINGS)}
    sentences = [wording.start.format(number=chain[0].left, **told)]
    sentences += [wording.operations[step.kind].format(number=step.right, **told) for step in chain]
    return " ".join([*sentences, wording.question.format(**told)]) + "\n"


def worked(chain: Chain) -> str:
    """A step a line, then the answer as GSM8K writes it."""
    return "\n".join([*map(str, chain), f"#### {chain[-1].value}"])


def slip(chain: Chain, rng: random.Random) -> Chain:
    """The chain with one miscalculated result, on which what follows builds."""
    at = rng.randrange(len(chain))
    step = chain[at]
    return _changed(chain, at, [step._replace(value=step.value + off) for off in (-10, -2, -1, 1, 2, 10)], rng)


def other_operation(chain: Chain, rng: random.Random) -> Chain:
    """The chain with one step that does another operation than the question tells; empty where no other fits.

    It is the right chain of another problem, which is of the same split: what is held out is nowhere written.
    """
    for at in rng.sample(range(len(chain)), len(chain)):
        step = chain[at]
        others = [Step(k, step.left, r, apply(k, step.left, r)) for k, r in _others(step)]
        if found := _changed(chain, at, others, rng, split_of(chain)):
            return found
    return ()


def _changed(chain: Chain, at: int, others: list[Step], rng: random.Random, split: str = "") -> Chain:
    """The chain with one of `others` at a place, of those that lead to another answer and, where a split is named, are
    of it; empty where none does."""
    made = [_go_on(chain, at, other) for other in others if 0 <= other.value <= LARGEST]
    wrong = [one for one in made if one[-1].value != chain[-1].value and split in ("", split_of(one))]
    return rng.choice(wrong) if wrong else ()


def _others(step: Step) -> list[tuple[str, int]]:
    return [(kind, int(kind) if kind in "23" else step.right) for kind in "+-23" if kind != step.kind]


def _go_on(chain: Chain, at: int, changed: Step) -> Chain:
    """The chain from the changed step on, as far as values stay within 0 and 99: there it ends."""
    out = [*chain[:at], changed]
    for step in chain[at + 1 :]:
        value = apply(step.kind, out[-1].value, step.right)
        if not 0 <= value <= LARGEST:
            break
        out.append(Step(step.kind, out[-1].value, step.right, value))
    return tuple(out)


def garbage(prompt: str, rng: random.Random) -> str:
    """What a crawl brings besides: a menu, letters without sense, words in no order, a line again and again."""
    words = prompt.split()
    kind = rng.randrange(4)
    if kind == 0:
        return "\n".join(rng.choice(("Home", "Log in", "Share", "Next page", "Menu", "About us")) for _ in range(12))
    if kind == 1:
        return " ".join("".join(rng.choices("bcdfghjklmnpqrstvwxz", k=rng.randint(2, 12))) for _ in range(20))
    if kind == 2:
        rng.shuffle(words)
        return " ".join(words)
    return "\n".join([prompt.strip()] * 4)
