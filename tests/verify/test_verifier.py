"""Verifiers by name, and as rewards."""

from __future__ import annotations

import pytest

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from factory.verify.kept import Verdicts, key_of
from factory.verify.verifier import Verifier, reward

ENDS = "tests.verify.verifiers:ends_with"


def test_a_score_is_that_of_passing_where_there_is_none_finer():
    assert (Check(True).score, Check(False).score, Check(False, "", 0.0).score, Check(True, "", 0.5).score) == (
        1.0,
        0.0,
        0.0,
        0.5,
    )


def test_a_score_that_is_no_number_is_that_of_passing_and_is_kept(tmp_path):
    found = {str(odd).encode(): Check(odd > 0, "", odd) for odd in (float("nan"), float("inf"), -float("inf"))}
    assert [check.score for check in found.values()] == [0.0, 1.0, 0.0]
    verdicts = Verdicts(str(tmp_path))
    assert verdicts.put(found) == verdicts.get(list(found)) == found
    verdicts.close()


def test_a_verifier_takes_columns_and_values():
    verifier = Verifier(ENDS, {"ending": "gold"}, {"minimum": 3})
    assert verifier.needs == {"ending": "gold"}
    checks = verifier(["one", "no", "two", "x"], {"gold": ["e", "o", "x", ""]})
    assert [c.score for c in checks if isinstance(c, Check)] == [1.0, 0.25, 0.0]
    assert isinstance(checks[3], FactoryError)


@pytest.mark.parametrize(
    ("name", "columns", "told"),
    [
        ("tests.verify.nothing:at_all", {}, "no module tests.verify.nothing"),
        ("tests.verify.verifiers:begins", {}, "no function 'begins'"),
        ("tests.verify.verifiers", {}, "no function ''"),
        (ENDS, {"endin": "x"}, "did you mean 'ending'"),
    ],
)
def test_mistakes_are_named(name, columns, told):
    with pytest.raises(FactoryError, match=told):
        Verifier(name, columns)


def test_a_reward_scores_texts_and_conversations():
    score = reward(ENDS, {"ending": "gold"})
    assert score.__name__ == "ends_with"
    said = [[{"role": "assistant", "content": "one"}], [{"role": "assistant", "content": "two"}]]
    for completions in (["one", "two"], said):
        assert score(prompts=["?", "?"], completions=completions, gold=["e", "e"]) == [1.0, 0.0]
    with pytest.raises(FactoryError, match="needs the column 'gold'"):
        score(completions=["one"], golden=["e"])
    with pytest.raises(FactoryError, match="empty"):
        score(completions=["one"], gold=[""])


def test_of_two_that_judge_at_once_the_first_verdict_stands(tmp_path):
    one, other = Verdicts(str(tmp_path)), Verdicts(str(tmp_path))
    first, second = Check(True, "first", 0.75), Check(False, "second")
    keys = [key_of([ENDS], text, {"ending": "e"}) for text in ("one", "two")]
    assert one.put({keys[0]: first}) == {keys[0]: first}
    assert other.put(dict.fromkeys(keys, second)) == {keys[0]: first, keys[1]: second}
    assert one.get(keys) == other.get(keys) == {keys[0]: first, keys[1]: second}
    one.close()
    other.close()
    again = Verdicts(str(tmp_path))
    assert again.get([*keys, b"unknown"]) == {keys[0]: first, keys[1]: second}
    again.close()
