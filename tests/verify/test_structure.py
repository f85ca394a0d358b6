"""Answers in JSON, YAML and XML: what is read, what is refused, and that nothing in them costs more than its length."""

from __future__ import annotations

import json as standard
import time
from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.verify.fences import fences, payload
from factory.verify.structure import DEPTH, Malformed, json, parse_json, parse_xml, parse_yaml, xml, yaml
from factory.verify.verifier import reward

SCHEMA = standard.dumps(
    {
        "type": "object",
        "required": ["name", "items"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        },
        "$defs": {"item": {"type": "object", "properties": {"price": {"type": "number", "minimum": 0}}}},
    }
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    # without what no UTF-8 and no YAML can have
    | st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff\ufeff\u2028\u2029\x85")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdefg é你", min_size=1), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


# Fences


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```json\n1\n```", [("json", "1\n")]),
        ("a\n~~~\nx\n```\n~~~\nb", [("", "x\n```\n")]),
        ("````\n```\nx\n```\n````", [("", "```\nx\n```\n")]),
        ("   ``` py  \r\nx\r\n  ```  \r\n", [("py", "x\r\n")]),
        ("    ```\nx", []),
        ("```a`b\nx", []),
        ("``` \n``` x\n```", [("", "``` x\n")]),
        ("```\nx", [("", "x")]),
    ],
)
def test_fences(text: str, found: list[tuple[str, str]]) -> None:
    assert [(fence.info, fence.body) for fence in fences(text)] == found


def test_fences_are_those_of_the_reference_implementation() -> None:
    cmarkgfm = pytest.importorskip("cmarkgfm", reason="GitHub's Markdown is what we compare with")
    from lxml import html

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.sampled_from(["```", "~~~", "````", "``` js", "   ```", "word", "", "``` a`b"])))
    def compare(lines: list[str]) -> None:
        text = "\n".join(lines)
        tree = html.fromstring(f"<div>{cmarkgfm.markdown_to_html(text)}</div>")
        codes = [code.text or "" for code in tree.iter("code") if code.getparent().tag == "pre"]
        assert [fence.body.rstrip("\n") for fence in fences(text)] == [code.rstrip("\n") for code in codes]

    compare()


def test_the_payload_is_in_one_place() -> None:
    assert payload("  [1]\n") == "  [1]\n"
    assert payload("Here it is:\n```json\n[1]\n```\nDone.") == "[1]\n"
    with pytest.raises(ValueError, match="2 fenced blocks"):
        payload("```\n1\n```\n```\n2\n```")
    with pytest.raises(ValueError, match="never closed"):
        payload("```json\n[1]")


# JSON


@settings(max_examples=300, deadline=None)
@given(VALUES, st.booleans(), st.booleans())
def test_json_that_was_written_is_read(value: Any, ascii_only: bool, fenced: bool) -> None:
    text = standard.dumps(value, ensure_ascii=ascii_only, indent=2 if fenced else None)
    assert parse_json(f"```json\n{text}\n```" if fenced else text) == value


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ('{"a": 1, "a": 1}', "'a' stands twice"),
        ("NaN", "NaN is no JSON"),
        ("[-Infinity]", "Infinity"),
        ("[1e400]", "too large"),
        ("[" + "1" * 5000 + "]", "5,000 digits"),
        (r'"\ud800"', "surrogate"),
        ("\ud800", "surrogate"),
        ("{'a': 1}", "line 1, column 2"),
        ('{"a": 1,}', "line 1"),
        ('{"a": 1} {"b": 2}', "Extra data"),
        ("The answer is [1]", "line 1, column 1"),
        ("", "line 1"),
        ('{"a": [1, 2', "line 1"),
        ("// no\n{}", "line 1"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "nested deeper"),
        (" " * (5 << 20), "characters"),
    ],
)
def test_what_is_no_json(response: str, reason: str) -> None:
    check = json(response)
    assert not check.passed and check.score == 0.0 and reason in check.reason and "\n" not in check.reason
    with pytest.raises(Malformed):
        parse_json(response)


def test_depth_counts_brackets_outside_of_strings() -> None:
    assert parse_json(standard.dumps("[{" * 1000)) == "[{" * 1000
    assert parse_json(standard.dumps(['\\"[' * 1000, "]"])) == ['\\"[' * 1000, "]"]
    assert json("[" * DEPTH + "]" * DEPTH).passed


def test_schema() -> None:
    good = {"name": "x", "items": [{"price": 1.5}, {"price": 0}]}
    assert json(standard.dumps(good), SCHEMA).passed
    bad = standard.dumps({"name": "x", "items": [{"price": 1}, {"price": -1}]})
    assert json(bad, SCHEMA).reason.startswith("$.items[1].price: -1 is less than")
    assert json('{"name": "x"}', SCHEMA).reason == '$: "items" is a required property'
    older = '{"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}'
    assert json('["a", 1]', older).passed and not json("[1]", older).passed  # 2020-12 says prefixItems for that
    assert yaml("name: x\nitems: [{price: -1}]", SCHEMA).reason.startswith("$.items[0].price")


@pytest.mark.parametrize(
    "schema", ["{", '{"type": "objekt"}', '{"$ref": "http://localhost/x"}', '{"$ref": "file:///x"}']
)
def test_a_schema_that_is_none(schema: str) -> None:
    with pytest.raises(FactoryError, match=r"the JSON Schema is none: .*json-schema.org"):
        json("1", schema)


def test_a_pattern_cannot_hang() -> None:
    start = time.monotonic()
    assert not json(f'"{"a" * 5000}!"', '{"pattern": "^(a+)+$"}').passed
    assert time.monotonic() - start < 20


def test_as_a_reward() -> None:
    score = reward("structure:json")
    assert score(completions=["[1]", "[1"], schema=["", ""]) == [1.0, 0.0]
    assert reward("structure:json", {"schema": "wanted"})(["1", "1"], wanted=['{"type": "string"}', ""]) == [0.0, 1.0]


# YAML


@settings(max_examples=300, deadline=None)
@given(VALUES, st.sampled_from([None, False, True]))
def test_yaml_that_was_written_is_read(value: Any, flow: bool | None) -> None:
    assert parse_yaml(pyyaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)) == value


def test_scalars() -> None:
    text = "[no, yes, 2024-01-01, 1:30, 1_000, 010, 0o17, 0xff, .5, 1., 1e3, +1, -0, null, ~, True, '1', 'null', ]"
    wanted = [
        "no",
        "yes",
        "2024-01-01",
        "1:30",
        "1_000",
        10,
        15,
        255,
        0.5,
        1.0,
        1e3,
        1,
        0,
        None,
        None,
        True,
        "1",
        "null",
    ]
    assert parse_yaml(text) == wanted
    assert parse_yaml("  a: 1\n  b: 2\n") == {"a": 1, "b": 2}
    assert parse_yaml("1: a\ntrue: b\nnull:") == {"1": "a", "true": "b", "null": None}
    assert parse_yaml("a: !!str 1\nb: !!int '7'\nc: !!float 1\nd: !!seq []") == {"a": "1", "b": 7, "c": 1.0, "d": []}


def test_aliases_and_merges() -> None:
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {<<: [*b, {z: 4}]}\n'<<': 5\nlist: [&a 1, *a]"
    value = parse_yaml(text)
    assert value["one"] == {"x": 1, "y": 3} and value["two"] == {"x": 1, "y": 2, "z": 4}
    assert value["<<"] == 5 and value["list"] == [1, 1]
    theirs = pyyaml.safe_load(text.replace("'<<': 5\n", ""))
    assert {**theirs, "<<": 5} == value


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands twice"),
        ("a\n---\nb", "second document"),
        ("", "no YAML"),
        ("# nothing", "no YAML"),
        ("a: b: c", "line 1"),
        ("a: [1, 2", "line 2"),
        ("\tx: 1", "line 1"),
        ("? [a]\n: 1", "no scalar"),
        ("!!python/object/apply:os.system ['true']", "tag !!python"),
        ("!!python/name:os.system ''", "tag !!python"),
        ("a: !mine {}", "tag !mine"),
        ("a: !!int x", "tag !!int"),
        ("a: .nan", "no finite number"),
        ("a: .inf", "no finite number"),
        ("a: 1e999", "too large"),
        ("a: &a [*a]", "alias"),
        ("a: *b", "alias"),
        ("<<: 1", "<< merges"),
        ("a: \x07", "character"),
    ],
)
def test_what_is_no_yaml(response: str, reason: str) -> None:
    check = yaml(response)
    assert not check.passed and reason in check.reason and "\n" not in check.reason


def test_an_alias_bomb_is_refused_before_it_unfolds() -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 40))
    assert "aliases unfolded" in yaml(laughs).reason
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in range(1, 40)
    )
    assert "aliases unfolded" in yaml(merges).reason


# XML

XSD = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="a"><xs:complexType><xs:sequence>
<xs:element name="b" type="xs:integer" maxOccurs="unbounded"/></xs:sequence></xs:complexType></xs:element>
</xs:schema>"""
RELAXNG = """<element name="a" xmlns="http://relaxng.org/ns/structure/1.0"
datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">
<oneOrMore><element name="b"><data type="integer"/></element></oneOrMore></element>"""


def test_xml() -> None:
    root = parse_xml('```xml\n<?xml version="1.0" encoding="UTF-16"?>\n<a x="é">你<b/></a>\n```', root="a")
    assert (root.tag, root.get("x"), root.text) == ("a", "é", "你")
    assert xml("<b/>", root="a").reason == "the root element is 'b', not 'a'"
    assert xml('<b xmlns="urn:x"/>', root="{urn:x}b").passed


@pytest.mark.parametrize("schema", [XSD, RELAXNG], ids=["xsd", "relaxng"])
def test_xml_schema(schema: str) -> None:
    assert xml("<a><b>1</b><b>2</b></a>", schema=schema).passed
    for bad in ("<a><b>x</b></a>", "<a/>", "<a><c/></a>"):
        assert xml(bad, schema=schema).reason.startswith("line 1: ")


@pytest.mark.parametrize(
    "schema",
    [
        "<a",
        "<a/>",
        '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:include schemaLocation="/etc/x.xsd"/></xs:schema>',
        '<grammar xmlns="http://relaxng.org/ns/structure/1.0"><include href="/etc/x.rng"/></grammar>',
    ],
)
def test_an_xml_schema_that_is_none(schema: str) -> None:
    with pytest.raises(FactoryError, match="the XML schema is none"):
        xml("<a/>", schema=schema)


LAUGHS = "<!DOCTYPE a [" + '<!ENTITY l0 "ha">' + "".join(
    f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 10)
) + "]><a>&l9;</a>"  # fmt: skip


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (LAUGHS, "declares an entity"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a>&x;</a>', "declares an entity"),
        ('<!DOCTYPE a [<!ENTITY % x SYSTEM "http://localhost/x"> %x;]><a/>', "declares an entity"),
        ('<!DOCTYPE a SYSTEM "http://localhost/x.dtd"><a>&x;</a>', "&x; is declared nowhere"),
        ("<a>&x;</a>", "line 1"),
        ("<a><b></a>", "line 1"),
        ("<a/><b/>", "line 1"),
        ('<a x="1" x="2"/>', "line 1"),
        ("text", "line 1"),
        ("", "line 1"),
        ("<a>\x00</a>", "line 1"),
    ],
)
def test_what_is_no_xml(response: str, reason: str) -> None:
    check = xml(response)
    assert not check.passed and reason in check.reason and "\n" not in check.reason


# Whatever the text


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text("[]{}\",:-&*<>!?#|%@`'\\ \n\tab1") | st.text("<>/a &;![]-\"'=?") | st.text("`~\n[1]"))
def test_any_text_has_a_verdict(text: str) -> None:
    for check in (json, yaml, xml):
        verdict = check(text)
        assert verdict.passed == (verdict.reason == "") == (verdict.score == 1.0)


HOSTILE = [
    *("[", "[1,", "[a: ", "{", '{"a":', "{a: ", "]", '"', "\\", '"\\', "'", "1", "-", "\n", "\ufeff"),
    *("- ", "? ", "&a ", "*a ", "!a ", "a:\n ", "a: &a\n", "- |\n", "```\n", "~~~\n```\n"),
    *("<a>", "<a ", "<!--", "&#", "<![CDATA["),
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_nothing_hangs(piece: str) -> None:
    start = time.process_time()
    for check in (json, yaml, xml):
        check(piece * (1_000_000 // len(piece)))
    assert time.process_time() - start < 20
