"""IFEval's kinds about what is said: words, letters, lengths, language and case (arXiv 2311.07911, appendix A).

Ids and arguments are those of its data. What is counted how is described there; keywords are text here, not patterns.
"""

from __future__ import annotations

import re
from random import Random
from typing import Annotated, Any

from annotated_types import Ge, MinLen
from pydantic import Field

from factory.engine.errors import FactoryError, nearest
from factory.verify.check import Check
from factory.verify.instructions import text
from factory.verify.instructions.kind import Relation, instruction
from factory.verify.instructions.text import capital_words, sentences, words

Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[list[Text], MinLen(1)]
Count = Annotated[int, Ge(0)]
Number = Annotated[int, Ge(1)]

_WORDS = """
anchor balance bridge candle circle cloud compass copper corner courage curtain danger desert distance echo engine
evening fabric feather festival forest fortune garden glacier harbor harvest horizon island journey kitchen ladder
lantern library machine market memory meadow mirror mountain music ocean orchard oxygen palace pattern pebble pepper
planet pocket promise puzzle railway rhythm river saddle season shadow signal silence silver solution summer tunnel
valley village violin volcano wander weather window winter wonder workshop
"""
WORDS = _WORDS.split()
"""Words to draw from: plain nouns that fit into most texts."""
LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati",
    "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "kn": "Kannada", "ko": "Korean", "ml": "Malayalam", "mr": "Marathi", "ne": "Nepali", "nl": "Dutch", "pa": "Punjabi",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "sw": "Swahili",
    "ta": "Tamil", "te": "Telugu", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
"""Languages to draw from, and how a prompt calls them; langdetect knows more."""


def compare(count: int, relation: Relation, number: int, what: str) -> Check:
    """Whether a count is less than a number, or at least as much."""
    passed = count < number if relation == "less than" else count >= number
    return Check(passed, f"{count} {what}, {relation} {number} asked for")


def counted(number: int, what: str) -> str:
    """`1 word`, `2 words`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def quoted(values: list[str]) -> str:
    return ", ".join(f'"{value}"' for value in values)


def _relation(rng: Random) -> Relation:
    return rng.choice(("less than", "at least"))


def _occurrences(keyword: str, response: str) -> int:
    return len(re.findall(re.escape(keyword), response, re.IGNORECASE))


@instruction(
    "keywords:existence",
    describe=lambda keywords: f"Use each of these keywords: {quoted(keywords)}.",
    draw=lambda rng: {"keywords": rng.sample(WORDS, rng.randint(1, 4))},
)
def existence(response: str, *, keywords: Texts) -> Check:
    """Each keyword occurs, in any case, also within a word."""
    missing = [keyword for keyword in keywords if not _occurrences(keyword, response)]
    return Check(not missing, f"without {quoted(missing)}")


@instruction(
    "keywords:frequency",
    describe=lambda keyword, frequency, relation: f'Use "{keyword}" {relation} {counted(frequency, "time")}.',
    draw=lambda rng: {"keyword": rng.choice(WORDS), "frequency": rng.randint(2, 6), "relation": _relation(rng)},
)
def frequency(response: str, *, keyword: Text, frequency: Count, relation: Relation) -> Check:
    """How often a keyword occurs, in any case, also within words."""
    return compare(_occurrences(keyword, response), relation, frequency, f'times "{keyword}"')


@instruction(
    "keywords:forbidden_words",
    describe=lambda forbidden_words: f"Avoid these words: {quoted(forbidden_words)}.",
    draw=lambda rng: {"forbidden_words": rng.sample(WORDS, rng.randint(1, 4))},
)
def forbidden_words(response: str, *, forbidden_words: Texts) -> Check:
    """None of the words occurs as a word of its own, in any case."""
    found = [word for word in forbidden_words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE)]
    return Check(not found, f"with {quoted(found)}")


@instruction(
    "keywords:letter_frequency",
    describe=lambda letter, let_frequency, let_relation: (
        f'Let the letter "{letter}" appear {let_relation} {counted(let_frequency, "time")}.'
    ),
    draw=lambda rng: {
        "letter": rng.choice("abcdefghijklmnopqrstuvwxyz"),
        "let_frequency": rng.randint(2, 30),
        "let_relation": _relation(rng),
    },
)
def letter_frequency(response: str, *, letter: Text, let_frequency: Count, let_relation: Relation) -> Check:
    """How often a letter occurs, in any case."""
    if len(letter) != 1:
        raise FactoryError(f"instruction keywords:letter_frequency: letter = {letter!r}: give one character")
    return compare(response.lower().count(letter.lower()), let_relation, let_frequency, f'times "{letter}"')


@instruction(
    "language:response_language",
    describe=lambda language: (
        f"Write all of it in {LANGUAGES.get(language, f'the language with the code {language}')}."
    ),
    draw=lambda rng: {"language": rng.choice(sorted(LANGUAGES))},
)
def response_language(response: str, *, language: Text) -> Check:
    """The whole is in a language, as langdetect judges; `zh` stands for its zh-cn and zh-tw."""
    asked, known = language.lower(), text.languages()
    if asked not in ("zh", *known):
        raise FactoryError(
            f"instruction language:response_language: language = {language!r} is not known{nearest(asked, known)}; "
            f"give one of {', '.join(known)}"
        )
    found = text.language(response)
    return Check(asked in (found, found.partition("-")[0]), f"in {found or 'no language'}, {language} asked for")


@instruction(
    "length_constraints:number_sentences",
    describe=lambda num_sentences, relation: f"Write {relation} {counted(num_sentences, 'sentence')}.",
    draw=lambda rng: {"num_sentences": rng.randint(2, 20), "relation": _relation(rng)},
)
def number_sentences(response: str, *, num_sentences: Count, relation: Relation) -> Check:
    """How many sentences there are, as English has them."""
    return compare(sentences(response), relation, num_sentences, "sentences")


@instruction(
    "length_constraints:number_words",
    describe=lambda num_words, relation: f"Write {relation} {counted(num_words, 'word')}.",
    draw=lambda rng: {"num_words": rng.randint(5, 50) * 10, "relation": _relation(rng)},
)
def number_words(response: str, *, num_words: Count, relation: Relation) -> Check:
    """How many words there are: runs of letters and digits."""
    return compare(len(words(response)), relation, num_words, "words")


@instruction(
    "length_constraints:number_paragraphs",
    describe=lambda num_paragraphs: (
        f"Write exactly {counted(num_paragraphs, 'paragraph')}, with a line of three asterisks (***) between them."
    ),
    draw=lambda rng: {"num_paragraphs": rng.randint(2, 6)},
)
def number_paragraphs(response: str, *, num_paragraphs: Count) -> Check:
    """Exactly so many parts between marks ***; none is blank but what lies before the first mark or after the last."""
    parts = response.split("***")
    if any(not part.strip() for part in parts[1:-1]):
        return Check(False, "a paragraph between two marks *** is blank")
    found = sum(bool(part.strip()) for part in parts)
    return Check(found == num_paragraphs, f"{found} paragraphs, {num_paragraphs} asked for")


def _nth_describe(num_paragraphs: int, nth_paragraph: int, first_word: str) -> str:
    return (
        f"Write exactly {counted(num_paragraphs, 'paragraph')}, with a blank line between two and nowhere else. "
        f'Paragraph {nth_paragraph} starts with the word "{first_word}".'
    )


def _nth_draw(rng: Random) -> dict[str, Any]:
    number = rng.randint(2, 6)
    return {"num_paragraphs": number, "nth_paragraph": rng.randint(1, number), "first_word": rng.choice(WORDS)}


@instruction("length_constraints:nth_paragraph_first_word", describe=_nth_describe, draw=_nth_draw)
def nth_paragraph_first_word(response: str, *, num_paragraphs: Count, nth_paragraph: Number, first_word: Text) -> Check:
    """Exactly so many paragraphs between blank lines, one of which begins with a word, in any case."""
    parts = response.split("\n\n")
    found = sum(bool(part.strip()) for part in parts)
    if found != num_paragraphs:
        return Check(False, f"{found} paragraphs, {num_paragraphs} asked for")
    # A blank part counts as a place, as where three line breaks follow each other.
    place = parts[nth_paragraph - 1].split(maxsplit=1) if nth_paragraph <= found else []
    if not place:
        return Check(False, f"there is no paragraph {nth_paragraph}")
    word = re.split(r"[.,?!'\"]", place[0].lstrip("'\""), maxsplit=1)[0]
    return Check(word.lower() == first_word.lower(), f'paragraph {nth_paragraph} starts with "{word}"')


@instruction(
    "change_case:capital_word_frequency",
    describe=lambda capital_frequency, capital_relation: (
        f"Write {capital_relation} {counted(capital_frequency, 'word')} all in capital letters."
    ),
    draw=lambda rng: {"capital_frequency": rng.randint(2, 12), "capital_relation": _relation(rng)},
)
def capital_word_frequency(response: str, *, capital_frequency: Count, capital_relation: Relation) -> Check:
    """How many words are in capitals; `A`, `I` and `COVID-19` are."""
    return compare(len(capital_words(response)), capital_relation, capital_frequency, "words in capitals")


@instruction(
    "change_case:english_capital", describe=lambda: "Write in English, and use capital letters only, no small ones."
)
def english_capital(response: str) -> Check:
    """English without a small letter."""
    if not response.isupper():
        return Check(False, "not all of its letters are capitals")
    return response_language(response, language="en")


@instruction(
    "change_case:english_lowercase", describe=lambda: "Write in English, and use small letters only, no capital ones."
)
def english_lowercase(response: str) -> Check:
    """English without a capital letter."""
    if not response.islower():
        return Check(False, "not all of its letters are small")
    return response_language(response, language="en")
