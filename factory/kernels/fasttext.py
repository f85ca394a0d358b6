"""fastText's supervised models applied to Arrow text.

The tokenisation and the hashing of character n-grams are fastText's (Joulin et al. 2016, "Bag of tricks for efficient
text classification" and "FastText.zip"). A document is one line: a newline is a space, as where FineWeb calls it.

What is ours is the order of the work: the rows of a word and of its n-grams are summed once, and the sum is kept
for the next time that the word is met in any document. A word is then a look-up and `dim` additions. The sum of a
word is the same whether it was just computed or found, and words are added in the order of the text, so a result
depends on nothing but the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from factory.engine.step import Memo
from factory.kernels import jit
from factory.kernels.arrow import view
from factory.kernels.fasttext_model import HIERARCHICAL, SOFTMAX, Model, Tables
from factory.kernels.hashing import load8
from factory.kernels.xxh3 import wide

ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@jit
def _hash(data: np.ndarray, start: int, end: int) -> np.uint32:
    """FNV-1a, but with bytes as signed characters: those from 128 set the upper bits too."""
    h = np.uint32(2166136261)
    for k in range(start, end):
        h = np.uint32((h ^ np.uint32(np.int8(data[k]))) * np.uint32(16777619))
    return h


@jit
def _same(data: np.ndarray, start: int, end: int, other: np.ndarray) -> bool:
    same = end - start == len(other)
    for k in range(len(other) if same else 0):
        same &= data[start + k] == other[k]
    return same


@jit
def _sum_word(word: np.ndarray, t: Tables, out: np.ndarray) -> int:
    """Sum the rows of a word and of its n-grams into `out`; `word` stands between < and >. Returns how many rows."""
    out[:] = np.float32(0)
    count = 0
    mask = len(t.table) - 1
    slot = np.int64(_hash(word, 1, len(word) - 1)) & mask
    while t.table[slot] >= 0:
        number = t.table[slot]
        if _same(word, 1, len(word) - 1, t.letters[t.starts[number] : t.starts[number + 1]]):
            out += t.rows[number]
            count += 1
            break
        slot = (slot + 1) & mask
    shortest, longest, size = t.sizes[0], t.sizes[1], len(word)
    bucket = np.uint64(len(t.ngrams))
    inverse = ALL // bucket + np.uint64(1)
    for first in range(size):
        if word[first] & 0xC0 == 0x80:
            continue
        h = np.uint32(2166136261)
        at = first
        for n in range(1, longest + 1):
            if at >= size:
                break
            h = np.uint32((h ^ np.uint32(np.int8(word[at]))) * np.uint32(16777619))
            at += 1
            while at < size and word[at] & 0xC0 == 0x80:
                h = np.uint32((h ^ np.uint32(np.int8(word[at]))) * np.uint32(16777619))
                at += 1
            if n >= shortest and not (n == 1 and (first == 0 or at == size)):
                # h % bucket by two multiplications (Lemire, Kaser, Kurz 2019). Most n-grams of a pruned model are
                # not there: the bits that say so fit into a CPU's second-level cache, the table does not.
                which = wide(inverse * np.uint64(h), bucket)[1]
                if t.kept[which >> np.uint64(6)] >> (which & np.uint64(63)) & np.uint64(1):
                    row = t.ngrams[which]
                    count += 1
                    for d in range(len(out)):
                        out[d] += t.rows[row, d]
    return count


@jit
def _classify(hidden: np.ndarray, t: Tables, stack: np.ndarray, path: np.ndarray) -> tuple[int, float]:
    """The likeliest label and its probability, with the 1e-5 that fastText adds before each logarithm."""
    labels, dim = t.output.shape
    loss = t.sizes[3]
    best, top = -1, -np.inf
    if loss == HIERARCHICAL:
        stack[0], path[0], height = 2 * labels - 2, 0.0, 1
        while height:
            height -= 1
            node, score = stack[height], path[height]
            if score < top:
                continue
            if node < labels:
                best, top = node, score
                continue
            dot = 0.0
            for d in range(dim):
                dot += np.float64(t.output[node - labels, d]) * np.float64(hidden[d])
            right = 1.0 / (1.0 + np.exp(-dot))
            # The likelier child is visited first: the other one is then mostly cut off.
            side = 0 if right > 0.5 else 1
            stack[height + side], path[height + side] = t.left[node - labels], score + np.log(1.0 - right + 1e-5)
            stack[height + 1 - side], path[height + 1 - side] = t.right[node - labels], score + np.log(right + 1e-5)
            height += 2
        return best, np.exp(top)
    total = 0.0
    for label in range(labels):
        dot = 0.0
        for d in range(dim):
            dot += np.float64(t.output[label, d]) * np.float64(hidden[d])
        path[label] = dot
        if dot > top:
            best, top = label, dot
    for label in range(labels):
        total += np.exp(path[label] - top)
    if loss == SOFTMAX:
        return best, 1.0 / total + 1e-5
    # fastText reads the logistic function from a table of 512 steps over [-8, 8].
    step = np.floor((min(max(top, -8.0), 8.0) + 8.0) * 32.0)
    return best, 1.0 / (1.0 + np.exp(8.0 - step / 32.0)) + 1e-5


@jit
def _key(data: np.ndarray, at: int, size: int, room: bool) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Up to 32 bytes of text as four numbers, zeros behind: no word has a zero byte, so the numbers name the word."""
    k0 = k1 = k2 = k3 = np.uint64(0)
    if room:
        # Shift out of each 8 bytes what lies behind the word.
        k0 = load8(data, at) & (ALL >> np.uint64(8 * max(8 - size, 0)))
        if size > 8:
            k1 = load8(data, at + 8) & (ALL >> np.uint64(8 * max(16 - size, 0)))
        if size > 16:
            k2 = load8(data, at + 16) & (ALL >> np.uint64(8 * max(24 - size, 0)))
        if size > 24:
            k3 = load8(data, at + 24) & (ALL >> np.uint64(8 * max(32 - size, 0)))
        return k0, k1, k2, k3
    for k in range(size):
        part = np.uint64(data[at + k]) << np.uint64(8 * (k & 7))
        if k < 8:
            k0 |= part
        elif k < 16:
            k1 |= part
        elif k < 24:
            k2 |= part
        else:
            k3 |= part
    return k0, k1, k2, k3


@jit
def _between(data: np.ndarray, at: int, size: int, buffer: np.ndarray) -> np.ndarray:
    """The word between < and >, in `buffer`."""
    buffer[0] = 60
    for k in range(size):
        buffer[k + 1] = data[at + k]
    buffer[size + 1] = 62
    return buffer[: size + 2]


@jit
def _predict(
    offsets: np.ndarray,
    data: np.ndarray,
    alive: np.ndarray,
    t: Tables,
    keys: np.ndarray,
    counts: np.ndarray,
    sums: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
) -> None:
    dim = t.rows.shape[1]
    mask = np.uint64(len(keys) - 1)
    limit = len(data) - 32
    total, hidden, fresh = np.zeros(dim, np.float64), np.zeros(dim, np.float32), np.zeros(dim, np.float32)
    stack, path = np.zeros(2 * len(t.output) + 2, np.int64), np.zeros(2 * len(t.output) + 2, np.float64)
    window = max(t.sizes[2] - 1, 0)
    running = np.zeros(window + 1, np.uint64)
    buffer = np.zeros(256, np.uint8)
    last = np.array([60, 47, 115, 62], np.uint8)
    prefix = np.array([95, 95, 108, 97, 98, 101, 108, 95, 95], np.uint8)
    for row in range(len(alive)):
        labels[row], scores[row] = -1, np.float32(0)
        if not alive[row]:
            continue
        at, end = offsets[row], offsets[row + 1]
        total[:] = 0.0
        rows = 0
        words = 0
        done = False
        while not done:
            while at < end and data[at] <= 32 and t.space[data[at]]:
                at += 1
            start = at
            while at < end and (data[at] > 32 or not t.space[data[at]]):
                at += 1
            size = at - start
            # The end of the line is a word of its own; where the text has it, fastText reads no further.
            done = size == 0
            if size >= 4 and data[start] == 60 and _same(data, start, at, last):
                done = True
            elif size >= 9 and data[start] == 95 and _same(data, start, start + 9, prefix):
                continue
            if done:
                # Never made of n-grams, and outside the dictionary it adds nothing.
                if t.sizes[4] >= 0:
                    rows += 1
                    for d in range(dim):
                        total[d] += t.rows[t.sizes[4], d]
            elif size <= 32:
                k0, k1, k2, k3 = _key(data, start, size, start <= limit)
                h = (k0 ^ (k1 * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xD6E8FEB86659FD93)
                h ^= (k2 ^ (k3 * np.uint64(0xA0761D6478BD642F))) * np.uint64(0xE7037ED1A0B428DB)
                h ^= h >> np.uint64(32)
                slot = np.int64((h * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask)
                if keys[slot, 0] != k0 or keys[slot, 1] != k1 or keys[slot, 2] != k2 or keys[slot, 3] != k3:
                    counts[slot] = _sum_word(_between(data, start, size, buffer), t, sums[slot])
                    keys[slot, 0], keys[slot, 1], keys[slot, 2], keys[slot, 3] = k0, k1, k2, k3
                rows += counts[slot]
                for d in range(dim):
                    total[d] += sums[slot, d]
            else:
                if size + 2 > len(buffer):
                    buffer = np.zeros(2 * size + 2, np.uint8)
                rows += _sum_word(_between(data, start, size, buffer), t, fresh)
                for d in range(dim):
                    total[d] += fresh[d]
            if window:
                # running[i] is the hash of the words from the i-th last one to this one, as signed 32-bit numbers.
                hash_ = _hash(last, 0, 4) if done else _hash(data, start, at)
                h = np.uint64(np.int64(np.int32(hash_)))
                for i in range(min(words, window), 0, -1):
                    running[i] = running[i - 1] * np.uint64(116049371) + h
                    ngram = t.ngrams[np.int64(running[i] % np.uint64(len(t.ngrams)))]
                    if ngram >= 0:
                        rows += 1
                        for d in range(dim):
                            total[d] += t.rows[ngram, d]
                running[0] = h
                words += 1
        if rows:
            for d in range(dim):
                hidden[d] = np.float32(total[d] / rows)
            label_, score = _classify(hidden, t, stack, path)
            labels[row], scores[row] = label_, np.float32(score)


def predict(memo: Memo, array: pa.Array, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest label of each row, an index into `model.labels` (int16), and its probability (float32).

    Label -1 and 0.0 where `memo.alive` is false, or where the model knows nothing of the text. Call it through the
    memo: `memo(predict, array, model)`.
    """
    offsets, data = view(array)
    # One kind of array, so that the kernel is compiled once.
    offsets.flags.writeable = data.flags.writeable = False
    labels, scores = np.empty(len(array), np.int16), np.empty(len(array), np.float32)
    _predict(offsets, data, memo.alive, model.tables, *model.cache(), labels, scores)
    return labels, scores


def classify(texts: Sequence[str], model: Model) -> list[tuple[str, float]]:
    """The likeliest label of each text and its probability; an empty label where the model knows nothing of it."""
    labels, scores = predict(Memo(len(texts)), pa.array(texts, pa.large_string()), model)
    return [
        (model.labels[label] if label >= 0 else "", float(score)) for label, score in zip(labels, scores, strict=True)
    ]
