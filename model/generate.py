"""Text from a model: `python -m model.generate FOLDER "prompt"`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from factory.engine.errors import FactoryError
from model.checkpoint import load_hf
from model.data import END
from model.sample import Reason, Row, Sampling, batches, continue_rows, log_probabilities, noise_of
from model.transformer import Transformer

BATCH_TOKENS = 1 << 16  # of cache: 0.8 GB for Qwen2.5-0.5B in bfloat16, 3.8 GB for 7B
UNFINISHED = "\ufffd"  # what the bytes of half a character decode to
POSITIONS = ("max_position_embeddings", "rope_theta", "rope_scaling", "dual_chunk_attention_config")


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt."""

    text: str
    """Without what ended it."""
    ids: list[int]
    """All that was sampled: with the end id, or with the tokens of the stop string."""
    reason: Reason
    """`end`: an end id; `stop`: a stop string; `length`: as many tokens as were asked for."""


class Generator:
    """A model and its tokenizer: continuations of prompts, and how likely given continuations are.

    A prompt is a text or a list of ids. Each batch takes at most `batch_tokens` of key/value cache (or one sequence).
    `end` are the ids at which a text ends; by default that of <|endoftext|>.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        batch_tokens: int = BATCH_TOKENS,
        end: Iterable[int] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        self.folder: Path | None = None
        """Where it was loaded from."""
        known = tokenizer.token_to_id(END)
        self.end = frozenset(end if end is not None else [] if known is None else [known])

    @classmethod
    def load(cls, folder: str | Path, batch_tokens: int = BATCH_TOKENS, **changes: Any) -> Generator:
        """The checkpoint in a folder, with its tokenizer and end ids, on the GPU where there is one.

        `changes` are fields of ModelConfig that decide how positions are read (POSITIONS). FactoryError for others: the
        weights decide them.
        """
        folder = Path(folder)
        for key in changes:
            if key not in POSITIONS:
                raise FactoryError(
                    f"model.{key}: the checkpoint decides it; what can be changed: {', '.join(POSITIONS)}"
                )
        model = load_hf(folder)
        if changes:
            scaling = changes.get("rope_scaling", model.config.rope_scaling)
            if scaling is not None and not scaling.original_max_position_embeddings:
                length = model.config.max_position_embeddings  # the checkpoint's, before any change
                changes["rope_scaling"] = dataclasses.replace(scaling, original_max_position_embeddings=length)
            model.config = model.model.config = dataclasses.replace(model.config, **changes)
            model.config.check()
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        made = cls(model, load_tokenizer(folder), batch_tokens, end_ids(folder))
        made.folder = folder
        return made

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        return list(self.tokenizer.encode(prompt).ids) if isinstance(prompt, str) else list(prompt)

    def encode_messages(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The ids of a conversation and of what begins an answer, by the checkpoint's chat template."""
        # Imported here: texts are continued without transformers.
        from model.posttrain.data import render

        text = render(messages, self._templates, asks=True)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    @functools.cached_property
    def _templates(self) -> Any:
        from model.posttrain.data import load_tokenizer as with_template

        if self.folder is None:
            raise FactoryError("messages need a chat template: load the checkpoint from its folder")
        return with_template(self.folder)

    def complete(self, prompts: Sequence[str | list[int]], sampling: Sampling | None = None) -> list[list[Completion]]:
        """`samples` continuations of each prompt."""
        sampling = sampling or Sampling()
        out: list[list[Any]] = [[None] * sampling.samples for _ in prompts]
        for batch in self.batches(prompts, sampling):
            for prompt, sample, completion in batch:
                out[prompt][sample] = completion
        return out

    def batches(
        self, prompts: Sequence[str | list[int]], sampling: Sampling
    ) -> Iterator[list[tuple[int, int, Completion]]]:
        """As `complete`, but what is done after each batch: (number of the prompt, of the sample, completion)."""
        sampling.check()
        ids = [self.encode(prompt) for prompt in prompts]
        for number, one in enumerate(ids):
            self._fits(number, len(one), sampling.tokens)
            self._known(number, one)
        seen: Counter[tuple[int, ...]] = Counter()
        repeated = []
        for one in ids:
            repeated.append(seen[tuple(one)])
            seen[tuple(one)] += 1
        lengths = [len(one) for one in ids]
        for batch in batches(lengths, sampling, self.batch_tokens, self.model.config.vocab_size):
            stops = [Stops(self.tokenizer, sampling.stop) for _ in batch]
            rows = [Row(prompt, sample, done) for (prompt, sample), done in zip(batch, stops, strict=True)]
            noise = np.stack([noise_of(ids[p], repeated[p], sample, sampling) for p, sample in batch])
            continue_rows(self.model, ids, rows, sampling, self.end, noise)
            yield [(row.prompt, row.sample, self._completion(row, done)) for row, done in zip(rows, stops, strict=True)]

    def _fits(self, number: int, length: int, new: int) -> None:
        longest = self.model.config.max_position_embeddings
        if not length:
            raise FactoryError(f"prompt {number} is empty: give at least one token to continue")
        if length + new > longest:
            raise FactoryError(
                f"prompt {number}: {length:,} tokens and {new:,} new ones, but the model is made for {longest:,} "
                "(max_position_embeddings)"
            )

    def _known(self, number: int, ids: list[int]) -> None:
        size = self.model.config.vocab_size
        if min(ids) < 0 or max(ids) >= size:
            wrong = next(one for one in ids if not 0 <= one < size)
            raise FactoryError(
                f"prompt {number}: the model has {size:,} tokens, none with the id {wrong}: give its own tokenizer"
            )

    def _completion(self, row: Row, stops: Stops) -> Completion:
        if row.reason == "stop":
            return Completion(stops.text[: stops.at], row.ids, row.reason)
        ids = row.ids[:-1] if row.reason == "end" else row.ids
        return Completion(str(self.tokenizer.decode(ids)), row.ids, row.reason)

    def score(
        self, prompts: Sequence[str | list[int]], continuations: Sequence[str | list[int]]
    ) -> list[tuple[float, bool]]:
        """For each prompt and its continuation: the sum of the log-probabilities of the continuation's tokens, in
        nats, and whether each of them is the likeliest.

        A pair are two texts or two lists of ids. Of texts the continuation's tokens are those of both together behind
        those of the prompt alone; where the two would share a token, those of the continuation alone.
        """
        pairs = []
        for number, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
            ids = self.encode(prompt)
            if isinstance(continuation, str):
                whole = self.encode(prompt + continuation) if isinstance(prompt, str) else []
                if whole[: len(ids)] != ids:
                    whole = ids + list(self.tokenizer.encode(continuation, add_special_tokens=False).ids)
            else:
                whole = ids + list(continuation)
            self._fits(number, len(ids), len(whole) - len(ids))
            self._known(number, whole)
            pairs.append((len(ids), whole))
        out: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for batch in batches([len(whole) for _, whole in pairs], Sampling(tokens=1), self.batch_tokens, 1):
            chosen = [pairs[number] for number, _ in batch]
            found = log_probabilities(self.model, [whole for _, whole in chosen], [begin for begin, _ in chosen])
            for (number, _), values, likeliest in zip(batch, *found, strict=True):
                out[number] = float(values.double().sum()), bool(likeliest.all())
        return out


class Stops:
    """Called with each new id of a text: whether a stop string has come, also where it lies across tokens.

    A token may end in the middle of a character; its text is then decoded with that of the next one.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.longest = max(map(len, stop), default=0)
        ids = (tokenizer.token_to_id(one) for one in stop)
        # What is decoded leaves special tokens out: these are known by their ids.
        self.special = {known for known in ids if known is not None and not tokenizer.decode([known])}
        self.text, self.at = "", -1  # the text so far, and where the stop string begins in it
        self.tail: list[int] = []  # ids whose text is not whole yet, behind the last one whose is
        self.before = ""  # the text of that last one alone: some decoders drop a space at the beginning

    def __call__(self, token: int) -> bool:
        if not self.stop:
            return False
        if token in self.special:
            self.text += self.tokenizer.decode(self.tail)[len(self.before) :]
            self.at = len(self.text)
            return True
        self.tail.append(token)
        new = self.tokenizer.decode(self.tail)[len(self.before) :]
        text = self.text + new
        start = max(0, len(self.text) - self.longest + 1)
        self.at = min((place for place in (text.find(one, start) for one in self.stop) if place >= 0), default=-1)
        if self.at >= 0 or not new.endswith(UNFINISHED):
            self.text, self.tail = text, [token]
            self.before = self.tokenizer.decode(self.tail)
        return self.at >= 0


def load_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FactoryError(f"{path} is missing: the folder of a checkpoint with its tokenizer is needed")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise FactoryError(f"{path}: not a tokenizer that can be read: {error}") from error
    tokenizer.no_truncation()  # some are stored with that of their training: transformers leaves it out as well
    tokenizer.no_padding()
    return tokenizer


def end_ids(folder: Path) -> list[int]:
    """The ids that end a text: eos_token_id of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        try:
            found = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
        except (ValueError, AttributeError) as error:
            raise FactoryError(f"{path}: not a JSON object: {error}") from error
        if found is not None:
            return list(found) if isinstance(found, list) else [int(found)]
    return []


def encode(folder: Path, prompt: str, positions: int) -> list[int]:
    """The ids of a prompt by the tokenizer in `folder`; FactoryError where there are none, or not room for one more."""
    ids = list(load_tokenizer(folder).encode(prompt).ids)
    if not 0 < len(ids) < positions:
        raise FactoryError(f"a prompt of {len(ids)} tokens: give one of 1 to {positions - 1}")
    return ids


def sample_text(model: Transformer, folder: Path, prompt: str, sampling: Sampling) -> str:
    """One continuation, with the tokenizer that lies in `folder`. Where the model ends a document it goes on with
    another, below a line of dashes."""
    generator = Generator(model, load_tokenizer(folder), end=())
    ((found,),) = generator.complete([prompt], sampling)
    return str(generator.tokenizer.decode(found.ids, skip_special_tokens=False)).replace(END, "\n-----\n")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, each with a `prompt`; of any other file, its lines."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # splitlines would also cut at U+2028, which JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise FactoryError(f"{path}: cannot read the prompts: {error}") from error
    if path.suffix not in (".jsonl", ".json"):
        return [{"prompt": line} for line in lines if line]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise FactoryError(f"{path}, line {number}: not valid JSON: {error}") from error
        if row is not None and not (isinstance(row, dict) and isinstance(row.get("prompt"), str)):
            raise FactoryError(f"{path}, line {number}: not an object with a text under `prompt`")
        rows += [row] if row is not None else []
    return rows


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.generate", description="Continue texts.")
    parser.add_argument("folder", type=Path, help="a checkpoint in Hugging Face's form, with its tokenizer")
    parser.add_argument("prompt", nargs="?", help="a text to continue")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a text a line, or JSON lines with `prompt`")
    parser.add_argument("--tokens", type=int, default=100, help="new tokens at most (100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    parser.add_argument("--top-p", type=float, default=0.95, help="sample among the likeliest (0.95)")
    parser.add_argument("--samples", type=int, default=1, help="continuations of each prompt (1)")
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="the text ends before any of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help=f"of cache, at most ({BATCH_TOKENS})")
    given = parser.parse_args(words)
    if (given.prompt is None) == (given.prompts is None):
        parser.error("give a prompt, or a file of them with --prompts")
    try:
        sampling = Sampling(
            tokens=given.tokens,
            temperature=given.temperature,
            top_p=given.top_p,
            samples=given.samples,
            stop=tuple(given.stop),
            seed=given.seed,
        )
        rows = read_prompts(given.prompts) if given.prompts else [{"prompt": given.prompt}]
        generator = Generator.load(given.folder, given.batch_tokens)
        for row, completions in zip(rows, generator.complete([row["prompt"] for row in rows], sampling), strict=True):
            if given.prompts:
                kept = [{"text": one.text, "tokens": len(one.ids), "reason": one.reason} for one in completions]
                print(json.dumps({**row, "completions": kept}, ensure_ascii=False))
            else:
                print("\n\n".join(row["prompt"] + one.text for one in completions))
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
