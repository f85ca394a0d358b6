"""Answers in a data language: JSON, YAML, XML. Tables are in `factory.verify.tables`.

Each check has a `parse_…` function beside it, which returns the value or raises `Malformed`. An answer is the data
itself, or has it in one fenced block. Nothing in it can reach a file or the network, run code, or cost more than time
in proportion to its length: size, depth and what references unfold to are bounded before anything is built.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from json import JSONDecodeError, JSONDecoder
from typing import Any

import yaml as pyyaml
from lxml import etree

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from factory.verify.fences import payload

LIBRARIES = ("jsonschema-rs", "lxml", "PyYAML")
SIZE = 1 << 22
"""Characters of an answer that are read at most."""
DEPTH = 100
"""Levels of nesting that are read at most."""
NODES = 1 << 20
"""Values of a YAML document at most, counted again for each alias."""


class Malformed(ValueError):
    """The answer is not what it should be; the message says what is wrong and where."""


def judge(parse: Callable[[], object]) -> Check:
    """The check of an answer that `parse` reads or refuses."""
    try:
        parse()
    except Malformed as error:
        return Check(False, str(error))
    return Check(True)


def bounded(response: str) -> str:
    """The answer itself. Raises `Malformed` where it is too long or no Unicode."""
    if len(response) > SIZE:
        raise Malformed(f"{len(response):,} characters: more than {SIZE:,} are not read")
    try:
        response.encode()
    except UnicodeEncodeError as error:
        raise Malformed(f"character {error.start}: half of a surrogate pair") from None
    return response


def content(response: str) -> str:
    """The data in an answer. Raises `Malformed` where it is `bounded` not, or the data is not in one place."""
    try:
        return payload(bounded(response))
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(str(error)) from None


def shown(value: object, width: int = 60) -> str:
    """A value in a reason: shortened."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


# JSON


def parse_json(response: str, schema: str = "") -> Any:
    """The JSON value of an answer (RFC 8259, strictly: no duplicate keys, NaN, infinity or half surrogate pairs).

    With a JSON Schema, as text, the value must be valid under it: draft 2020-12, or the one that its `$schema` names;
    a `$ref` reaches only into the schema itself. Raises `Malformed`, `FactoryError` where the schema is none.
    """
    value = _read_json(content(response))
    _valid(value, schema)
    return value


def json(response: str, schema: str = "") -> Check:
    """Whether an answer is one JSON value, bare or fenced, and valid under a schema; see `parse_json`."""
    return judge(lambda: parse_json(response, schema))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Malformed(f"the key {shown(twice)} stands twice in one object")
    return found


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Malformed(f"the number {shown(text)} is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > 4000:  # Python reads 4,300 digits unless told otherwise
        raise Malformed(f"a number of {len(text):,} digits")
    return int(text)


def _constant(name: str) -> None:
    raise Malformed(f"{name} is no JSON")


_DECODER = JSONDecoder(object_pairs_hook=_pairs, parse_float=_number, parse_int=_whole, parse_constant=_constant)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _read_json(text: str) -> Any:
    if text.count("[") + text.count("{") > DEPTH:
        depth = 0
        for token in _TOKEN.finditer(text):
            first = text[token.start()]
            depth += (first in "[{") - (first in "]}")
            if depth > DEPTH:
                raise Malformed(f"character {token.start()}: nested deeper than {DEPTH} levels")
    try:
        value = _DECODER.decode(text)
    except JSONDecodeError as error:
        raise Malformed(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    if "\\u" in text and _halves(value):
        raise Malformed("an escape is half of a surrogate pair")
    return value


def _halves(value: Any) -> bool:
    """Whether a string in the value cannot be written as UTF-8."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left.extend(one)
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
        elif isinstance(one, str) and any("\ud800" <= c <= "\udfff" for c in one):
            return True
    return False


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    import jsonschema_rs

    try:
        # Patterns run in time linear in the text; without `offline` a $ref is fetched from wherever it points.
        return jsonschema_rs.validator_for(_read_json(schema), offline=True)
    except (Malformed, ValueError) as error:
        wrong = getattr(error, "message", str(error)).splitlines()[0]
        raise FactoryError(f"the JSON Schema is none: {wrong}; see json-schema.org") from None


def _valid(value: Any, schema: str) -> None:
    if not schema:
        return
    for error in _validator(schema).iter_errors(value):
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
        raise Malformed(f"${path}: {shown(error.message, 200)[1:-1]}")


# YAML

_TAG = "tag:yaml.org,2002:"
# The core schema of YAML 1.2.2, section 10.3.2: what a plain scalar is, tried in this order.
_CORE: tuple[tuple[str, re.Pattern[str], Callable[[str], Any]], ...] = (
    ("null", re.compile(r"null|Null|NULL|~|"), lambda text: None),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    ("int", re.compile(r"[-+]?[0-9]+"), _whole),
    ("int", re.compile(r"0o[0-7]+"), lambda text: int(text[2:], 8)),
    ("int", re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text[2:], 16)),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), _number),
)
_ABSENT = object()


def parse_yaml(response: str, schema: str = "") -> Any:
    """The YAML document of an answer, with scalars as the core schema of YAML 1.2 reads them, and keys as text.

    So `no` and `2024-01-01` are strings, and the value is one that JSON has. No tag makes any other object, a key
    stands once in a mapping, `<<` merges mappings, and what aliases unfold to is bounded. Schemas as for `parse_json`.
    Raises `Malformed`, `FactoryError` where the schema is none.
    """
    value = _Document(content(response)).value
    _valid(value, schema)
    return value


def yaml(response: str, schema: str = "") -> Check:
    """Whether an answer is one YAML document, bare or fenced, and valid under a schema; see `parse_yaml`."""
    return judge(lambda: parse_yaml(response, schema))


def _scalar(event: Any) -> Any:
    text, tag = event.value, event.tag
    if tag in ("!", _TAG + "str") or (tag is None and not event.implicit[0]):
        return text
    if tag is None and text[:1] not in "nNtTfF~-+.0123456789":
        return text
    for name, pattern, read in _CORE:
        if (tag is None or tag == _TAG + name) and pattern.fullmatch(text):
            return read(text)
    if tag is None:
        if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
            raise Malformed(f"{_place(event)}: {text} is no finite number")
        return text
    raise Malformed(f"{_place(event)}: {shown(text)} with the tag {tag.replace(_TAG, '!!')}")


def _place(event: Any) -> str:
    return f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}"


class _Open:
    """A sequence or mapping that is being read: with what it unfolds to, and the key that waits for its value."""

    def __init__(self, event: Any, value: Any) -> None:
        self.anchor, self.value, self.size = event.anchor, value, 1
        self.key: Any = _ABSENT
        self.merged: list[dict[str, Any]] = []

    def add(self, event: Any, value: Any, size: int) -> None:
        self.size += size
        if isinstance(self.value, list):
            self.value.append(value)
        elif self.key is not _ABSENT:
            self.put(event, value)
        elif not isinstance(event, pyyaml.ScalarEvent):
            raise Malformed(f"{_place(event)}: a key that is no scalar")
        elif event.value in self.value:
            raise Malformed(f"{_place(event)}: the key {shown(event.value)} stands twice in one mapping")
        else:
            self.key = event.value
            if event.value == "<<" and event.implicit[0]:
                self.key = None

    def put(self, event: Any, value: Any) -> None:
        key, self.key = self.key, _ABSENT
        if key is not None:
            self.value[key] = value
            return
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                raise Malformed(f"{_place(event)}: << merges mappings")
            self.merged.append(one)

    def done(self) -> Any:
        for one in self.merged:  # what the mapping says itself comes first, then the earlier of the merged
            for key, value in one.items():
                self.value.setdefault(key, value)
        return self.value


class _Document:
    """Built from the parser's events in one loop, so that neither depth nor aliases can outgrow their bounds."""

    def __init__(self, text: str) -> None:
        self.value: Any = _ABSENT
        self.nodes = 0
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        try:
            for event in pyyaml.parse(text, Loader=_LOADER):
                self.read(event)
        except pyyaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
            raise Malformed(f"{where}{error.problem or error.context}") from None
        except pyyaml.YAMLError as error:
            raise Malformed(str(error).splitlines()[0]) from None
        if self.value is _ABSENT:
            raise Malformed("no YAML document")

    def read(self, event: Any) -> None:
        if isinstance(event, pyyaml.DocumentStartEvent) and self.value is not _ABSENT:
            raise Malformed(f"{_place(event)}: a second document")
        if isinstance(event, pyyaml.ScalarEvent):
            self.add(event, _scalar(event), 1, event.anchor)
        elif isinstance(event, pyyaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise Malformed(f"{_place(event)}: the alias *{event.anchor} has no finished anchor before it")
            self.add(event, *self.anchors[event.anchor], None)
        elif isinstance(event, pyyaml.CollectionStartEvent):
            kind = "seq" if isinstance(event, pyyaml.SequenceStartEvent) else "map"
            if event.tag not in (None, "!", _TAG + kind):
                raise Malformed(f"{_place(event)}: the tag {event.tag.replace(_TAG, '!!')}")
            if len(self.open) == DEPTH:
                raise Malformed(f"{_place(event)}: nested deeper than {DEPTH} levels")
            self.open.append(_Open(event, [] if kind == "seq" else {}))
        elif isinstance(event, pyyaml.CollectionEndEvent):
            closed = self.open.pop()
            self.add(event, closed.done(), closed.size, closed.anchor)

    def add(self, event: Any, value: Any, size: int, anchor: str | None) -> None:
        self.nodes += 1
        if size > NODES or self.nodes > NODES:
            raise Malformed(f"{_place(event)}: more than {NODES:,} values, aliases unfolded")
        if anchor is not None:
            self.anchors[anchor] = (value, size)
        if self.open:
            self.open[-1].add(event, value, size)
        else:
            self.value = value


_LOADER = getattr(pyyaml, "CSafeLoader", pyyaml.SafeLoader)

# XML


def parse_xml(response: str, root: str = "", schema: str = "") -> Any:
    """The root element (lxml) of the XML document of an answer.

    Declarations of entities are refused, and no DTD or other file is read. With `root`, the root element has this
    name (`{namespace}name` where it has a namespace). With a schema, as text, the document must be valid under it:
    an XSD or a RELAX NG schema (XML syntax), told apart by its root, that stands alone. Raises `Malformed`,
    `FactoryError` where the schema is none.
    """
    text = content(response)
    try:
        found = _read_xml(text)
    except etree.XMLSyntaxError as error:
        # libxml2 puts the place behind its message as well
        raise Malformed(f"line {error.lineno}, column {error.offset}: {error.msg.splitlines()[0]}") from None
    if (entity := next(found.iter(etree.Entity), None)) is not None:
        raise Malformed(f"{entity.text} is declared nowhere")
    if root and found.tag != root:
        raise Malformed(f"the root element is {shown(found.tag)}, not {root!r}")
    if schema:
        grammar = _grammar(schema)()
        if not grammar.validate(found.getroottree()):
            first = grammar.error_log[0]
            raise Malformed(f"line {first.line}: {first.message}")
    return found


def xml(response: str, root: str = "", schema: str = "") -> Check:
    """Whether an answer is one well-formed XML document, bare or fenced, and valid; see `parse_xml`."""
    return judge(lambda: parse_xml(response, root, schema))


def _read_xml(text: str) -> Any:
    if "<!ENTITY" in text:
        raise Malformed("the document declares an entity")
    # Our encoding, so that a declaration in the document cannot name one that hides what was just looked for.
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False, collect_ids=False
    )
    return etree.fromstring(text.lstrip().encode(), parser)


@lru_cache(maxsize=64)
def _grammar(schema: str) -> Callable[[], Any]:
    """Makes a validator: one for each call, as a validator's log of errors is its own."""
    try:
        tree = _read_xml(schema)
        for element in tree.iter("{*}import", "{*}include", "{*}redefine", "{*}override", "{*}externalRef"):
            if element.get("schemaLocation") or element.get("href"):
                raise Malformed(f"{etree.QName(element).localname} of another file: give a schema that stands alone")
        kind = etree.XMLSchema if etree.QName(tree).localname == "schema" else etree.RelaxNG
        kind(tree)
    except (Malformed, etree.LxmlError) as error:
        raise FactoryError(f"the XML schema is none: {str(error).splitlines()[0]}; give XSD or RELAX NG") from None
    return lambda: kind(tree)
