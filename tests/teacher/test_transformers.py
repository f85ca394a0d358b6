"""The embedded engine beside transformers' own generate, and the laws of sampling: no neighbour changes a sample."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.teacher.engine import Ask, Asks
from factory.teacher.request import Failed, Message, Request, Response, Sampling
from factory.teacher.transformers import Transformers
from tests.teacher.small import END, ask

PROMPTS = ("The factory", "Was kostet das? Ça va", "x", "1. First\n2. Second\n3. Third\n" * 3, "大家好", "been to")
CHAT = (Message("system", "Be brief."), Message("user", "Say what 12 + 30 is."))
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bo"]}, "ok": {"type": "boolean"}, "n": {"type": "integer", "maximum": 99}},
    "required": ["name", "ok", "n"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models of this size gain nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Transformers]:
    engine = Transformers(str(checkpoint))
    yield engine
    engine.close()


def texts(responses: list[Response | Failed]) -> list[list[str]]:
    assert all(isinstance(one, Response) for one in responses), responses
    return [[choice.text for choice in one.choices] for one in responses]  # type: ignore[union-attr]


def test_greedy_is_theirs_in_a_batch_of_unequal_prompts(engine):
    sampling = Sampling(temperature=0, max_tokens=24)
    asked = [
        *(Request(prompt=prompt, sampling=sampling) for prompt in PROMPTS),
        Request(messages=CHAT, sampling=sampling),
    ]
    network, tokenizer = engine.network, engine.tokenizer
    for request, response in zip(asked, ask(engine, asked), strict=True):
        if request.prompt:
            ids = tokenizer(request.prompt)["input_ids"]
        else:
            messages = [{"role": role, "content": text} for role, text in request.messages]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        theirs = network.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)[
            0, len(ids) :
        ]
        (choice,) = response.choices
        assert choice.text == tokenizer.decode(theirs, skip_special_tokens=True)
        assert (response.prompt_tokens, choice.tokens) == (len(ids), len(theirs))
        assert choice.finish_reason == ("stop" if theirs[-1] == END else "length")


def test_the_end_of_a_text_is_not_in_it(engine):
    found = ask(engine, [Request(prompt=prompt, sampling=Sampling(n=8, max_tokens=120)) for prompt in PROMPTS])
    choices = [choice for response in found for choice in response.choices]
    ended = [choice for choice in choices if choice.finish_reason == "stop"]
    assert ended and all("<|endoftext|>" not in choice.text for choice in choices)
    assert all((choice.tokens == 120) >= (choice.finish_reason == "length") for choice in choices)


@given(order=st.permutations(range(len(PROMPTS))), batch_tokens=st.sampled_from([1, 100, 300, 1 << 16]))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_neighbour_changes_a_sample(engine, order, batch_tokens):
    """In any order and batch, alone or together, and with a prefix of the samples known already."""
    mixed = (
        Sampling(n=3, max_tokens=30),
        Sampling(n=1, max_tokens=12, temperature=0.5, top_p=0.8, seed=7),
        Sampling(n=2, max_tokens=40, temperature=2.0, seed=1, stop=("e",)),
    )
    asked = [Request(prompt=prompt, sampling=mixed[at % 3]) for at, prompt in enumerate(PROMPTS)]
    alone = [texts(ask(engine, [one]))[0] for one in asked]
    engine.batch_tokens, whole = batch_tokens, engine.batch_tokens
    try:
        together = texts(ask(engine, [asked[at] for at in order]))
    finally:
        engine.batch_tokens = whole
    assert together == [alone[at] for at in order]


def test_sample_i_is_drawn_with_seed_plus_i(engine):
    def of(seed: int, n: int, first: int = 0) -> list[str]:
        sampling = Sampling(seed=seed, n=n, max_tokens=20)
        return texts(ask(engine, [Request(prompt="The", sampling=sampling)], first))[0]

    eight = of(5, 8)
    assert len(set(eight)) == 8
    assert of(5, 4) == eight[:4] and of(5, 8, first=6) == eight[6:] and of(7, 2) == eight[2:4]
    free = Request(prompt="The", sampling=Sampling(seed=None, max_tokens=20))
    assert texts(ask(engine, [free])) != texts(ask(engine, [free]))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.5)])
def test_samples_follow_the_distribution(engine, temperature, top_p):
    """Counts of 3,000 first tokens, against the probabilities of the model: within five standard deviations each."""
    n = 3000
    sampling = Sampling(n=n, max_tokens=1, temperature=temperature, top_p=top_p, logprobs=1)
    (response,) = ask(engine, [Request(prompt="The factory", sampling=sampling)])
    with torch.inference_mode():
        logits = engine.network(torch.tensor([engine.tokenizer("The factory")["input_ids"]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1).numpy().astype(np.float64)
    order = np.argsort(-expected, kind="stable")
    nucleus = order[: int(np.searchsorted(np.cumsum(expected[order]), top_p)) + 1]
    expected[np.setdiff1d(order, nucleus)] = 0
    expected /= expected.sum()
    by_logprob = np.log(torch.softmax(logits, -1).numpy())
    seen = Counter(int(np.abs(by_logprob - choice.logprobs[0].logprob).argmin()) for choice in response.choices)
    assert set(seen) <= set(nucleus.tolist())
    counts = np.array([seen[one] for one in range(len(expected))])
    assert (np.abs(counts - n * expected) <= 5 * np.sqrt(n * expected) + 1).all()


def test_logprobs_are_the_models_own(engine):
    sampling = Sampling(n=2, max_tokens=12, temperature=0.7, top_p=0.9, logprobs=3)
    asked = [Request(prompt="The factory", sampling=sampling), Request(prompt="x", sampling=Sampling(max_tokens=3))]
    response, other = ask(engine, asked)
    assert other.choices[0].logprobs is None
    for choice in response.choices:
        assert len(choice.logprobs) == choice.tokens
        ids = engine.tokenizer("The factory")["input_ids"]
        for place in choice.logprobs:
            with torch.inference_mode():
                known = engine.network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            chosen = int((known - place.logprob).abs().argmin())
            assert place.token == engine.tokenizer.decode([chosen])
            assert float(known[chosen]) == pytest.approx(place.logprob, abs=1e-4)
            best = known.topk(3).values.tolist()
            assert [value for _, value in place.top] == pytest.approx(best, abs=1e-4)
            ids = [*ids, chosen]


def test_a_stop_string_ends_the_text_wherever_it_lies(engine):
    """Each cut of a free text, across tokens and characters of several bytes, as a stop string."""
    sampling = Sampling(max_tokens=40, seed=3)
    ((free,),) = texts(ask(engine, [Request(prompt="Was kostet das?", sampling=sampling)]))
    stops = [free[at : at + length] for at in range(0, len(free) - 3, 3) for length in (1, 3)]
    asked = [
        Request(prompt="Was kostet das?", sampling=Sampling(max_tokens=40, seed=3, stop=("never there", stop)))
        for stop in stops
    ]
    for stop, response in zip(stops, ask(engine, asked), strict=True):
        (choice,) = response.choices
        assert (choice.text, choice.finish_reason) == (free[: free.find(stop)], "stop"), stop


def test_a_special_token_may_be_a_stop_string(engine):
    likely = Sampling(n=20, max_tokens=200, temperature=3.0, stop=("<|im_end|>",))
    (response,) = ask(engine, [Request(prompt="The", sampling=likely)])
    assert {"stop", "length"} >= {choice.finish_reason for choice in response.choices}
    stops = {
        row.stops == {END, engine.tokenizer.convert_tokens_to_ids("<|im_end|>")}
        for row in engine._rows(Ask(Request(prompt="The", sampling=likely)))
    }
    assert stops == {True}


def test_json_keeps_to_its_schema(engine):
    sampling = Sampling(n=16, max_tokens=200, temperature=1.5, json_schema=json.dumps(SCHEMA))
    (response,) = ask(engine, [Request(messages=CHAT, sampling=sampling)])
    found = [json.loads(choice.text) for choice in response.choices if choice.finish_reason == "stop"]
    assert len(found) >= 12
    for one in found:
        assert one.keys() == SCHEMA["properties"].keys()
        assert one["name"] in ("Ada", "Bo") and type(one["ok"]) is bool and type(one["n"]) is int and one["n"] <= 99


def test_what_cannot_be_answered_fails_alone(engine):
    wrong = {
        "more than the 256 that the model is made for": Request(prompt="word " * 400),
        "json_schema": Request(prompt="x", sampling=Sampling(json_schema='{"type": "nothing"}', max_tokens=5)),
        "line 1 column 2": Request(prompt="x", sampling=Sampling(json_schema="{", max_tokens=5)),
        "not a way to sample": Request(prompt="x", sampling=Sampling(top_p=0, max_tokens=5)),
    }
    right = Request(prompt="The", sampling=Sampling(max_tokens=5))
    *failed, answered = ask(engine, [*wrong.values(), right])
    assert isinstance(answered, Response)
    for said, one in zip(wrong, failed, strict=True):
        assert isinstance(one, Failed) and said in one.error, one


def test_it_gives_up_when_no_answer_is_wanted(engine):
    asks, answered = Asks(), []
    asks.put([Ask(Request(prompt=prompt, sampling=Sampling(max_tokens=10))) for prompt in PROMPTS])

    def done(answers):
        answered.extend(answers)
        asks.close()

    engine.batch_tokens, whole = 1, engine.batch_tokens
    try:
        engine.answer(asks, done)
    finally:
        engine.batch_tokens = whole
    assert len(answered) == 1


def test_the_identity_is_what_is_in_the_folder(checkpoint, tmp_path):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "elsewhere"))
    assert Transformers(str(copy)).identity == Transformers(str(checkpoint)).identity
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    assert Transformers(str(copy)).identity != Transformers(str(checkpoint)).identity
    assert Transformers("some/model", "abc").identity == "transformers some/model@abc"


def test_a_wrong_folder_is_one_line_with_a_cure(checkpoint, tmp_path):
    with pytest.raises(FactoryError, match="no such folder: give one in Hugging Face's form"):
        Transformers(str(tmp_path / "nothing"))
    with pytest.raises(FactoryError, match=r"no config\.json"):
        Transformers(str(tmp_path))
    bare = Path(shutil.copytree(checkpoint, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(FactoryError, match=r"no chat template.* ask with a raw prompt, or put .* chat_template\.jinja"):
        ask(Transformers(str(bare)), [Request(messages=CHAT)])
    (bare / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(FactoryError, match=r"bare: cannot be loaded: "):
        ask(Transformers(str(bare)), [Request(prompt="x")])
