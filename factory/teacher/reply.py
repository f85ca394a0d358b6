"""The JSON with which an OpenAI-compatible server answers."""

from __future__ import annotations

import json
from typing import Any

from factory.teacher.request import Choice, Logprob, Response

CUT = ("abort", "error")
"""How vLLM, SGLang and some providers end a text that they could not finish: no answer, though they say 200."""
SHOWN = 300
"""Characters of a server's words in an error."""


class Malformed(Exception):
    """Not what such a server says."""


def read(raw: bytes) -> Response:
    """The samples of a /chat/completions or /completions reply, in the order of their indices."""
    try:
        said = json.loads(raw)
        choices = sorted(said["choices"], key=lambda choice: choice.get("index") or 0)
        if not choices:
            raise Malformed("no choices")
        # From one that lacks on, all are asked for again: the number of a sample says with which seed it was drawn.
        base = choices[0].get("index") or 0
        choices = [choice for place, choice in enumerate(choices) if (choice.get("index") or 0) <= base + place]
        for choice in choices:
            if choice.get("finish_reason") in CUT:
                raise Malformed(f"the server gave up (finish_reason {choice['finish_reason']})")
        usage = said.get("usage") or {}
        made = [_choice(choice) for choice in choices]
        counts = share(_count(usage.get("completion_tokens")), made)
        return Response(
            choices=tuple(
                Choice(
                    text=text,
                    finish_reason=_text(choice.get("finish_reason") or ""),
                    tokens=tokens,
                    logprobs=logprobs,
                    reasoning=reasoning,
                )
                for choice, (text, reasoning, logprobs), tokens in zip(choices, made, counts, strict=True)
            ),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            model=_text(said.get("model") or ""),
            fingerprint=_text(said.get("system_fingerprint") or ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        shown = raw[:SHOWN].decode(errors="replace")
        raise Malformed(f"{type(error).__name__}: {error}: {shown!r}") from error


Made = tuple[str, str, tuple[Logprob, ...] | None]
"""Text, reasoning, log-probabilities."""


def _choice(choice: dict[str, Any]) -> Made:
    logprobs = choice.get("logprobs")
    if "message" not in choice:
        return _text(choice["text"]), "", _completion_logprobs(logprobs) if logprobs else None
    message = choice["message"]
    text = message.get("content") or message.get("refusal") or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    found = None
    if logprobs and logprobs.get("content"):
        found = tuple(
            Logprob(
                _text(one["token"]),
                float(one["logprob"]),
                tuple((_text(other["token"]), float(other["logprob"])) for other in one.get("top_logprobs") or ()),
            )
            for one in logprobs["content"]
        )
    return _text(text), _text(reasoning), found


def _completion_logprobs(said: dict[str, Any]) -> tuple[Logprob, ...]:
    tops = said.get("top_logprobs") or [None] * len(said["tokens"])
    return tuple(
        Logprob(
            _text(token),
            float(logprob),
            tuple(sorted(((_text(t), float(p)) for t, p in (top or {}).items()), key=lambda one: (-one[1], one[0]))),
        )
        for token, logprob, top in zip(said["tokens"], said["token_logprobs"], tops, strict=True)
    )


def _count(value: Any) -> int:
    """A number of tokens; 0 where the server does not say, or says what cannot be."""
    count = int(value or 0)
    return count if 0 <= count < 1 << 31 else 0


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text should be")
    # A lone surrogate, which JSON may hold, cannot be written to any file.
    return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if not value.isascii() else value


def share(total: int, made: list[Made]) -> list[int]:
    """Tokens of each sample: counted where there are log-probabilities, else the server's sum by the length of text."""
    if all(logprobs is not None for *_, logprobs in made):
        return [len(logprobs or ()) for *_, logprobs in made]
    sizes = [len(text) + len(reasoning) + 1 for text, reasoning, _ in made]
    counts, whole, given = [], 0, 0
    for size in sizes:
        whole += size
        counts.append(total * whole // sum(sizes) - given)
        given += counts[-1]
    return counts


def complaint(text: str) -> str:
    """What a server says is wrong, in a line."""
    try:
        said = json.loads(text)
        error = said.get("error", said)
        text = " ".join(str(error[key]) for key in ("message", "code") if error.get(key)) or text
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    return " ".join(text.split())[:SHOWN] or "(nothing)"
