"""LV-Eval (arXiv 2402.05136): questions over 16k to 256k words with confusing facts, English and Chinese.

    python -m model.evaluate CHECKPOINT lveval lveval.path=LVEval lveval.length=32768 out=FOLDER

`path` is a folder of the released files (`hotpotwikiqa_mixup_16k.jsonl`, …) or one of them. Scores are the released
metrics: token F1, for most datasets only where enough of the annotated keywords are in the answer, and ROUGE-L for
dureader. The prompts have the released form (instruction, article, instruction, question) in words of our own; the
released wording is given with `prompts=FILE.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.engine.errors import FactoryError, nearest
from model.evaluate import metrics
from model.evaluate.files import cut_middle, fill, rows, templates
from model.evaluate.task import Question

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCE = "LV-Eval (huggingface.co/datasets/infini-ai/LVEval)"
FIELDS: dict[str, type] = {"input": str, "context": str, "answers": list}
NAME = re.compile(r"(?P<dataset>.+)_(?P<level>[0-9]{1,3}k)")

_ENGLISH = (
    "Below are passages; the answer to a question lies in {where}. Reply with the answer alone, no explanation.\n\n"
    "Article: {{context}}\n\n"
    "The question is about the passages above; its answer lies in {where}. Reply with the answer alone.\n\n"
    "Question: {{input}}\nAnswer:"
)
_CHINESE = (
    "阅读下面的文章并回答问题，答案只在其中一篇里。{short}\n\n文章：{{context}}\n\n"
    "根据以上文章回答问题，答案只在其中一篇里。{short}\n\n问题：{{input}}\n回答："
)
_ONE = _ENGLISH.format(where="one of them")
_LONG = _CHINESE.format(short="")
PROMPTS = {
    "hotpotwikiqa_mixup": _ENGLISH.format(where="some of them"),
    "loogle_SD_mixup": _ONE,
    "loogle_CR_mixup": _ONE,
    "loogle_MIR_mixup": _ONE,
    "multifieldqa_en_mixup": _ONE,
    "multifieldqa_zh_mixup": _CHINESE.format(short="只写答案，不作解释。"),
    "factrecall_en": "Read the article and answer.\n\nArticle: {context}\n\nAnswer from the article above.\n\n"
    "Question: {input}\nAnswer:",
    "factrecall_zh": "阅读文章后作答。\n\n文章：{context}\n\n请根据上面的文章作答。\n\n问题：{input}\n回答：",
    "cmrc_mixup": _LONG,
    "lic_mixup": _LONG,
    "dureader_mixup": _LONG,
}
CHINESE = {"multifieldqa_zh_mixup", "factrecall_zh", "cmrc_mixup", "lic_mixup", "dureader_mixup"}
RECALL = {"en": 0.2, "zh": 0.4}
"""The share of the keywords below which an answer has the score 0."""

BLACKLIST = {
    language: frozenset(some)
    for language, some in json.loads(Path(__file__).with_name("lveval_blacklist.json").read_text("utf-8")).items()
}
"""Words that never count as a keyword found, by language: the released lists."""


@dataclass(frozen=True, kw_only=True)
class LVEval:
    """The questions of the files at `path`."""

    path: str
    datasets: tuple[str, ...] = ()
    """Those of these names (`factrecall_en`); without, all that are found."""
    levels: tuple[str, ...] = ()
    """Those of these lengths in words (`16k`); without, all."""
    questions_each: int = 0
    """So many questions of each file at most; 0 takes all."""
    length: int = 0
    """Tokens at most, prompt and answer; longer prompts lose their middle, as in the released code. 0 cuts nothing."""
    prompts: str = ""

    def files(self) -> list[tuple[Path, str]]:
        """The files to read and the dataset of each, in order. FactoryError where there is none."""
        path = Path(self.path)
        if not path.exists():
            raise FactoryError(f"{path}: no such file or folder: give a folder of {SOURCE}")
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        for dataset in self.datasets:
            if dataset not in PROMPTS:
                known = f"{nearest(dataset, PROMPTS)}; datasets: {', '.join(PROMPTS)}"
                raise FactoryError(f"lveval.datasets: no {dataset!r}{known}")
        chosen = []
        for file in found:
            name = NAME.fullmatch(file.stem)
            if name is None or name["dataset"] not in PROMPTS:
                if path.is_dir():
                    continue
                raise FactoryError(f"{file}: a file of LV-Eval has the name DATASET_LEVEL.jsonl: keep the released one")
            if name["dataset"] in (self.datasets or PROMPTS) and name["level"] in (self.levels or (name["level"],)):
                chosen.append((file, name["dataset"]))
        if not chosen:
            raise FactoryError(f"{path}: no file of LV-Eval that is asked for: give a folder of {SOURCE}")
        return chosen

    def questions(self, tokenizer: Tokenizer) -> Iterator[Question]:
        forms = templates(PROMPTS, self.prompts)
        if any(dataset in CHINESE for _, dataset in self.files()):
            metrics.imported("jieba", "jieba")  # told now, not when the answers are there
        for file, dataset in self.files():
            tokens = 16 if dataset.startswith("factrecall") else 64
            for count, (line, row) in enumerate(rows(file, FIELDS, SOURCE)):
                if self.questions_each and count == self.questions_each:
                    break
                if not row["answers"] or not all(isinstance(one, str) for one in row["answers"]):
                    raise FactoryError(f"{file}, line {line}: field 'answers' is not a list of one string or more")
                keywords = row.get("answer_keywords") or ""
                keywords = keywords if isinstance(keywords, str) else " ".join(keywords)
                prompt = fill(forms[dataset], row, dataset)
                if self.length:
                    prompt = cut_middle(tokenizer, prompt, self.length - tokens)
                yield Question(
                    task="lveval",
                    subtask=file.stem,
                    id=f"{file.stem}:{line}",
                    prompt=prompt,
                    answers=tuple(row["answers"]),
                    tokens=tokens,
                    length=self.length,
                    details={
                        "dataset": dataset,
                        "keywords": keywords if isinstance(keywords, str) else " ".join(keywords),
                    },
                )

    def score(self, answer: str, question: Question) -> float:
        """The released metric of the dataset, against the first answer, as in the released code."""
        dataset, truth = question.details["dataset"], question.answers[0]
        if dataset == "dureader_mixup":
            one, other = (metrics.words_chinese_twice(text, BLACKLIST["zh"]) for text in (answer, truth))
            return metrics.rouge_l(one, other)
        language = "zh" if dataset in CHINESE else "en"
        cut = metrics.words_chinese if dataset in CHINESE else metrics.words
        said, expected = cut(answer), cut(truth)
        if not dataset.startswith("factrecall"):
            # Chinese answers without annotated keywords are held against the whole truth, English ones against none.
            keywords = cut(question.details["keywords"] or (truth if language == "zh" else ""))
            if keywords and metrics.keyword_recall(said, keywords, BLACKLIST[language]) < RECALL[language]:
                return 0.0
        return metrics.f1(said, expected)


TASK = LVEval
