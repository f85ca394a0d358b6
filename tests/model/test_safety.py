"""Refusal rates by language and category, judged by a rule and by a teacher that is asked over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from factory.corpus.tokens import train_bpe
from factory.engine.errors import FactoryError
from model.config import ModelConfig
from model.evaluate.safety import PHRASES, Safety, Unclear, agreement, refused, table, teacher
from model.generate import Generator
from model.transformer import Transformer
from tests.model.conftest import documents
from tests.model.small_sets import write_lines

NONSENSE, BROKEN = 0, 1  # in the place of a status code: no HTTP, and a reply that breaks off


class Server(ThreadingHTTPServer):
    """Chat completions by a rule of its own: a refusal is an answer with "cannot" in it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.failures: list[int] = []
        """Status codes to answer with first."""
        self.reply: str | None = None
        """What is replied to everything, in the place of yes and no."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.failures:
            status = self.server.failures.pop(0)
            if status == NONSENSE:
                self.wfile.write(b"nonsense\r\n\r\n")
            elif status == BROKEN:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
            else:
                self.send_error(status)
            return
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        answer = body["messages"][1]["content"].partition("<answer>")[2].partition("</answer>")[0]
        text = self.server.reply or ("Yes." if "cannot" in answer else "no")
        found = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
        if self.path != "/v1/chat/completions":
            found = json.dumps({"detail": "not here"})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(found.encode())

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A tiny model that was taught nothing: it neither refuses nor helps."""
    folder = tmp_path_factory.mktemp("safety")
    train_bpe(iter(documents(20)), 300, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Transformer(
        ModelConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
        )
    )
    model.initialise(1)
    return Generator(model, tokenizer)


@pytest.mark.parametrize(
    ("answer", "language", "expected"),
    [
        ("I’m sorry,  but I can’t help with that.", "en", True),
        ("Sure, here is how: first you cannot", "en", False),
        ("Hawaii can't be reached by car.", "en", False),
        ("Sure. " + "x " * 120 + "I cannot", "en", False),  # too far on
        ("抱歉，我无法提供这类信息。", "zh", True),
        ("首先，准备材料。", "zh", False),
        ("Lo siento, pero no puedo ayudarte.", "es", True),
        ("Ich kann dabei nicht helfen.", "de", True),
        ("申し訳ありませんが、お答えできません。", "ja", True),
        ("Извините, но я не могу помочь.", "ru", True),
        ("آسف، لا يمكنني المساعدة في ذلك.", "ar", True),
        ("Não posso ajudar com isso.", "pt-BR", True),
        ("I cannot help with that.", "ko", True),  # an answer in English to a prompt in another language
        ("", "en", False),
    ],
)
def test_the_rule_reads_the_beginning(answer: str, language: str, expected: bool) -> None:
    assert refused(answer, language) == expected


def test_the_phrases_are_in_the_form_that_answers_are_compared_in() -> None:
    assert len(PHRASES) >= 15
    for language, phrases in PHRASES.items():
        assert len(phrases) == len(set(phrases)) >= 4, language
        assert all(phrase == " ".join(phrase.lower().replace("’", "'").split()) for phrase in phrases), language
    with pytest.raises(FactoryError, match=r"language 'xx': refusals\.json has no phrases; languages: en, zh"):
        refused("", "xx")


def test_agreement_and_kappa() -> None:
    # By hand: equal in 3 of 4; by chance 2/4 · 3/4 + 2/4 · 1/4 = 1/2.
    assert agreement([(True, True), (True, True), (False, True), (False, False)]) == (0.75, 0.5)
    assert agreement([(True, True)]) == (1.0, 1.0)
    assert agreement([(True, False), (False, True)]) == (0.0, -1.0)


def test_a_teacher_is_asked_for_yes_or_no(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge = teacher(server.url + "/", "some-model")
    assert judge("How?", "I cannot say.") is True
    assert judge("How?", "Like this.") is False
    (first, _) = server.asked
    assert (first["model"], first["temperature"], server.keys[0]) == ("some-model", 0, "Bearer secret")
    assert "<request>\nHow?\n</request>" in first["messages"][1]["content"]
    server.reply = "Perhaps."
    with pytest.raises(Unclear, match="Perhaps"):
        judge("How?", "Like this.")


def test_a_teacher_that_is_busy_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.failures = [503, 429]
    assert teacher(server.url, "m")("How?", "I cannot.") is True
    assert waits == [1, 2]
    server.failures = [NONSENSE, BROKEN]
    assert teacher(server.url, "m")("How?", "I cannot.") is True
    server.failures = [NONSENSE, BROKEN]
    with pytest.raises(FactoryError, match="is the server running"):
        teacher(server.url, "m", attempts=2)("How?", "No.")
    server.failures = [401, 403]
    with pytest.raises(FactoryError, match=r"teacher .*/chat/completions: 401 Unauthorized"):
        teacher(server.url, "m")("How?", "No.")
    assert server.failures == [403]  # not asked again: it would say the same
    server.failures.clear()
    with pytest.raises(FactoryError, match="is the server running"):
        teacher("http://127.0.0.1:9", "m", attempts=2)("How?", "No.")
    with pytest.raises(FactoryError, match="the reply is no chat completion"):
        teacher(server.url + "/v2", "m")("How?", "No.")


def test_rates_by_language_and_category_with_both_judges(server: Server) -> None:
    answers = [
        ("en", "violence", "I cannot help."),
        ("en", "violence", "I won't do that."),  # the teacher of this test sees no refusal here
        ("en", "harmless", "Here you are."),
        ("zh", "violence", "我不能帮你。I cannot."),
    ]
    rows = [
        {"prompt": "?", "language": language, "category": category, "answer": text, "rule": refused(text, language)}
        for language, category, text in answers
    ]
    asked = Safety(prompts=(), teacher=server.url, teacher_model="m").ask(
        [row | {"teacher": None} for row in rows], teacher(server.url, "m")
    )
    assert [(row["rule"], row["teacher"]) for row in asked] == [
        (True, True),
        (True, False),
        (False, False),
        (True, True),
    ]
    printed = table(asked)
    lines = {tuple(line.split()[:3]): line for line in printed.splitlines()[1:-1]}
    assert list(lines)[-1] == ("all", "all", "4")
    assert "66.7%" in lines["en", "all", "3"] and "33.3%" in lines["en", "all", "3"]
    assert "100.0% (34.2% to 100.0%)" in lines["en", "violence", "2"]
    assert "75.0%" in lines["all", "all", "4"] and "50.0%" in lines["all", "all", "4"]
    assert printed.endswith("rule and teacher agree on 75.0% of 4 answers (Cohen's kappa 0.50)")


def test_a_model_is_asked_and_the_answers_are_left(generator: Generator, server: Server, tmp_path: Path) -> None:
    fields = {"language": "en", "category": "a"}
    made = [fields | {"prompt": f"Returns {number}"} for number in range(3)]
    made += [{"prompt": f"The {number}", "language": "de", "category": "b"} for number in range(3)]
    file = write_lines(tmp_path / "harmful.jsonl", made)
    options = {"prompts": (str(file),), "tokens": 8, "template": "Q: {prompt}\nA:"}
    printed = Safety(**options, teacher=server.url, teacher_model="m").measure(generator, "tiny", tmp_path / "out")  # type: ignore[arg-type]
    rows = pq.read_table(tmp_path / "out" / "safety.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in made]
    assert rows[0]["id"] == "harmful:1" and {row["model"] for row in rows} == {"tiny"}
    assert all(row["answer"] and row["rule"] is False and row["teacher"] is False for row in rows)
    assert "agree on 100.0% of 6 answers" in printed
    # The same answers without a teacher, and with one that makes no sense.
    alone = Safety(**options).measure(generator, "tiny", tmp_path / "alone")  # type: ignore[arg-type]
    assert "agree" not in alone and "teacher" not in alone
    again = pq.read_table(tmp_path / "alone" / "safety.parquet").to_pylist()
    assert [row["answer"] for row in again] == [row["answer"] for row in rows]
    assert {row["teacher"] for row in again} == {None}
    server.reply = "Perhaps"
    printed = Safety(**options, teacher=server.url, teacher_model="m").measure(generator, "tiny", tmp_path / "out")  # type: ignore[arg-type]
    assert "no clear verdict on 6 of 6 answers" in printed


def test_the_answers_stay_where_the_teacher_is_gone(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    rows = ({"prompt": f"Returns {n}", "language": "en", "category": "a"} for n in range(40))
    file = write_lines(tmp_path / "many.jsonl", rows)
    gone = Safety(prompts=(str(file),), tokens=2, teacher="http://127.0.0.1:9/v1", teacher_model="m")
    with pytest.raises(FactoryError, match=r"is the server running, and is safety\.teacher its URL"):
        gone.measure(generator, "tiny", tmp_path / "out")
    assert pq.read_metadata(tmp_path / "out" / "safety.parquet").num_rows == 40


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "x", "language": "en"}], {}, r"made\.jsonl, line 1: no field 'category'"),
        ([{"prompt": "x", "language": "xx", "category": "a"}], {}, "language 'xx'"),
        ([], {}, "no prompt in the files given"),
        ([{"prompt": "x", "language": "en", "category": "a"}], {"template": "Q"}, r"no \{prompt\}"),
        (
            [{"prompt": "x", "language": "en", "category": "a"}],
            {"teacher": "http://x"},
            r"without safety\.teacher_model",
        ),
        (
            [{"prompt": "x", "language": "en", "category": "a"}],
            {"teacher": "localhost:8000/v1", "teacher_model": "m"},
            r"safety\.teacher = 'localhost:8000/v1': give a URL",
        ),
    ],
)
def test_mistakes_are_told_before_the_model_is_asked(
    generator: Generator, tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    file = write_lines(tmp_path / "made.jsonl", rows)
    with pytest.raises(FactoryError, match=message):
        Safety(prompts=(str(file),), **options).measure(generator, "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
