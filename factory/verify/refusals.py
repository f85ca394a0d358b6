"""Refusals by rule: which words, at the beginning of an answer, decline what was asked.

Data for training must not lose answers that only sound like refusals ("I can't help but notice"), so a rule asks for
more than an inability: for what is not done, or for a word of regret, or for a plain refusal. The words are in
`refusals.toml` beside this file.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

from factory.engine.errors import FactoryError, nearest

BEGINNING = 240
"""Characters in which a refusal must begin: further on it may stand in a story or a quotation."""
_PLAIN = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"'})
# A quotation, or a letter that was asked for: what these decline is not the request.
_LETTER = re.compile(r'["«„「]|\W*(?:subject|dear|title|betreff|objet|asunto|主题|尊敬的)\b')
_SAME_SENTENCE = r"[^.!?。！？।؟]"


@lru_cache(maxsize=1)
def rules() -> dict[str, list[re.Pattern[str]]]:
    """The rules of each language, by its ISO 639-1 code."""
    tables = tomllib.loads(Path(__file__).with_name("refusals.toml").read_text("utf-8"))
    return {code: _compiled(table) for code, table in tables.items()}


def _compiled(table: dict[str, Any]) -> list[re.Pattern[str]]:
    sorry, cannot, do, plain = (f"(?:{'|'.join(table[name])})" for name in ("sorry", "cannot", "do", "plain"))
    between = f"{_SAME_SENTENCE}{{0,{table['gap']}}}?"
    found = [f"{cannot}{between}{do}", f"{sorry}{_SAME_SENTENCE}{{0,100}}?{cannot}(?! help but)", plain]
    if table.get("verb_last"):
        found.append(f"{do}{between}{cannot}")
    return [re.compile(rule) for rule in found]


def refusal(response: str, language: str = "en") -> str:
    """The words with which an answer declines, empty where it does not; by the rules of its language and of English.

    A region behind the language (`pt-BR`) is left out. `FactoryError` where there are no rules for it.
    """
    code = language.lower().replace("_", "-").partition("-")[0]
    if code not in rules():
        raise FactoryError(
            f"language {language!r}: no rules of refusal{nearest(code, rules())}; there are {[*rules()]}"
        )
    start = unicodedata.normalize("NFC", response[: 4 * BEGINNING]).translate(_PLAIN).lower()
    start = " ".join(start.split())
    if _LETTER.match(start):
        return ""
    for rule in (*rules()[code], *(rules()["en"] if code != "en" else ())):
        found = rule.search(start)
        if found and found.start() < BEGINNING:
            return found[0]
    return ""
