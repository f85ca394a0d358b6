"""Compiled reading of JSON lines: one pass finds the wanted fields of every line and copies all others as they stand.

The scan is strict: a line that is anything but plain, valid JSON (RFC 8259) with distinct keys is left to the caller,
who reads it with a general parser. What the scan accepts needs no second look.
"""

from __future__ import annotations

import numpy as np

from factory.kernels import jit

OK, ODD, SKIP = 0, 1, 2
"""States of a line: read; left to a general parser; not to be read (blank, or not UTF-8)."""
ABSENT, PLAIN, ESCAPED, RAW = 0, 1, 2, 3
"""States of a field: missing or null; a string without escapes; one with escapes; the JSON text of another value."""
TEXT, INTEGER, NUMBER, NESTED = 0, 1, 2, 3
"""What a field should hold. TEXT takes any value, as its JSON text; NESTED takes arrays and objects."""

DEEP = 64
MANY = 64


@jit
def _space(data: np.ndarray, at: int, end: int) -> int:
    while at < end and (data[at] == 32 or data[at] == 9 or data[at] == 13 or data[at] == 10):
        at += 1
    return at


@jit
def _hex(data: np.ndarray, at: int, end: int) -> int:
    """The value of four hexadecimal digits, or -1."""
    if at + 4 > end:
        return -1
    value = 0
    for i in range(at, at + 4):
        c = int(data[i])
        if 48 <= c <= 57:
            value = value * 16 + c - 48
        elif 97 <= c <= 102:
            value = value * 16 + c - 87
        elif 65 <= c <= 70:
            value = value * 16 + c - 55
        else:
            return -1
    return value


@jit
def _string(data: np.ndarray, at: int, end: int) -> tuple[int, bool]:
    """`at` is past the opening quote; gives the place of the closing one (-1: not valid) and whether it has escapes."""
    escapes = False
    while at < end:
        c = data[at]
        if c == 34:
            return at, escapes
        if c < 32:
            return -1, escapes
        if c != 92:
            at += 1
            continue
        escapes = True
        if at + 1 >= end:
            return -1, escapes
        c = data[at + 1]
        if c == 117:
            unit = _hex(data, at + 2, end)
            if unit < 0 or 0xDC00 <= unit <= 0xDFFF:
                return -1, escapes
            at += 6
            if 0xD800 <= unit <= 0xDBFF:
                if at + 6 > end or data[at] != 92 or data[at + 1] != 117:
                    return -1, escapes
                low = _hex(data, at + 2, end)
                if low < 0xDC00 or low > 0xDFFF:
                    return -1, escapes
                at += 6
        elif c == 34 or c == 92 or c == 47 or c == 98 or c == 102 or c == 110 or c == 114 or c == 116:
            at += 2
        else:
            return -1, escapes
    return -1, escapes


@jit
def _digits(data: np.ndarray, at: int, end: int) -> int:
    while at < end and 48 <= data[at] <= 57:
        at += 1
    return at


@jit
def _scalar(data: np.ndarray, at: int, end: int) -> int:
    """The end of a number or of true, false, null; -1 where it is none."""
    c = data[at]
    if c == 116 or c == 110:
        if at + 4 > end:
            return -1
        if c == 116:
            good = data[at + 1] == 114 and data[at + 2] == 117 and data[at + 3] == 101
        else:
            good = data[at + 1] == 117 and data[at + 2] == 108 and data[at + 3] == 108
        return at + 4 if good else -1
    if c == 102:
        if at + 5 > end:
            return -1
        good = data[at + 1] == 97 and data[at + 2] == 108 and data[at + 3] == 115 and data[at + 4] == 101
        return at + 5 if good else -1
    if c == 45:
        at += 1
    after = _digits(data, at, end)
    if after == at or (data[at] == 48 and after > at + 1):
        return -1
    at = after
    if at < end and data[at] == 46:
        after = _digits(data, at + 1, end)
        if after == at + 1:
            return -1
        at = after
    if at < end and (data[at] == 101 or data[at] == 69):
        at += 1
        if at < end and (data[at] == 43 or data[at] == 45):
            at += 1
        after = _digits(data, at, end)
        if after == at:
            return -1
        at = after
    return at


@jit
def _key(data: np.ndarray, at: int, end: int) -> int:
    """The place after a key and its colon, from the key's opening quote; -1 where there is none."""
    at = _space(data, at, end)
    if at >= end or data[at] != 34:
        return -1
    at, _ = _string(data, at + 1, end)
    if at < 0:
        return -1
    at = _space(data, at + 1, end)
    if at >= end or data[at] != 58:
        return -1
    return at + 1


@jit
def _value(data: np.ndarray, at: int, end: int, stack: np.ndarray) -> int:
    """The end of any value, or -1. `stack` holds what closes each open array or object."""
    depth = 0
    while True:
        at = _space(data, at, end)
        if at >= end:
            return -1
        c = data[at]
        if c == 34:
            at, _ = _string(data, at + 1, end)
            if at < 0:
                return -1
            at += 1
        elif c == 123 or c == 91:
            at = _space(data, at + 1, end)
            if at >= end:
                return -1
            if data[at] == c + 2:
                at += 1
            else:
                if depth >= DEEP:
                    return -1
                stack[depth] = c + 2
                depth += 1
                if c == 123:
                    at = _key(data, at, end)
                    if at < 0:
                        return -1
                continue
        else:
            at = _scalar(data, at, end)
            if at < 0:
                return -1
        while True:
            if depth == 0:
                return at
            at = _space(data, at, end)
            if at >= end:
                return -1
            c = data[at]
            at += 1
            if c == 44:
                if stack[depth - 1] == 125:
                    at = _key(data, at, end)
                    if at < 0:
                        return -1
                break
            if c != stack[depth - 1]:
                return -1
            depth -= 1


@jit
def _same(data: np.ndarray, a: int, b: int, length: int) -> bool:
    for i in range(length):  # noqa: SIM110  (compiled)
        if data[a + i] != data[b + i]:
            return False
    return True


@jit
def _which(data: np.ndarray, at: int, length: int, names: np.ndarray, places: np.ndarray) -> int:
    """The number of the wanted field with this name, or -1."""
    for field in range(len(places) - 1):
        if places[field + 1] - places[field] == length:
            i = 0
            while i < length and data[at + i] == names[places[field] + i]:
                i += 1
            if i == length:
                return field
    return -1


@jit
def _fits(data: np.ndarray, at: int, end: int, kind: int) -> bool:
    """Whether a value that is not a string, and not null, is what the field should hold."""
    c = data[at]
    if kind == NESTED:
        return bool(c == 123 or c == 91)
    if kind == TEXT:
        return True
    if c != 45 and not 48 <= c <= 57:
        return False
    if kind == NUMBER:
        return True
    if end - at > 18:
        return False
    for i in range(at + 1, end):
        if not 48 <= data[i] <= 57:
            return False
    return bool(c != 45 or end - at > 1)


@jit
def scan(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    names: np.ndarray,
    places: np.ndarray,
    kinds: np.ndarray,
    state: np.ndarray,
    begin: np.ndarray,
    stop: np.ndarray,
    form: np.ndarray,
    rest: np.ndarray,
    rest_at: np.ndarray,
) -> None:
    """Find the wanted fields of each line `data[starts[i]:ends[i]]` whose `state` is OK.

    Field f is called `names[places[f]:places[f + 1]]` and should hold `kinds[f]`. Sets `state`, and for each field
    and line `begin`, `stop` (int64[f, i]) and `form` (uint8[f, i]). All other members go to `rest` as an object's
    text; line i's is `rest[rest_at[i]:rest_at[i + 1]]`, empty where there are none.
    """
    stack = np.empty(DEEP, np.uint8)
    key_at = np.empty(MANY, np.int64)
    key_size = np.empty(MANY, np.int64)
    seen = np.empty(len(kinds), np.int64)
    seen[:] = -1
    out = 0
    for row in range(len(starts)):
        rest_at[row] = out
        if state[row] != OK:
            continue
        end = ends[row]
        at = _space(data, starts[row], end)
        if at == end:
            state[row] = SKIP
            continue
        state[row] = ODD
        line_out, others = out, 0
        if data[at] != 123:
            continue
        at = _space(data, at + 1, end)
        good = at < end and data[at] == 125
        if good:
            at += 1
        while not good:
            at = _space(data, at, end)
            if at >= end or data[at] != 34:
                break
            key = at + 1
            key_end, escapes = _string(data, key, end)
            if key_end < 0 or escapes:
                break
            at = _space(data, key_end + 1, end)
            if at >= end or data[at] != 58:
                break
            at = _space(data, at + 1, end)
            if at >= end:
                break
            value = at
            c = data[at]
            escapes = False
            if c == 34:
                at, escapes = _string(data, at + 1, end)
                if at < 0:
                    break
                at += 1
            else:
                at = _value(data, at, end, stack)
                if at < 0:
                    break
            field = _which(data, key, key_end - key, names, places)
            if field >= 0:
                if seen[field] == row:
                    break
                seen[field] = row
                if c == 34:
                    if kinds[field] != TEXT:
                        break
                    begin[field, row], stop[field, row] = value + 1, at - 1
                    form[field, row] = ESCAPED if escapes else PLAIN
                elif c != 110:
                    if not _fits(data, value, at, kinds[field]):
                        break
                    begin[field, row], stop[field, row] = value, at
                    form[field, row] = RAW
            else:
                if others == MANY:
                    break
                twice = False
                for other in range(others):
                    if key_size[other] == key_end - key and _same(data, key_at[other], key, key_end - key):
                        twice = True
                if twice:
                    break
                key_at[others], key_size[others] = key, key_end - key
                others += 1
                rest[line_out] = 123 if others == 1 else 44
                line_out += 1
                size = at - key + 1
                rest[line_out : line_out + size] = data[key - 1 : at]
                line_out += size
            at = _space(data, at, end)
            if at >= end:
                break
            c = data[at]
            at += 1
            if c == 125:
                good = True
            elif c != 44:
                break
        if good and _space(data, at, end) == end:
            state[row] = OK
            if others:
                rest[line_out] = 125
                out = line_out + 1
    rest_at[len(starts)] = out


@jit
def _utf8(out: np.ndarray, at: int, point: int) -> int:
    if point < 0x80:
        out[at] = point
        return at + 1
    if point < 0x800:
        out[at] = 0xC0 | point >> 6
        out[at + 1] = 0x80 | point & 63
        return at + 2
    if point < 0x10000:
        out[at] = 0xE0 | point >> 12
        out[at + 1] = 0x80 | point >> 6 & 63
        out[at + 2] = 0x80 | point & 63
        return at + 3
    out[at] = 0xF0 | point >> 18
    out[at + 1] = 0x80 | point >> 12 & 63
    out[at + 2] = 0x80 | point >> 6 & 63
    out[at + 3] = 0x80 | point & 63
    return at + 4


@jit
def strings(
    data: np.ndarray, rows: np.ndarray, begin: np.ndarray, stop: np.ndarray, form: np.ndarray, out: np.ndarray
) -> np.ndarray:
    """One field's strings, of the lines `rows`, unescaped into `out`; gives their offsets, int64[rows + 1]."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    o = 0
    for i in range(len(rows)):
        row = rows[i]
        if form[row] == PLAIN or form[row] == RAW:
            size = stop[row] - begin[row]
            out[o : o + size] = data[begin[row] : stop[row]]
            o += size
        elif form[row] == ESCAPED:
            at, end = begin[row], stop[row]
            while at < end:
                c = data[at]
                if c != 92:
                    out[o] = c
                    o += 1
                    at += 1
                    continue
                c = data[at + 1]
                at += 2
                if c == 117:
                    point = _hex(data, at, end)
                    at += 4
                    if 0xD800 <= point <= 0xDBFF:
                        point = 0x10000 + ((point - 0xD800) << 10) + _hex(data, at + 2, end) - 0xDC00
                        at += 6
                    o = _utf8(out, o, point)
                    continue
                if c == 110:
                    c = np.uint8(10)
                elif c == 116:
                    c = np.uint8(9)
                elif c == 114:
                    c = np.uint8(13)
                elif c == 98:
                    c = np.uint8(8)
                elif c == 102:
                    c = np.uint8(12)
                out[o] = c
                o += 1
        offsets[i + 1] = o
    return offsets
