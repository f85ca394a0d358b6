"""What instructions count in a text: sentences, words, capital words, and the language that it is in."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from factory.engine.errors import FactoryError

if TYPE_CHECKING:
    from langdetect.detector_factory import DetectorFactory

_ABBREVIATED = """
adm al apr ariz aug ave bros calif capt co col colo conn corp ct dec dept dr e.g est etc feb fig fla fri ft gen gov hon
i.e inc jan jr jul jun lt ltd maj mass messrs mich minn mon mr mrs ms mt nov oct okla ph.d prof prop pt rep rev sen sep
sept sgt sr st tenn tex thu thurs tue tues univ vol vs
"""
_OPENING, _CLOSING = "\"'`([{*_“‘«", "\"'`)]}*_:;”’»"
# Words that seldom follow an abbreviation but begin a sentence.
_BEGIN = """
a after also although an and as at but by finally for he her here his how however i i'm if in it it's its let let's my
no not now on our remember she so some that the their there these they this those to we what when where while who why
you your
"""
_ABBREVIATIONS, _BEGINNINGS = frozenset(_ABBREVIATED.split()), frozenset(_BEGIN.split())
_WORD = re.compile(r"\w+")
# A piece between apostrophes is a word, as treebanks cut contractions: `I'M` is two.
_PIECE = re.compile(r"[^\s\"'`’“”()\[\]{}<>,:;!?]+")
_SOLID = re.compile(r"[\w.?!]")
_DOTTED = re.compile(r"(?:\w\.)+\w")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return _WORD.findall(text)


def capital_words(text: str) -> list[str]:
    """Words in capitals, also such as `A`, `NATO`, `COVID-19`, `5G`."""
    return [piece for piece in _PIECE.findall(text) if piece.isupper()]


def sentences(text: str) -> int:
    """How many sentences an English text has, much as the Punkt tokenizer (Kiss and Strunk 2006) finds them.

    A sentence ends where a word ends in `.`, `?` or `!`, and at the end of the text; a new line alone ends none. A full
    stop after an abbreviation or an initial ends one only before a word that begins sentences, after an ellipsis only
    before a capital, after a number not before a small letter. `1.` or `A.` at the head of a line counts as one.
    """
    lines = ([word for word in line.split() if _SOLID.search(word)] for line in text.split("\n"))
    found = [(word, place == 0) for line in lines for place, word in enumerate(line)]
    ends = sum(ends_sentence(word, heads, after) for (word, heads), (after, _) in pairwise(found))
    return ends + bool(found)


def ends_sentence(word: str, heads: bool, after: str) -> bool:
    """Whether a sentence ends between two words, of which the first may head a line."""
    core, following = word.rstrip(_CLOSING), after.lstrip(_OPENING)
    if not core.endswith("."):
        return core.endswith(("?", "!"))
    stem = core.rstrip(".").lstrip(_OPENING)
    if len(core) - len(core.rstrip(".")) > 1:
        return following[:1].isupper()
    if stem.isdecimal():
        return not following[:1].islower()
    if len(stem) == 1 and stem.isalpha() and heads:
        return True
    if stem.lower() in _ABBREVIATIONS or (len(stem) == 1 and stem.isupper()) or _DOTTED.fullmatch(stem):
        return following[:1].isupper() and following.rstrip(",:").lower().replace("’", "'") in _BEGINNINGS
    return True


@lru_cache(maxsize=1)
def _factory() -> DetectorFactory:
    """langdetect's profiles, in a detector of our own: its draws are random, and here always the same."""
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ImportError as error:
        raise FactoryError("instructions on the language need langdetect: pip install langdetect") from error
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


def languages() -> tuple[str, ...]:
    """The codes of the languages that `language` knows: ISO 639-1, and zh-cn, zh-tw."""
    return tuple(sorted(_factory().langlist))


def language(text: str) -> str:
    """The likeliest language of a text as langdetect says, by which IFEval judges; empty where it has no letters.

    Short texts are often wrong: `YES` is Welsh.
    """
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:  # its one cause here: nothing to tell a language by
        return ""
