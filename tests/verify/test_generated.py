"""Verifiers that a model writes, run in the real sandbox: good, wrong, crashing, endless and malicious functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.sandbox.judge import Sandbox
from factory.sandbox.limits import Limits
from factory.sandbox.verdict import Task, Verdict
from factory.verify.instructions import generated
from factory.verify.instructions.generated import CALLS, STOPS, Example, Verifiers, cross_check
from factory.verify.verifier import Verifier

GOOD = (
    'def evaluate(response):\n    return "," not in response\n',
    "import re\n\n\ndef evaluate(response):\n    return re.search(',', response) is None\n",
    "def evaluate(response: str) -> bool:\n    return response.count(chr(44)) == 0\n",
)
CASES = (
    Example("No comma here.", True),
    Example("Well, here is one.", False),
    Example("", True),
    Example("1,000", False),
)
BAD = {
    "always true": "def evaluate(response):\n    return True\n",
    "the other way round": 'def evaluate(response):\n    return "," in response\n',
    "raises": "def evaluate(response):\n    return response[10**6] == ','\n",
    "no bool": "import re\n\n\ndef evaluate(response):\n    return re.match('[^,]*$', response)\n",
    "equal to all": (
        "class Any:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n\n\n"
        "def evaluate(response):\n    return Any()\n"
    ),
    "exits": "import sys\n\n\ndef evaluate(response):\n    sys.exit(0)\n",
    "dies": "import os\n\n\ndef evaluate(response):\n    os._exit(0)\n",
    "kills": "import os, signal\n\n\ndef evaluate(response):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    "eats memory": "def evaluate(response):\n    return len(bytearray(1 << 40)) > 0\n",
    "reads the harness": (
        "import gc, inspect\n\n\ndef evaluate(response):\n"
        "    held = [o for o in gc.get_objects() if type(o) is tuple and len(o) == 4 and o[-1] is True]\n"
        "    return any('follows' in str(f.frame.f_locals) for f in inspect.stack()) or bool(held)\n"
    ),
    "writes to every channel": (
        "import os\n\n\ndef evaluate(response):\n    for fd in range(20):\n        try: os.write(fd, b'True\\n' * 9)\n"
        "        except OSError: pass\n    return True\n"
    ),
}  # fmt: skip
SLOW = (
    "def evaluate(response):\n    while True: pass\n",
    "import time\n\n\ndef evaluate(response):\n    time.sleep(3600)\n",
    "import re\n\n\ndef evaluate(response):\n    return bool(re.match('(a+)+$', 'a' * 60 + '!'))\n",
)
UNFIT = {
    "syntax": "def evaluate(response)\n    return True\n",
    "no function": "def check(response):\n    return True\n",
    "raises as it loads": "import nothing_of_this_name\n\n\ndef evaluate(response):\n    return True\n",
    "exits as it loads": "raise SystemExit(0)\n",
    "dies as it loads": "import os\nos._exit(0)\n",
    "not Python": "\0 is no source",
    "not a function": "evaluate = 3\n",
}


class Counted:
    """The real sandbox, and how many jobs it was given."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.jobs = sandbox, 0

    def judge_all(self, tasks: Iterable[Task]) -> Iterator[Verdict]:
        tasks = list(tasks)
        self.jobs += len(tasks)
        yield from self.sandbox.judge_all(tasks)


@pytest.fixture(scope="module")
def real() -> Iterator[Sandbox]:
    try:
        sandbox = Sandbox()
        sandbox.__enter__()
    except FactoryError as error:
        pytest.skip(f"no sandbox here: {error}")
    with sandbox:
        yield sandbox


@pytest.fixture
def sandbox(real) -> Counted:
    return Counted(real)


def test_what_confirms_each_other_is_kept(sandbox):
    wrong_case = Example("No comma, or so it says", True)
    found = cross_check([*GOOD, GOOD[0], BAD["always true"]], [*CASES, wrong_case, CASES[0]], sandbox)
    assert found.functions == GOOD and found.cases == CASES
    assert found.survives and not found.one_sided
    assert found.counts() == {
        "function: kept": 3, "function: duplicate": 1, "function: accuracy": 1,
        "case: kept": 4, "case: accuracy": 1, "case: duplicate": 1,
    }  # fmt: skip
    assert [(one.item, one.detail) for one in found.dropped if one.reason == "accuracy"] == [
        (wrong_case.response, "1 of 4 functions say that it follows"),
        (BAD["always true"], "2 of 4 cases; failed: _factory_evaluate: True where False is expected"),
    ]
    assert sandbox.jobs == 4


@pytest.mark.parametrize("kind", BAD)
def test_bad_functions_are_dropped_and_do_no_harm(sandbox, kind):
    found = cross_check([BAD[kind], *GOOD], CASES, sandbox)
    assert found.functions == GOOD and found.cases == CASES
    (dropped,) = found.dropped
    assert dropped.item == BAD[kind]
    assert dropped.reason in ("accuracy", "never ends") and dropped.detail


def test_endless_functions_are_dropped(sandbox):
    found = cross_check([*SLOW, *GOOD, f"{GOOD[0]}# again"], CASES[:2], sandbox)
    assert found.functions == (*GOOD, f"{GOOD[0]}# again") and found.cases == CASES[:2]
    assert [(one.item, one.reason) for one in found.dropped] == [(source, "accuracy") for source in SLOW]
    assert all("slower than 2 seconds" in one.detail for one in found.dropped)
    assert sandbox.jobs == 7


@pytest.mark.parametrize("kind", UNFIT)
def test_functions_that_do_not_load_have_no_say(sandbox, kind):
    """Two of them would outvote one good function, and drop its cases."""
    found = cross_check([UNFIT[kind], UNFIT[kind] + "\n# again", GOOD[0]], CASES, sandbox)
    assert found.functions == GOOD[:1] and found.cases == CASES
    assert [one.reason for one in found.dropped] == ["does not load"] * 2
    assert all(one.detail for one in found.dropped)
    assert sandbox.jobs == 3


@pytest.mark.parametrize(
    "trap",
    ["while True: pass", "import os; os._exit(1)", "raise KeyError(response)", "return None"],
)
def test_a_call_that_fails_is_wrong_alone(sandbox, trap):
    flawed = f'def evaluate(response):\n    if response == "1,000":\n        {trap}\n    return "," not in response\n'
    found = cross_check([flawed, *GOOD], CASES, sandbox)
    assert found.functions == (flawed, *GOOD) and found.cases == CASES


def test_a_call_that_outlives_its_alarm_is_wrong_alone(sandbox, monkeypatch):
    monkeypatch.setattr(generated, "LIMITS", Limits(seconds=4))
    stubborn = (
        "def evaluate(response):\n    while response == '':\n        try:\n            while True: sum(range(100))\n"
        "        except BaseException: pass\n    return ',' not in response\n"
    )
    found = cross_check([stubborn, *GOOD], CASES, sandbox)
    assert found.functions == (stubborn, *GOOD) and found.cases == CASES
    assert sandbox.jobs == 4 + 1


def test_a_function_that_never_loads_is_told(sandbox, monkeypatch):
    monkeypatch.setattr(generated, "LIMITS", Limits(seconds=3))
    found = cross_check(["while True: pass\n", *GOOD], CASES, sandbox)
    assert found.functions == GOOD
    assert [one.reason for one in found.dropped] == ["never ends"]
    assert sandbox.jobs == 4


def test_a_function_that_dies_again_and_again_is_given_up(sandbox):
    found = cross_check([BAD["dies"], *GOOD], [Example(f"case {i}", True) for i in range(12)], sandbox)
    assert found.functions == GOOD
    assert sandbox.jobs == 3 + STOPS


def test_an_instruction_of_which_nothing_is_left(sandbox):
    for functions, cases in [([], CASES), (GOOD, []), ([BAD["always true"]], CASES[1:2]), ([UNFIT["syntax"]], CASES)]:
        found = cross_check(functions, cases, sandbox)
        assert not found.survives and not found.functions
        assert len(found.dropped) == len(functions) + len(cases) or not cases
    with pytest.raises(FactoryError, match="no verification function is left"):
        found.check("Some text", sandbox)


def test_a_constant_function_is_told_by_its_cases(sandbox):
    found = cross_check([BAD["always true"]], [CASES[0], CASES[2]], sandbox)
    assert found.survives and found.one_sided


def test_a_response_is_accepted_by_more_than_half_of_the_functions(sandbox):
    strict = 'def evaluate(response):\n    return "," not in response and response.endswith(".")\n'
    verifiers = Verifiers((*GOOD[:2], strict, BAD["always true"]), CASES)
    responses = ["Fine.", "No stop", "Well, no", "Fine.", ""]
    checks = verifiers.check_all(responses, sandbox)
    assert [check.score for check in checks] == [1.0, 0.75, 0.25, 1.0, 0.75]
    assert [check.passed for check in checks] == [True, True, False, True, True]
    assert sandbox.jobs == 4
    assert verifiers.check("Well, no", sandbox) == checks[2]
    assert checks[2].reason == "1 of 4 functions accept it"
    half = Verifiers((GOOD[0], BAD["always true"]), CASES)
    assert not half.check("Well, no", sandbox).passed  # half is not more than half


def test_many_functions_on_many_cases_are_few_jobs(sandbox):
    functions = [f"{source}# {number}\n" for number in range(4) for source in GOOD]
    cases = [Example(f"{'a' * 5000} {i}{',' * (i % 3)} – é 😀 \udcff", i % 3 == 0) for i in range(40)]
    found = cross_check(functions, cases, sandbox)
    assert (len(found.functions), len(found.cases)) == (12, 40) and not found.dropped
    assert sandbox.jobs == 12 * -(-40 // CALLS)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_kept_is_what_the_paper_says(sandbox, data):
    """Any table of what each function says of each response (None: it raises), beside the rule in fractions."""
    said = st.sampled_from([True, False, None])
    table = data.draw(st.lists(st.lists(said, min_size=5, max_size=5), min_size=1, max_size=5, unique_by=tuple))
    cases = [Example(str(i), data.draw(st.booleans())) for i in range(5)]
    functions = [f"SAID = {row}\n\n\ndef evaluate(response):\n    return SAID[int(response)]\n" for row in table]

    right = [[said is case.follows for said, case in zip(row, cases, strict=True)] for row in table]
    good = [i for i in range(5) if Fraction(sum(row[i] for row in right), len(table)) > Fraction(1, 2)]
    kept = [
        function
        for function, row in zip(functions, right, strict=True)
        if good and Fraction(sum(row[i] for i in good), len(good)) > Fraction(1, 2)
    ]
    found = cross_check(functions, cases, sandbox)
    assert found.cases == tuple(cases[i] for i in good)
    assert found.functions == tuple(kept)
    assert sum(found.counts().values()) == len(functions) + len(cases)


def test_rows_are_plain_and_read_back(sandbox):
    found = cross_check([*GOOD, *BAD.values()][:6], CASES, sandbox)
    assert found.dropped
    assert Verifiers.of(json.loads(json.dumps(found.row()))) == found


def test_a_row_is_a_verifier_by_name(sandbox):
    row = Verifiers(GOOD, CASES).row()
    verifier = Verifier("instructions:accepted")
    rows = [
        row,
        json.dumps(row),
        pa.array([row]).to_pylist()[0],
        Verifiers((), CASES).row(),
        {"functions": []},
        "[",
        None,
    ]
    checks = verifier(["Well, no", "Fine", "Fine", *["Fine"] * 4], {"verifiers": rows})
    assert [check.score for check in checks[:3]] == [0.0, 1.0, 1.0]
    assert "no verification function is left" in str(checks[3])
    assert all(isinstance(check, FactoryError) and "no row" in str(check) for check in checks[4:6])
    assert isinstance(checks[6], FactoryError) and "verifiers is null" in str(checks[6])


def test_a_sandbox_that_fails_is_no_verdict():
    class Broken:
        def judge_all(self, tasks: Iterable[Task]) -> Iterator[Verdict]:
            return (Verdict("sandbox_error", "the box is gone") for _ in tasks)

    with pytest.raises(FactoryError, match="could not be run: sandbox_error: the box is gone"):
        cross_check(GOOD, CASES, Broken())
