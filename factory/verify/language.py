"""The language of an answer, whether it is all of it, whether it runs in circles, refuses, or has the right length.

Every check passes where all is well, so that each can be a reward as it is. Languages are named as lid.176 names them
(`factory.verify.prose`).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import regex

from factory.engine.errors import FactoryError
from factory.kernels.fasttext import classify
from factory.verify.check import Check
from factory.verify.prose import LIBRARIES as PROSE
from factory.verify.prose import close, code_of, model, near, outside, prose, script_of, scripts, words_only, written
from factory.verify.refusals import refusal
from factory.verify.structure import SIZE, Malformed, bounded, shown

LIBRARIES = (*PROSE, "tokenizers")
CERTAIN, VERY, MOST = 0.7, 0.9, 0.97
"""The probability from which a sentence counts as one in another language; where it is short; in a neighbour's."""
SHORT, TINY = 30, 20
"""Letters below which a text is short, and below which its script alone is looked at."""
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_LETTER = regex.compile(r"\p{L}")


def ready() -> None:
    """Raises `FactoryError` where lid.176 is not installed."""
    model()


def _letters(text: str) -> int:
    """Letters of a text; one of a script that writes syllables or words with a letter counts as three."""
    return len(_LETTER.findall(text)) + 2 * len(_DENSE.findall(text))


def _label(texts: list[str]) -> list[tuple[str, float]]:
    """The language of each text and its probability; none where it is written in another script than that language.

    Han without a kana is Chinese, also where the model takes it for Japanese.
    """
    labels = []
    for text, (label, score) in zip(texts, classify([words_only(text) for text in texts], model()), strict=True):
        if label == "ja" and not _KANA.search(text):
            label = "zh"
        labels.append((label, score) if written(text, label) else ("", 0.0))
    return labels


_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")


def is_language(response: str, language: str) -> Check:
    """Whether an answer is in a language, as a whole; code, LaTeX, addresses and short quotations are left out.

    Of less than 20 letters the script must fit, and nothing else is asked. Languages that the model cannot tell apart
    (Croatian and Serbian in Latin letters, Indonesian and Malay) pass for each other. Raises `FactoryError` for one
    that the model does not know.
    """
    code = code_of(language)
    try:
        text = prose(bounded(response))
    except Malformed as error:
        return Check(False, str(error))
    if not response.strip():
        return Check(False, "empty")
    count = _letters(text)
    if not count:
        return Check(True, "no words to judge by")
    foreign = sum(_letters(run[0]) for run in outside(scripts(code)).finditer(text))
    if 2 * foreign > count and (scripts(code) == ("Latin",) or count - foreign == 0 or count < TINY):
        return Check(False, f"most letters are not {' or '.join(scripts(code))}")
    if count < TINY:
        return Check(True, "too short to judge by more than its script")
    ((label, score),) = _label([text])
    if label in near(code) or (close(code, label) and score < CERTAIN):
        return Check(True)
    return Check(False, f"{label} ({score:.2f})" if label else "no language that the model knows")


@dataclass(frozen=True)
class Span:
    """A part of an answer in another language or script: where, and what it is (`zh`, `Cyrillic`)."""

    start: int
    end: int
    language: str


# Each mark and word begins where none like it is before: else every place in a long run would be tried.
_END = re.compile(r"(?<![.!?…؟।])[.!?…؟।]++(?=\s)|[。！？]+|\n+|\Z")
_PIECE = re.compile(r"\S.{0,250}(?=\s|\Z)|\S.{0,250}")
_LATIN = regex.compile(
    r"(?<![\p{Latin}\p{M}'’-])\p{Latin}[\p{Latin}\p{M}'’-]*+(?:[ ,;:.–-]{1,3}\p{Latin}[\p{Latin}\p{M}'’-]*+){4,}"
)
"""Five Latin words in a row: in a language of another script more than a name."""


def foreign(response: str, language: str) -> list[Span]:
    """The parts of an answer in another language or script, in order.

    By script: runs of at least 2 letters that the language is not written with, unless in brackets of their own;
    Latin letters may be in any text, but five Latin words in a row are judged as a sentence is. By sentence: those
    that the model takes for another language with a probability of at least 0.7 (0.9 below 30 letters, never below
    20; 0.97 for a neighbour as Danish is of Norwegian). Code, LaTeX, addresses and short quotations are left out.
    """
    code = code_of(language)
    own = scripts(code)
    text = prose(bounded(response))
    spans, blank = [], []
    for run in outside(tuple(dict.fromkeys((*own, "Latin")))).finditer(text):
        start, end = run.span()
        blank.append((start, end))
        glossed = text[max(start - 2, 0) : start].rstrip()[-1:] in ("(", "（") and text[end : end + 1] in (")", "）")
        if not glossed and len(_LETTER.findall(run[0])) >= 2:
            spans.append(Span(start, end, script_of(run[0])))
    text = _without(text, blank)
    asked = [] if "Latin" in own else [match.span() for match in _LATIN.finditer(text)]
    asked += _sentences(_without(text, asked))
    for (start, end), (label, score) in zip(asked, _label([text[start:end] for start, end in asked]), strict=True):
        certain = CERTAIN if _letters(text[start:end]) >= SHORT else VERY
        if label not in near(code) and score >= (MOST if close(code, label) else certain):
            spans.append(Span(start, end, label))
    return sorted(spans, key=lambda span: span.start)


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with spaces in the place of spans, which are in order."""
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], " " * (end - start)]
        at = end
    return "".join(parts) + text[at:]


def _sentences(text: str) -> list[tuple[int, int]]:
    """Where sentences are that are long enough to judge; a very long one is cut into pieces of 250 characters."""
    found, at = [], 0
    for end in _END.finditer(text):
        for piece in _PIECE.finditer(text, at, end.end()):
            if _letters(piece[0]) >= TINY:
                found.append(piece.span())
        at = end.end()
    return found


def not_mixed(response: str, language: str) -> Check:
    """Whether all of an answer is in one language, as `foreign` finds; the first part that is not is the reason."""
    try:
        spans = foreign(response, language)
    except Malformed as error:
        return Check(False, str(error))
    if not spans:
        return Check(True)
    first = spans[0]
    more = f" and {len(spans) - 1} more" if len(spans) > 1 else ""
    return Check(False, f"{first.language}: {shown(response[first.start : first.end])}{more}")


# Degeneration

LINES, ROUNDS, MIDDLE, RATIO, SENTENCE = 6, 4, 8, 10.0, 600
"""Equal lines, rounds of a loop at the end and elsewhere, compression, words without an end: from here too many."""
_TOKEN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|[\w'’]+|[^\w\s]")
_SAME = re.compile(r"([^\s\-=_*.#~|+/\\])\1{59,}|(.)\2{999,}", re.DOTALL)
_PERIOD = re.compile(r"([^\W\d_]{2,20}?)\1{15,}")
_STOP = re.compile(r"[.!?…؟।。！？;:；：\n]")


def loop(tokens: list[Any]) -> tuple[int, int]:
    """How the end of a list goes in circles: the length of a round, and how often it comes; (0, 1) where it does not.

    The shortest period whose rounds cover most is taken. Z-algorithm (Gusfield 1997, section 1.4) on the reverse.
    """
    text = tokens[::-1]
    size, z, left, right = len(text), [0] * len(text), 0, 0
    best = (0, 1)
    for at in range(1, size):
        here = min(right - at, z[at - left]) if at < right else 0
        while at + here < size and text[here] == text[at + here]:
            here += 1
        z[at] = here
        if at + here > right:
            left, right = at, at + here
        times = here // at + 1
        if times > 1 and times * at > best[0] * best[1]:
            best = (at, times)
    return best


def circles(tokens: list[str]) -> tuple[int, int, int]:
    """The longest loop with a round of up to 40 tokens, one of them a word: where, the length of a round, how often."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(token, len(numbers)) for token in tokens])
    best = (0, 0, 1)
    for size in range(1, min(40, len(ids) // 2) + 1):
        ends = np.flatnonzero(np.concatenate(([True], ids[size:] != ids[:-size], [True])))
        lengths = np.diff(ends) - 1
        longest = int(lengths.argmax())
        start, total = int(ends[longest]), int(lengths[longest]) + size
        if (
            total > best[1] * best[2]
            and total >= 2 * size
            and any(token[0].isalpha() for token in tokens[start : start + size])
        ):
            best = (start, size, total // size)
    return best


def not_degenerate(response: str) -> Check:
    """Whether an answer is free of repetition without end.

    Not passed: one character 60 times in a row (of rules, dots and spaces 1,000), a syllable 16 times; the same line of
    8 letters or more 6 times and in a third of all lines; an end that comes round 4 times in 24 words or more (marks
    with spaces between: 60), the last one cut off or not; a loop of 8 rounds and 40 words anywhere; more than half of
    all 6-grams of words seen before; 1,000 bytes of words that zlib makes 10 times smaller; 600 words without the
    end of a sentence or line.
    """
    try:
        text = bounded(response)
    except Malformed as error:
        return Check(False, str(error))
    if found := _SAME.search(text) or _PERIOD.search(text):
        same = found[found.lastindex or 0]
        return Check(False, f"{shown(same)} {len(found[0]) // len(same)} times in a row")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line, times = Counter(lines).most_common(1)[0] if lines else ("", 0)
    if times >= LINES and 3 * times >= len(lines) and _letters(line) >= 8:
        return Check(False, f"the line {shown(line)} {times} times")
    tokens = _TOKEN.findall(text)
    for end in (tokens[-4000:], tokens[-4000:-1]):  # the last word may be cut off
        size, times = loop(end)
        spaced = text[-100:].count(" ") >= 25  # a rule of dashes has none between
        wordy = any(token[0].isalnum() for token in end[-size:])
        if times >= ROUNDS and size * times >= (24 if wordy else 60 if spaced else SIZE):
            return Check(False, f"the end goes round {times} times: {shown(' '.join(end[-size:]))}")
    start, size, times = circles(tokens)
    if times >= MIDDLE and size * times >= 40:
        return Check(False, f"goes round {times} times: {shown(' '.join(tokens[start : start + size]))}")
    words = [token for token in tokens if token[0].isalnum()]
    if len(words) >= 40:
        grams = [hash(gram) for gram in zip(*(words[k:] for k in range(6)), strict=False)]
        if 2 * len(set(grams)) < len(grams):
            gram, times = Counter(grams).most_common(1)[0]
            at = grams.index(gram)
            return Check(False, f"more than half is repeated, {shown(' '.join(words[at : at + 6]))} {times} times")
    data = " ".join(words).encode()
    if len(data) >= 1000 and (ratio := len(data) / len(zlib.compress(data))) > RATIO:
        return Check(False, f"compresses {ratio:.1f} times")
    if len(words) > SENTENCE:
        longest = max(_STOP.split(text), key=len)
        if (count := len(_TOKEN.findall(longest))) > SENTENCE:
            return Check(False, f"{count} words without the end of a sentence")
    return Check(True)


# Refusals


def not_refused(response: str, language: str = "en") -> Check:
    """Whether an answer does not begin with a refusal, by rules for its language and English; the words are the
    reason. `FactoryError` for a language without rules; see `factory.verify.refusals`."""
    found = refusal(response, language)
    return Check(not found, f"refuses: {shown(found)}" if found else "")


# Length


@lru_cache(maxsize=8)
def _tokenizer(folder: str) -> Any:
    from tokenizers import Tokenizer

    path = Path(folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise FactoryError(f"{path}: no tokenizer; give a folder with tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other kind
        raise FactoryError(f"{path}: no tokenizer: {error}; give a folder with tokenizer.json") from None


def length(
    response: str, minimum: int = 0, maximum: int | None = None, tokenizer: str = "", unit: str = "words"
) -> Check:
    """Whether an answer has from `minimum` to `maximum` tokens, as the tokenizer in a folder (tokenizer.json) counts.

    Without a tokenizer, `words` (a letter each in scripts without spaces) or `characters`, as `unit` says. Raises
    `FactoryError` for another unit, where no tokenizer is found, and where nothing has such a length.
    """
    if maximum is not None and minimum > maximum:
        raise FactoryError(f"length: minimum = {minimum} is more than maximum = {maximum}")
    if tokenizer:
        count, unit = len(_tokenizer(tokenizer).encode(response, add_special_tokens=False).ids), "tokens"
    elif unit == "words":
        count = sum(1 for token in _TOKEN.findall(response) if token[0].isalnum())
    elif unit == "characters":
        count = len(response)
    else:
        raise FactoryError(f"length: no unit {unit!r}: words, characters, or tokens of a `tokenizer`")
    wanted = f"at least {minimum}" if count < minimum else f"at most {maximum}"
    if count < minimum or (maximum is not None and count > maximum):
        return Check(False, f"{count} {unit}, {wanted} are asked for")
    return Check(True)
