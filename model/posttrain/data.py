"""The rows that post-training learns from: a dataset of the factory, checked, and as TRL's trainers take it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from accelerate import PartialState
from jinja2 import TemplateError
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
MESSAGES = ("messages", "prompt", "response", *ANSWERS)  # or texts
READ = (*MESSAGES, "completions")  # a null in labels says that a step has none
FIELDS = ("role", "content")  # of a message
IGNORE = -100
ROWS = 1000  # in memory at a time
T = TypeVar("T")
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
        all_ = table.column("messages").to_pylist()
        yield from (_told_apart(one[:-1] if isinstance(one, list) else one) for one in all_)
    else:
        yield from map(_told_apart, table.column("prompt").to_pylist())


def _told_apart(prompt: Any) -> str:
    """A prompt in which the order of a message's fields makes no difference: role and content, then the others."""
    if isinstance(prompt, list):
        order = {name: place for place, name in enumerate(FIELDS)}
        prompt = [
            dict(sorted(one.items(), key=lambda field: (order.get(field[0], len(order)), field[0])))
            if isinstance(one, dict)
            else one
            for one in prompt
        ]
    return json.dumps(prompt, default=str)


def _held(prompt: str, share: float) -> bool:
    """Whether a prompt is held out, by its hash: the same prompt is in every stage and every dataset."""
    return xxhash.xxh3_64_intdigest(prompt) < share * 2**64


def encoded(table: pa.Table, encode: Callable[[dict[str, Any]], T | None]) -> Iterator[T]:
    """What `encode` makes of each row without a null in what a stage learns from, where it is not None.

    FactoryError names the prompt of a row that has another form, or that cannot be rendered.
    """
    for row in table.to_pylist():
        if any(_has_null(row[name]) for name in READ if name in row):
            continue
        try:
            for name in MESSAGES:
                if name in row:
                    _check_form(name, row[name])
            made = encode(row)
        except (FactoryError, TemplateError) as error:
            asked = json.dumps(row.get("prompt") or row.get("messages"), ensure_ascii=False, default=str)
            raise FactoryError(f"{asked[:80]}: {error}") from error
        if made is not None:
            yield made


def _has_null(value: Any) -> bool:
    """Whether a text or a message is null, or a message's role, or its content where it calls no tool."""
    if isinstance(value, list):
        return any(map(_has_null, value))
    if isinstance(value, dict):
        there = [name for name in FIELDS if name in value and not (name == "content" and value.get("tool_calls"))]
        return any(value[name] is None for name in there)
    return value is None


def _check_form(name: str, value: Any) -> None:
    """FactoryError for what is neither a text nor messages."""
    if isinstance(value, str) and name != "messages":
        return
    if not isinstance(value, list) or not all(isinstance(one, dict) and {*FIELDS} <= one.keys() for one in value):
        text = "" if name == "messages" else "a text, or "
        raise FactoryError(f"{name} must be {text}a list in which each has role and content")


def conversations(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """Token ids and labels of each conversation or prompt with its response.

    Labels are ids where the assistant speaks, with what ends its turn, else -100. Longer rows are cut at the end; those
    that have no label then, or an empty response, are left out.
    """

    def encode(row: dict[str, Any]) -> tuple[list[int], list[int]] | None:
        if "messages" in row:
            one, spoken = _conversation(row["messages"], tokenizer)
        elif row["response"]:
            asked, said = answered(row["prompt"], row["response"], tokenizer)
            one, spoken = asked + said, [False] * len(asked) + [True] * len(said)
        else:
            return None
        one, spoken = one[:max_length], spoken[:max_length]
        labels = [token if mine else IGNORE for token, mine in zip(one, spoken, strict=True)]
        return (one, labels) if any(spoken) else None

    return rows_of(("input_ids", "labels"), encoded(table, encode))


def pairs(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """Token ids of each prompt, of its chosen and of its rejected answer. Pairs in which one is longer with its prompt
    are left out, and those without an answer: a cut one would be compared by where it was cut."""

    def encode(row: dict[str, Any]) -> tuple[list[int], ...] | None:
        if not row["chosen"] or row["rejected"] == []:
            return None
        (asked, chosen), (_, rejected) = (answered(row["prompt"], row[name], tokenizer) for name in ANSWERS)
        fits = len(asked) + max(len(chosen), len(rejected)) <= max_length
        return (asked, chosen, rejected) if fits else None

    return rows_of(("prompt_ids", "chosen_ids", "rejected_ids"), encoded(table, encode))


def comparisons(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """Token ids of each prompt with its chosen, and with its rejected answer, as a reward model reads them. Pairs in
    which one is longer are left out, and those without an answer."""

    def encode(row: dict[str, Any]) -> list[list[int]] | None:
        if [] in (row["chosen"], row["rejected"]):
            return None
        both = [whole(row["prompt"], row[name], tokenizer) for name in ANSWERS]
        return both if max(map(len, both)) <= max_length else None

    return rows_of(("chosen_ids", "rejected_ids"), encoded(table, encode))


def whole(prompt: Any, answer: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a prompt with its answer as reward models read them: a text with the end of texts behind it, messages
    as the chat template ends them (so also factory/teacher/scoring.py)."""
    if isinstance(prompt, str):
        _same_form(answer)
        end = tokenizer.eos_token or ""
        return list(tokenizer((prompt + answer).removesuffix(end) + end)["input_ids"])
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    return list(tokenizer(render([*prompt, *turns], tokenizer, asks=False), add_special_tokens=False)["input_ids"])


def prompts(table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """The rows whose prompt has at most so many tokens."""
    place = pa.array(range(table.num_rows), pa.int64())
    numbered = pa.table({"prompt": table["prompt"], "place": place})
    short = encoded(numbered, lambda row: row["place"] if len(asking(row["prompt"], tokenizer)) <= max_length else None)
    return table.take(pa.array(short, pa.int64()))


def rows_of(names: Sequence[str], rows: Iterable[Sequence[list[int]]]) -> pa.Table:
    """A table of lists of ids, of the columns `names`."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    kind = pa.list_(pa.int32())
    return pa.table({name: pa.array(column, kind) for name, column in zip(names, columns, strict=True)})


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
        _same_form(answer)
        end = tokenizer.eos_token or ""
        said = tokenizer(answer.removesuffix(end) + end, add_special_tokens=False)["input_ids"]
        return asking(prompt, tokenizer), list(said)
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    before = render(prompt, tokenizer, asks=True)
    whole = render([*prompt, *turns], tokenizer, asks=False).rstrip("\n")
    if not whole.startswith(before):
        raise FactoryError(OTHERWISE)
    return asking(prompt, tokenizer), list(tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"])


def _same_form(answer: Any) -> None:
    if not isinstance(answer, str):
        raise FactoryError("a prompt is a text, but its answer is messages: give both in one form")


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
