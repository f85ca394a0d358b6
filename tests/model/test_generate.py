"""Generation: transformers' greedy ids from a batch of unequal prompts, samples that no neighbour changes, stops."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from factory.corpus.tokens import train_bpe
from factory.engine.errors import FactoryError
from model import sample
from model.attention import DualChunk
from model.checkpoint import save_hf
from model.config import ModelConfig
from model.generate import Generator, Stops, end_ids, main, read_prompts
from model.rope import RopeScaling
from model.sample import Sampling, log_probabilities, pick
from model.transformer import Transformer
from tests.model.conftest import SENTENCES, numbers
from tests.model.test_moe import FORMS, build

transformers = pytest.importorskip("transformers")

GREEDY = Sampling(tokens=20, temperature=0)
LENGTHS = [9, 3, 31, 1, 17, 31, 8]
SHORT = {"dual_chunk_attention_config": DualChunk(chunk_size=12, local_size=4, original_max_position_embeddings=16)}
READINGS = {
    "full": {},
    "yarn": {"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)},
    "dual chunks": SHORT,
}


def prompts(lengths: list[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, 101, length).tolist() for length in lengths]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models of this size gain nothing from a second one, and wait for it where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(iter([*SENTENCES, "été 大家好 😀"] * 3), 300, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("form", ["qwen2", "moe", "llama3-rope"])
def test_greedy_is_theirs_in_a_batch_of_unequal_prompts(form: str, tmp_path: Path) -> None:
    model = build(FORMS[form])
    asked = prompts()
    alone = [one for (one,) in Generator(model, numbers(101)).complete(asked, GREEDY)]
    end = alone[0].ids[4]  # an end that comes early for some
    save_hf(model, tmp_path / "hf", None, end)
    numbers(101).save(str(tmp_path / "hf" / "tokenizer.json"))
    other = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager"
    )
    generator = Generator.load(tmp_path / "hf")
    assert generator.end == {end}
    reasons = []
    for prompt, (ours,) in zip(asked, generator.complete(asked, GREEDY), strict=True):
        theirs = other.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert ours.ids == theirs[0, len(prompt) :].tolist()
        assert ours.text.split() == [str(token) for token in ours.ids if token != end]
        reasons.append(ours.reason)
    assert {"end", "length"} == set(reasons)


@pytest.mark.parametrize("reading", READINGS)
def test_a_batch_is_read_as_each_prompt_alone(reading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions begin at 0 in each: with dual chunks a shift would move the edges of the chunks."""
    model = build(FORMS["qwen2"] | READINGS[reading])
    asked = prompts()
    with torch.no_grad():
        for piece in (8192, 40):  # the second reads the prompts in pieces of 5 tokens
            monkeypatch.setattr(sample, "PREFILL", piece)
            for prompt, (ours,) in zip(asked, Generator(model, numbers(101)).complete(asked, GREEDY), strict=True):
                whole = model(torch.tensor([prompt + ours.ids]))[0, len(prompt) - 1 : -1]
                assert ours.ids == whole.argmax(-1).tolist()


@pytest.mark.parametrize("reading", READINGS)
def test_scores_are_those_of_one_pass(reading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(FORMS["moe" if reading == "full" else "qwen2"] | READINGS[reading])
    generator = Generator(model, numbers(101), batch_tokens=80)
    asked = prompts()
    likeliest = [one.ids for (one,) in generator.complete(asked, GREEDY)]
    continuations = [likeliest[0], *prompts([5, 1, 13, 20, 2], 1), likeliest[6][:3]]
    for piece in (8192, 40):
        monkeypatch.setattr(sample, "PREFILL", piece)
        monkeypatch.setattr(sample, "LOGITS", 101 * 7)
        found = generator.score(asked, continuations)
        for prompt, continuation, (total, greedy) in zip(asked, continuations, found, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + continuation]))[0, len(prompt) - 1 : -1]
            target = torch.tensor(continuation)
            assert total == pytest.approx(-float(torch.nn.functional.cross_entropy(logits, target, reduction="sum")))
            assert greedy == bool((logits.argmax(-1) == target).all())
        assert [greedy for _, greedy in found] == [True, *[False] * 5, True]


DUAL = build(FORMS["qwen2"] | SHORT)
WARM = Sampling(tokens=12, temperature=1.2, top_p=0.95, samples=2, seed=5)


@settings(max_examples=15, deadline=None, derandomize=True)  # a draw may fall on the edge of rounding
@given(
    others=st.lists(st.integers(1, 40), max_size=6),
    place=st.integers(0, 6),
    batch_tokens=st.sampled_from([1, 64, 200, 1 << 16]),
    seed=st.integers(0, 3),
)
def test_neighbours_change_nothing(others: list[int], place: int, batch_tokens: int, seed: int) -> None:
    model = DUAL
    mine = prompts([14], 7)[0]
    alone = Generator(model, numbers(101)).complete([mine], WARM)[0]
    assert alone[0].ids != alone[1].ids
    asked = prompts(others, seed)
    place = min(place, len(asked))
    asked.insert(place, mine)
    assert Generator(model, numbers(101), batch_tokens).complete(asked, WARM)[place] == alone


def test_samples_and_seeds() -> None:
    generator = Generator(build(FORMS["qwen2"]), numbers(101))
    first, second = prompts([6, 9])
    many = generator.complete([first, second, first], Sampling(tokens=8, samples=4, seed=1))
    again = generator.complete([first, second, first], Sampling(tokens=8, samples=4, seed=1))
    other = generator.complete([first], Sampling(tokens=8, samples=4, seed=2))
    assert many == again
    texts = [one.text for row in (*many, *other) for one in row]
    assert len(set(texts)) == 16, "each sample, each seed, and the same prompt twice differ"


def test_sampling_from_the_model_is_its_distribution() -> None:
    """3,000 samples of one prompt beside the softmax of its logits."""
    model = build(FORMS["qwen2"])
    (prompt,) = prompts([5])
    rows = Generator(model, numbers(101)).complete([prompt], Sampling(tokens=1, samples=3000, temperature=0.3))[0]
    found = torch.bincount(torch.tensor([one.ids[0] for one in rows]), minlength=101) / 3000
    expected = (model(torch.tensor([prompt]))[0, -1] / 0.3).softmax(-1)
    assert (found - expected).abs().max() < 0.03
    assert expected.max() > 0.1


def test_pick_draws_from_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.25, 0.15])
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    rows = probabilities.log().expand(20_000, 4)
    found = torch.bincount(pick(rows, 1.0, 1.0, uniform), minlength=4) / 20_000
    assert (found - probabilities).abs().max() < 1e-3
    found = torch.bincount(pick(rows, 1.0, 0.7, uniform), minlength=4) / 20_000
    assert (found - torch.tensor([0, 2 / 3, 1 / 3, 0])).abs().max() < 1e-3
    assert (pick(rows, 1.0, 1e-6, uniform) == 1).all() and (pick(rows, 0, 1.0, uniform) == 1).all()
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert pick(rows[:2], 1.0, 1.0, edges).tolist() == [0, 3]
    assert pick(rows[:2], 1.0, 0.99, edges).tolist() == [1, 0]


class Scripted(torch.nn.Module):
    """A head that asks for the next id of a script, whatever the hidden states are."""

    def __init__(self, model: sample.Transformer, script: list[int]) -> None:
        super().__init__()
        self.weight, self.script, self.step, self.sizes = model.lm_head.weight, script, -1, list[int]()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.step += 1
        self.sizes.append(len(hidden))
        return torch.nn.functional.one_hot(torch.tensor([self.script[self.step]] * len(hidden)), 400).float()


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("The axis along which", ("along",), "The axis "),
        ("The axis along which", ("xis al", "axis along w"), "The a"),
        ("The axis along which", ("nowhere",), "The axis along which"),
        ("a 大家好 😀 été", ("家好",), "a 大"),
        ("a 大家好 😀 été", ("😀", "ét"), "a 大家好 "),
        ("Returns", ("R",), ""),
    ],
)
def test_the_text_ends_before_a_stop_string(
    text: str, stop: tuple[str, ...], expected: str, tokenizer: Tokenizer
) -> None:
    model = build(FORMS["qwen2"] | {"vocab_size": 400})
    ids = tokenizer.encode(text).ids
    model.lm_head = Scripted(model, [*ids, *[0] * 40])  # type: ignore[assignment]
    ((found,),) = Generator(model, tokenizer).complete([[5]], Sampling(tokens=len(ids), temperature=0, stop=stop))
    assert found.text == expected
    assert found.reason == ("stop" if expected != text else "length")
    assert found.ids == ids[: len(found.ids)]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_stops_are_found_as_in_the_whole_text(data: st.DataObject, tokenizer: Tokenizer) -> None:
    """On ids of any bytes: a stop is seen with the very id that completes it."""
    ids = data.draw(st.lists(st.integers(1, 299), max_size=30))
    stop = data.draw(st.lists(st.text("a大é e\n", min_size=1, max_size=2), min_size=1, max_size=3).map(tuple))
    stops = Stops(tokenizer, stop)
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        place = min((at for at in map(text.find, stop) if at >= 0), default=-1)
        assert stops(ids[count - 1]) == (place >= 0)
        if place >= 0:
            assert stops.text[: stops.at] == text[:place]
            break


def test_a_special_token_may_be_a_stop(tokenizer: Tokenizer) -> None:
    """It has no text of its own in what is decoded."""
    end = tokenizer.token_to_id("<|endoftext|>")
    model = build(FORMS["qwen2"] | {"vocab_size": 400})
    ids = tokenizer.encode("The axis 😀").ids
    model.lm_head = Scripted(model, [*ids, end, *ids])  # type: ignore[assignment]
    sampling = Sampling(tokens=2 * len(ids), temperature=0, stop=("<|endoftext|>", "zeros"))
    ((found,),) = Generator(model, tokenizer, end=()).complete([[5]], sampling)
    assert (found.text, found.reason, found.ids) == ("The axis 😀", "stop", [*ids, end])


def test_a_continuation_that_would_share_a_token_is_scored_alone(tokenizer: Tokenizer) -> None:
    """Of both together fewer tokens may be left than the prompt has."""
    model = build(FORMS["qwen2"] | {"vocab_size": 400})
    generator = Generator(model, tokenizer)
    shared = 0
    for text, cut in itertools.product(SENTENCES, range(3, 40)):
        prompt, continuation = text[:cut], text[cut : cut + 8]
        ids, more = tokenizer.encode(prompt).ids, tokenizer.encode(continuation).ids
        joined = tokenizer.encode(prompt + continuation).ids
        if joined[: len(ids)] != ids:
            shared, joined = shared + 1, ids + more
        assert generator.score([prompt], [continuation]) == generator.score([ids], [joined[len(ids) :]])
    assert shared > 5


def test_finished_rows_leave_the_batch(tokenizer: Tokenizer) -> None:
    """Three rows of which each ends at its own time: the model works on 3, 2, 2, 1 of them."""
    model = build(FORMS["qwen2"])
    asked = prompts([4, 6, 5])
    alone = [one.ids for (one,) in Generator(model, numbers(101)).complete(asked, GREEDY)]
    sizes: list[int] = []
    model.model.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    ends = {alone[0][0], alone[2][2]}
    found = Generator(model, numbers(101), end=ends).complete(asked, GREEDY)
    counts = [len(one.ids) for (one,) in found]
    assert [one.ids for (one,) in found] == [ids[:count] for ids, count in zip(alone, counts, strict=True)]
    assert sizes[0] == 3 and sizes[1:] == [sum(count > step for count in counts) for step in range(1, max(counts))]


def test_batches_hold_what_they_may(tokenizer: Tokenizer) -> None:
    lengths = [10, 500, 20, 30, 90]
    made = list(sample.batches(lengths, Sampling(tokens=10, samples=3), 120, 101))
    assert sorted(one for batch in made for one in batch) == [(p, s) for p in range(5) for s in range(3)]
    for batch in made:
        assert len(batch) == 1 or len(batch) * (max(lengths[p] for p, _ in batch) + 10) <= 120
    assert [p for batch in made for p, _ in batch] == [1] * 3 + [4] * 3 + [3] * 3 + [2] * 3 + [0] * 3


MEMORY = """
import sys, torch
from factory.engine.receipt import peak_memory
from model.config import ModelConfig
from model.sample import log_probabilities
from model.transformer import Transformer
torch.set_num_threads(1)
model = Transformer(ModelConfig(vocab_size=5000, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=1 << 20))
model.initialise(0)
log_probabilities(model, [[1] * int(sys.argv[1])], [1])
print(peak_memory() / 2**20)
"""


def test_long_prompts_take_memory_in_line_with_their_length() -> None:
    """32,768 tokens would have logits of 655 MB and a mask of 1 GB as a whole."""
    peaks = []
    for length in ("4096", "32768"):
        command = [sys.executable, "-c", MEMORY, length]
        result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        peaks.append(float(result.stdout))
    assert peaks[1] - peaks[0] < 450, peaks


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = Generator(build(FORMS["qwen2"] | {"max_position_embeddings": 30}), numbers(101))
    for asked, sampling, message in (
        ([[1], []], Sampling(tokens=5), "prompt 1 is empty"),
        ([[1] * 20], Sampling(tokens=11), "20 tokens and 11 new ones, but the model is made for 30"),
        ([[1]], Sampling(temperature=-1), "temperature"),
        ([[1]], Sampling(top_p=0), "top_p"),
        ([[1]], Sampling(samples=0), "samples = 0"),
        ([[1]], Sampling(stop=("",)), "empty stop"),
        ([[1], [5, 101]], Sampling(tokens=5), "prompt 1: the model has 101 tokens, none with the id 101"),
    ):
        with pytest.raises(FactoryError, match=message):
            generator.complete(asked, sampling)
    bad = tmp_path / "prompts.jsonl"
    bad.write_text('{"prompt": "x"}\n{"text": "y"}\n')
    assert main([str(tmp_path), "--prompts", str(bad)]) == 2
    assert "line 2" in capsys.readouterr().err
    folder = tmp_path / "hf"
    save_hf(build(FORMS["qwen2"]), folder, None, 0)
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).write_text("{")
        assert main([str(folder), "1"]) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
        numbers(101).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").unlink()
    with pytest.raises(FactoryError, match=r"model\.hidden_size: the checkpoint decides it"):
        Generator.load(folder, hidden_size=24)


def test_no_prompt_is_cut_or_padded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A tokenizer may be stored with the length of its training."""
    save_hf(build(FORMS["qwen2"] | {"vocab_size": 300}), tmp_path, None, 0)
    stored = Tokenizer.from_str(tokenizer.to_str())
    stored.enable_truncation(4)
    stored.enable_padding(length=40)
    stored.save(str(tmp_path / "tokenizer.json"))
    generator = Generator.load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The", SENTENCES[0]):
        assert generator.encode(text) == theirs(text)["input_ids"] == tokenizer.encode(text).ids


def test_prompts_are_lines_of_a_file(tmp_path: Path) -> None:
    """U+2028 and a form feed are characters of a text, not ends of a line; a mark at the beginning is none of it."""
    (tmp_path / "p.jsonl").write_text('\ufeff{"prompt": "a\u2028b"}\r\n\n{"prompt": "c"}', "utf-8")
    (tmp_path / "p.txt").write_text("\ufeffa\fb\r\n\nc\u2028d\n", "utf-8")
    assert [row["prompt"] for row in read_prompts(tmp_path / "p.jsonl")] == ["a\u2028b", "c"]
    assert [row["prompt"] for row in read_prompts(tmp_path / "p.txt")] == ["a\fb", "c\u2028d"]


def test_the_command_line(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hf"
    save_hf(build(FORMS["qwen2"] | {"vocab_size": 300}), folder, None, 0)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert end_ids(folder) == [0]
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert end_ids(folder) == [3, 4]
    rows = [{"id": 7, "prompt": "Returns a"}, {"id": 8, "prompt": "The axis along which the values"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--samples", "2", "--tokens", "6", "--seed", "3"]
    assert main([str(folder), "--prompts", str(tmp_path / "prompts.jsonl"), *options]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["id"], len(row["completions"])) for row in printed] == [(7, 2), (8, 2)]
    (tmp_path / "prompts.txt").write_text("".join(row["prompt"] + "\n" for row in rows))
    assert main([str(folder), "--prompts", str(tmp_path / "prompts.txt"), *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["completions"] for row in lines] == [row["completions"] for row in printed]
    assert main([str(folder), "Returns a", *options]) == 0
    assert capsys.readouterr().out == "\n\n".join("Returns a" + one["text"] for one in lines[0]["completions"]) + "\n"


def test_a_checkpoint_is_read_with_other_positions(tmp_path: Path) -> None:
    model = build(FORMS["qwen2"] | {"max_position_embeddings": 16})
    save_hf(model, tmp_path, None, None)
    numbers(101).save(str(tmp_path / "tokenizer.json"))
    yarn = RopeScaling(rope_type="yarn", factor=4.0)
    generator = Generator.load(tmp_path, max_position_embeddings=64, rope_scaling=yarn)
    config = generator.model.config
    assert config.max_position_embeddings == 64 and config.rope_scaling is not None
    assert config.rope_scaling.original_max_position_embeddings == 16, "the trained length is the checkpoint's"
    config = ModelConfig(**vars(model.config) | {"rope_scaling": yarn})  # a checkpoint that does not say it either
    save_hf(Transformer(config), tmp_path, None, None)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["rope_scaling"]["original_max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    numbers(101).save(str(tmp_path / "tokenizer.json"))
    longer = Generator.load(tmp_path, max_position_embeddings=64).model.config
    assert longer.rope_scaling is not None and longer.rope_scaling.original_max_position_embeddings == 16
    (prompt,) = prompts([40])
    changed = log_probabilities(generator.model, [prompt], [1])[0][0]
    assert (changed - log_probabilities(model, [prompt], [1])[0][0]).abs().max() > 1e-3
