"""The table of languages, and programs in each of them that a box really checks, compiles and runs."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.__main__ import main
from factory.engine.errors import FactoryError
from factory.sandbox import doctor, toolchains
from factory.sandbox import languages as module
from factory.sandbox.box import Box, require_isolation
from factory.sandbox.languages import agrees, example, language, languages, programs, run_program
from factory.sandbox.limits import Limits
from factory.sandbox.verdict import Call, Case, Task

TESTS = tomllib.loads(Path(__file__).with_name("programs").joinpath("tests.toml").read_text())
QUICK = ("python", "c", "bash", "perl")
"""Of which every machine has most: the default suite. The others are slow tests."""
CORE = "python c cpp java javascript typescript go rust ruby php perl lua bash sql r haskell ocaml csharp"


def each(names) -> list:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def isolation() -> str:
    try:
        return require_isolation(None)
    except FactoryError as error:
        pytest.skip(f"no box can be made here: {error}")


@pytest.fixture
def toolchain(isolation):
    def need(name: str) -> None:
        if missing := language(name).missing():
            pytest.skip(missing)

    return need


# The table.


def test_there_are_more_than_fifty_languages_to_be_had():
    to_be_had = [row for row in languages().values() if row.debian or row.npm or row.pypi]
    assert len(to_be_had) >= 60
    assert all(row.source.startswith("https://") for row in languages().values() if row not in to_be_had)


def test_the_core_set_is_what_is_judged_everywhere():
    assert {row.name for row in languages().values() if row.core} == set(CORE.split())
    assert {row.name for row in toolchains.chosen(core=True)} == set(CORE.split())


def test_packages_from_npm_and_pypi_have_exact_versions():
    for row in languages().values():
        assert all(package.rpartition("@")[2][0].isdigit() for package in row.npm)
        assert all("==" in package for package in row.pypi)


def test_every_language_has_its_programs():
    assert set(programs()) == set(languages())
    for name, row in programs().items():
        for kind in ("wrong", "broken"):
            before, after = row[kind]
            assert before in row["good"] and before != after, f"{name}: {kind}"
    assert set(TESTS) == {row.name for row in languages().values() if row.tests == "append" and not row.source}


def test_names_are_one_language_each():
    names = [name for row in languages().values() for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    assert language("C++") is languages()["cpp"]
    with pytest.raises(FactoryError, match="did you mean 'python'"):
        language("pyton")


def test_a_mistyped_field_of_a_row_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "languages.toml").write_text('[x]\nfile = "x"\nrun = "x"\nversion = "x"\ncompil = "x"\n')
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(FactoryError, match="compil"):
        languages.__wrapped__()


# What a program printed, and what it must print.


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("1 2", "1 2\n", True),
        ("1 2\n3\n", "1 2  \r\n3\n\n\n", True),
        ("1 2", "1  2", False),
        ("1\n\n2", "1\n2", False),
        (" 1", "1", False),
        ("", "\n", True),
        ("1.0", "1", False),
    ],
)
def test_text_agrees_but_for_space_at_ends(expected, printed, same):
    assert agrees(expected, printed) is same


@given(st.floats(-1e9, 1e9), st.floats(-1.5, 1.5))
def test_numbers_agree_within_the_tolerance(number, part):
    shift = part * 1e-6 * max(1.0, abs(number))
    if abs(abs(part) - 1) > 0.01:
        assert agrees(f"x {number!r}", f"x  {number + shift!r}\n", 1e-6) is (abs(part) < 1)


@pytest.mark.parametrize("printed", ["nan", "inf", "1 2", "", "one"])
def test_what_is_no_such_number_does_not_agree(printed):
    assert not agrees("1", printed, 1e9 if printed == "nan" else 0.1)
    assert agrees(printed, printed, 0.1)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_no_number_is_near_one_that_has_no_end(number):
    assert agrees(number, f"{number}\n", 0.1)
    assert not agrees(number, "5", 0.1) and not agrees(f"x {number}", "x 1e300", 1.0)


# Every language, in a box.


@pytest.mark.parametrize("kind", ["good", "wrong", "broken"])
@pytest.mark.parametrize("name", each(languages()))
def test_programs(name, kind, toolchain):
    toolchain(name)
    row = language(name)
    verdict = run_program(Box, example(name, kind))
    refused = "static_error" if row.check else "compile_error" if row.compile else "failed"
    assert verdict.status == {"good": "passed", "wrong": "failed", "broken": refused}[kind], verdict
    assert verdict.tier == "A"
    if kind == "good":
        assert verdict.cases == (True,) * len(example(name).cases)
    if kind == "wrong":
        assert verdict.cases == (False,) and "printed" in verdict.detail
    if kind == "broken":
        assert verdict.detail


@pytest.mark.parametrize("name", each(TESTS))
def test_tests_in_the_language_itself(name, toolchain):
    toolchain(name)
    program, tests = TESTS[name]["program"], TESTS[name]["tests"]
    last = program.rindex("1")
    wrong = f"{program[:last]}2{program[last + 1 :]}"
    passed = run_program(Box, Task(language=name, program=program, tests=tests))
    assert passed.passed and passed.tier == ("B" if language(name).end else "C"), passed
    assert run_program(Box, Task(language=name, program=wrong, tests=tests)).status == "failed"
    if language(name).end:
        quits = Task(language=name, program=f"{program}\n{TESTS[name]['quit']}", tests=tests)
        assert run_program(Box, quits).status == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["", "?>", "?>\n\n"])
def test_php_that_closes_its_tag_is_tested_too(closed, toolchain):
    toolchain("php")
    for number, status in ((1, "passed"), (2, "failed")):
        program = f"<?php\nfunction f($n) {{ return $n * $n + {number}; }}\n{closed}"
        assert run_program(Box, Task(language="php", program=program, tests=TESTS["php"]["tests"])).status == status


# Statuses.


def judge(program: str, **task) -> module.Verdict:
    return run_program(Box, Task(language="bash", program=program, **{"cases": (Case("", "1"),), **task}))


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("echo 1", "passed"),
        ("echo 1; exit 3", "failed"),
        ("echo 1; kill -9 $$", "failed"),
        ("while :; do :; done", "timeout"),
        ("while :; do echo 1; done", "output_limit"),
        ("x=1; while :; do x=$x$x; done", "memory"),
        ("if", "static_error"),
    ],
)
def test_statuses(program, status, toolchain):
    toolchain("bash")
    limits = Limits(seconds=3 if status == "timeout" else 60, memory=256 << 20, output=1 << 16)
    verdict = judge(program, limits=limits)
    assert verdict.status == status, verdict
    assert verdict.detail or verdict.passed


def test_text_that_is_no_unicode_is_judged(toolchain):
    toolchain("bash")
    assert judge("# \ud800\ncat | wc -c", cases=(Case("\ud800", "3"),)).passed


def test_every_case_runs_until_one_fails(toolchain):
    toolchain("bash")
    cases = (Case("1\n", "1"), Case("2\n", "3"), Case("4\n", "4"))
    verdict = judge("read n; echo $n", cases=cases)
    assert verdict.status == "failed" and verdict.cases == (True, False) and verdict.detail.startswith("case 2")


def test_cases_and_tests_must_both_pass(toolchain):
    toolchain("bash")
    program = "echo 1; f() { echo 2; }"
    assert judge(program, tests="[ $(f) = 2 ] || exit 1").tier == "B"
    assert judge(program, tests="[ $(f) = 2 ] || exit 1").passed
    assert judge(program, tests="[ $(f) = 3 ] || exit 1").status == "failed"
    assert judge("echo 3; f() { echo 2; }", tests="[ $(f) = 2 ] || exit 1").status == "failed"


def test_expected_values_do_not_enter_the_box(toolchain):
    toolchain("bash")
    assert judge("grep -r SECRET /work /tmp 2>/dev/null; env", cases=(Case("", "SECRET"),)).status == "failed"


def test_a_task_that_nothing_judges_is_refused():
    with pytest.raises(FactoryError, match="nothing to judge"):
        run_program(Box, Task(language="c", program="int main() {}"))
    with pytest.raises(FactoryError, match="by cases"):
        run_program(Box, Task(language="sql", program="select 1", tests="select 1"))
    with pytest.raises(FactoryError, match="Python only"):
        run_program(Box, Task(language="c", program="", calls=(Call("f", (), 1),)))


def with_row(monkeypatch, **fields) -> None:
    """bash, for a test, under another row."""
    row = dataclasses.replace(language("bash"), **fields)
    monkeypatch.setattr(module, "languages", lambda: {"bash": row})
    monkeypatch.setattr(module, "_tried", {})


def test_a_toolchain_that_is_absent_is_no_verdict_on_the_program(monkeypatch):
    with_row(monkeypatch, run="no-such-shell main.sh")
    verdict = judge("echo 1")
    assert verdict.status == "toolchain_missing" and "no-such-shell is not installed" in verdict.detail
    with_row(monkeypatch, compile="no-such-compiler", source="https://example.org")
    assert "see https://example.org" in judge("echo 1").detail


def test_a_compiler_that_does_not_end_is_a_timeout(monkeypatch, toolchain):
    toolchain("bash")
    with_row(monkeypatch, compile="sleep 100")
    monkeypatch.setattr(module, "_tried", {"bash": None})
    verdict = judge("echo 1", limits=Limits(seconds=1))
    assert verdict.status == "timeout" and verdict.detail.startswith("sleep: ")


def test_a_trial_that_takes_too_long_is_tried_again(monkeypatch, toolchain):
    """The machine may be busy: neither the program nor the toolchain is blamed."""
    toolchain("bash")
    with_row(monkeypatch, compile="sleep 100")
    monkeypatch.setattr(module, "example", lambda name: dataclasses.replace(example(name), limits=Limits(seconds=1)))
    assert judge("echo 1").status == "sandbox_error"
    with_row(monkeypatch, compile="")
    assert judge("echo 1").passed


@pytest.mark.parametrize("fields", [{"run": "false"}, {"compile": "false"}, {"check": "false"}, {"run": "echo 1"}])
def test_a_toolchain_that_is_broken_is_no_verdict_on_the_program(fields, monkeypatch, toolchain):
    toolchain("bash")
    with_row(monkeypatch, **fields)
    verdict = judge("echo 1")
    assert verdict.status == "toolchain_missing" and "does not work" in verdict.detail


# The doctor and the installer.


def test_the_doctor_runs_a_program_of_each_language(isolation, capsys):
    assert main(["sandbox", "doctor", "bash", "swift", "--json"]) == 0
    bash, swift = json.loads(capsys.readouterr().out)
    assert bash["works"] is not bool(language("bash").missing()) and bash["isolation"] == isolation
    assert "bash" in bash["version"]
    if language("swift").missing():
        assert swift["works"] is False and "swift.org" in swift["why_not"] and swift["isolation"] == ""
    assert main(["sandbox", "doctor", "bash"]) == 0
    assert "1 of 1 languages work here" in capsys.readouterr().out


def test_the_doctor_says_why_nothing_works_where_no_box_can_be_made(monkeypatch):
    def refuse(_):
        raise FactoryError("sandbox: bubblewrap is not here")

    monkeypatch.setattr(doctor, "require_isolation", refuse)
    found = list(doctor.examine(["bash", "swift"]))
    assert [finding.works for finding in found] == [False, False]
    assert "not here" in found[0].why_not or "not installed" in found[0].why_not


def test_what_is_installed_is_not_installed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTORY_TOOLCHAINS", str(tmp_path))
    package = tmp_path / "npm" / "node_modules" / "@types" / "node"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "20.1.0"}')
    ran = []
    monkeypatch.setattr(toolchains, "_run", lambda command, may_fail=False: ran.append(command) or 0)
    toolchains.npm(["@types/node@20.1.0"])
    assert not ran
    toolchains.npm(["@types/node@20.2.0"])
    assert ran[0][-1] == "@types/node@20.2.0"
