"""InfiniteBench (∞Bench, arXiv 2402.13718): 12 tasks of 100k tokens and more: retrieval, code, mathematics, books.

    python -m model.evaluate CHECKPOINT infinitebench infinitebench.path=InfiniteBench out=FOLDER

`path` is a folder of the released files (`passkey.jsonl`, …: id, context, input, answer, options) or one of them. The
scores are the released ones. The prompts end with the beginning of the answer, as the released ones for base models
do, in words of our own; the released wording is given with `prompts=FILE.json` and may use the same names in braces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.engine.errors import FactoryError, nearest
from model.evaluate import metrics
from model.evaluate.files import cut_middle, fill, rows, templates
from model.evaluate.task import Question

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCE = "InfiniteBench (huggingface.co/datasets/xinrongzhang2022/InfiniteBench)"
FIELDS: dict[str, type | tuple[type, ...]] = {"context": str, "input": str, "answer": (list, str, int, float)}
LETTERS = "ABCD"

TOKENS = {
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_qa_chn": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30000,
    "code_run": 5,
    "code_debug": 5,
}
"""New tokens by dataset, the released numbers."""

_OPTIONS = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n\n"
_HIDDEN = "Somewhere in the text below one important {what} is hidden. Keep it in mind: you are asked for it below.\n\n"
PROMPTS = {
    "passkey": _HIDDEN.format(what="pass key") + "{context}\n\n{input}\n\nThe pass key is",
    "number_string": _HIDDEN.format(what="sequence of digits") + "{context}\n\n{input}\n\nThe sequence of digits is",
    "kv_retrieval": "Below is a JSON object; give the value that belongs to a key.\n\n{context}\n\n{input}",
    "longbook_sum_eng": "Below is a book; write its summary.\n\n{context}\n\nThe summary of the book:",
    "longbook_choice_eng": "Below are a book and a question on it.\n\n{context}\n\nQuestion: {question}\n"
    + _OPTIONS
    + "The letter of the right answer is",
    "longbook_qa_eng": "Below are a book and a question on it; answer in a few words.\n\n{context}\n\n"
    "Question: {question}\nAnswer:",
    "longbook_qa_chn": "下面是一本书，读后请简短作答。\n\n{context}\n\n问题：{question}\n答案：",
    "longdialogue_qa_eng": "In the script below the name of one speaker was replaced with $$MASK$$ in one place.\n\n"
    "{context}\n\nThe name in the place of $$MASK$$ is",
    "math_find": "{prefix}\n\n{context}\n\n{input}",
    "math_calc": "Give the value after each step of a sum, from left to right.\n\nSum: 2 + 5 - 4\nValues: [2, 7, 3]\n\n"
    "Sum: 9 - 1 + 6 + 3\nValues: [9, 8, 14, 17]\n\nSum: {context}\nValues:",
    "code_run": "The Python code below defines a function {func}.\n\n{context}\n\n"
    "Work out what {func_call} returns. The value of {func_call} is",
    "code_debug": "In the Python code below exactly one function has an error put in on purpose.\n\n{context}\n\n"
    "Which one is it?\n" + _OPTIONS + "The letter of the function is",
}


@dataclass(frozen=True, kw_only=True)
class InfiniteBench:
    """The questions of the files at `path`."""

    path: str
    datasets: tuple[str, ...] = ()
    """Those of these names (`passkey`); without, all that are found."""
    questions_each: int = 0
    """So many questions of each file at most; 0 takes all."""
    length: int = 0
    """Tokens at most, prompt and answer; longer prompts lose their middle, as in the released code. 0 cuts nothing."""
    prompts: str = ""

    def files(self) -> list[Path]:
        """The files to read, in order. FactoryError where there is none."""
        path = Path(self.path)
        if not path.exists():
            raise FactoryError(f"{path}: no such file or folder: give a folder of {SOURCE}")
        for dataset in self.datasets:
            if dataset not in PROMPTS:
                known = f"{nearest(dataset, PROMPTS)}; datasets: {', '.join(PROMPTS)}"
                raise FactoryError(f"infinitebench.datasets: no {dataset!r}{known}")
        if path.is_dir():
            found = [path / f"{dataset}.jsonl" for dataset in PROMPTS if dataset in (self.datasets or PROMPTS)]
            found = [file for file in found if self.datasets or file.is_file()]
        else:
            found = [path]
        if not found:
            raise FactoryError(f"{path}: no file of InfiniteBench (passkey.jsonl, …): give a folder of {SOURCE}")
        if found[0].stem not in PROMPTS:
            raise FactoryError(f"{path}: a file of InfiniteBench is named as its dataset: {', '.join(PROMPTS)}")
        return found

    def questions(self, tokenizer: Tokenizer) -> Iterator[Question]:
        forms = templates(PROMPTS, self.prompts)
        for file in self.files():
            dataset = file.stem
            if dataset == "longbook_sum_eng":
                metrics.imported("rouge_score.rouge_scorer", "rouge-score")  # told now, not when the answers are there
            if 0 < self.length <= TOKENS[dataset]:
                raise FactoryError(
                    f"infinitebench: {dataset} has answers of {TOKENS[dataset]:,} tokens, which a length of "
                    f"{self.length:,} has no room for: leave it out of infinitebench.datasets"
                )
            for count, (line, row) in enumerate(rows(file, FIELDS, SOURCE)):
                if self.questions_each and count == self.questions_each:
                    break
                where = f"{file}, line {line}"
                prompt = fill(forms[dataset], _values(dataset, row, where), dataset)
                if self.length:
                    prompt = cut_middle(tokenizer, prompt, self.length - TOKENS[dataset])
                yield Question(
                    task="infinitebench",
                    subtask=dataset,
                    id=f"{dataset}:{row.get('id', line)}",
                    prompt=prompt,
                    answers=_answers(dataset, row, where),
                    tokens=TOKENS[dataset],
                    length=self.length,
                )

    def score(self, answer: str, question: Question) -> float:
        """The released metric of the dataset."""
        return float(SCORES[question.subtask](answer, question.answers))


def _values(dataset: str, row: dict[str, Any], where: str) -> dict[str, str]:
    """What the templates may name."""
    asked = row["input"]
    values = {"context": row["context"], "input": asked, "question": asked}
    if dataset in ("longbook_choice_eng", "code_debug"):
        options = row.get("options")
        if not isinstance(options, list) or len(options) != len(LETTERS):
            raise FactoryError(f"{where}: field 'options' is not a list of {len(LETTERS)}")
        values |= {f"OPTION_{letter}": option for letter, option in zip(LETTERS, options, strict=True)}
    elif dataset == "code_run":
        call = re.search(r"(\w+)\(-?[0-9]+\)", asked)
        if call is None:
            raise FactoryError(f"{where}: field 'input' has no call such as func_1(2)")
        values |= {"func": call[1], "func_call": call[0]}
    elif dataset == "math_find":
        # The question stands before the list too: "The largest number of the list is:" asks for the largest number.
        sought = re.search(r"The (.+?) of ", asked) or re.search(r"The (\w+ number)", asked)
        if sought is None:
            raise FactoryError(f"{where}: field 'input' does not name a number to find, as 'The largest number of …'")
        values["prefix"] = f"What is the {sought[1].lower()} in the following list?"
    return values


def _answers(dataset: str, row: dict[str, Any], where: str) -> tuple[str, ...]:
    """What scoring needs, as strings: the numbers of math_calc in order, of a choice the text and its letter."""
    found = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    if dataset == "math_calc" and found and isinstance(found[0], list):
        found = found[0]
    answers = tuple(str(one) for one in found)
    if not answers:
        raise FactoryError(f"{where}: field 'answer' is empty")
    if dataset in ("longbook_choice_eng", "code_debug"):
        if answers[0] not in row["options"]:
            raise FactoryError(f"{where}: the answer {answers[0]!r} is none of the options")
        return answers[0], LETTERS[row["options"].index(answers[0])]
    if dataset in ("math_find", "math_calc", "code_run"):
        for one in answers:
            if _number(one) is None:
                raise FactoryError(f"{where}: field 'answer' has {one!r}, which is no number")
    return answers


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _spaced(text: str, marks: str) -> str:
    """The text with a space for each of the marks."""
    return text.translate({ord(mark): " " for mark in marks})


def _key_value(answer: str, truths: tuple[str, ...]) -> bool:
    return truths[0] in _spaced(answer, "\n:\"'.,?!{}").split()


def _digits(answer: str, truths: tuple[str, ...]) -> bool:
    return metrics.first_digits(answer) == truths[0]


def _code_run(answer: str, truths: tuple[str, ...]) -> bool:
    """The last word is the number."""
    last = _spaced(answer, "\n.`'\":").split()[-1:]
    return bool(last) and re.fullmatch("[+-]?[0-9]+", last[0]) is not None and float(last[0]) == float(truths[0])


def _math_find(answer: str, truths: tuple[str, ...]) -> bool:
    found = re.search(r"\d+\.\d+|\d+", answer)
    return found is not None and float(found.group()) == float(truths[0])


def _math_calc(answer: str, truths: tuple[str, ...]) -> float:
    """The share of the values that are right before the first wrong one."""
    right = 0
    for said, truth in zip(re.findall("[0-9]+", answer), truths, strict=False):
        if float(said) != float(truth):
            break
        right += 1
    return right / len(truths)


def _last_letter(answer: str, letters: str) -> str:
    """The last of these capitals that stands alone in the first line that has one."""
    for line in answer.split("\n"):
        if found := re.findall(rf"\b[{letters}]\b", line):
            return str(found[-1])
    return ""


def _after(answer: str, phrases: tuple[str, ...]) -> str | None:
    """What follows the first of the phrases that occurs, after one more character; None where none does."""
    for phrase in phrases:
        _, found, rest = answer.partition(phrase)
        if found:
            return rest[1:]
    return None


def _choice(answer: str, truths: tuple[str, ...]) -> bool:
    """The letter or the text of the right option. Without a letter standing alone that is right: the first character,
    what follows "answer is" and the like, else the first word that is a letter."""
    answer = answer.strip()
    if _last_letter(answer, "A-D") in truths:
        return True
    if not answer or answer[0] in LETTERS:
        return answer[:1] in truths
    if answer in truths:
        return True
    answer = re.sub(" +", " ", _spaced(answer, "\n\"'.,?!{}"))
    rest = _after(answer, ("answer is:", "answer:", "answer is", "option is"))
    if rest is not None:
        return rest.startswith(truths)
    return next((word for word in answer.split() if word in LETTERS), None) in truths


def _code_debug(answer: str, truths: tuple[str, ...]) -> bool:
    """The letter or the name of the function."""
    answer = answer.strip()
    if _last_letter(answer, "A-J") == truths[1]:
        return True
    answer = _spaced(answer, "\n`'\"-*").replace("Option", " ").replace("option", " ")
    answer = re.sub(" +", " ", answer)
    rest = _after(answer, ("answer is:", "is:", "answer:", "correct option is:"))
    return answer.startswith(truths) or (rest is not None and rest.startswith(truths))


def _dialogue(answer: str, truths: tuple[str, ...]) -> bool:
    return any(truth.upper() in answer.upper() for truth in truths)


def _book(answer: str, truths: tuple[str, ...]) -> float:
    return max(metrics.f1(metrics.words(answer), metrics.words(truth)) for truth in truths)


def _book_chinese(answer: str, truths: tuple[str, ...]) -> float:
    """Over characters, not words."""
    said = metrics.normalise_chinese(answer)
    return max(metrics.f1(said, metrics.normalise_chinese(truth)) for truth in truths)


SCORES: dict[str, Callable[[str, tuple[str, ...]], float]] = {
    "passkey": _digits,
    "number_string": _digits,
    "kv_retrieval": _key_value,
    "longbook_sum_eng": metrics.rouge_lsum,
    "longbook_choice_eng": _choice,
    "longbook_qa_eng": _book,
    "longbook_qa_chn": _book_chinese,
    "longdialogue_qa_eng": _dialogue,
    "math_find": _math_find,
    "math_calc": _math_calc,
    "code_run": _code_run,
    "code_debug": _code_debug,
}

TASK = InfiniteBench
