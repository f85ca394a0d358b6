"""What spaCy's English tokens are made of, as tables: character classes, exceptions, units.

The facts are spaCy's (3.8): which characters are cut off a word, which words are kept whole or cut in a way of their
own. Tests compare them with an installed spaCy.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from factory.kernels.unicode import code_points

ALPHA, LOWER, UPPER, PREFIX, SUFFIX, INFIX, QUOTE, BEFORE_DOT, CURRENCY, HOST = (1 << bit for bit in range(10))
"""What `flags` says. ALPHA, LOWER, UPPER: letters (those of scripts without case are both). PREFIX, SUFFIX, INFIX:
cut off in front, behind, within. BEFORE_DOT: a full stop after it is cut off. HOST: may stand in a host name."""

_LATIN = (
    "41-5A 61-7A FF21-FF3A FF41-FF5A C0-D6 D8-F6 F8-1BF 1C4-24F 2C60-2C7B 2C7E-2C7F A722-A76F A771-A787 A78B-A78E "
    "A790-A7B9 A7FA AB30-AB5A AB60-AB64 250-2AF 1D00-1D25 1D6B-1D77 1D79-1D9A 1E00-1EFF"
)
_CASED = (
    "401 410-42F 451 430-44F 4D8-4D9 4E8-4E9 4AE-4AF 496-497 4A2-4A3 4BA-4BB 391-3A9 3B1-3C9 386 388-38A 38C 38E-38F "
    "3AC-3AF 3CC-3CE 404 406-407 490-491 454 456-457 403 405 408-40A 40C-40D 400 453 455 458-45A 45C-45D 450"
)
_UNCASED = (
    "1200-137F 980-9FF 591-5F4 FB1D-FB4F 620-64A 66E-6D5 6E5-6FF 750-77F 8A0-8BD FB50-FBB1 FBD3-FD3D FD50-FDC7 "
    "FDF0-FDFB FE70-FEFC 1EE00-1EEBB D80-DFF 900-97F C80-CFF B80-BFF C00-C7F AC00-D7AF 1100-11FF 3040-30FF 3400-4DBF "
    "4E00-9FFF 20000-2A6DF 2A700-2EBEF 2E80-2FDF 2FF0-303F 31C0-31EF 3200-33FF F900-FAFF FE30-FE4F 1F200-1F2FF "
    "2F800-2FA1F"
)
_PUNCT = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_CURRENCY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
# Symbols that are younger than spaCy's list.
_NO_ICONS = (
    "166D 2B97 2BC9 2BFF 2E50-2E51 32FF FD40-FD4F FDCF FDFE-FDFF 1019C 11FD5-11FDC 11FE1-11FF1 1CF50-1CFC3 1D1E9-1D1EA "
    "1E14F 1ED2E 1F10D-1F10F 1F16C-1F16F 1F1AD 1F6D5-1F6D7 1F6DD-1F6DF 1F6FA-1F6FC 1F7E0-1F7EB 1F7F0 1F8B0-1F8B1 "
    "1F90C-1F90F 1F93F 1F971-1F972 1F977-1F979 1F97B 1F9A3-1F9AF 1F9BA-1F9BF 1F9C3-1F9CF 1FA00-1FA53 1FA70-1FAFF "
    "1FB00-1FBCA"
)
_UNITS = """
km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar mb
MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па мбар Кб КБ
кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ ملغ كوب اكواب
"""
UNITS = _UNITS.split()


@lru_cache(maxsize=1)
def flags() -> np.ndarray:
    """uint16[0x110000]: the flags of each code point."""
    table = np.zeros(0x110000, np.uint16)
    for code in code_points(f"{_LATIN} {_CASED}"):
        character = chr(code)
        case = LOWER if character.islower() else UPPER if character.isupper() else 0
        table[code] = ALPHA | case | BEFORE_DOT * (case == LOWER)
    table[code_points("1D00-1D25 1D6B-1D77 1D79-1D9A 250-2AF AB30-AB5A")] |= LOWER | BEFORE_DOT
    table[code_points(_UNCASED)] |= ALPHA | LOWER | UPPER | BEFORE_DOT

    def add(characters: str, flag: int) -> None:
        table[[ord(character) for character in characters]] |= flag

    add(_PUNCT + _QUOTES, PREFIX | SUFFIX | BEFORE_DOT)
    add("|0123456789%²-+", BEFORE_DOT)
    add(_QUOTES, QUOTE)
    add("§%=—–", PREFIX)
    add("—–", SUFFIX)
    add(_CURRENCY, PREFIX | CURRENCY)
    others = [code for code in range(0x20000) if unicodedata.category(chr(code)) == "So"]
    table[np.setdiff1d(others, code_points(_NO_ICONS))] |= PREFIX | SUFFIX | INFIX
    table[code_points("2329-232A")] |= PREFIX | SUFFIX | BEFORE_DOT | QUOTE
    add("…", INFIX)
    table[code_points("30-39 41-5A 61-7A A1-FFFF")] |= HOST
    table.setflags(write=False)
    return table


_FACES = r"""
:) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-(( :(((
:-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3
:-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V
v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬)
ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""
_WHOLE = r"""
\t \n — ' \") <space> '' C++ ä. ö. ü. em 'em ll 'll nuff 'nuff 'S 's ‘S ‘s and/or w/o 're 'd 'Cause 'cause 'cos 'Cos
'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock lovin' Lovin' lovin Lovin havin' Havin' havin Havin
Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans.
Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep.
Sept. Tenn. Va. Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd.
Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s.
"""
_CUT = """
y'|all y|all how|'d|'y How|'d|'y not|'ve not|ve Not|'ve Not|ve can|not Can|not gon|na Gon|na got|ta Got|ta let|'s Let|'s
c'm|on C'm|on
"""
_NOT_CUT = {"Ill", "ill", "Its", "its", "Hell", "hell", "Shell", "shell", "Shed", "shed", "were", "Were", "Well",
            "well", "Whore", "whore"}  # fmt: skip


def _contractions() -> Iterator[tuple[str, ...]]:
    """The pieces of `she'll`, `shell`, `couldn't've` and their like; those without an apostrophe are cut too."""

    def both(word: str, *tails: str) -> Iterator[tuple[str, ...]]:
        for start in (word, word.title()):
            yield (start, *tails)
            yield (start, *(tail.replace("'", "") if tail != "n't" else "nt" for tail in tails))

    for word in ("i", "you", "he", "she", "it", "we", "they", "who", "what", "when", "where", "why", "how", "there",
                 "that", "this", "these", "those"):  # fmt: skip
        for tails in (("'ll",), ("'ll", "'ve"), ("'d",), ("'d", "'ve")):
            yield from both(word, *tails)
        pronoun = word in ("i", "you", "he", "she", "it", "we", "they")
        singular = word in ("that", "this", "there")
        if word in ("he", "she", "it") or (not pronoun and word not in ("these", "those")):
            yield from both(word, "'s")
        if word in ("you", "we", "they") or (not pronoun and (not singular or word == "there")):
            yield from both(word, "'re")
        if word in ("i", "you", "we", "they") or (not pronoun and (not singular or word == "there")):
            yield from both(word, "'ve")
    yield from both("i", "'m")
    for start in ("i", "I"):
        yield from ((start, "'m", "a"), (start, "m", "a"))
    auxiliaries = ("ca", "could", "do", "does", "did", "had", "may", "might", "must", "need", "ought", "sha", "should",
                   "wo", "would")  # fmt: skip
    for word in auxiliaries:
        yield from both(word, "n't")
        yield from both(word, "n't", "'ve")
    for word in ("could", "might", "must", "should", "would"):
        yield from both(word, "'ve")
    for word in ("ai", "are", "is", "was", "were", "have", "has", "dare"):
        yield from both(word, "n't")


@lru_cache(maxsize=1)
def exceptions() -> dict[str, tuple[str, ...]]:
    """Words that are not cut by rule: each with the pieces that it is cut into (one: it stays whole)."""
    pieces: list[tuple[str, ...]] = [(word,) for word in (_FACES + _WHOLE).split()]
    pieces += [(f"{letter}.",) for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces += [("°", unit, ".") for unit in "cfkCFK"]
    pieces += [tuple(word.split("|")) for word in _CUT.split()]
    pieces += [(str(hour), period) for hour in range(1, 13) for period in ("a.m.", "am", "p.m.", "pm")]
    for word in ("doin", "goin", "nothin", "nuthin", "ol", "somethin"):
        pieces += [(start + tail,) for start in (word, word.title()) for tail in ("", "'")]
    pieces += _contractions()
    found = {"".join(parts): parts for parts in pieces if "".join(parts) not in _NOT_CUT}
    curly = {word.replace("'", "’"): tuple(part.replace("'", "’") for part in parts) for word, parts in found.items()}
    return found | curly
