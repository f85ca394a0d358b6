"""How prose words its arithmetic: spoken operators, LaTeX, and the words that say what an equation is not."""

from __future__ import annotations

import re

from factory.verify.notation import COMMAND, COMMANDS, WRAPPED, words

BULLET = re.compile(r"^\s*(?:[-*•]\s+|\(?\d{1,3}[.):]\s+|Step\s+\d+\s*[:.]\s*)+", re.IGNORECASE)
TIMES = re.compile(r"(?:(?<=[\d)%])\s*|(?<=\w)\s+)[xX](?:\s*(?=[\d.$])|\s+(?=\())")
SIZE = re.compile(r"(?<![A-Za-z])(cm|mm|m|km|ft|in|yd|inch(?:es)?|feet|foot|meters?|units?)\s*\^\s*\{?[23]\}?")
STATEMENT = r"(?=[\d$(](?:[^=.]|\.\d){0,80}?\s(?:is|are|equals|makes)\s)"
SPOKEN = {
    r"\b(?:one[- ]half|half)\s+of\b": "1/2 of",
    r"\b(?:one|a)[- ]third\s+of\b": "1/3 of",
    r"\b(?:one|a)[- ](?:quarter|fourth)\s+of\b": "1/4 of",
    r"\btwo[- ]thirds\s+of\b": "2/3 of",
    r"\bthree[- ](?:quarters|fourths)\s+of\b": "3/4 of",
    r"(?<=\d)\s*percent\b": "%",
    rf"(?<=[\d)%])\s+plus\s+{STATEMENT}": " + ",
    rf"(?<=[\d)%])\s+minus\s+{STATEMENT}": " - ",
    rf"(?<=[\d)%])\s+(?:times|multiplied by)\s+{STATEMENT}": " * ",
    rf"(?<=[\d)%])\s+divided by\s+{STATEMENT}": " / ",
    r"((?:\d\s*%|\d\s*/\s*\d+)\s+of)\s+(?:the\s+)?(?=[\d$(])": r"\1 ",
}
PHRASES = [(re.compile(pattern, re.IGNORECASE), put) for pattern, put in SPOKEN.items()]
NUMERAL = r"\$?\s?\d[\d,]*(?:\.\d+)?%?"
STATED = re.compile(
    rf"((?:(?:\d%|/\s*\d+)\s+of|\d%?\)?\s*[-+*]|\s/)\s*{NUMERAL}(?:\s+[a-z]+){{0,2}}?)"
    rf"\s+(?:is|are|equals|is equal to|makes)\s+(?={NUMERAL})"
)
ROUGH = re.compile(
    r"round|about|approx|nearest|roughly|≈|whole|floor|estimate|almost|nearly|at least|at most|remain|left\s?over",
    re.IGNORECASE,
)
SCALED = re.compile(r"cent|%|thousand|million|billion|hundred|\bk\b", re.IGNORECASE)

SCALES = words(
    "dozen dozens hundred hundreds thousand thousands million millions billion billions k pair pairs half twice "
    "double couple score quarter quarters dime dimes nickel nickels penny pennies times more less fewer mod "
    "modulo remainder r greater percent"
)
NOT_UNITS = words(
    "the is are was were be then so he she they it we you i has have had will would and or but if when since "
    "because that this which who what there gives give get gets makes left remaining total equals equal plus "
    "minus times with from by at them for already up still now"
)
FOLLOWS = words("more less fewer times greater older younger mod modulo remainder r")


def plain(line: str) -> str:
    """A line with LaTeX's signs as plain ones and without dollar signs and markdown."""
    line = BULLET.sub("", line)
    if "\\" in line:
        line = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,)(?=\d{3})", ",", line)
        line = re.sub(r"\\\\", " ; ", line)
        line = WRAPPED.sub(r" \1 ", line)
        line = re.sub(r"\\(?:approx|simeq)(?![a-z])", " ≈ ", line)
        line = COMMAND.sub(lambda m: COMMANDS.get(m[1], m[0]), line)
        line = re.sub(r"\\[()\[\]!,;:> ]", " ", line).replace("\\%", "%").replace("\\$", "$").replace("\\&", "&")
    line = re.sub(r"(?<!\d)\*\*|\*\*(?!\d)|`|&", " ", line)
    line = SIZE.sub(r"\1", TIMES.sub(" * ", line))
    for pattern, put in PHRASES:
        line = pattern.sub(put, line)
    line = STATED.sub(r"\1 = ", line)
    return re.sub(r"[$€£]", " ", line)
