"""The embedded engine: any causal language model that the library `transformers` loads, on a GPU or on the CPU.

Requests are sorted by length and put together in batches under a budget of tokens. Each prompt is read once, whatever
the number of its samples; a sample that has come to its end leaves the batch. A sample is drawn with a generator of
its own, so it depends on its neighbours in nothing but the last bits of float arithmetic, which a product of another
size may round otherwise; drawn by noise on every token (the exponential race), such a bit hardly ever decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.engine.collector import importing
from factory.engine.errors import FactoryError
from factory.teacher import checkpoint
from factory.teacher.checkpoint import Unanswerable
from factory.teacher.engine import Ask, Asks, Done, identify
from factory.teacher.request import Choice, Failed, Logprob, Response

if TYPE_CHECKING:
    import torch

POOL = 256  # requests that are sorted by length together
LINGER = 0.02  # seconds to wait for more of them, while more keep coming
BATCH_TOKENS = 1 << 16  # of cache: 0.8 GB for a model of 0.5B parameters in bfloat16, 3.8 GB for 7B (Qwen2.5)
PREFILL = 1 << 13  # tokens of prompts that go through the model at once
LOGITS = 1 << 25  # that are sampled from at once: more are several batches
WHITESPACE: Any = {"whitespace_pattern": r"[ \t\n]{1,32}"}  # without a bound a model may write nothing else


@dataclass(eq=False)
class Row:
    """One sample in the making."""

    ask: Ask
    number: int
    prompt: list[int]
    stops: set[int]
    noise: Any
    """Its own generator; None where the likeliest token is taken."""
    matcher: Any = None
    """What the JSON schema allows next."""
    stream: Any = None
    text: str = ""
    """The text so far, where there are stop strings to look for."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    end: int | None = None
    """Where in `text` a stop string begins."""
    reason: str = ""

    @property
    def length(self) -> int:
        return len(self.prompt) + self.ask.request.sampling.max_tokens


class Transformers:
    """The engine of a model folder (or a name that the hub's cache or the network gives).

    `batch_tokens` bounds the keys and values of a batch. Numbers are float32 on the CPU and the checkpoint's own on a
    GPU. FactoryError where there is no such model.
    """

    def __init__(self, model: str, revision: str = "", batch_tokens: int = BATCH_TOKENS) -> None:
        self.model, self.revision, self.batch_tokens = model, revision, batch_tokens
        checkpoint.content(model)
        self.name = identify(model, revision)
        # Engines share no answers: each draws other samples from the same seed.
        self.identity = f"transformers {self.name}"

    def answer(self, asks: Asks, done: Done) -> None:
        """Answer all asks, a pool after the other; the model is loaded at the first."""
        while pool := _pool(asks):
            rows: list[Row] = []
            for ask in pool:
                try:
                    rows += self._rows(ask)
                except Unanswerable as error:
                    done([(ask, Failed(str(error), ask.request))])
            finished: dict[Ask, list[Row]] = {}
            for batch in self._batches(rows):
                for row in self._generate(batch, asks):
                    finished.setdefault(row.ask, []).append(row)
                    if len(finished[row.ask]) == row.ask.count:
                        done([(row.ask, self._response(finished.pop(row.ask)))])
                if asks.closed:
                    return

    def close(self) -> None:
        for name in ("network", "tokenizer", "grammar_tokenizer"):
            self.__dict__.pop(name, None)

    @cached_property
    def tokenizer(self) -> Any:
        return checkpoint.tokenizer_of(self.model, self.revision)

    @cached_property
    def network(self) -> Any:
        with importing("transformers"):
            import torch
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging

        logging.disable_progress_bar()  # its bar and the run's would write over each other
        gpu = torch.cuda.is_available()
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.model, revision=self.revision or "main", dtype="auto" if gpu else torch.float32
            )
        except Exception as error:  # of many kinds, according to what is missing or broken
            raise FactoryError(f"{self.model}: cannot be loaded: {str(error).splitlines()[0]}") from error
        return loaded.to("cuda" if gpu else "cpu").eval()

    @cached_property
    def end(self) -> set[int]:
        """The ids that end a text."""
        found: Any = self.network.generation_config.eos_token_id
        found = found if isinstance(found, list) else [found]
        return {one for one in [*found, self.tokenizer.eos_token_id] if one is not None}

    @cached_property
    def grammar_tokenizer(self) -> Any:
        try:
            import llguidance.hf
        except ImportError as error:
            raise FactoryError("json_schema needs the package llguidance: pip install llguidance") from error
        ends = sorted(self.end) or None
        return llguidance.hf.from_tokenizer(self.tokenizer, self._vocabulary, ends)

    @property
    def _vocabulary(self) -> int:
        return int(self.network.get_output_embeddings().weight.shape[0])

    # What is asked, as rows and batches.

    def _rows(self, ask: Ask) -> Iterator[Row]:
        request, sampling = ask.request, ask.request.sampling
        prompt = checkpoint.encode(self.tokenizer, request, self.model)
        checkpoint.check_length(prompt, sampling.max_tokens, self._positions)
        if not 0 < sampling.top_p <= 1 or sampling.temperature < 0 or sampling.max_tokens < 1 or "" in sampling.stop:
            raise Unanswerable(f"{sampling}: not a way to sample")
        stops = checkpoint.special_stops(self.tokenizer, sampling.stop) | self.end
        digest = hashlib.blake2b(np.asarray(prompt, np.int64).tobytes(), digest_size=8).digest()
        for number in range(ask.first, sampling.n):
            row = Row(ask, number, prompt, stops, None)
            if sampling.temperature > 0:
                seed = os.urandom(8) if sampling.seed is None else str(sampling.seed + number).encode()
                row.noise = self._generator(hashlib.blake2b(digest + seed, digest_size=8).digest())
            if sampling.json_schema:
                row.matcher = self._matcher(sampling.json_schema)
            if sampling.stop:
                from tokenizers.decoders import DecodeStream

                row.stream = DecodeStream(skip_special_tokens=True)
            yield row

    @property
    def _positions(self) -> int | None:
        return getattr(self.network.config, "max_position_embeddings", None)

    def _generator(self, seed: bytes) -> Any:
        number = int.from_bytes(seed, "little")
        if self.network.device.type == "cpu":
            return np.random.default_rng(number)
        import torch

        return torch.Generator(self.network.device).manual_seed(number & (1 << 63) - 1)

    def _matcher(self, schema: str) -> Any:
        tokenizer = self.grammar_tokenizer
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.loads(schema), WHITESPACE)
        except ValueError as error:
            raise Unanswerable(f"json_schema: {error}") from error
        found = LLMatcher(tokenizer, grammar)
        if found.is_error():
            raise Unanswerable(f"json_schema: {found.get_error().splitlines()[0]}")
        return found

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Rows of like length together, the longest first, the samples of a prompt beside each other."""
        most = max(1, LOGITS // self._vocabulary) if rows else 1
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: -row.length):
            if batch and len(batch) >= min(most, self.batch_tokens // batch[0].length):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    # The work.

    def _generate(self, rows: list[Row], asks: Asks) -> Iterator[Row]:
        """Sample a batch to its end: each row as it is finished."""
        import torch

        with torch.inference_mode():
            logits, cache, mask = self._read(rows)
            while True:
                chosen = self._choose(logits, rows)
                stay = [place for place, row in enumerate(rows) if not self._ends(row, chosen[place])]
                yield from (row for row in rows if row.reason)
                if not stay or asks.closed:
                    return
                if len(stay) < len(rows):
                    kept = torch.tensor(stay, device=mask.device)
                    cache.batch_select_indices(kept)
                    rows, mask, chosen = [rows[place] for place in stay], mask[kept], [chosen[place] for place in stay]
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
                ids = torch.tensor(chosen, device=mask.device)[:, None]
                logits = self._forward(ids, mask, cache)

    def _read(self, rows: list[Row]) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """The logits behind each row's prompt, the cache and the mask. A prompt of several rows is read once, and
        short ones have a gap before them, so that all of them end, and go on, at the same place."""
        import torch
        from transformers import DynamicCache

        device = self.network.device
        alone: dict[Ask, int] = {}
        for row in rows:
            alone.setdefault(row.ask, len(alone))
        prompts = {alone[row.ask]: row.prompt for row in rows}
        longest = max(map(len, prompts.values()))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, prompt in prompts.items():
            ids[place, longest - len(prompt) :] = torch.tensor(prompt)
            mask[place, longest - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        cache = DynamicCache(config=self.network.config)
        piece = max(1, PREFILL // len(prompts))
        for begin in range(0, longest, piece):
            logits = self._forward(ids[:, begin : begin + piece], mask[:, : begin + piece], cache)
        if len(rows) > len(prompts):
            each = torch.tensor([alone[row.ask] for row in rows], device=device)
            cache.batch_select_indices(each)
            logits, mask = logits[each], mask[each]
        return logits, cache, mask

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """The logits of the last place, in float32."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.network(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()

    def _choose(self, logits: torch.Tensor, rows: list[Row]) -> list[int]:
        """The next id of each row: where the score is highest, of log-probability / temperature - log(exponential)."""
        import torch

        scores = logits.clone()
        for place, row in enumerate(rows):
            if row.matcher is not None:
                bits = np.frombuffer(row.matcher.compute_bitmask(), np.uint8)
                allowed = np.unpackbits(bits, bitorder="little")[: scores.shape[1]]
                scores[place, torch.from_numpy(np.flatnonzero(allowed == 0)).to(scores.device)] = -torch.inf
        drawn = [place for place, row in enumerate(rows) if row.noise is not None]
        if drawn:
            sampling = [rows[place].ask.request.sampling for place in drawn]
            part = scores[drawn] / scores.new_tensor([one.temperature for one in sampling])[:, None]
            if any(one.top_p < 1 for one in sampling):
                part = _nucleus(part, scores.new_tensor([one.top_p for one in sampling])[:, None])
            noise = torch.stack([self._exponential(rows[place].noise, scores.shape[1]) for place in drawn])
            scores[drawn] = part - noise.clamp_(min=1e-30).log_()
        chosen: list[int] = scores.argmax(-1).tolist()
        self._note_logprobs(logits, rows, chosen)
        return chosen

    def _exponential(self, noise: Any, size: int) -> torch.Tensor:
        import torch

        if isinstance(noise, np.random.Generator):
            return torch.from_numpy(noise.standard_exponential(size, np.float32))
        return torch.empty(size, device=self.network.device).exponential_(generator=noise)

    def _note_logprobs(self, logits: torch.Tensor, rows: list[Row], chosen: list[int]) -> None:
        """The model's own log-probabilities, before temperature, top_p and schema."""
        wanted = [place for place, row in enumerate(rows) if row.ask.request.sampling.logprobs]
        if not wanted:
            return
        known = logits[wanted].log_softmax(-1)
        most = min(max(rows[place].ask.request.sampling.logprobs for place in wanted), known.shape[1])
        best, where = (part.tolist() for part in known.topk(most))
        for at, place in enumerate(wanted):
            row, id_ = rows[place], chosen[place]
            many = row.ask.request.sampling.logprobs
            top = [(self._token(i), value) for i, value in zip(where[at][:many], best[at][:many], strict=True)]
            row.logprobs.append(Logprob(self._token(id_), float(known[at, id_]), tuple(top)))

    def _token(self, id_: int) -> str:
        return str(self.tokenizer.decode([id_]))

    def _ends(self, row: Row, id_: int) -> bool:
        row.ids.append(id_)
        if id_ in row.stops or self._stopped(row, id_):
            row.reason = "stop"
        elif row.matcher is not None and not row.matcher.consume_token(id_):
            row.reason = "error"  # a limit of the grammar's parser: what is sampled is always allowed
        elif row.matcher is not None and row.matcher.is_stopped():
            row.reason = "stop"
        elif len(row.ids) == row.ask.request.sampling.max_tokens:
            row.reason = "length"
        return bool(row.reason)

    def _stopped(self, row: Row, id_: int) -> bool:
        """Whether a stop string has come with this id; it may lie across tokens."""
        if row.stream is None:
            return False
        new = row.stream.step(self.tokenizer.backend_tokenizer, id_) or ""
        stop = row.ask.request.sampling.stop
        begin = max(0, len(row.text) - max(map(len, stop)) + 1)
        row.text += new
        row.end = min((at for at in (row.text.find(one, begin) for one in stop) if at >= 0), default=None)
        return row.end is not None

    def _choice(self, row: Row) -> Choice:
        if row.end is not None:
            text = row.text[: row.end]
        else:
            ids = row.ids[:-1] if row.ids[-1] in row.stops else row.ids
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        logprobs = tuple(row.logprobs) if row.ask.request.sampling.logprobs else None
        return Choice(text=text, finish_reason=row.reason, tokens=len(row.ids), logprobs=logprobs)

    def _response(self, rows: list[Row]) -> Response:
        choices = tuple(self._choice(row) for row in sorted(rows, key=lambda row: row.number))
        return Response(choices=choices, prompt_tokens=len(rows[0].prompt), model=self.name)


def _pool(asks: Asks) -> list[Ask]:
    """What waits, and what comes while it is put together; [] at the end."""
    pool = asks.take(POOL)
    while 0 < len(pool) < POOL:
        time.sleep(LINGER)
        more = asks.take(POOL - len(pool), wait=False)
        if not more:
            break
        pool += more
    return pool


def _nucleus(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Scores of the likeliest tokens that together reach the probability `top_p` (nucleus sampling, arXiv 1904.09751);
    minus infinity for the others."""
    ordered, places = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=ordered.dtype) - ordered
    gone = (before >= top_p).scatter(-1, places, before >= top_p)
    gone.scatter_(-1, places[:, :1], False)
    return scores.masked_fill(gone, -np.inf)
