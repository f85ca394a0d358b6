"""What is asked of a language model, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. Sample i of a request is drawn with `seed + i`; without a seed the server chooses."""

    n: int = 1
    """Samples of each request."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    max_tokens: int = 512
    """New tokens at most, in each sample."""
    seed: int | None = 0
    stop: tuple[str, ...] = ()
    """A text ends before any of these."""
    logprobs: int = 0
    """So many of the likeliest tokens at each place, with their log-probabilities; 0: none."""
    json_schema: str = ""
    """The answer is JSON that keeps to this schema (JSON text)."""

    def __post_init__(self) -> None:
        if self.n < 1 or self.max_tokens < 1:
            raise ValueError(f"n = {self.n}, max_tokens = {self.max_tokens}: both are 1 or more")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Messages, which the model's chat template renders, or a raw prompt, which it continues: one of both."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    sampling: Sampling = Sampling()
    id: str = ""
    """The asker's own name for it; not part of what is asked."""

    def __post_init__(self) -> None:
        if bool(self.messages) == bool(self.prompt):
            raise ValueError("a request has either messages or a prompt")


class Logprob(NamedTuple):
    """A sampled token with its log-probability in nats, and the likeliest tokens at its place, likeliest first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One sample."""

    text: str
    """Without what ended it."""
    finish_reason: str
    """`stop`: the model's end or a stop string; `length`: as many tokens as were asked for; a server may say others."""
    tokens: int
    """New tokens. Where a server tells only the sum over n samples, shared out by the length of the texts."""
    logprobs: tuple[Logprob, ...] | None = None
    reasoning: str = ""
    """What the model thought before the text, where the server tells it apart."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """The samples of a request, in the order of their numbers."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    model: str
    """As the server calls it."""
    fingerprint: str = ""
    """The server's system_fingerprint, where it tells one."""
    cached: bool = False
    """Nothing had to be asked for it."""


@dataclass(frozen=True)
class Failed:
    """A request that has no answer, and why. Asked again in another run it is tried again."""

    error: str
    request: Request
