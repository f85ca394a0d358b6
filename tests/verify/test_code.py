"""Programs in answers."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest

from factory.engine.errors import FactoryError
from factory.sandbox.limits import Limits
from factory.sandbox.selftest import require_isolation
from factory.sandbox.verdict import Call, Case
from factory.verify.code import extract, passes

TESTS = "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n"
RIGHT = "Here it is:\n\n```python\ndef add(a, b):\n    return a + b\n```\n\nIt adds."


@pytest.fixture
def boxes() -> None:
    try:
        require_isolation(None)
    except FactoryError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Text\n```python\nx = 1\n```\nmore\n", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```Python title='a.py'\nx = 1\n```", "x = 1\n"),
        ("~~~~python\n```\nx\n~~~~", "```\nx\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```bash\npip install x\n```\n```\nx = 1\n```", "x = 1\n"),
        ("```bash\npip install x\n```", ""),
        ("```python\nx = 1\ny = 2\n```\nRun:\n```python\nprint(x)\n```", "x = 1\ny = 2\n"),
        (
            "```python\ndef f(): return 0\n```\nBetter:\n```python\ndef f(): pass\n```\n```python\nprint()\n```",
            "def f(): pass\n",
        ),
        ("```python\nx = 1\n", "x = 1\n"),
        ("   ```python\n   x\n   ```", "   x\n"),
        ("<think>```python\nbad\n```</think>\n```python\ngood\n```", "good\n"),
        ("```python\ns = '''\n``` in a text\n'''\n```", "s = '''\n``` in a text\n'''\n"),
        ("```python\ns = 'a\u2028b\x0cc\x1ed'\n```", "s = 'a\u2028b\x0cc\x1ed'\n"),
        ("", ""),
    ],
)
def test_the_program_is_found(response, program):
    assert extract(response, entry_point="f") == program


def test_languages_go_by_all_their_names():
    text = "```js\na\n```\n```c++\nbb\n```\n```cpp\nc\n```"
    assert extract(text, "javascript") == "a\n" and extract(text, "cpp") == "bb\n" and extract(text, "c++") == "bb\n"


def test_a_right_program_passes(boxes):
    check = passes(RIGHT, TESTS, entry_point="add")
    assert check.passed and check.score == 1.0 and check.reason == ""


def test_a_wrong_program_does_not_and_the_reason_is_told(boxes):
    check = passes(RIGHT.replace("+", "-"), TESTS, entry_point="add")
    assert (
        not check.passed and check.score == 0.0 and "line 2 of the tests: assert candidate(2, 3) == 5" in check.reason
    )
    assert passes("I cannot do that.", TESTS, entry_point="add").reason.startswith("static_error: SyntaxError")
    assert passes("```text\nno\n```", TESTS, entry_point="add").reason == "no program in the response"
    assert passes("```python\nimport sys\nsys.exit(0)\n```", TESTS, entry_point="add").passed is False
    endless = passes("```python\nwhile True: pass\n```", TESTS, entry_point="add", limits=Limits(seconds=1))
    assert endless.reason.startswith("timeout")


def test_cases_and_calls_are_scored_by_their_share(boxes):
    program = "```python\nn = int(input())\nprint(n * n if n < 10 else 0)\n```"
    check = passes(program, cases=[Case("2", "4"), Case("3", "9"), Case("12", "144"), Case("4", "16")])
    assert not check.passed and check.score == 0.5 and "case 3" in check.reason
    calls = [Call("add", (1, 2), 3), Call("add", ([1], [2]), [1, 2]), Call("add", (1, 1), 3)]
    check = passes(RIGHT, calls=calls)
    assert not check.passed and check.score == 2 / 3 and check.reason == "failed: add: 2 where 3 is expected"
    assert passes(RIGHT, calls=calls[:2]).score == 1.0


def test_threads_and_processes_may_ask(boxes):
    assert passes(RIGHT, TESTS, entry_point="add").passed
    with ThreadPoolExecutor(4) as pool:
        assert all(check.passed for check in pool.map(lambda _: passes(RIGHT, TESTS, entry_point="add"), range(8)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(check.passed for check in pool.starmap(passes, [(RIGHT, TESTS, "python", "add")] * 4))


def test_nothing_to_judge_by_is_an_error(boxes):
    with pytest.raises(FactoryError, match="nothing to judge"):
        passes(RIGHT)
