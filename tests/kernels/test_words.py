"""Words: what they are by both rules, their hashes, and that rows do not touch one another."""

from __future__ import annotations

import re
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.engine.step import Memo
from factory.kernels import unicode
from factory.kernels.arrow import view
from factory.kernels.words import HAS_DIGIT, HAS_LETTER, NOT_SYMBOL, Words, words

RULES = ("unicode", "spacy")
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.text("abcXYZ 019.,'\"!?-_\n\t()$:/@é中の한ไทย\x00’…", max_size=60),
    ),
    max_size=8,
)


def large(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def of(texts: list[str], rule: str = "unicode", alive: list[bool] | None = None) -> Words:
    memo = Memo(len(texts))
    if alive is not None:
        memo.alive[:] = alive
    return memo(words, large(texts), rule)


def spelled(found: Words, array: pa.LargeStringArray, row: int) -> list[str]:
    data = bytes(view(array)[1])
    places = range(found.doc[row], found.doc[row + 1])
    return [data[found.start[k] : found.start[k] + found.length[k]].decode() for k in places]


def cut(text: str, rule: str = "unicode") -> list[str]:
    return spelled(of([text], rule), large([text]), 0)


def lowered(text: str) -> str:
    """Lower case code point by code point, as the kernel defines it (no final sigma)."""
    return "".join(character.lower() for character in text)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0x2FF), max_size=80))
def test_unicode_rule_is_runs_of_word_characters(text: str) -> None:
    expected = re.findall(r"\w+", text.replace("\xad", ""))  # a soft hyphen continues a word
    assert [word.replace("\xad", "") for word in cut(text)] == expected


def test_marks_and_joiners_continue_a_word() -> None:
    assert cut("हिन्दी में") == ["हिन्दी", "में"]
    assert cut("می‌خواهم") == ["می‌خواهم"]
    assert cut("\u0301\ufe0f") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("人人生而自由，第1条", "人 人 生 而 自 由 第 1 条"),
        ("世界人権宣言ここに、コンピューター", "世 界 人 権 宣 言 ここに コンピューター"),
        ("ประเทศไทย ที่คน", "ป ระ เทศ ไทย ที่คน"),
        ("ມະນຸດທຸກຄົນເກີດ", "ມະ ນຸດ ທຸກ ຄົນ ເກີດ"),
        ("လူတိုင်းသည် သိက္ခာ", "လူ တိုင်း သည် သိက္ခာ"),
        ("កម្ពុជា មាន", "ក ម្ពុ ជា មាន"),
        ("대한민국 text中文", "대한민국 text 中 文"),
    ],
)
def test_scripts_without_spaces_are_cut(text: str, expected: str) -> None:
    assert cut(text) == expected.split()


@settings(deadline=None)
@given(TEXTS)
def test_hashes_are_of_the_spelling(texts: list[str]) -> None:
    for rule in RULES:
        found = of(texts, rule)
        of_word: dict[str, int] = {}
        of_lower: dict[str, int] = {}
        at = 0
        for row in range(len(texts)):
            for word in spelled(found, large(texts), row):
                assert of_word.setdefault(word, found.hash[at]) == found.hash[at]
                if any(character.isalnum() for character in word):
                    assert of_lower.setdefault(lowered(word), found.lower[at]) == found.lower[at] != 0
                else:
                    assert found.lower[at] == 0
                assert found.chars[at] == len(word)
                assert bool(found.kind[at] & HAS_LETTER) == any(character.isalpha() for character in word)
                at += 1
        assert len(set(of_word.values())) == len(of_word)
        assert len(set(of_lower.values())) == len(of_lower)


@pytest.mark.parametrize(
    "word", ["İstanbul", "ΑΣΣ", "STRASSE", "ÉCOLE-", "Ⱥ", "\u212a", "ABCDEFGH", "A" * 23, "Z9_" * 9]
)
def test_lower_hash_of_a_word_is_the_hash_of_it_in_lower_case(word: str) -> None:
    assert of([word]).lower[0] == of([lowered(word)]).hash[0]


def test_flags() -> None:
    found = of(["a 1 _ a1 ___1 --"], "unicode")
    assert found.kind.tolist() == [HAS_LETTER | 4, HAS_DIGIT | 4, 0, HAS_LETTER | HAS_DIGIT | 4, HAS_DIGIT | 4]
    assert of(["-- x"], "spacy").kind.tolist() == [0, HAS_LETTER | NOT_SYMBOL]


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.data())
def test_rows_are_independent(texts: list[str], choose: st.DataObject) -> None:
    alive = choose.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    start = choose.draw(st.integers(0, len(texts)))
    array = large(texts)
    for rule in RULES:
        whole, some = of(texts, rule), of(texts, rule, alive)
        part = Memo(len(texts) - start)(words, array.slice(start), rule)
        for row, text in enumerate(texts):
            alone = of([text], rule)
            here = slice(whole.doc[row], whole.doc[row + 1])
            assert spelled(whole, array, row) == spelled(alone, large([text]), 0)
            for name in ("length", "hash", "lower", "chars", "kind"):
                assert np.array_equal(getattr(whole, name)[here], getattr(alone, name))
            assert spelled(some, array, row) == (spelled(whole, array, row) if alive[row] else [])
            if row >= start:
                assert spelled(part, array, row - start) == spelled(whole, array, row)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=4))
def test_broken_utf8_is_read_within_its_row(rows: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    array = pa.LargeStringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(b"".join(rows)))
    for rule in RULES:
        found = Memo(len(rows))(words, array, rule)
        for row in range(len(rows)):
            places = slice(found.doc[row], found.doc[row + 1])
            assert (found.start[places] >= offsets[row]).all()
            assert (found.start[places] + found.length[places] <= offsets[row + 1]).all()


@pytest.mark.parametrize("rule", RULES)
def test_odd_batches(rule: str) -> None:
    assert of([], rule).doc.tolist() == [0]
    assert of(["", "\x00", " \n"], rule).doc.tolist()[:2] == [0, 0]
    with pytest.raises(FactoryError, match="word rule"):
        of(["a"], "Unicode")


@pytest.mark.parametrize("piece", ["word ", "é", "中", "ก", "!", "a.", "@a", ":)", "''"])
def test_time_is_linear_in_one_document(piece: str) -> None:
    for rule in RULES:
        of([piece], rule)  # compiled and tables built
        start = time.process_time()
        found = of([piece * (4_000_000 // len(piece.encode()))], rule)
        assert time.process_time() - start < 4
        assert found.doc[1] == len(found.start)


@pytest.mark.parametrize("rule", RULES)
def test_time_is_linear_in_rows(rule: str) -> None:
    """Nothing looks beyond its row, though the rows make one long word together."""
    of(["a"], rule)
    start = time.process_time()
    assert of(["a"] * 500_000, rule).doc[-1] == 500_000
    assert time.process_time() - start < 4


def test_fifty_megabytes() -> None:
    text = "The quick brown fox, jumped over 13 lazy dogs.\n" * 1_100_000
    found = of([text])
    assert found.doc.tolist() == [0, 9 * 1_100_000]


def test_tables_are_what_python_says() -> None:
    table = unicode.classes()
    for code in (*range(0x3100), 0x4E00, 0xAC00, 0xFF11, 0x1F600, 0x20000, 0x2A6D6, 0x3FFFF, 0x10FFFF):
        character = chr(code)
        assert bool(table[code] & unicode.LETTER) == character.isalpha(), hex(code)
        assert bool(table[code] & (unicode.LETTER | unicode.DIGIT)) == character.isalnum(), hex(code)
        assert bool(table[code] & unicode.SPACE) == character.isspace(), hex(code)


SPACY = r"""
Hello, world! It's Mr. O'Neil's dog (isn't it?) -- "quite" so...
I can't, won't and shouldn't've; they'd've cannot gonna let's, y'all.
See http://www.example.com/a?b=1, mail joe.bloggs@example.co.uk, or example.org:8080/x!
It costs $5.50, €10 or 20US$; 10km away at 8a.m., 5°C. U.S.A. and the U.K. e.g. Ph.D.
well-known state-of-the-art and/or 1990-95 3-4 x=y a:b foo/bar end.Next a,b 1,000 v1.2.3
:) :-( (foo): ''quoted'' “curly” ‘single’ it’s don’t — dash–dash… #tag @user _under_ **bold**
C++ a.m. p.m. St. Louis, Calif. (e.g., this) [1] {x} <b>bold</b> &amp; 50% 100+ a+b 3*4 2^-3
naïve café 中文，句子。 日本語 русский текст. 😀😀 ok™ © 2020 ½ m² 5m² 10mg. 3.5GB,
""".strip().splitlines()


@pytest.mark.parametrize("text", SPACY)
def test_spacy_rule_is_spacys(text: str) -> None:
    spacy = pytest.importorskip("spacy")
    assert cut(text, "spacy") == [token.text for token in spacy.blank("en").tokenizer(text) if token.text.strip()]


def test_english_tables_are_spacys() -> None:
    spacy = pytest.importorskip("spacy")
    from factory.kernels import english

    tokenizer = spacy.blank("en").tokenizer
    rules = {word: tuple(part[65] for part in parts) for word, parts in tokenizer.rules.items() if word.strip()}
    assert english.exceptions() == rules
    table = english.flags()
    for code in range(0x20, 0x20000):
        character = chr(code)
        if not 0xD800 <= code < 0xE000 and character != "+":
            assert bool(table[code] & english.PREFIX) == bool(tokenizer.prefix_search(character)), hex(code)
            assert bool(table[code] & english.SUFFIX) == bool(tokenizer.suffix_search(character)), hex(code)
