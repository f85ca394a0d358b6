"""IFEval's code, as lm-eval carries it, beside ours on texts that nobody wrote."""

from __future__ import annotations

import random
from typing import Any

import pytest

from factory.verify.instructions import draw, kinds, verdicts
from tests.verify.test_instructions import MAKE, SAMPLES

_PIECES = """
* ** *** ****** << >> [x] [ ] " ' P.S. p._s. P.P.S - , SECTION_1 Section__2 PART1 A I. NASA's e.g. ... ?! 1. ```json ```
My_answer_is_no. { } [1] word words Word
"""
PIECES = [piece.replace("_", " ") for piece in _PIECES.split()]
SPACES = (" ", "\n", "\n\n", "\n\n\n", "\n* ", "\n - ", "\n***\n", "\r\n", "", "\u2028", "\x0b", "\x85", "\u00a0")
PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
"""What the reference counts with nltk's trained Punkt, which no package carries."""
TEXTS = 300


@pytest.fixture(scope="module")
def reference() -> Any:
    """The classes of lm-eval's copy by id. It would fetch Punkt as it is imported."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("immutabledict", reason="pip install immutabledict: lm-eval's IFEval needs it")
    patch = pytest.MonkeyPatch()
    patch.setattr(nltk, "download", lambda *_, **__: False)
    langdetect = pytest.importorskip("langdetect")
    patch.setattr(langdetect.DetectorFactory, "seed", 0)  # it says something else each time without
    registry = pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry")
    yield registry.INSTRUCTION_DICT
    patch.undo()


def text_of(rng: random.Random, parts: tuple[str, ...]) -> str:
    """Parts of texts that follow or do not, cut anywhere, with marks between them."""
    text = rng.choice(parts)
    start = rng.randrange(len(text) + 1)
    text = text[start : start + rng.randint(0, 400)] if rng.random() < 0.5 else text
    for _ in range(rng.randint(0, 6)):
        place, piece = rng.randint(0, len(text)), rng.choice(PIECES)
        text = text[:place] + rng.choice(SPACES) + piece + rng.choice(SPACES) + text[place + rng.randint(0, 2) :]
    return rng.choice((text, text, text, text.upper(), text.lower()))


@pytest.mark.slow
@pytest.mark.parametrize("id", [id for id in kinds() if id.partition(":")[0] != "more" and id not in PUNKT])
def test_any_text_is_judged_as_by_the_reference(reference, id):
    judged = passed = 0
    for seed in range(TEXTS):
        rng = random.Random(seed)
        arguments = {} if id == "combination:repeat_prompt" else draw(id, rng)
        if id == "language:response_language":
            arguments["language"] = rng.choice(sorted(SAMPLES.keys() - {"zh"}))  # the reference has no Chinese
        if id == "combination:repeat_prompt":
            arguments["prompt_to_repeat"] = "Write a poem."
        text = text_of(rng, (*MAKE[id](arguments, rng), " ".join(SAMPLES.values())))
        if not text.strip() or (id == "language:response_language" and not any(c.isalpha() for c in text)):
            continue
        theirs = reference[id](id)
        theirs.build_description(**arguments)
        (ours,) = verdicts(text, [id], [arguments])
        assert ours.passed == bool(theirs.check_following(text)), (arguments, text)
        judged, passed = judged + 1, passed + ours.passed
    assert judged > 0.8 * TEXTS
    assert 0 < passed < judged
