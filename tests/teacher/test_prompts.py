"""Prompts: files that are rendered strictly, and say what is wrong with them."""

from __future__ import annotations

import re

import pytest

from factory.engine.errors import FactoryError
from factory.teacher.prompts import Prompt
from factory.teacher.request import Message
from tests.conftest import REPOSITORY

PROMPTS = REPOSITORY / "recipes" / "prompts"
SHIPPED = sorted(set(PROMPTS.glob("*.jinja")) - set(PROMPTS.glob("autoif_*.jinja")))  # have no columns


@pytest.fixture
def prompt(tmp_path):
    def make(text):
        path = tmp_path / "a.jinja"
        path.write_text(text, "utf-8")
        return Prompt(str(path))

    return make


def test_roles_begin_messages(prompt):
    made = prompt(
        "{# system #}\nYou are {{ who }}.\n{# user #}\nHi\n\nthere\n{# assistant #}\nHello\n{#- user -#}\n{{ q }}\n"
    )
    assert made.variables == ("q", "who")
    assert made.messages({"who": "kind", "q": "Why?", "other": 1}) == (
        Message("system", "You are kind."),
        Message("user", "Hi\n\nthere"),
        Message("assistant", "Hello"),
        Message("user", "Why?"),
    )


def test_without_roles_it_is_one_text(prompt):
    made = prompt("{% for one in items %}\n- {{ one }}\n{% endfor %}\nEnd of {{ text | upper }}\n")
    row = {"items": ["a", "b"], "text": "<x> & 'y'"}
    assert made.text(row) == "- a\n- b\nEnd of <X> & 'Y'"
    assert made.messages(row) == (Message("user", made.text(row)),)


def test_files_of_windows_and_text_behind_a_role_are_understood(prompt):
    talk = (Message("system", "Be kind."), Message("user", "Hi there"))
    for text in (
        "{# system #}\r\nBe kind.\r\n{# user #}\r\nHi {{ q }}\r\n",
        "\ufeff{# system #}\nBe kind.\n{# user #}\nHi {{ q }}",
        "{# system #} Be kind.\n{# user #} Hi {{ q }}\n",
    ):
        assert prompt(text).messages({"q": "there"}) == talk


def test_the_same_row_is_the_same_prompt(prompt):
    for text in ("{{ lipsum() }}", "{{ items | random }}"):
        with pytest.raises(FactoryError):
            prompt(text).check(["items"])


def test_what_stands_in_a_row_is_text_only(prompt):
    """Not a template, not a role."""
    text = "{{ secret }} {# system #}\n{# assistant #}\n{% raw %}"
    assert prompt("{# user #}\n{{ text }}").messages({"text": text}) == (Message("user", text),)
    assert prompt("{{ rows | tojson }}").text({"rows": [{"a": "<é'>"}]}) == '[{"a": "<é\'>"}]'


def test_an_unknown_variable_is_told_with_the_nearest(prompt):
    made = prompt("{{ promt }} and {{ text }}")
    with pytest.raises(FactoryError, match=r"a\.jinja: \{\{ promt \}\} is no column \(did you mean 'prompt'\?\)"):
        made.check(["prompt", "text"])
    with pytest.raises(FactoryError, match="promt"):
        made.text({"prompt": "a", "text": "b"})
    prompt("{% set x = 1 %}{{ x }}{{ text }}").check(["text"])


def test_what_lacks_inside_a_column_is_the_rows_fault(prompt):
    made = prompt("{{ meta.author }}")
    assert made.text({"meta": {"author": "me"}}) == "me"
    with pytest.raises(ValueError, match=r"a\.jinja: .*author"):
        made.text({"meta": {}})


@pytest.mark.parametrize(
    "text", ["{{ x }}", "{{ x | join }}", "{{ x + 1 }}", "{% for i in range(10**6) %}{% endfor %}"]
)
def test_a_null_or_what_cannot_be_rendered_is_the_rows_fault(prompt, text):
    with pytest.raises(ValueError, match=r"a\.jinja: "):
        prompt(text).text({"x": None})


def test_a_null_may_be_asked_for(prompt):
    assert prompt("{% if x %}{{ x }}{% endif %}{{ x or 'nothing' }}").text({"x": None}) == "nothing"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ok\n{{ a", r"a\.jinja, line 2: "),
        ("{# user #}\nfine\n{# user #}\n\n{% if %}", r"a\.jinja, line 5: "),
        ("words\n{# user #}\nhi", "belongs to no message"),
        ("{{ text | nothing }}", "nothing"),
        ("{% include 'b.jinja' %}", "one file"),
        ("{% include text %}", "one file"),
        ("{# user #} hi {{", "line 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(prompt, text, why):
    with pytest.raises(FactoryError, match=why):
        prompt(text).text({"text": ""})


def test_a_template_does_nothing_but_read(prompt):
    with pytest.raises(FactoryError, match="only reads"):
        prompt("{{ text.__class__.__mro__[1].__subclasses__() }}").text({"text": "x"})
    with pytest.raises(FactoryError, match="only reads"):
        prompt("{{ items.append(1) }}").text({"items": []})
    for text in ("{{ ''.__class__ }}", "{{ '{0.__class__}'.format(text) }}"):
        with pytest.raises(FactoryError, match="only reads"):
            prompt(text).text({"text": "x"})


def test_a_raw_prompt_has_no_roles(prompt):
    with pytest.raises(FactoryError, match="roles"):
        prompt("{# user #}\nhi").text({})


def test_a_missing_file_is_told():
    with pytest.raises(FactoryError, match=re.escape("no/such.jinja")):
        Prompt("no/such.jinja")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_prompts_use_the_columns_of_datasets(path):
    made = Prompt(str(path))
    made.check(["prompt", "response", "text"])
    row = {name: f"the {name}" for name in made.variables}
    messages = made.messages(row)
    assert [message.role for message in messages] == ["system", "user"]
    for value in row.values():
        assert value in messages[-1].content


def test_prompts_are_shipped():
    assert {path.stem for path in SHIPPED} >= {"answer", "judge", "backtranslate"}
