"""The rows that post-training learns from: a dataset of the factory, checked, and as TRL's trainers take it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from factory.engine.errors import FactoryError, nearest
from factory.engine.files import aside, make_folder
from model.data import find
from model.posttrain.config import DataConfig, Stage
from model.posttrain.provenance import check_made_for, hashes

# The columns of a stage: all of one of these sets. A prompt and an answer are texts, or lists of messages.
COLUMNS: dict[Stage, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "response")),
    "reward": (("prompt", "chosen", "rejected"),),
    "prm": (("prompt", "completions", "labels"),),
    "dpo": (("prompt", "chosen", "rejected"),),
    "grpo": (("prompt",),),
    "online_dpo": (("prompt",),),
}
ANSWERS = ("chosen", "rejected")
IGNORE = -100
ROWS = 1000  # in memory at a time
Message = dict[str, str]
OTHERWISE = (
    "the chat template renders an answer otherwise than behind its question: train on the columns prompt and response "
    "with texts, or with another template"
)


@dataclass(frozen=True, eq=False)
class Rows:
    """A dataset's rows, those to learn from and those held out (None: there are none), and what it was made from.

    They lie on disk in Arrow's form, as TRL takes them, and are mapped into memory: any number of them fits.
    """

    name: str
    version: str
    key: str
    training: datasets.Dataset
    evaluation: datasets.Dataset | None

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


def read(config: DataConfig, stage: Stage, start: str, cache: Path, more: Sequence[str] = ()) -> Rows:
    """The rows of a dataset for a stage, with the columns `more` besides the stage's own; `cache` is a folder for them.

    FactoryError where the folder is not a whole dataset, lacks a column, has no rows, or was made for another tokenizer
    or chat template than those of the checkpoint `start`.
    """
    folder = find(config.path)
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    except FileNotFoundError:
        raise FactoryError(f"{folder} has no manifest.json: it is not a dataset, or its run has not finished") from None
    check_made_for(folder, manifest, Path(start))
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
    training, held = stored(
        cache,
        ("training", "held_out"),
        [manifest["key"], columns, config.evaluation_share],
        lambda: _split(paths, columns, config.evaluation_share),
    )
    if training is None:
        raise FactoryError(f"{folder}: all {held.num_rows if held else 0} rows are held out: lower evaluation_share")
    return Rows(manifest["name"], manifest["version"], manifest["key"], training, held)


def _split(paths: Sequence[Path], columns: list[str], share: float) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The rows of shards, some at a time: those to learn from, and those held out."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS, columns=columns):
                table = pa.Table.from_batches([batch]).select(columns)
                held = pa.array([_held(prompt, share) for prompt in _prompts(table)])
                yield table.filter(pc.invert(held)), table.filter(held)


def stored(
    cache: Path, names: Sequence[str], made: Sequence[Any], tables: Callable[[], Iterable[Sequence[pa.Table]]]
) -> list[datasets.Dataset | None]:
    """Tables, one of each name at a time, as datasets that are mapped into memory from files in `cache`; None for one
    without rows.

    What is there from before stays, if it was made from the same things: `made` must tell all about them.
    """
    key = xxhash.xxh3_64_hexdigest(json.dumps(made))
    paths = [cache / f"{name}-{key}.arrow" for name in names]
    with PartialState().main_process_first():  # of several processes one makes them, the others wait for it
        if not all(path.is_file() for path in paths):
            make_folder(str(cache))
            _write(paths, tables())
    found = [datasets.Dataset.from_file(str(path)) for path in paths]
    return [one if one.num_rows else None for one in found]


def _write(paths: Sequence[Path], tables: Iterable[Sequence[pa.Table]]) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(aside(str(path))) for path in paths]
        writers: list[tuple[pa.RecordBatchStreamWriter, pa.Schema]] = []
        for some in tables:
            for file, table in zip(files[len(writers) :], some, strict=False):
                writers.append((stack.enter_context(pa.ipc.new_stream(file, table.schema)), table.schema))
            for (writer, schema), table in zip(writers, some, strict=True):
                writer.write_table(table.cast(schema))


def tokenized(
    rows: datasets.Dataset | None,
    cache: Path,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encode: Callable[..., pa.Table],
    *more: Any,
) -> tuple[datasets.Dataset | None, int]:
    """What `encode(table, tokenizer, max_length, *more)` makes of all rows, in a file beside their own, and how many it
    left out."""
    if rows is None:
        return None, 0
    made = [Path(rows.cache_files[0]["filename"]).name, hashes(Path(tokenizer.name_or_path)), max_length, *more]
    tables = rows.with_format("arrow").iter(ROWS)
    (found,) = stored(cache, (name,), made, lambda: ([encode(one, tokenizer, max_length, *more)] for one in tables))
    return found, rows.num_rows - (found.num_rows if found else 0)


def _prompts(table: pa.Table) -> Iterator[str]:
    """What tells prompts apart: of a conversation, all before its last message."""
    if "messages" in table.column_names:
        yield from (json.dumps(messages[:-1]) for messages in table.column("messages").to_pylist())
    else:
        yield from (json.dumps(prompt) for prompt in table.column("prompt").to_pylist())


def _held(prompt: str, share: float) -> bool:
    """Whether a prompt is held out, by its hash: the same prompt is in every stage and every dataset."""
    return xxhash.xxh3_64_intdigest(prompt) < share * 2**64


def conversations(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """Token ids and labels of each conversation or prompt with its response.

    Labels are ids where the assistant speaks, with what ends its turn, else -100. Longer rows are cut at the end; those
    that have no label then, or an empty response, are left out.
    """
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for row in table.to_pylist():
        if "messages" in row:
            one, spoken = _conversation(row["messages"], tokenizer)
        elif row["response"]:
            asked, said = answered(row["prompt"], row["response"], tokenizer)
            one, spoken = asked + said, [False] * len(asked) + [True] * len(said)
        else:
            continue
        one, spoken = one[:max_length], spoken[:max_length]
        if any(spoken):
            ids.append(one)
            labels.append([token if mine else IGNORE for token, mine in zip(one, spoken, strict=True)])
    return _table(input_ids=ids, labels=labels)


def pairs(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """Token ids of each prompt, of its chosen and of its rejected answer. Pairs in which one is longer with its prompt
    are left out, and those without an answer: a cut one would be compared by where it was cut."""
    found: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for row in table.to_pylist():
        if not row["chosen"] or row["rejected"] is None:
            continue
        (asked, chosen), (_, rejected) = (answered(row["prompt"], row[name], tokenizer) for name in ANSWERS)
        if len(asked) + max(len(chosen), len(rejected)) <= max_length:
            for name, part in zip(found, (asked, chosen, rejected), strict=True):
                found[name].append(part)
    return _table(**found)


def comparisons(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """Token ids of each prompt with its chosen, and with its rejected answer, as a reward model reads them. Pairs in
    which one is longer are left out."""
    found: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": []}
    for row in table.to_pylist():
        if row["chosen"] is None or row["rejected"] is None:
            continue
        both = [whole(row["prompt"], row[name], tokenizer) for name in ANSWERS]
        if max(map(len, both)) <= max_length:
            for name, ids in zip(found, both, strict=True):
                found[name].append(ids)
    return _table(**found)


def whole(prompt: Any, answer: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a prompt with its answer as reward models read them: a text with the end of texts behind it, messages
    as the chat template ends them (so also factory/teacher/scoring.py)."""
    if isinstance(prompt, str):
        end = tokenizer.eos_token or ""
        return list(tokenizer((prompt + answer).removesuffix(end) + end)["input_ids"])
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    return list(tokenizer(render([*prompt, *turns], tokenizer, asks=False), add_special_tokens=False)["input_ids"])


def prompts(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """The rows whose prompt has at most so many tokens."""
    short = [len(asking(prompt, tokenizer)) <= max_length for prompt in table.column("prompt").to_pylist()]
    return table.filter(pa.array(short, pa.bool_()))


def _table(**columns: list[list[int]]) -> pa.Table:
    kind = pa.list_(pa.int32())
    return pa.table({name: pa.array(rows, kind) for name, rows in columns.items()})


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
            raise FactoryError(OTHERWISE)
        for text, says in ((before[len(done) :], False), (whole[len(before) :], True)):
            part = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += part
            spoken += [says] * len(part)
        done = whole
    return ids, spoken


def answered(prompt: Any, answer: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids of a prompt, and of an answer to it with what ends it: of a text the end of texts, of messages what the
    chat template has there. They are tokenized apart, as an answer is that is sampled."""
    if isinstance(prompt, str):
        if not isinstance(answer, str):
            raise FactoryError("a prompt is a text, but its answer is messages: give both in one form")
        end = tokenizer.eos_token or ""
        said = tokenizer(answer.removesuffix(end) + end, add_special_tokens=False)["input_ids"]
        return asking(prompt, tokenizer), list(said)
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    before = render(prompt, tokenizer, asks=True)
    whole = render([*prompt, *turns], tokenizer, asks=False).rstrip("\n")
    if not whole.startswith(before):
        raise FactoryError(OTHERWISE)
    return asking(prompt, tokenizer), list(tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"])


def asking(prompt: str | Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a prompt, up to where its answer begins."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    return list(tokenizer(render(prompt, tokenizer, asks=True), add_special_tokens=False)["input_ids"])


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, asks: bool) -> str:
    """Messages as the chat template has them; `asks` adds the words that begin an answer. FactoryError without one."""
    if not tokenizer.chat_template:
        raise FactoryError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template: train on the columns prompt and response, "
            "or give it one (chat_template.jinja)"
        )
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks))
