"""Each rule of the quality filters on a text made for it, and the whole beside datatrove on real text."""

from __future__ import annotations

import importlib.util
import random
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.corpus.quality import C4, FineWeb, Gopher, GopherRepetition
from factory.engine.step import Mapped, Memo
from factory.kernels.words import words

STEPS = (Gopher, GopherRepetition, C4, FineWeb)
PROSE = """\
It was the best of days to walk by the river, and that is what the two friends did with their dog.
They have been to this valley before, in the summer of the year that followed the long war with the north.
The older of them carried a basket full of bread, and the younger sang songs that nobody else could remember.
When evening came, they sat down on a stone near the old mill and watched how slowly the light went away.
"""


def table(texts: list[str]) -> pa.RecordBatch:
    return pa.record_batch({"id": pa.array([str(i) for i in range(len(texts))]), "text": large(texts)})


def large(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def why(step: Any, *texts: str, alive: list[bool] | None = None) -> Any:
    """The reasons of the rows; of one text, its reason."""
    memo = Memo(len(texts))
    if alive is not None:
        memo.alive[:] = alive
    made = step(table(list(texts)), memo)
    reasons = (made.reasons if isinstance(made, Mapped) else made).to_pylist()
    return reasons[0] if len(texts) == 1 else reasons


def edited(step: C4, text: str) -> str:
    return step(table([text]), Memo(1)).batch.column("text")[0].as_py()


def test_good_prose_is_kept() -> None:
    for step in STEPS:
        for rule in ("unicode", "spacy"):
            assert why(step(words=rule, **({"min_num_sentences": 4} if step is C4 else {})), PROSE) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "gopher_short_doc"),
        ("the and of to be " * 9, "gopher_short_doc"),
        ("the and of to be " * 20_001, "gopher_long_doc"),
        ("a b the of " * 20, "gopher_below_avg_threshold"),
        ("internationalisation of the constitutionalists " * 30, "gopher_above_avg_threshold"),
        (PROSE + "# " * 20, "gopher_too_many_hashes"),
        (PROSE + "word... more… " * 10, "gopher_too_many_ellipsis"),
        ("\n".join(f" - {line} and that together" for line in PROSE.split()), "gopher_too_many_bullets"),
        ("\n".join(f"• {line} and that together" for line in PROSE.split()), "gopher_too_many_bullets"),
        ("\r\n".join([*["the end of a line that stops and more of that with a dot..."] * 1, PROSE]), None),
        ("\n".join(["the end of a line that goes on and on for ever until it stops with … "] * 9),
         "gopher_too_many_end_ellipsis"),
        (PROSE + "1234 " * 40, "gopher_below_alpha_threshold"),
        ("Lorem ipsum dolor sit amet consectetur adipiscing elit sed do. " * 8, "gopher_enough_stop_words"),
        ("the " * 60, "gopher_enough_stop_words"),
    ],
)  # fmt: skip
def test_gopher_rules(text: str, reason: str | None) -> None:
    assert why(Gopher(), text) == reason


def test_gopher_options() -> None:
    long = "internationalisation of the constitutionalists " * 30
    assert why(Gopher(max_avg_word_length=0), long) is None
    assert why(Gopher(min_doc_words=0), "the and") is None
    german = "der Hund und die Katze sind mit dem Auto in die Stadt gefahren " * 6
    assert why(Gopher(), german) == "gopher_enough_stop_words"
    assert why(Gopher(stop_words=("der", "und", "die")), german) is None
    assert why(Gopher(min_stop_words=0), german) is None


def test_measures_are_the_numbers() -> None:
    numbers = Gopher().measures(table([PROSE, "#"]), Memo(2))
    assert numbers["gopher_words"].to_pylist() == [len(PROSE.split()), 0]
    assert numbers["gopher_stop_words"].to_pylist() == [7, 0]
    assert numbers["gopher_word_length"][0].as_py() == pytest.approx(
        sum(map(len, PROSE.replace(",", "").replace(".", "").split())) / len(PROSE.split())
    )
    for step in (GopherRepetition(), FineWeb()):
        assert all(len(column) == 2 for column in step.measures(table([PROSE, "#"]), Memo(2)).values())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("\n".join(["One line.", "Two.", "Two.", "One line."]), "dup_line_frac"),
        ("First part.\n\nSecond.\n\nFirst part.", "dup_para_frac"),
        ("x.\n\nq.\n\nw.\n\n" + PROSE + "\n\n" + PROSE, "dup_para_char_frac"),
        ("a\nb\nc\nd\ne\nf\n" + PROSE * 2, "dup_line_char_frac"),
        ("very nice " * 8 + PROSE[:200], "top_2_gram"),
        (
            " ".join(f"aaaa bbbb cccc {' '.join(f'{w}{i:03d}' for w in PROSE.split()[1:9])}" for i in range(30)),
            "top_3_gram",
        ),
        ("\n".join(f"{i} {PROSE[:97]} {i * 7}" for i in range(4)), "duplicated_5_n_grams"),
        ("\n\n\n", "dup_line_frac"),
    ],
)
def test_repetition_rules(text: str, reason: str | None) -> None:
    assert why(GopherRepetition(), text) == reason


def test_repetition_options() -> None:
    text = "\n".join(["One line.", "Two.", "Two.", "One line."])
    off = {"dup_line_frac": 0, "dup_line_char_frac": 0, "dup_para_frac": 0, "dup_para_char_frac": 0}
    assert why(GopherRepetition(**off), text) == "top_2_gram"
    assert why(GopherRepetition(**off, top_2_gram=1, top_3_gram=1, top_4_gram=1), text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("no stop\n" * 9 + "a stop.", "line_punct_ratio"),
        ("A short one.\n" * 3, "short_line_ratio"),
        (PROSE + PROSE, "char_dup_ratio"),
        (PROSE + "\n" * 40, "list_ratio"),
        ("\n".join(f"{'word' * 10}{i}." for i in range(9)), "list_ratio"),
    ],
)
def test_fineweb_rules(text: str, reason: str) -> None:
    assert why(FineWeb(), text) == reason


def test_fineweb_options() -> None:
    text = PROSE.replace(".", "")
    assert why(FineWeb(), text) == "line_punct_ratio"
    assert why(FineWeb(line_punct_exclude_zero=True), text) is None
    assert why(FineWeb(stop_chars="xq"), text) == "line_punct_ratio"
    assert why(FineWeb(stop_chars="gx"), text) is None


FIVE = "One is a line. Two is a line. Three is a line.\nFour is a line! Is five a line?"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (FIVE, FIVE),
        (f"  {FIVE} \r\n", FIVE),
        (f"A menu without end\n{FIVE}", FIVE),
        (f"It goes on...\n{FIVE}", FIVE),
        (f"Too short.\n{FIVE}", FIVE),
        (f"Please enable JavaScript to see.\n{FIVE}", FIVE),
        (
            f"Read our Privacy Policy now.\n{FIVE}\u2028We have Terms of Use here.\x0cThis site uses cookies always.",
            FIVE,
        ),
        (f"A word of {'x' * 1001} letters.\n{FIVE}", FIVE),
        (FIVE.replace("Two is", "Two[12][edit] is").replace("line?", "line?[citation needed]"), FIVE),
        (FIVE.replace("Two", "[a] Two"), FIVE.replace("Two", "[a] Two")),
    ],
)
def test_c4_takes_out_lines(text: str, left: str) -> None:
    for rule in ("unicode", "spacy"):
        assert why(C4(words=rule), text) is None
        assert edited(C4(words=rule), text) == left


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "too_few_sentences"),
        ("One is a line. Two is a line. Three is a line.", "too_few_sentences"),
        (f"{FIVE}\nHere is Lorem Ipsum for you.", "lorem_ipsum"),
        (f"{FIVE}\nThis is a {{ bracket.", "curly_bracket"),
        (f"{FIVE}\nThis {{ is not a sentence", None),
        ("Mr. A. B. Jones of the U.S. paid 3.50 dollars, e.g. to Dr. Who... and went.\n" * 4, "too_few_sentences"),
        ("“One is here.” (Two is here.) Three!!! Four?! Five is here too.", None),
    ],
)
def test_c4_drops_documents(text: str, reason: str | None) -> None:
    for rule in ("unicode", "spacy"):
        assert why(C4(words=rule), text) == reason


def test_c4_options() -> None:
    assert edited(C4(filter_no_terminal_punct=False), f"A menu without end\n{FIVE}").startswith("A menu without end\n")
    assert why(C4(filter_curly_bracket=False), FIVE + "\nA { b is here.") is None
    assert why(C4(min_num_sentences=0), "") is None
    assert edited(C4(remove_citations=False), FIVE.replace("Two", "[1]Two")) == FIVE.replace("Two", "[1]Two")
    chinese = "人人生而自由。在尊严和权利上一律平等。\n他们赋有理性和良心。"
    assert edited(C4(min_words_per_line=0, min_num_sentences=0), chinese) == ""
    step = C4(stops="。", min_words_per_line=0, min_num_sentences=3)
    assert (why(step, chinese), edited(step, chinese)) == (None, chinese)


TEXTS = st.lists(
    st.one_of(
        st.just(PROSE),
        st.just(FIVE),
        st.text(max_size=40),
        st.lists(st.sampled_from(["the", "of.", "and\n", "\n\n", "...", "#", "- x", "中文。", "ไทย"]), max_size=80)
        .map(" ".join),
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.data())
def test_rows_are_independent(texts: list[str], choose: st.DataObject) -> None:
    alive = choose.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    start = choose.draw(st.integers(0, len(texts) - 1))
    for kind in STEPS:
        for rule in ("unicode", "spacy"):
            step = kind(words=rule, **({"min_doc_words": 3} if kind is Gopher else {}))
            alone = [why(step, text) for text in texts]
            masked = why(step, *texts, "x", alive=[*alive, True])
            assert [r for r, a in zip(masked, alive, strict=False) if a] == [
                r for r, a in zip(alone, alive, strict=True) if a
            ]
            part = table(texts).slice(start)
            made = step(part, Memo(part.num_rows))
            assert (made.reasons if isinstance(made, Mapped) else made).to_pylist() == alone[start:]
            if isinstance(made, Mapped):
                assert made.batch.column("text").to_pylist() == [edited(step, text) for text in texts[start:]]
                made.batch.validate(full=True)


@pytest.mark.parametrize("step", STEPS)
def test_odd_input(step: Any) -> None:
    assert len(step()(table([]), Memo(0)) if step is not C4 else step()(table([]), Memo(0)).reasons) == 0
    odd = ["", "\x00" * 100, "\n", "word " * 2_000_000, "x" * 10_000_000, "a.\n" * 1_000_000]
    assert len(why(step(), *odd)) == len(odd)


def test_fifty_megabytes_in_one_document() -> None:
    """Linear, whatever a document's size: 50 MB of numbered sentences through all four."""
    text = "".join(f"The line with number {i} is here, and it is one of the many lines.\n" for i in range(770_000))
    assert why(GopherRepetition(), text) == "top_3_gram"
    assert why(Gopher(max_doc_words=0), text) is None
    assert edited(C4(), text) == text.strip()
    assert why(FineWeb(), text) is None


def article(data: Path, code: str) -> str:
    """The Universal Declaration of Human Rights in a language."""
    tree = ElementTree.parse(data / "udhr" / "udhr" / "data" / "udhr" / f"udhr_{code}.xml")
    marks = (node for node in tree.iter() if node.tag.rpartition("}")[2] in ("title", "para"))
    return "\n".join("".join(node.itertext()).strip() for node in marks)


UNSPACED = ("cmn_hans", "cmn_hant", "yue", "jpn", "tha", "khm", "lao", "mya")


@pytest.mark.parametrize("code", [*UNSPACED, "kor", "bod", "hin", "vie"])
def test_other_scripts_have_words(data: Path, code: str) -> None:
    """As many words as the English text has, within a factor of 3, and of a like mean length: kept, garbage is not."""
    english, text = article(data, "eng"), article(data, code)
    step = Gopher(min_stop_words=0)
    numbers = step.measures(table([english, text]), Memo(2))
    count, length = numbers["gopher_words"].to_pylist(), numbers["gopher_word_length"].to_pylist()
    assert count[0] / 2 < count[1] < 3 * count[0]
    assert 0.8 * length[0] < length[1] < 1.3 * length[0]
    assert why(step, text) is None
    assert why(step, text[:300] + " 01234" * 400) == "gopher_below_alpha_threshold"
    assert why(step, "\n".join(text[i : i + 30].replace("\n", "") + "…" for i in range(0, 1500, 30))) is not None
    assert why(step, "".join(f"{letter}#" for letter in text[:500])) is not None
    assert why(GopherRepetition(), text) in (None, "duplicated_5_n_grams")
    assert why(GopherRepetition(), (text[:24] + " ") * 50) is not None


@pytest.mark.parametrize("code", UNSPACED)
def test_texts_that_differ_in_few_characters_share_shingles(data: Path, code: str) -> None:
    text = article(data, code)
    letters = [place for place, character in enumerate(text) if character.isalpha()]
    changed = list(text)
    for place in random.Random(0).sample(letters, 15):
        changed[place] = ""
    first, second = (shingles(made) for made in (text, "".join(changed)))
    assert len(first & second) / len(first | second) > 0.9
    other = shingles(article(data, "lao" if code != "lao" else "tha"))
    assert len(first & other) / len(first | other) < 0.01


def shingles(text: str) -> set[tuple[int, ...]]:
    lower = words(Memo(1), large([text]), "unicode").lower
    return {tuple(lower[i : i + 5].tolist()) for i in range(len(lower) - 4)}


def decisions() -> ModuleType:
    """benchmarks/decisions.py as a module."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "decisions.py"
    spec = importlib.util.spec_from_file_location("decisions", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["decisions"] = module
    spec.loader.exec_module(module)
    return module


def test_decisions_are_datatroves(data: Path) -> None:
    pytest.importorskip("datatrove")
    pytest.importorskip("spacy")
    benchmark = decisions()
    text = benchmark.read(data / "webtext", "text", None).take(pa.array(np.arange(0, 9566, 24)))
    results = list(benchmark.compare(text, "spacy"))
    assert [result.name for result in results] == list(benchmark.NAMES)
    for result in results:
        assert len(result.ours) == len(text)
        assert 0.1 < sum(reason is None for reason in result.ours) / len(text) < 0.99
        assert result.agreement >= 0.995, result.disagreements
        both = [pair for pair in zip(result.ours, result.theirs, strict=True) if None not in pair]
        assert sum(a == b for a, b in both) >= 0.99 * len(both)


_ODD = "the of and word Hello world. yes! no? end... x … # - • 123 [1] [edit] { JavaScript it's Mr. U.S. 3.5 (a) 中文。"
PIECES = [
    *_ODD.split(), "a.b", "--", "•x", "....", "'", '"', '"quoted."', "lorem ipsum", "cookie policy", "Foo bar baz.",
    "\n\n", "\r\n", "\t", "\u2028", "\x0b", "\x85", "\xa0", "\0",
]  # fmt: skip


def test_decisions_are_datatroves_on_odd_texts() -> None:
    """Texts of every kind of line end, blank, mark and stop, with thresholds that bring each rule to bear."""
    filters = pytest.importorskip("datatrove.pipeline.filters")
    pytest.importorskip("spacy")
    from datatrove.data import Document

    chance = random.Random(7)
    texts = []
    for _ in range(600):
        pieces = chance.sample(PIECES, chance.randint(3, len(PIECES)))
        size = chance.choice((3, 10, 40, 120))
        texts.append("".join(chance.choice(pieces) + chance.choice((" ", " ", "", "\n")) for _ in range(size)))
    gopher = {"min_doc_words": 5, "min_stop_words": 1, "max_symbol_word_ratio": 0.3, "max_ellipsis_lines_ratio": 0.3,
              "max_bullet_lines_ratio": 0.3, "min_avg_word_length": 1}  # fmt: skip
    top = {f"top_{n}_gram": 0.3 for n in (2, 3, 4)}
    lines = {"min_num_sentences": 2, "min_words_per_line": 2, "max_word_length": 6}
    web = {"char_duplicates_ratio": 0.2, "short_line_length": 8}
    pairs = (
        (Gopher(words="spacy", min_alpha_words_ratio=0.3, **gopher),
         filters.GopherQualityFilter(max_non_alpha_words_ratio=0.3, **gopher)),
        (GopherRepetition(words="spacy", dup_line_frac=0.5, **top),
         filters.GopherRepetitionFilter(dup_line_frac=0.5, top_n_grams=tuple((n, 0.3) for n in (2, 3, 4)))),
        (C4(words="spacy", **lines), filters.C4QualityFilter(**lines)),
        (FineWeb(words="spacy", **web), filters.FineWebQualityFilter(**web)),
    )  # fmt: skip
    for step, block in pairs:
        reasons = why(step, *texts)
        differ = 0
        for text, reason in zip(texts, reasons, strict=True):
            document = Document(text=text, id="")
            try:
                verdict = block.filter(document)
            except ZeroDivisionError:  # a text of white space has no words
                continue
            differ += reason != (None if verdict is True else verdict[1])
            if verdict is True and isinstance(step, C4):
                assert edited(step, text) == document.text
        assert len(set(reasons)) > 3
        assert differ <= 3, step
