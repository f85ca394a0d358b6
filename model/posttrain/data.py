"""The rows that post-training learns from: a dataset of the factory, checked, and as TRL's trainers take it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from factory.engine.errors import FactoryError, nearest
from model.data import find, read_tokenizer
from model.posttrain.config import DataConfig, Stage

# The columns of a stage: all of one of these sets. A prompt and an answer are texts, or lists of messages.
COLUMNS: dict[Stage, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "response")),
    "reward": (("prompt", "chosen", "rejected"),),
    "prm": (("prompt", "completions", "labels"),),
    "dpo": (("prompt", "chosen", "rejected"),),
    "grpo": (("prompt",),),
}
IGNORE = -100
Message = dict[str, str]


@dataclass(frozen=True, eq=False)
class Rows:
    """A dataset's rows, those to learn from and those held out, and what it was made from."""

    name: str
    version: str
    key: str
    training: pa.Table
    evaluation: pa.Table

    @property
    def identity(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version, "key": self.key}


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder. FactoryError where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FactoryError(f"{folder}: no tokenizer that can be read ({str(error).splitlines()[0]})") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read(config: DataConfig, stage: Stage, tokenizer_folder: str, more: Sequence[str] = ()) -> Rows:
    """The rows of a dataset for a stage, with the columns `more` besides the stage's own.

    FactoryError where the folder is not a whole dataset, lacks a column, has no rows, or was made with another
    tokenizer or chat template than the checkpoint's.
    """
    folder = find(config.path)
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    except FileNotFoundError:
        raise FactoryError(f"{folder} has no manifest.json: it is not a dataset, or its run has not finished") from None
    _same_tokenizer(folder, manifest, tokenizer_folder)
    paths = [folder / shard["path"] for shard in manifest["rows"] if shard["rows"]]
    if not paths:
        raise FactoryError(f"{folder} has no rows: nothing to learn from")
    there = manifest["columns"]
    wanted = next((set_ for set_ in COLUMNS[stage] if all(name in there for name in set_)), None)
    if wanted is None:
        sets = " or ".join(", ".join(set_) for set_ in COLUMNS[stage])
        raise FactoryError(f"{folder} has the columns {', '.join(there)}; stage {stage} needs {sets}")
    for name in more:
        if name not in there:
            raise FactoryError(f"{folder}: a reward needs the column {name!r}{nearest(name, there)}")
    columns = [*wanted, *(name for name in more if name not in wanted)]
    table = pa.concat_tables(pq.read_table(path, columns=columns) for path in paths)
    held = pa.array([_held(prompt, config.evaluation_share) for prompt in _prompts(table)])
    training = table.filter(pc.invert(held))
    if not training.num_rows:
        raise FactoryError(f"{folder}: all {table.num_rows} rows are held out: lower data.evaluation_share")
    return Rows(manifest["name"], manifest["version"], manifest["key"], training, table.filter(held))


def _same_tokenizer(folder: Path, manifest: Mapping[str, Any], tokenizer_folder: str) -> None:
    """What a dataset rendered or sampled with a tokenizer is learnt with that one alone."""
    inside = manifest.get("artifacts", {}).get("tokenizer")
    if not inside:
        return
    made, own = Path(folder / inside), Path(tokenizer_folder)
    if read_tokenizer(made)[0] != read_tokenizer(own)[0]:
        raise FactoryError(f"{folder} was made with another tokenizer than that of {own}: make it anew with this one")
    if template_of(made) != template_of(own):
        raise FactoryError(f"{folder} was made with another chat template than that of {own}: make it anew with this")


def template_of(folder: Path) -> str:
    """The chat template of a tokenizer folder; empty where it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    path = folder / "tokenizer_config.json"
    return str(json.loads(path.read_text("utf-8")).get("chat_template") or "") if path.is_file() else ""


def _prompts(table: pa.Table) -> Iterator[str]:
    """What tells prompts apart: of a conversation, all before its last message."""
    if "messages" in table.column_names:
        yield from (json.dumps(messages[:-1]) for messages in table.column("messages").to_pylist())
    else:
        yield from (json.dumps(prompt) for prompt in table.column("prompt").to_pylist())


def _held(prompt: str, share: float) -> bool:
    """Whether a prompt is held out, by its hash: the same prompt is in every stage and every dataset."""
    return xxhash.xxh3_64_intdigest(prompt) < share * 2**64


def as_dataset(table: pa.Table) -> datasets.Dataset | None:
    """The table for TRL; None where it has no rows."""
    return datasets.Dataset(table) if table.num_rows else None


def conversations(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[pa.Table, int]:
    """Token ids and labels of each conversation or prompt with its response, and how many rows have no label left.

    Labels are ids where the assistant speaks, with what ends its turn, else -100. Longer rows are cut at the end.
    """
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    lost = 0
    for row in table.to_pylist():
        if "messages" in row:
            one, spoken = _conversation(row["messages"], tokenizer)
        else:
            one, spoken = _continuation(row["prompt"], row["response"], tokenizer)
        one, spoken = one[:max_length], spoken[:max_length]
        if not any(spoken):
            lost += 1
            continue
        ids.append(one)
        labels.append([token if mine else IGNORE for token, mine in zip(one, spoken, strict=True)])
    kind = pa.list_(pa.int32())
    return pa.table({"input_ids": pa.array(ids, kind), "labels": pa.array(labels, kind)}), lost


def _conversation(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Ids, and which of them the assistant says: of each of its turns, what the template adds to the turns before it
    and to the words that ask for an answer."""
    ids: list[int] = []
    spoken: list[bool] = []
    done = ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:turn], tokenizer, asks=True)
        whole = render(messages[: turn + 1], tokenizer, asks=False).rstrip("\n")
        if not before.startswith(done) or not whole.startswith(before):
            raise FactoryError(
                "the chat template renders an answer otherwise than behind its question: train on the columns prompt "
                "and response, or with another template"
            )
        for text, says in ((before[len(done) :], False), (whole[len(before) :], True)):
            part = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += part
            spoken += [says] * len(part)
        done = whole
    return ids, spoken


def _continuation(prompt: str, response: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The ids of a prompt, and of its response with the end of the text."""
    asked = tokenizer(prompt)["input_ids"]
    said = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return asked + said, [False] * len(asked) + [True] * len(said)


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, asks: bool) -> str:
    """Messages as the chat template has them; `asks` adds the words that begin an answer. FactoryError without one."""
    if not tokenizer.chat_template:
        raise FactoryError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template: train on the columns prompt and response, "
            "or give it one (chat_template.jinja)"
        )
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks))
