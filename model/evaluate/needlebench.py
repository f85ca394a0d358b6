"""NeedleBench (arXiv 2407.11963): needles at chosen depths of a haystack, to find, to find many of, to reason with.

    python -m model.evaluate CHECKPOINT needlebench needlebench.path=NeedleBench needlebench.lengths=[4096] out=FOLDER

`path` is a folder of the released files: the haystack (`PaulGrahamEssays.jsonl`, `zh_finance.jsonl`), `needles.jsonl`,
`names.json`, and for version 1 `multi_needle_reasoning_en.json` and `_zh.json`. The tasks:

- single: one needle. The answer must have its keyword; in version 1 one without it gets a fifth of its likeness to the
  needle by edit distance.
- retrieval: a needle at each depth, all asked for at once; the share of the keywords found.
- reasoning: 2 to 5 needles of which the answer follows. Version 2: a chain of relatives, the answer in a box. Version
  1: the derivations of the file, the share of the answer's words found.
- ancestors: a chain of relatives without any haystack, up to 512 of them (version 2).

A length counts the whole prompt and the answer in tokens of the model's own tokenizer, where the released code counts
GPT-4's and leaves a margin. The score of version 2 is the mean of the first three tasks.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory.engine.errors import FactoryError
from model.evaluate import metrics
from model.evaluate.files import fill, rows, templates
from model.evaluate.kinship import KINDS, chain
from model.evaluate.task import Question

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCE = "NeedleBench (huggingface.co/datasets/opencompass/NeedleBench)"
NEEDLE: dict[str, type] = {"needle": str, "retrieval_question": str, "arg1": str, "arg2": str, "language": str}
Language = Literal["English", "Chinese"]
Name = Literal["single", "retrieval", "reasoning", "ancestors"]
REASONING = {"English": "multi_needle_reasoning_en.json", "Chinese": "multi_needle_reasoning_zh.json"}
TOKENS = {"single": 64, "retrieval": 512, "reasoning": 512, "ancestors": 2048}
APART = 0.1
"""The share of the haystack between two needles of reasoning."""

PROMPTS = {
    "English": "Read the document, then answer the question from what it says.\n\n"
    "<document>\n{context}\n</document>\n\nFrom the document above: {question}\n",
    "Chinese": "请先阅读文档，再根据其中的内容回答问题。\n\n"
    "<文档>\n{context}\n</文档>\n\n根据以上文档，请问：{question}\n",
}
FORM = {"English": "Please answer in the form '{}'.", "Chinese": "请按照'{}'的格式回答。"}
MARKS = {"English": ("?", "."), "Chinese": ("？", "。")}


@dataclass(frozen=True, kw_only=True)
class NeedleBench:
    """Questions made of the files at `path`."""

    path: str
    version: Literal[1, 2] = 2
    tasks: tuple[Name, ...] = ("single", "retrieval", "reasoning", "ancestors")
    languages: tuple[Language, ...] = ("English",)
    english: str = "PaulGrahamEssays.jsonl"
    """The haystack of English questions: a JSONL file whose rows have a text."""
    chinese: str = "zh_finance.jsonl"
    lengths: tuple[int, ...] = (4096,)
    depths: tuple[int, ...] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    """In percent of the haystack."""
    needles: tuple[int, ...] = (2, 3, 4, 5)
    relatives: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512)
    repeats: int = 10
    """Questions for each length, depth and number of needles, each with needles and haystack of its own."""
    tokens: int = 0
    """New tokens at most; 0: 64 for single, 512 for retrieval and reasoning, 2048 for ancestors."""
    prompts: str = ""

    def questions(self, tokenizer: Tokenizer) -> Iterator[Question]:
        forms = templates(PROMPTS, self.prompts)
        for language in self.languages:
            haystack = _Haystack(Path(self.path) / (self.english if language == "English" else self.chinese), tokenizer)
            for task in self.tasks:
                if task == "ancestors":
                    yield from self._ancestors(language)
                    continue
                for length, repeat in itertools.product(dict.fromkeys(self.lengths), range(self.repeats)):
                    for subtask, depth, needles, question, answers in self._asked(task, language, repeat):
                        tokens = self.tokens or TOKENS[task]
                        where = f"{subtask} of {length} tokens"
                        prompt = haystack.hide(forms[language], question, needles, length - tokens, repeat, where)
                        yield Question(
                            task="needlebench",
                            subtask=subtask,
                            id=f"{subtask}:{length}:{'-' if depth is None else depth}:{repeat}",
                            prompt=prompt,
                            answers=answers,
                            tokens=tokens,
                            length=length,
                            depth=None if depth is None else depth / 100,
                            details={"form": task, "needle": needles[0][1]},
                        )

    def score(self, answer: str, question: Question) -> float:
        """The released metric of the task and version."""
        form, expected = question.details["form"], question.answers
        if form == "ancestors" or (form == "reasoning" and self.version == 2):
            return float(metrics.boxed(answer) == expected[0])
        if form == "reasoning":
            sought = expected[0].lower().split()
            return sum(word in answer.lower() for word in sought) / len(sought)
        found = sum(keyword in answer for keyword in expected) / len(expected)
        if form == "single" and self.version == 1 and not found:
            return 0.2 * metrics.edit_score(answer, question.details["needle"])
        return found

    def _asked(
        self, task: Name, language: Language, repeat: int
    ) -> Iterator[tuple[str, int | None, list[tuple[float, str]], str, tuple[str, ...]]]:
        """Subtask, depth in percent, needles with their places (0 to 1), question and answers."""
        if task == "retrieval":
            chosen = self._different(language, len(self.depths), repeat)
            needles = [(depth / 100, one["needle"]) for depth, one in zip(self.depths, chosen, strict=True)]
            keywords = tuple(one["arg2"] for one in chosen)
            yield f"retrieval_{language}", None, needles, _all_asked(chosen, language), keywords
            return
        for depth in self.depths:
            if task == "single":
                one = random.Random(repeat).choice(self._needles(language))
                yield (
                    f"single_{language}",
                    depth,
                    [(depth / 100, one["needle"])],
                    one["retrieval_question"],
                    (one["arg2"],),
                )
                continue
            for count in self.needles:
                texts, question, truth = self._reasoning(language, count, repeat)
                needles = [(min(1.0, depth / 100 + APART * number), text) for number, text in enumerate(texts)]
                yield f"reasoning_{count}_{language}", depth, needles, question, (truth,)

    def _ancestors(self, language: Language) -> Iterator[Question]:
        for links, kind, repeat in itertools.product(self.relatives, KINDS, range(self.repeats)):
            told = chain(self._names(language, links), links, language, kind, repeat)
            yield Question(
                task="needlebench",
                subtask=f"ancestors_{links}_{language}",
                id=f"ancestors_{links}_{language}:{kind}:{repeat}",
                prompt=f"{' '.join(told.sentences)}\n\n{told.question}\n",
                answers=(told.answer,),
                tokens=self.tokens or TOKENS["ancestors"],
                details={"form": "ancestors", "kind": kind},
            )

    def _reasoning(self, language: Language, count: int, repeat: int) -> tuple[Sequence[str], str, str]:
        """The needles, the question and the answer."""
        if self.version == 2:
            told = chain(self._names(language, count), count, language, "eldest", repeat)
            return told.sentences, told.question, told.answer
        path = Path(self.path) / REASONING[language]
        found = [one for one in _json(path, list) if one.get("derivation_count") == count]
        if not found:
            raise FactoryError(f"{path}: no question with {count} derivations: correct needlebench.needles")
        one = random.Random(repeat).choice(found)
        try:
            return one["derivations"], one["question"], one["answer"]
        except KeyError as error:
            raise FactoryError(f"{path}: a question without {error}: give the file of {SOURCE}") from None

    @functools.cached_property
    def _all_needles(self) -> list[dict[str, Any]]:
        return [row for _, row in rows(Path(self.path) / "needles.jsonl", NEEDLE, SOURCE)]

    def _needles(self, language: Language) -> list[dict[str, Any]]:
        found = [row for row in self._all_needles if row["language"] == language]
        if not found:
            raise FactoryError(f"{self.path}/needles.jsonl: no needle in {language}: correct needlebench.languages")
        return found

    def _different(self, language: Language, count: int, repeat: int) -> list[dict[str, Any]]:
        """`count` needles, no two of which share a subject (arg1) or a keyword (arg2)."""
        found = self._needles(language)
        random.Random(repeat).shuffle(found)
        chosen: list[dict[str, Any]] = []
        for one in found:
            if all(one[key] != other[key] for other in chosen for key in ("arg1", "arg2")) and len(chosen) < count:
                chosen.append(one)
        if len(chosen) < count:
            raise FactoryError(
                f"{self.path}/needles.jsonl: {len(chosen)} different needles in {language}, "
                f"but needlebench.depths has {count}: give fewer depths"
            )
        return chosen

    @functools.cached_property
    def _all_names(self) -> dict[str, Any]:
        found: dict[str, Any] = _json(Path(self.path) / "names.json", dict)
        return found

    def _names(self, language: Language, links: int) -> list[str]:
        """Names enough for a chain of `links`."""
        found = self._all_names.get(language)
        if not isinstance(found, str):
            raise FactoryError(f"{self.path}/names.json: no names in {language}: give the file of {SOURCE}")
        names = list(dict.fromkeys(name.strip() for name in found.split(",") if name.strip()))
        if len(names) <= links:
            raise FactoryError(f"{self.path}/names.json: {len(names)} names, but a chain of {links} needs {links + 1}")
        return names


class _Haystack:
    """A long text to hide needles in."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.path, self.tokenizer = path, tokenizer
        self.texts: list[str] = []
        self.cut: dict[tuple[int, int], tuple[str, list[int]]] = {}

    def hide(
        self, form: str, question: str, needles: Sequence[tuple[float, str]], tokens: int, seed: int, where: str
    ) -> str:
        """A prompt of at most `tokens` tokens, as near as may be, each needle at its place on a line of its own."""
        prompt = fill(form, {"context": "".join(f"\n{text}\n" for _, text in needles), "question": question}, where)
        room = tokens - len(self.tokenizer.encode(prompt).ids)
        while room > 0:
            text, starts = self._text(seed, tokens)
            context, before = [], 0
            for place, needle in sorted(needles, key=lambda one: one[0]):
                here = starts[int(place * room)]
                context += [text[before:here], f"\n{needle}\n"]
                before = here
            context.append(text[before : starts[room]])
            prompt = fill(form, {"context": "".join(context), "question": question}, where)
            over = len(self.tokenizer.encode(prompt).ids) - tokens
            if over <= 0:
                return prompt
            room -= over
        raise FactoryError(f"needlebench: {where}: no room for any haystack: give greater lengths or fewer needles")

    def _text(self, seed: int, tokens: int) -> tuple[str, list[int]]:
        """The rows in an order of the seed's, of at least `tokens` tokens, and where in the text each token starts."""
        if not self.texts:
            self.texts = [row["text"] for _, row in rows(self.path, {"text": str}, SOURCE)]
        if (seed, tokens) not in self.cut:
            self.cut.clear()
            order = list(self.texts)
            random.Random(seed).shuffle(order)
            text, starts = "", [0]
            for more in order:
                starts[-1:] = [
                    len(text) + start for start, _ in self.tokenizer.encode(more, add_special_tokens=False).offsets
                ]
                text += more
                starts.append(len(text))
                if len(starts) > tokens:
                    break
            else:
                raise FactoryError(
                    f"{self.path}: {len(starts) - 1:,} tokens, but a haystack of {tokens:,} is asked for: "
                    "give smaller lengths or a longer text"
                )
            self.cut[seed, tokens] = text, starts
        return self.cut[seed, tokens]


def _all_asked(needles: Sequence[dict[str, Any]], language: Language) -> str:
    """The questions of all needles in one, with the form of the answer that each gives between quotes."""
    mark, stop = MARKS[language]
    questions, forms = [], []
    for one in needles:
        asked = one["retrieval_question"]
        quoted = asked.split("'")
        if mark not in asked or len(quoted) < 3:
            raise FactoryError(
                f"needles.jsonl: the question {asked!r} has no {mark!r} or no form of the answer between ': "
                f"give the file of {SOURCE}"
            )
        questions.append(asked.split(mark)[0] + mark)
        forms.append(quoted[1].split(stop)[0])
    joined = "、" if language == "Chinese" else " "
    return joined.join(questions) + joined + FORM[language].format((";" + joined).join(forms))


def _json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FactoryError(f"{path}: {error.strerror}: give a folder of {SOURCE}") from error
    except ValueError as error:
        raise FactoryError(f"{path}: not JSON ({error}): give the file of {SOURCE}") from error
    if not isinstance(found, kind):
        raise FactoryError(f"{path}: not a JSON {'object' if kind is dict else 'array'}: give the file of {SOURCE}")
    return found


TASK = NeedleBench
