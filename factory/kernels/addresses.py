"""Web and mail addresses in decoded text, as spaCy's tokens know them."""

from __future__ import annotations

from factory.kernels import jit
from factory.kernels.english import HOST, LOWER
from factory.kernels.unicode import DIGIT, LETTER, UNDERSCORE

_WORD = LETTER | DIGIT | UNDERSCORE


@jit
def digit(code):
    """True for 0 to 9."""
    return 48 <= code <= 57


@jit
def host(text, lo, hi, table):
    """True where a host name or an IPv4 address begins at lo and, after a port and a path, fills `text[lo:hi]`."""
    k = label = lo
    labels = 0
    numeric = True
    while k < hi:
        code = text[k]
        if code == 46:
            if k == label or text[k - 1] == 95 or text[k - 1] == 45 or k - label > 64:
                return False
            labels += 1
            label = k + 1
        elif table[code] & HOST == 0 and ((code != 95 and code != 45) or k == label):
            break
        elif not digit(code):
            numeric = False
        k += 1
    if labels == 0 or k - label < 1 or k - label > 63:
        return False
    if not (numeric and labels == 3):
        if k - label < 2:
            return False
        for j in range(label, k):
            if table[text[j]] & LOWER == 0:
                return False
    if k < hi and text[k] == 58:
        port = k + 1
        while port < hi and digit(text[port]):
            port += 1
        if not 2 <= port - k - 1 <= 5:
            return False
        k = port
    return k == hi or text[k] == 47 or text[k] == 63 or text[k] == 35


@jit
def address(text, lo, hi, table, classes):
    """True where `text[lo:hi]` is a web or mail address: [scheme://][user@]host[:port][/path]."""
    dotted = False
    for k in range(lo, hi):
        if text[k] == 46:
            dotted = True
            break
    if not dotted:
        return False
    if host(text, lo, hi, table):
        return True
    begin = lo
    k = lo
    while k < hi and (classes[text[k]] & _WORD or text[k] == 43 or text[k] == 45 or text[k] == 46):
        k += 1
    if k - lo >= 2 and k + 2 < hi and text[k] == 58 and text[k + 1] == 47 and text[k + 2] == 47:
        begin = k + 3
        if host(text, begin, hi, table):
            return True
    found = False
    for k in range(begin + 1, hi - 1):
        found = found or (text[k] == 64 and host(text, k + 1, hi, table))
    return found
