"""RULER (arXiv 2404.06654): its thirteen tasks, made here: needles, variable tracking, aggregation, questions.

The tasks, their names, what is hidden and what is expected are the paper's (§3 and appendix B); the wording is ours. An
answer scores the share of the expected strings that it contains, in any case of letters; one to a question about
passages 1 where it contains any of them.
"""

from __future__ import annotations

import json
import string
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from factory.engine.errors import FactoryError, nearest
from model.evaluate.task import Question
from model.evaluate.text import Filler, fit, insert, most

Random = np.random.Generator
SLACK = 48  # tokens: keys differ by some, and words in front take some to begin with

# The needles: their number, keys asked for, values of a key, what keys and values are, and what they lie in:
# noise, a text, or nothing but needles.
NEEDLES: dict[str, dict[str, Any]] = {
    "niah_single_1": {"hay": "noise"},
    "niah_single_2": {},
    "niah_single_3": {"value": "uuid"},
    "niah_multikey_1": {"keys": 4},
    "niah_multikey_2": {"hay": "needles"},
    "niah_multikey_3": {"hay": "needles", "key": "uuid", "value": "uuid"},
    "niah_multivalue": {"values": 4},
    "niah_multiquery": {"keys": 4, "asked": 4},
}
SUBTASKS = (*NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2")
NEW_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}  # needles: 128

HOPS = 4  # vt: further variables that are given the value
COMMON, COMMON_TIMES, OTHER_TIMES = 10, 30, 3  # cwe: words asked for, how often these come, and the others
CODED, ZETA = 3, 2.0  # fwe: words asked for, and the exponent of their frequencies

ADJECTIVES = ("amber", "brisk", "calm", "dusky", "eager", "faint", "gentle", "icy", "keen", "mellow", "nimble", "plain")
NOUNS = (
    "anchor",
    "barrel",
    "candle",
    "engine",
    "feather",
    "garden",
    "hammer",
    "island",
    "lantern",
    "marble",
    "orchard",
)
CONSONANTS, VOWELS = list("bdfgklmnprstvz"), list("aeiou")


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """`questions_1` and `questions_2` are files for qa_1 and qa_2, which are left out without them: SQuAD's or
    HotpotQA's JSON, or JSON lines with `question`, `answers` and `passages` (those that answer it). The passages of
    other questions stand around them."""

    subtasks: tuple[str, ...] = ()
    """Some of the thirteen; all where none is named."""
    lengths: tuple[int, ...] = (4096, 8192)
    """In tokens, prompt and answer together."""
    samples: int = 10
    """Questions for each subtask and length; the paper has 500."""
    files: tuple[str, ...] = ()
    """Text files in which needles are hidden (the paper: essays); without any, noise."""
    questions_1: str = ""
    questions_2: str = ""
    seed: int = 0

    def questions(self, tokenizer: Tokenizer) -> Iterator[Question]:
        for name in self.subtasks:
            if name not in SUBTASKS:
                raise FactoryError(f"ruler.subtasks: no {name!r}{nearest(name, SUBTASKS)}; all: {', '.join(SUBTASKS)}")
        noise = Filler(tokenizer, (), np.random.default_rng([self.seed, 0]))
        text = Filler(tokenizer, self.files, np.random.default_rng([self.seed, 1]))
        passages = {"qa_1": self.questions_1, "qa_2": self.questions_2}
        for name in dict.fromkeys(self.subtasks) or [one for one in SUBTASKS if passages.get(one, "yes")]:
            rows = None
            if name in passages:
                if not passages[name]:
                    raise FactoryError(f"ruler.{name}: give its file as ruler.questions_{name[-1]}=FILE")
                rows = read_questions(Path(passages[name]))
            tokens = NEW_TOKENS.get(name, 128)
            for length in dict.fromkeys(self.lengths):
                for sample in range(self.samples):
                    random = np.random.default_rng([self.seed, SUBTASKS.index(name), length, sample])
                    room = length - tokens
                    if name in NEEDLES:
                        hay = noise if NEEDLES[name].get("hay") == "noise" else text
                        prompt, answers, depth = needles(tokenizer, room, hay, random, **NEEDLES[name])
                    elif name == "vt":
                        prompt, answers, depth = *tracking(tokenizer, room, noise, random), None
                    else:
                        make = partial(about, rows, sample) if rows else common if name == "cwe" else coded
                        least = 100 if name == "fwe" else 1  # with fewer words some are equally common
                        prompt, answers, depth = *listed(tokenizer, room, noise, random, make, least), None
                    yield Question(
                        task="ruler",
                        subtask=name,
                        id=f"{length}-{sample}",
                        prompt=prompt,
                        answers=answers,
                        tokens=tokens,
                        length=length,
                        depth=depth,
                    )

    def score(self, answer: str, question: Question) -> float:
        answer = answer.lower()
        found = [expected.lower() in answer for expected in question.answers]
        return float(any(found)) if question.subtask.startswith("qa_") else sum(found) / len(found)


def drawn(kind: str, random: Random) -> str:
    """A key or a value: two words, a number of seven digits, or a UUID."""
    if kind == "uuid":
        return str(uuid.UUID(bytes=random.bytes(16), version=4))
    if kind == "number":
        return str(random.integers(10**6, 10**7))
    return f"{random.choice(ADJECTIVES)} {random.choice(NOUNS)} {random.integers(10, 10_000)}"


def needles(
    tokenizer: Tokenizer,
    room: int,
    filler: Filler,
    random: Random,
    *,
    keys: int = 1,
    asked: int = 1,
    values: int = 1,
    key: str = "words",
    value: str = "number",
    hay: str = "text",
) -> tuple[str, tuple[str, ...], float | None]:
    """Sentences that give keys their values; some keys are asked for."""

    def pairs(count: int) -> dict[str, list[str]]:
        made: dict[str, list[str]] = {}
        while len(made) < count:
            made.setdefault(drawn(key, random), [drawn(value, random) for _ in range(values)])
        return made

    def ask(body: str, chosen: list[str]) -> str:
        said = ", ".join(chosen)
        return (
            f"Sentences in the text below give things their values. Remember them.\n\n{body}\n\n"
            f"Question: What are all the values of {said} in the text?\nAnswer: The values of {said} are"
        )

    if hay == "needles":
        given = pairs(max(2, room // 4))
        lines = [_needle(name, one) for name, (one,) in given.items()]
        names = list(given)
        longest = max(names, key=len)
        count = most(tokenizer, room - SLACK, lambda count: ask("\n".join(lines[:count]), [longest]), least=2)
        at = int(random.integers(count))
        prompt = fit(tokenizer, room, lambda text: ask("\n".join([text, *lines[:count]]), [names[at]]), filler, 0)
        return prompt, tuple(given[names[at]]), at / (count - 1)
    given = pairs(keys)
    sentences = [_needle(name, one) for name, ones in given.items() for one in ones]
    depths = random.random(len(sentences)).tolist()
    chosen = list(given)[:asked]
    prompt = fit(
        tokenizer, room, lambda text: ask(insert(text, sentences, depths), chosen), filler, filler.start(random, room)
    )
    alone = depths[0] if asked == values == 1 else None
    return prompt, tuple(one for name in chosen for one in given[name]), alone


def _needle(key: str, value: str) -> str:
    return f"A value of {key} is {value}."


def tracking(tokenizer: Tokenizer, room: int, filler: Filler, random: Random) -> tuple[str, tuple[str, ...]]:
    """A chain of assignments within noise; all variables that have the value are asked for."""
    names: list[str] = []
    while len(names) <= HOPS:
        name = "".join(random.choice(list(string.ascii_uppercase), 5))
        names += [name] if name not in names else []
    value = drawn("number", random)
    sources = [value, *(f"VAR {name}" for name in names)]
    chain = [f"VAR {name} = {source}." for name, source in zip(names, sources, strict=False)]
    depths = np.sort(random.random(len(chain))).tolist()

    def build(text: str) -> str:
        return (
            "Variables are given values in the text below. Follow which of them have the same.\n\n"
            f"{insert(text, chain, depths)}\n\nQuestion: Which variables have the value {value}?\n"
            f"Answer: The {len(names)} variables with the value {value} are"
        )

    return fit(tokenizer, room, build, filler, filler.start(random, room)), tuple(names)


def listed(
    tokenizer: Tokenizer,
    room: int,
    filler: Filler,
    random: Random,
    make: Callable[[Random, int], tuple[str, tuple[str, ...]]],
    least: int,
) -> tuple[str, tuple[str, ...]]:
    """As many units as the length holds, `make(random, units)` gives prompt and answers; the rest is words in front."""
    state = int(random.integers(1 << 62))

    def build(units: int) -> tuple[str, tuple[str, ...]]:
        return make(np.random.default_rng(state), units)

    prompt, answers = build(most(tokenizer, room - SLACK, lambda units: build(units)[0], least))
    return fit(tokenizer, room, lambda text: f"{text}\n\n{prompt}", filler, filler.start(random, room)), answers


def invented(random: Random, count: int) -> list[str]:
    """So many different words of six letters."""
    words: dict[str, None] = {}
    while len(words) < count:
        drawn = zip(*(random.choice(kind, (count, 3)).tolist() for kind in (CONSONANTS, VOWELS)), strict=True)
        words |= dict.fromkeys("".join(map("".join, zip(*letters, strict=True))) for letters in drawn)
    return list(words)[:count]


def common(random: Random, units: int) -> tuple[str, tuple[str, ...]]:
    """cwe: a numbered list in which ten words come often, the others, one a unit, seldom."""
    words = invented(random, COMMON + units)
    many = words[:COMMON] * COMMON_TIMES + words[COMMON:] * OTHER_TIMES
    lines = " ".join(f"{number}. {many[at]}" for number, at in enumerate(random.permutation(len(many)), 1))
    return (
        f"Some words of this numbered list come far more often than the others.\n\n{lines}\n\n"
        f"Question: Which are the {COMMON} most common words of the list?\nAnswer: The {COMMON} most common words are",
        tuple(words[:COMMON]),
    )


def coded(random: Random, units: int) -> tuple[str, tuple[str, ...]]:
    """fwe: a text of invented words whose frequencies fall as a zeta distribution; the commonest is a row of dots."""
    ranks = np.arange(1, units + 1) ** -ZETA
    counts = np.floor(units * ranks / ranks.sum()).astype(int)
    counts = counts[counts > 0]
    words = ["....", *invented(random, len(counts) - 1)]
    text = np.repeat(words, counts)
    return (
        f"The text below is in a secret code. Words that matter come often; rows of dots mean nothing.\n\n"
        f"{' '.join(random.permutation(text))}\n\n"
        f"Question: Which are the {CODED} most common words of the text, apart from the dots?\n"
        f"Answer: The {CODED} most common words are",
        tuple(words[1 : CODED + 1]),
    )


Row = tuple[str, tuple[str, ...], tuple[str, ...]]  # a question, its answers, the passages that give them


def about(rows: list[Row], number: int, random: Random, units: int) -> tuple[str, tuple[str, ...]]:
    """qa: the passages of a question among `units` of other questions, in any order."""
    question, answers, own = rows[number % len(rows)]
    others = list(dict.fromkeys(one for _, _, passages in rows for one in passages if one not in own))
    if not others:
        raise FactoryError("qa: all questions are about the same passages: there are none to stand around them")
    order = random.permutation(len(others)).tolist()
    given = [*own, *(others[order[at % len(order)]] for at in range(units))]
    text = "\n\n".join(f"Passage {at}: {given[one]}" for at, one in enumerate(random.permutation(len(given)), 1))
    return (
        f"Answer the question from these passages, in a few words.\n\n{text}\n\nQuestion: {question}\nAnswer:",
        answers,
    )


def read_questions(path: Path) -> list[Row]:
    """Questions with their passages, from SQuAD's or HotpotQA's JSON or from JSON lines."""
    try:
        text = path.read_text("utf-8")
        rows: list[Row] = []
        if path.suffix == ".jsonl":
            for line in filter(str.strip, text.split("\n")):  # U+2028 is no end of a line in JSON lines
                row = json.loads(line)
                rows.append((row["question"], tuple(row["answers"]), tuple(row["passages"])))
            return rows
        given = json.loads(text)
        if isinstance(given, list):
            for row in given:
                titles = {title for title, _ in row["supporting_facts"]}
                own = tuple("".join(sentences) for title, sentences in row["context"] if title in titles)
                rows.append((row["question"], (row["answer"],), own))
            return rows
        for part in (paragraph for article in given["data"] for paragraph in article["paragraphs"]):
            for one in part["qas"]:
                if one["answers"]:  # those of version 2 without one are left out
                    answers = tuple(dict.fromkeys(answer["text"] for answer in one["answers"]))
                    rows.append((one["question"], answers, (part["context"],)))
        return rows
    except OSError as error:
        raise FactoryError(f"{path}: cannot read the questions: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FactoryError(f"{path}: not questions in a form that is known: {error!r}") from error


TASK = Ruler
