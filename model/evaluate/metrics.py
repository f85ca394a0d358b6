"""The scores of the long-context benchmarks, each as its benchmark defines it. All are 0 to 1.

Checked at the released code: LV-Eval (github.com/infinigence/LVEval, metrics.py), InfiniteBench (OpenBMB/InfiniteBench,
src/compute_scores.py), NeedleBench (open-compass/opencompass, opencompass/datasets/needlebench and needlebench_v2).
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from factory.engine.errors import FactoryError

_ASCII = set(string.punctuation)
# Full-width and CJK punctuation, dashes and quotes: what both LV-Eval and InfiniteBench take out of Chinese.
_CHINESE = _ASCII | set(
    "！＂＃＄％＆＇（）＊＋，－／：；＜＝＞？＠［＼］＾＿｀｛｜｝～｟｠"
    "｡｢｣､、。〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏"
)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the; words one space apart (SQuAD's rule)."""
    kept = "".join(character for character in text.lower() if character not in _ASCII)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def normalise_chinese(text: str) -> str:
    """Lower case, without punctuation of either script and without white space."""
    return "".join("".join(character for character in text.lower() if character not in _CHINESE).split())


def words(text: str) -> list[str]:
    """English words as they are compared: normalised, then split at spaces."""
    return normalise(text).split()


def words_chinese(text: str) -> list[str]:
    """Words as jieba cuts them, normalised, without empty ones (LV-Eval)."""
    return [word for word in map(normalise_chinese, _cut(text)) if word]


def f1(answer: Sequence[str], truth: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the tokens, counted with repetition; 0 where none is shared."""
    same = (Counter(answer) & Counter(truth)).total()
    if not same:
        return 0.0
    precision, recall = same / len(answer), same / len(truth)
    return 2 * precision * recall / (precision + recall)


def keyword_recall(answer: Sequence[str], keywords: Sequence[str], without: Collection[str]) -> float:
    """The share of the keywords that is found in the answer; a word in `without` never counts as found (LV-Eval)."""
    found = Counter(answer) & Counter(keywords)
    return sum(count for word, count in found.items() if word not in without) / len(keywords)


def rouge_l(answer: Sequence[str], truth: Sequence[str]) -> float:
    """ROUGE-L as the package rouge 1.0 has it, which LV-Eval uses: over the distinct words of one longest common
    subsequence, of the answer and of the truth."""
    common = len(set(_longest_common(truth, answer)))
    if not common:
        return 0.0
    precision, recall = common / len(set(answer)), common / len(set(truth))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence. Of several, the one that is found from the end, going back in `other` on a tie."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one, 1):
        for j, right in enumerate(other, 1):
            if left == right:
                table[i][j] = table[i - 1][j - 1] + 1
            else:
                table[i][j] = max(table[i - 1][j], table[i][j - 1])
    found, i, j = [], len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            found.append(one[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def rouge_lsum(answer: str, truths: Sequence[str]) -> float:
    """ROUGE-Lsum (lines are sentences) without stemming, the best over the truths, as Hugging Face's `evaluate`."""
    scorer = imported("rouge_score.rouge_scorer", "rouge-score").RougeScorer(["rougeLsum"], use_stemmer=False)
    return float(scorer.score_multi(list(truths), answer)["rougeLsum"].fmeasure)


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: the least number of characters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def edit_score(answer: str, truth: str) -> float:
    """1 minus the edit distance as a share of the longer text, white space apart (NeedleBench 1)."""
    answer, truth = "".join(answer.split()), "".join(truth.split())
    longer = max(len(answer), len(truth))
    return 1 - edit_distance(answer, truth) / longer if longer else 1.0


def boxed(answer: str) -> str:
    r"""What the last \boxed{…} holds, with LaTeX's marks, quotes and doubled spaces taken out; "" where there is none.

    NeedleBench 2 compares this with the name asked for.
    """
    start = answer.rfind("\\boxed{")
    if start < 0:
        return ""
    depth, begin = 0, start + len("\\boxed")
    for end in range(begin, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[end], 0)
        if not depth:
            break
    else:
        return ""
    held = re.sub(r"\\text\{([^}]*)\}", r"\1", answer[begin + 1 : end])
    held = re.sub(r"[\\\"'{}]", "", held).replace("~", " ")
    return " ".join(held.split())


def first_digits(answer: str) -> str:
    """The first run of digits, "" where there is none."""
    found = re.search("[0-9]+", answer)
    return found.group() if found else ""


def _cut(text: str) -> list[str]:
    return list(imported("jieba", "jieba").lcut(text))


def words_chinese_twice(text: str, without: Collection[str]) -> list[str]:
    """Words that are cut, joined by spaces and cut again, normalised, without those in `without`: what LV-Eval
    compares for dureader."""
    again = map(normalise_chinese, _cut(" ".join(_cut(text))))
    return [word for word in again if word and word not in without]


@functools.cache
def imported(module: str, package: str) -> Any:
    """A module of a package that only some scores need. FactoryError where it is not installed."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise FactoryError(f"this score needs the package {package}: pip install 'factory[evaluate]'") from error
    if module == "jieba":
        found.setLogLevel(logging.WARNING)
    return found
