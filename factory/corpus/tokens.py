"""Text to tokens: train a byte-level BPE tokenizer in Qwen2's form, and pack documents into sequences of token ids."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge, Gt, Le

from factory.engine.errors import FactoryError
from factory.engine.step import Context, Gather, Memo, Regroup
from factory.kernels.arrow import view
from factory.kernels.xxh3 import xxh3

if TYPE_CHECKING:
    from factory.engine.gather import Exchange, Part

END, CHAT_START, CHAT_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL = (END, CHAT_START, CHAT_END)
PIECE = 1 << 20  # a document is tokenised in pieces of about so many bytes, so that a huge one needs little memory
OUT = 1 << 21  # tokens in a batch that Pack yields
FORGET = 1 << 26  # after so many bytes the fast tokenizer is made anew: what it remembers of words grows without bound

# How Qwen2 cuts text before BPE (arXiv 2407.10671; the pattern stands in its released tokenizer.json).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# ChatML: each message between <|im_start|>role and <|im_end|>, with a system message in front where there is none.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Places where the pattern always ends one token and begins the next, whatever stands around them, and where NFC joins
# nothing: after a line break before visible ASCII, and between an ASCII letter and a space before an ASCII letter.
SAFE = re.compile(rb"(?<=\n)(?=[!-~])|(?<=[A-Za-z])(?= [A-Za-z])")

# Texts on which the fast tokenizer must agree with the reference before it is used.
PROBE = (
    "It's 2026; they'LL say \"12,345.678\"  twice.\r\n\r\n\tdef f(x):\n        return x**2  # done   \n \n",
    "e\u0301cole \u1112\u1161\u11ab 日本語한국어 ภาษาไทย عربى हिन्दी \U0001f642\u200d\u2194\ufe0f \u017f'S \u212b\0",
    "<|endoftext|> <|im_start|>user",
    " ",
    "",
)


def train_bpe(texts: Iterator[str], vocab_size: int, folder: str | Path) -> None:
    """Train a byte-level BPE tokenizer on `texts` and write it as a Hugging Face tokenizer folder.

    `vocab_size` counts the 256 bytes, the merges and the three control tokens, which get the highest ids. A text too
    small for so many merges gives a smaller vocabulary. The same texts in the same order give the same files.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    control = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in CONTROL
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": control,
        "additional_special_tokens": [CHAT_START, CHAT_END],
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Train(Gather):
    """Train a tokenizer on a sample of the documents; the rows pass unchanged.

    Byte-level BPE with the pre-tokenizer, the NFC normaliser and the control tokens of Qwen2 (arXiv 2407.10671), saved
    as a Hugging Face tokenizer folder: the artifact "tokenizer" of the dataset, which `tokens.Pack` uses. The sample
    is taken by a hash of the id, and does not depend on the number of workers or shards.
    """

    vocab_size: Annotated[int, Ge(260)] = 32768
    """Tokens in all: 256 bytes, merges, and three control tokens."""
    sample_bytes: Annotated[int, Ge(1)] = 100_000_000
    """Training stops after so many bytes of text."""
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    """The share of the documents that are offered to the sample; lower it where the corpus is far larger than the
    sample, since the text offered is copied to one place."""

    def libraries(self) -> tuple[str, ...]:
        return ("tokenizers",)

    def needs(self) -> tuple[str, ...]:
        return ("id", "text")

    def emit(self, batch: pa.RecordBatch, memo: Memo, docs: np.ndarray) -> dict[str, Any]:
        from factory.engine.gather import with_payload

        hashes = memo(xxh3, batch.column("id"))[:, 0]
        # The lowest hashes are taken; 2**64 * share does not fit a uint64 where share is 1.
        chosen = memo.alive & (hashes <= np.uint64(min(int(self.share * 2.0**64), 2**64 - 1)))
        records = np.empty(int(chosen.sum()), np.dtype([("key", np.uint64), ("doc", np.uint64)]))
        records["key"], records["doc"] = hashes[chosen], docs[chosen]
        return {"sample": with_payload(records, batch.column("text").filter(pa.array(chosen)))}

    def decide(self, exchange: Exchange) -> None:
        exchange.artifact("tokenizer", inputs=[exchange.emitted("sample")], method="train")

    def train(self, part: Part, folder: str) -> None:
        """The one task that trains: `part.payloads[0]` holds the sample's texts in the order of the hash."""
        texts = part.payloads[0]
        if texts is None:
            raise ValueError("the sample was emitted without texts")
        train_bpe(self._sample(texts), self.vocab_size, folder)

    def _sample(self, texts: pa.LargeStringArray) -> Iterator[str]:
        offsets, data = view(texts)
        for start, end in itertools.pairwise(cuts(offsets, data)):
            if start - offsets[0] >= self.sample_bytes:
                return
            yield data[start:end].tobytes().decode()


def cuts(offsets: np.ndarray, data: np.ndarray, size: int = PIECE) -> np.ndarray:
    """The offsets with further ones, so that no piece is much longer than `size` bytes.

    The tokens of the pieces, one after another, are the tokens of the documents. Where no safe place lies within four
    times `size` (a "word" of megabytes) the cut falls between two characters: decoding still gives the text.
    """
    more: list[int] = []
    for row in np.flatnonzero(np.diff(offsets) > 2 * size):
        at, end = int(offsets[row]), int(offsets[row + 1])
        while end - at > 2 * size:
            window = data[at + size : min(end, at + 4 * size)].tobytes()
            found = SAFE.search(window)
            at += size + (found.start() if found else 0)
            while at < end and data[at] & 0xC0 == 0x80:
                at += 1
            more.append(at)
    return np.sort(np.concatenate([offsets, np.array(more, np.int64)]))


@dataclass(frozen=True, kw_only=True)
class Pack(Regroup):
    """Tokenise the documents and pack them into sequences of exactly `sequence_length` token ids.

    Documents follow one another, each ended by the separator; one that does not fit goes on in the next sequence, so
    that nothing is lost and nothing padded. Only the last sequence of a shard may be shorter. A control token that is
    spelled out in a document is read as plain text: the separators are the only ones.

    The rows: `id` (first document and the token of it at which the sequence begins, `doc@4096`), `input_ids`,
    `document_starts` (the places in the sequence where a document begins; not those where one goes on),
    `document_ids` (every document with tokens here) and `token_count`. The documents' other columns, such as `license`
    and `source`, stay where they were: join the dataset that was packed by `document_ids`.
    """

    located: ClassVar[tuple[str, ...]] = ("tokenizer",)

    sequence_length: Annotated[int, Ge(2)] = 2048
    """Tokens in a sequence."""
    tokenizer: str = ""
    """A Hugging Face tokenizer folder; empty for the tokenizer that `tokens.Train` makes earlier in the recipe."""
    separator: str = END
    """The token that ends each document; a special one of its own, as UltraLong uses (arXiv 2504.06214), is told from
    the end of a text in a chat."""

    produces: ClassVar[dict[str, pa.DataType]] = {
        "id": pa.large_string(),
        "input_ids": pa.list_(pa.int32()),
        "document_starts": pa.list_(pa.int32()),
        "document_ids": pa.list_(pa.large_string()),
        "token_count": pa.int32(),
    }

    def libraries(self) -> tuple[str, ...]:
        return ("tokenizers",)

    def needs(self) -> tuple[str, ...]:
        return ("id", "text")

    def adds(self) -> dict[str, pa.DataType]:
        return dict(self.produces)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema(self.produces)

    def files(self) -> tuple[str, ...]:
        return (str(Path(self.tokenizer) / "tokenizer.json"),) if self.tokenizer else ()

    def folders(self) -> dict[str, str]:
        return {"tokenizer": self.tokenizer} if self.tokenizer else {}

    def open(self, context: Context) -> None:
        folder = self.tokenizer or context.artifacts.get("tokenizer", "")
        if not folder:
            raise FactoryError(
                "tokens.Pack has no tokenizer: put tokens.Train before it in the recipe, or give "
                'tokenizer = "FOLDER" (a Hugging Face tokenizer folder)'
            )
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FactoryError(f"tokens.Pack: no tokenizer.json in {folder}: give a Hugging Face tokenizer folder")
        self.__dict__["_encoder"] = Encoder(path, self.separator)

    def close(self) -> None:
        self.__dict__.pop("_encoder", None)

    @cached_property
    def _encoder(self) -> Encoder:
        raise RuntimeError("tokens.Pack is used before open()")

    def prepare(self, batch: pa.RecordBatch, memo: Memo) -> pa.RecordBatch:
        """The documents' tokens, each document ended by the separator: columns id, input_ids."""
        text = batch.column("text")
        if not memo.alive.all():
            text = pc.if_else(pa.array(memo.alive), text, pa.scalar("", pa.large_string()))
        starts, data = view(text)
        edges = cuts(starts, data)
        ids, counts = self._encoder(edges, data)
        until = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        # Tokens before each row: an empty row shares its edge with the next, and there both have the same count.
        offsets = until[np.searchsorted(edges, starts)] + np.arange(len(starts))
        values = np.full(len(ids) + len(text), self._encoder.end, np.int32)
        token = np.ones(len(values), np.bool_)
        token[offsets[1:] - 1] = False
        values[token] = ids
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
        return pa.RecordBatch.from_arrays([batch.column("id"), lists], ["id", "input_ids"])

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tokens, starts, ids = np.empty(0, np.int32), np.empty(0, np.int64), pa.array([], pa.large_string())
        for batch in batches:
            if not len(batch):
                continue
            lists = batch.column("input_ids")
            starts = np.concatenate([starts, len(tokens) + lists.offsets.to_numpy()[:-1] - lists.offsets[0].as_py()])
            tokens = np.concatenate([tokens, lists.flatten().to_numpy()])
            ids = pa.concat_arrays([ids, batch.column("id")])
            whole = len(tokens) // self.sequence_length * self.sequence_length
            step = max(1, OUT // self.sequence_length) * self.sequence_length
            for at in range(0, whole, step):
                yield self._sequences(tokens, starts, ids, at, min(at + step, whole))
            # What is left begins in the document that holds token `whole`; its start is then before zero.
            first = max(0, int(np.searchsorted(starts, whole, "right")) - 1) if whole < len(tokens) else len(starts)
            tokens, starts, ids = tokens[whole:], starts[first:] - whole, ids[first:]
        if len(tokens):
            yield self._sequences(tokens, starts, ids, 0, len(tokens))

    def _sequences(self, tokens: np.ndarray, starts: np.ndarray, ids: pa.Array, at: int, end: int) -> pa.RecordBatch:
        """The sequences of tokens[at:end]; document i begins at starts[i], which may lie before them."""
        edges = np.minimum(np.arange(at, end + self.sequence_length, self.sequence_length), end)
        begun = np.searchsorted(starts, edges, "left")  # documents that begin before each edge
        first = np.searchsorted(starts, edges[:-1], "right") - 1  # the document in which each sequence begins
        many = begun[1:] - first
        places = np.concatenate([np.zeros(1, np.int64), np.cumsum(many)])
        documents = np.arange(places[-1]) - np.repeat(places[:-1] - first, many)
        local = starts[begun[0] : begun[-1]]
        local = local - edges[np.searchsorted(edges, local, "right") - 1]
        offset = pc.cast(pa.array(edges[:-1] - starts[first]), pa.large_string())
        columns = {
            "id": pc.binary_join_element_wise(ids.take(pa.array(first)), offset, pa.scalar("@", pa.large_string())),
            "input_ids": pa.ListArray.from_arrays(_int32(edges - at), pa.array(tokens[at:end])),
            "document_starts": pa.ListArray.from_arrays(_int32(begun - begun[0]), _int32(local)),
            "document_ids": pa.ListArray.from_arrays(_int32(places), ids.take(pa.array(documents))),
            "token_count": _int32(np.diff(edges)),
        }
        return pa.RecordBatch.from_pydict(columns, schema=pa.schema(self.produces))


def _int32(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.int32))


class Encoder:
    """Text to ids: gigatoken (ten times as fast) where it gives this tokenizer's ids, else the tokenizers library.

    `end` is the id of the separator.
    """

    def __init__(self, path: Path, separator: str = END) -> None:
        from tokenizers import Tokenizer

        try:
            whole = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for a file that it cannot read
            raise FactoryError(f"{path} is not a tokenizer that can be loaded: {error}") from error
        end = whole.token_to_id(separator)
        if end is None:
            raise FactoryError(f"{path} has no token {separator}: give tokens.Pack a `separator` that it has")
        self.end: int = end
        # An added token (a control token, `<tool_call>`) that is spelled out in a document is plain text.
        model = json.loads(path.read_text("utf-8"))
        model["added_tokens"] = []
        self._json = json.dumps(model)
        self.slow = Tokenizer.from_str(self._json)
        self.slow.no_padding()
        self.slow.no_truncation()
        self._seen = 0
        self.fast: Any = None
        with contextlib.suppress(ImportError, ValueError, KeyError, TypeError, RuntimeError):  # unknown to it
            self.fast = self._fresh()
            edges = np.cumsum([0] + [len(text.encode()) for text in PROBE])
            probe = np.frombuffer("".join(PROBE).encode(), np.uint8)
            if not np.array_equal(self._fast(edges, probe)[0], self._slow(edges, probe)[0]):
                self.fast = None

    def _fresh(self) -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._json)

    def __call__(self, edges: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(all ids, how many each) of the texts data[edges[i]:edges[i + 1]]."""
        if self.fast is None:
            return self._slow(edges, data)
        if self._seen > FORGET:
            self.fast, self._seen = self._fresh(), 0
        self._seen += int(edges[-1] - edges[0])
        return self._fast(edges, data)

    def _fast(self, edges: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import awkward

        content = awkward.contents.NumpyArray(data, parameters={"__array__": "char"})
        offsets = awkward.index.Index64(edges)
        texts = awkward.contents.ListOffsetArray(offsets, content, parameters={"__array__": "string"})
        # A worker has one core: no threads of its own.
        result = self.fast.encode_batch(awkward.Array(texts), parallel=False)
        return np.asarray(awkward.flatten(result)).astype(np.int32), np.asarray(awkward.num(result))

    def _slow(self, edges: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts = [data[a:b].tobytes().decode() for a, b in itertools.pairwise(edges)]
        found = [encoding.ids for encoding in self.slow.encode_batch_fast(texts, add_special_tokens=False)]
        counts = np.array([len(ids) for ids in found], np.int64)
        return np.fromiter((token for ids in found for token in ids), np.int32, int(counts.sum())), counts
