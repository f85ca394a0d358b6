"""A model that runs in this process, a Hugging Face folder or a name at a hub: what it is, and what it reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.engine.collector import importing
from factory.engine.errors import FactoryError
from factory.teacher.engine import OF_A_MODEL
from factory.teacher.request import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Unanswerable(Exception):
    """A request that this model cannot answer, and why: the others can be."""


def content(model: str) -> tuple[str, ...]:
    """The files of a checkpoint folder that decide what it says; none for a name at a hub.

    FactoryError where it is a path to nothing, or to a folder without a model.
    """
    folder = Path(model)
    if not folder.is_dir():
        if not model or folder.is_absolute() or model.startswith(".") or model.count("/") > 1:
            raise FactoryError(f"model = {model!r}: no such folder: give one in Hugging Face's form")
        return ()
    if not (folder / "config.json").is_file():
        raise FactoryError(f"{folder}: no config.json: give a checkpoint folder in Hugging Face's form")
    inside = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return tuple(str(path) for path in inside if path.suffix in OF_A_MODEL)


def made_for(model: str) -> dict[str, str]:
    """What the answers of a checkpoint folder are for alone: hashes of its tokenizer and of its chat template.

    `tokenizer` is XXH3 (128 bits) of what tokenizer.json does to a text and of its ids, the same that model.data has;
    it is absent where there is no tokenizer.json. `template` is that of the template's text, which may be empty.
    Nothing is said of a model at a hub.
    """
    import xxhash

    folder = Path(model)
    if not folder.is_dir():
        return {}
    found = {"template": xxhash.xxh3_128_hexdigest(_template(folder))}
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            parts = json.loads(path.read_bytes())
            ids = parts["model"]["vocab"] | {token["content"]: token["id"] for token in parts["added_tokens"]}
        except (ValueError, KeyError, TypeError) as error:
            raise FactoryError(f"{path}: not a tokenizer that can be read: {_line(error)}") from error
        kept = [parts.get(key) for key in ("normalizer", "pre_tokenizer", "model")]
        text = json.dumps([kept, sorted(ids.items())], sort_keys=True)
        found["tokenizer"] = xxhash.xxh3_128_hexdigest(text)
    return found


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    path = folder / "tokenizer_config.json"
    return str(json.loads(path.read_text("utf-8")).get("chat_template") or "") if path.is_file() else ""


def tokenizer_of(model: str, revision: str) -> PreTrainedTokenizerBase:
    with importing("transformers"):
        from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision or "main")
    except Exception as error:  # of many kinds, according to which file is missing or broken
        raise FactoryError(f"{model}: its tokenizer cannot be loaded: {_line(error)}") from error


def encode(tokenizer: PreTrainedTokenizerBase, request: Request, model: str) -> list[int]:
    """The ids of a request's prompt, or of its messages as the chat template renders them; one of the
    assistant at the end is what the answer begins with.

    FactoryError where there is no chat template; Unanswerable where it refuses these messages.
    """
    if request.prompt:
        return list(tokenizer(request.prompt)["input_ids"])
    if not tokenizer.chat_template:
        raise FactoryError(
            f"{model}: its tokenizer has no chat template, so it cannot be asked with messages: ask with a raw prompt, "
            "or put the template into the folder as chat_template.jinja"
        )
    from jinja2 import TemplateError

    messages = [message._asdict() for message in request.messages]
    begun = messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
    except (TemplateError, ValueError) as error:
        raise Unanswerable(f"the chat template of the model refuses the messages: {_line(error)}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_length(prompt: list[int], max_tokens: int, positions: int | None) -> None:
    """Unanswerable where prompt and answer are more than the model is made for."""
    if not prompt:
        raise Unanswerable("the prompt has no tokens")
    if positions and len(prompt) + max_tokens > positions:
        raise Unanswerable(
            f"a prompt of {len(prompt):,} tokens and max_tokens = {max_tokens:,} are more than the {positions:,} "
            "that the model is made for"
        )


def special_stops(tokenizer: PreTrainedTokenizerBase, stop: Iterable[str]) -> set[int]:
    """The ids of stop strings that are special tokens: those never show in the text."""
    special = set(tokenizer.all_special_ids)
    ids: Any = tokenizer.convert_tokens_to_ids(list(stop))
    return special.intersection(one for one in ids if one is not None)


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
