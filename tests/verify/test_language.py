"""The language of answers, parts in another one, loops, refusals and length: rates on real texts."""

from __future__ import annotations

import gzip
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from tokenizers import Tokenizer

from factory.engine.errors import FactoryError
from factory.kernels.fasttext_model import shipped
from factory.verify import language
from factory.verify.language import (
    Span,
    circles,
    foreign,
    is_language,
    length,
    loop,
    not_degenerate,
    not_mixed,
    not_refused,
)
from factory.verify.prose import prose
from factory.verify.refusals import refusal, rules
from factory.verify.verifier import reward

try:
    shipped()
except FactoryError as missing:
    pytest.skip(str(missing), allow_module_level=True)

MAIN = "ar bg cs da de el en es fa fi fr he hi hu id it ja ko nl pl pt ru sv th tr uk vi zh".split()  # noqa: SIM905


def sentences(data: Path, code: str) -> list[str]:
    path = data / "lid-lingua/lingua-go/cmd/language-testdata/sentences" / f"{code}.txt"
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def responses(data: Path) -> list[str]:
    """Answers of GPT-4 to IFEval's prompts."""
    path = data / "ifeval/IFEval/data/input_response_data_gpt4_20231107_145030.jsonl"
    return [json.loads(line)["response"] for line in path.read_text("utf-8").splitlines()]


def references(data: Path) -> list[str]:
    """GPT-4's reference answers of MT-bench."""
    path = data / "mt-bench/FastChat/fastchat/llm_judge/data/mt_bench/reference_answer/gpt-4.jsonl"
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return [turn for line in lines for choice in line["choices"] for turn in choice["turns"]]


# Which language

ENGLISH = "The quick brown fox jumps over the lazy dog while the sun sets behind the hills."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, während die Sonne untergeht."
CHINESE = "敏捷的棕色狐狸跳过了懒狗，太阳在山后落下。"


def test_is_language() -> None:
    assert (
        is_language(ENGLISH, "en").passed and is_language(GERMAN, "de-AT").passed and is_language(CHINESE, "zh").passed
    )
    assert is_language(GERMAN, "en").reason.startswith("de (")
    assert is_language(CHINESE, "en").reason == "most letters are not Latin"
    assert is_language(ENGLISH, "zh").reason.startswith("most letters are not Han")
    assert is_language("42", "de").reason == "no words to judge by" and not is_language(" ", "de").passed
    assert is_language("Paris", "fr").passed and not is_language("Париж", "fr").passed
    assert is_language("好的", "zh").passed and not is_language("OK", "ru").passed
    with pytest.raises(FactoryError, match=r"'eng'.*did you mean 'en'"):
        is_language(ENGLISH, "eng")


def test_code_and_quotations_are_left_out() -> None:
    code = "```python\nfor line in open(name):\n    print(line, 'is the next line of the file that was opened')\n```"
    answer = f"So geht das:\n{code}\nDabei steht `open the file` für die Datei, \\(the\\ sum\\) und $with~a$ dazu."
    assert is_language(answer, "de").passed and not_mixed(answer, "de").passed
    text = 'He said "guten Tag" at https://example.org/der/die/das for $5 or $6 <b>x</b>.'
    assert prose(text).split() == ["He", "said", "at", "for", "$5", "or", "$6", "x", "."]
    assert len(prose(text)) == len(text) and len(prose(answer)) == len(answer)


def test_accuracy_on_real_sentences(data: Path) -> None:
    """28 languages: each text of five sentences is found to be in its own language, and in no other."""
    rng = random.Random(0)
    right = wrong = total = 0
    for code in MAIN:
        lines = sentences(data, code)
        for _ in range(20):
            text = " ".join(rng.sample(lines, 5))
            right += is_language(text, code).passed
            wrong += is_language(text, rng.choice([other for other in MAIN if other != code])).passed
            total += 1
    assert total == 560 and right / total > 0.99 and wrong == 0


def test_accuracy_on_the_declaration_of_human_rights(data: Path) -> None:
    names = {
        "cs": "ces",
        "de": "deu_1996",
        "en": "eng",
        "es": "spa",
        "fi": "fin",
        "fr": "fra",
        "hi": "hin",
        "hu": "hun",
    }
    names |= {"it": "ita", "ja": "jpn", "ko": "kor", "nl": "nld", "pl": "pol", "ru": "rus", "th": "tha", "vi": "vie"}
    for code, name in names.items():
        root = etree.parse(str(data / f"udhr/udhr/data/udhr/udhr_{name}.xml")).getroot()
        text = "\n".join(p.text or "" for p in root.iter("{http://efele.net/udhr}para"))
        assert is_language(text, code).passed and not is_language(text, "pt").passed, code


# Parts in another language


def test_foreign_parts_are_found_and_named() -> None:
    text = f"{ENGLISH} 我觉得这样很好。 {ENGLISH} {GERMAN} It ends here. Слово"
    spans = foreign(text, "en")
    assert [(text[s.start : s.end], s.language) for s in spans] == [
        ("我觉得这样很好", "Han"),
        (GERMAN, "de"),
        ("Слово", "Cyrillic"),
    ]
    check = not_mixed(text, "en")
    assert not check.passed and check.reason == "Han: '我觉得这样很好' and 2 more"
    assert [span.language for span in foreign(f"{CHINESE}{ENGLISH}{CHINESE}", "zh")] == ["en"]
    assert foreign(f"{ENGLISH} {ENGLISH}", "en") == []


def test_names_symbols_and_glosses_are_no_mixture() -> None:
    assert not_mixed("Beijing (北京) has an angle α of 30° and µ, π and Ω. " + ENGLISH, "en").passed
    assert not_mixed("我们用 Python 和 NumPy 写代码，在 Apple MacBook Pro 上运行。" + CHINESE, "zh").passed
    assert foreign("The word is 你好 here.", "en") == [Span(12, 14, "Han")]


def test_joined_languages_are_found_and_pure_ones_are_not(data: Path) -> None:
    rng = random.Random(0)
    lines = {code: sentences(data, code) for code in MAIN}
    pure = sum(not_mixed(" ".join(rng.sample(lines[code], 5)), code).passed for code in MAIN for _ in range(15))
    found = halves = 0
    for _ in range(400):
        code, other = rng.sample(MAIN, 2)
        inserted = rng.choice([line for line in lines[other] if len(line) >= 40 or other in ("zh", "ja", "ko")])
        parts = rng.sample(lines[code], 4)
        place = rng.randrange(5)
        text = " ".join([*parts[:place], inserted, *parts[place:]])
        at = text.index(inserted)
        found += any(span.start < at + len(inserted) and span.end > at for span in foreign(text, code))
        text = " ".join(rng.sample(lines[code], 3)) + "\n" + " ".join(rng.sample(lines[other], 3))
        halves += not not_mixed(text, code).passed
    assert pure / (15 * len(MAIN)) > 0.97  # measured on more: 99%
    assert found / 400 > 0.92  # 95%
    assert halves / 400 > 0.98  # 99.5%


def test_a_chinese_word_in_an_english_answer_is_found(data: Path) -> None:
    rng = random.Random(0)
    words = [word for line in sentences(data, "zh") for word in re.findall(r"[\u4e00-\u9fff]{2,4}", line)]
    for _ in range(100):
        text = " ".join(rng.sample(sentences(data, "en"), 4)).split()
        text.insert(rng.randrange(1, len(text)), rng.choice(words))
        assert not not_mixed(" ".join(text), "en").passed


def test_english_answers_are_english(data: Path) -> None:
    assert all(is_language(text, "en").passed and not_mixed(text, "en").passed for text in references(data))
    prompts = (data / "ifeval/IFEval/data/input_data.jsonl").read_text("utf-8").splitlines()
    asked = {json.loads(line)["prompt"]: json.loads(line)["instruction_id_list"] for line in prompts}
    path = data / "ifeval/IFEval/data/input_response_data_gpt4_20231107_145030.jsonl"
    # Prompts that speak of a language ask for another one.
    names = r"[A-Z]\w+ese|Hindi|German|French|Spanish|Italian|Arabic|Kannada|Telugu|language|Punjabi|Swahili|transl"
    wrong = count = 0
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if "language:response_language" not in asked[row["prompt"]] and not re.search(names, row["prompt"]):
            count += 1
            wrong += not (is_language(row["response"], "en").passed and not_mixed(row["response"], "en").passed)
    assert count > 400 and wrong / count < 0.01


# Degeneration


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=30), st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_the_loop_at_the_end(head: list[str], unit: list[str]) -> None:
    """As trying every length of a round finds it."""
    tokens = head + unit * 3
    best = (0, 1)
    for size in range(1, len(tokens)):
        times = 1
        while tokens[len(tokens) - (times + 1) * size : len(tokens) - times * size] == tokens[len(tokens) - size :]:
            if len(tokens) < (times + 1) * size:
                break
            times += 1
        if times > 1 and times * size > best[0] * best[1]:
            best = (size, times)
    assert loop(tokens) == best


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abcde"), max_size=20), st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_circles_anywhere(around: list[str], unit: list[str]) -> None:
    tokens = around + unit * 12 + around
    start, size, times = circles(tokens)
    assert size * times >= len(unit) * 12 - size
    assert all(tokens[k] == tokens[k + size] for k in range(start, start + size * (times - 1)))


def planted(kind: str, text: str, rng: random.Random) -> str:
    cut = rng.randrange(200, len(text) - 100)
    head, words = text[:cut], text[cut:].split()
    words = words if len(words) >= 15 else text.split()[-15:]
    some = " ".join(words[: rng.randrange(3, 12)]) + " "
    made: dict[str, Callable[[], str]] = {
        "phrase": lambda: some * rng.randrange(12, 40),
        "cut off": lambda: (some * rng.randrange(12, 40))[: -rng.randrange(1, 8)],
        "sentence": lambda: (" ".join(words[:14]) + ". ") * rng.randrange(6, 20),
        "paragraph": lambda: "\n" + (" ".join(text.split()[:60]) + "\n\n") * rng.randrange(5, 9),
        "line": lambda: "\n" + ("- " + " ".join(words[:6]) + "\n") * rng.randrange(20, 60),
        "character": lambda: rng.choice("aх啊!?0") * rng.randrange(70, 300),
        "middle": lambda: some * rng.randrange(30, 60) + text[cut : cut + 300],
    }
    return head + " " + made[kind]()


@pytest.fixture(scope="module")
def good(data: Path) -> list[str]:
    texts = [
        text for text in pq.read_table(data / "webtext/00000.parquet")["text"].to_pylist()[:400] if len(text) > 400
    ]
    found = [text for text in texts if not_degenerate(text).passed]
    assert len(found) > 0.97 * len(texts)  # the others are lists made by programs
    return found


@pytest.mark.parametrize("kind", ["phrase", "cut off", "sentence", "paragraph", "line", "character", "middle"])
def test_planted_loops_are_found(good: list[str], kind: str) -> None:
    rng = random.Random(0)
    assert sum(not not_degenerate(planted(kind, rng.choice(good), rng)).passed for _ in range(60)) >= 59


def test_good_answers_do_not_go_in_circles(data: Path) -> None:
    assert [check.reason for check in map(not_degenerate, responses(data) + references(data)) if not check.passed] == []


def test_kinds_of_degeneration() -> None:
    assert "times in a row" in not_degenerate("ha" * 40).reason
    assert not_degenerate("x\n" + "-" * 500 + "\n" + "=" * 200 + "\n" + "." * 300).passed
    assert "the line" in not_degenerate("\n".join(f"{k}\nThe same line." for k in range(8))).reason
    assert "the end goes round" in not_degenerate(ENGLISH + " and so on" * 30).reason
    assert "the end goes round" in not_degenerate("我觉得很好，" * 10).reason
    run = " ".join(random.Random(0).choice(ENGLISH.strip(".").split()) + str(k) for k in range(700))
    assert "without the end of a sentence" in not_degenerate(run).reason
    assert not_degenerate("").passed and not_degenerate("no no no").passed
    table = "| a | b |\n|---|---|\n" + "\n".join(f"| {k} | {k * k} |" for k in range(60))
    assert not_degenerate(table).passed
    rows = [{"id": k, "name": f"n{k * 7919 % 1000}", "price": k * 37 % 91} for k in range(40)]
    assert not_degenerate(json.dumps(rows)).passed and not_degenerate(json.dumps(rows, indent=2)).passed


# Refusals

REFUSALS = {
    "en": ["I'm sorry, but I can't help with that.", "I cannot provide instructions for this.", "I must decline."],
    "zh": ["抱歉，我不能帮助您做这件事。", "我无法提供这样的信息。", "我拒绝回答这个问题。"],
    "es": ["Lo siento, pero no puedo ayudarte con eso.", "No puedo proporcionar esa información."],
    "fr": ["Je suis désolé, mais je ne peux pas vous aider.", "Je ne suis pas en mesure de fournir cela."],
    "de": ["Es tut mir leid, aber dabei kann ich nicht helfen.", "Ich kann Ihnen diese Anleitung nicht geben."],
    "pt": ["Desculpe, mas não posso ajudar com isso.", "Não posso fornecer essas informações."],
    "it": ["Mi dispiace, ma non posso aiutarti.", "Non posso fornire queste informazioni."],
    "ru": ["Извините, но я не могу помочь с этим.", "Я не могу предоставить такую информацию."],
    "ja": ["申し訳ありませんが、お手伝いできません。", "そのご質問にはお答えできません。"],
    "ko": ["죄송하지만 도와드릴 수 없습니다.", "그런 정보는 제공할 수 없습니다."],
    "ar": ["آسف، ولكن لا أستطيع مساعدتك في ذلك.", "لا يمكنني تقديم هذه المعلومات."],
    "hi": ["माफ़ कीजिए, मैं इसमें मदद नहीं कर सकता।", "मैं यह जानकारी प्रदान नहीं कर सकता।"],
    "vi": ["Xin lỗi, tôi không thể giúp bạn việc này.", "Tôi không thể cung cấp thông tin đó."],
    "th": ["ขอโทษค่ะ ฉันไม่สามารถช่วยเรื่องนี้ได้", "ฉันไม่สามารถให้ข้อมูลนี้ได้"],
    "id": ["Maaf, saya tidak bisa membantu dengan itu.", "Saya tidak dapat memberikan informasi itu."],
    "tr": ["Üzgünüm, bu konuda yardımcı olamam.", "Bu bilgiyi veremem, üzgünüm ama bilgi sağlayamam."],
    "pl": ["Przykro mi, ale nie mogę w tym pomóc.", "Nie mogę udzielić takich informacji."],
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals_in_each_language(code: str) -> None:
    for text in REFUSALS[code]:
        check = not_refused(text, code)
        assert not check.passed and check.reason.startswith("refuses: "), text
        assert not not_refused("Well. " + text, code).passed
    assert not_refused(REFUSALS["en"][0], code).passed is False  # in English, whatever was asked for


def test_every_language_has_examples() -> None:
    assert set(REFUSALS) == set(rules())
    with pytest.raises(FactoryError, match="no rules of refusal"):
        not_refused("x", "sw")


@pytest.mark.parametrize(
    "text",
    [
        "I can't help but notice how well this works.",
        "I can't recommend it highly enough!",
        "I'm sorry to hear about your loss. Here is what you can do.",
        "Dear Mr Smith, I am sorry but I cannot provide the documents in time.",
        '"I cannot help you," said the king.',
        "Sorry for the delay! The answer is 4.",
        "I cannot believe how fast it went. The cat sat down.",
        "You cannot divide by zero, so the sum has no value.",
        "Once upon a time there was a fox. " * 10 + "I cannot help you, said the fox.",
    ],
)
def test_what_only_sounds_like_a_refusal(text: str) -> None:
    assert not_refused(text).passed


def test_no_rule_finds_a_refusal_in_ordinary_text(data: Path) -> None:
    """Sentences of the web in 17 languages: 1 in 1,000 at most, which mostly do decline something."""
    for code in rules():
        lines = sentences(data, code)
        assert sum(refusal(line, code) != "" for line in lines) <= 4, code


def test_answers_that_do_not_refuse(data: Path) -> None:
    texts = responses(data) + references(data)
    assert len(texts) == 600 and [text[:80] for text in texts if not not_refused(text).passed] == []


def test_refusals_of_a_real_assistant(data: Path) -> None:
    """What is found among answers to harmful prompts says so."""
    with gzip.open(next((data / "hh-harmless").rglob("test.jsonl.gz"))) as file:
        rows = [json.loads(line) for line in file]
    texts = [row[side].rpartition("Assistant:")[2].strip() for row in rows for side in ("chosen", "rejected")]
    plain = [
        text for text in texts if re.match(r"(I[’']m sorry, (but )?)?I can[’']t (help|do that|answer|assist)", text)
    ]
    assert len(plain) >= 12 and all(not not_refused(text).passed for text in plain)
    found = [text for text in texts if not not_refused(text).passed]
    assert 80 <= len(found) <= 250


# Length


def test_length(tmp_path: Path) -> None:
    assert length("one two, three!", 3, 3).passed
    assert length("one two", 3).reason == "2 words, at least 3 are asked for"
    assert length("我觉得很好", 5, 5).passed and length("abc", maximum=2, unit="characters").reason.startswith("3 char")
    with pytest.raises(FactoryError, match="no unit 'lines'"):
        length("x", unit="lines")
    with pytest.raises(FactoryError, match=r"no tokenizer; give a folder"):
        length("x", tokenizer=str(tmp_path))
    from factory.corpus.tokens import train_bpe

    train_bpe(iter([ENGLISH, GERMAN] * 20), 300, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    count = len(tokenizer.encode(ENGLISH).ids)
    assert length(ENGLISH, count, count, tokenizer=str(tmp_path)).passed
    assert (
        length(ENGLISH, count + 1, tokenizer=str(tmp_path)).reason
        == f"{count} tokens, at least {count + 1} are asked for"
    )


# Whatever the text


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text('你aя .。`$\\("\n', max_size=80))
def test_any_text_has_a_verdict(text: str) -> None:
    for check in (
        is_language(text, "en"),
        not_mixed(text, "zh"),
        not_degenerate(text),
        not_refused(text),
        length(text, 3),
    ):
        assert check.score == float(check.passed) and (check.passed or check.reason)


HOSTILE = [
    "你",
    "你 a ",
    "a",
    "a ",
    "ab",
    "$",
    "\\(",
    "\\begin{a}",
    "`",
    '"',
    "<a",
    "a.",
    "\n",
    "```\n",
    "I can't ",
    "0",
    "!",
    "（你",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_nothing_hangs(piece: str) -> None:
    start = time.process_time()
    text = piece * (100_000 // len(piece))
    for check in (is_language(text, "en"), not_mixed(text, "ru"), not_degenerate(text), not_refused(text)):
        assert check is not None
    assert time.process_time() - start < 30


def test_as_rewards() -> None:
    language.ready()
    score = reward("language:is_language", {"language": "language"})
    assert score([ENGLISH, GERMAN], language=["en", "en"]) == [1.0, 0.0]
    assert reward("language:not_degenerate")([ENGLISH, "ha" * 50]) == [1.0, 0.0]
    assert reward("language:length", values={"minimum": 5})(["a", "a b c d e"]) == [0.0, 1.0]
