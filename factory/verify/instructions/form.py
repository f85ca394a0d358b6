"""IFEval's kinds about form: marks, lists, sections, beginning and end (arXiv 2311.07911, appendix A).

Ids and arguments are those of its data.
"""

from __future__ import annotations

import json
import re

from factory.engine.errors import FactoryError
from factory.verify.check import Check
from factory.verify.instructions.content import Count, Text, counted, quoted
from factory.verify.instructions.kind import instruction

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
ENDS = (
    "That is all there is to it.", "Tell me if anything is unclear.", "Which of these would you choose?",
    "And so the day came to an end.", "I hope that this helps you on.", "What do you think about it?",
)  # fmt: skip
RESPONSES = "******"
_EMPHASIS = (re.compile(r"\*[^\n*]*\*"), re.compile(r"\*\*[^\n*]*\*\*"))
# Behind a lone asterisk the next line is the point's text, as in IFEval.
_BULLETS = (re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE), re.compile(r"^[^\S\n]*-", re.MULTILINE))
_POSTSCRIPTS = {"p.s.": re.compile(r"p\.\s?s\."), "p.p.s": re.compile(r"p\.\s?p\.\s?s")}


def placeholders(text: str) -> int:
    """How many marks `[…]` there are, each within a line."""
    count = 0
    for line in text.split("\n"):
        end = 0
        while (start := line.find("[", end)) >= 0 and (end := line.find("]", start) + 1):
            count += 1
    return count


def bullets(text: str) -> int:
    """How many bullet points there are: lines that begin with `*` (not `**`) or `-`, after spaces."""
    return sum(len(pattern.findall(text)) for pattern in _BULLETS)


def at_least(count: int, number: int, what: str) -> Check:
    return Check(count >= number, f"{count} {what}, at least {number} asked for")


@instruction(
    "detectable_content:number_placeholders",
    describe=lambda num_placeholders: (
        f"Leave at least {counted(num_placeholders, 'placeholder')} to fill in, each in square brackets like [date]."
    ),
    draw=lambda rng: {"num_placeholders": rng.randint(1, 8)},
)
def number_placeholders(response: str, *, num_placeholders: Count) -> Check:
    """At least so many marks such as [name]."""
    return at_least(placeholders(response), num_placeholders, "placeholders")


@instruction(
    "detectable_content:postscript",
    describe=lambda postscript_marker: f"Close with a postscript that begins with {postscript_marker}",
    draw=lambda rng: {"postscript_marker": rng.choice(("P.S.", "P.P.S"))},
)
def postscript(response: str, *, postscript_marker: Text) -> Check:
    """There is a postscript after its mark, in any case; `P. S.` is `P.S.`."""
    marker, text = postscript_marker.strip().lower(), response.lower()
    pattern = _POSTSCRIPTS.get(marker)
    found = pattern.search(text) is not None if pattern else marker in text
    return Check(found, f"no {postscript_marker}")


@instruction(
    "detectable_format:number_bullet_lists",
    describe=lambda num_bullets: (
        f"Include exactly {counted(num_bullets, 'bullet point')}, as Markdown has them: lines that begin with * or -."
    ),
    draw=lambda rng: {"num_bullets": rng.randint(2, 8)},
)
def number_bullet_lists(response: str, *, num_bullets: Count) -> Check:
    """Exactly so many bullet points."""
    found = bullets(response)
    return Check(found == num_bullets, f"{found} bullet points, {num_bullets} asked for")


@instruction(
    "detectable_format:constrained_response",
    describe=lambda: f"Answer with one of these sentences: {quoted(list(ANSWERS))}",
)
def constrained_response(response: str) -> Check:
    """One of the three answers is in it."""
    return Check(any(answer in response for answer in ANSWERS), "none of the three answers")


@instruction(
    "detectable_format:number_highlighted_sections",
    describe=lambda num_highlights: (
        f"Highlight at least {counted(num_highlights, 'passage')} with Markdown, *like this*."
    ),
    draw=lambda rng: {"num_highlights": rng.randint(1, 6)},
)
def number_highlighted_sections(response: str, *, num_highlights: Count) -> Check:
    """At least so many passages *between asterisks* or **between two**, each within a line and not blank."""
    found = sum(bool(mark.strip("*").strip()) for pattern in _EMPHASIS for mark in pattern.findall(response))
    return at_least(found, num_highlights, "highlights")


@instruction(
    "detectable_format:multiple_sections",
    describe=lambda section_spliter, num_sections: (
        f"Divide it into {counted(num_sections, 'section')}, each headed by {section_spliter} and its number: "
        f"{section_spliter} 1, and so on."
    ),
    draw=lambda rng: {
        "section_spliter": rng.choice(("Section", "SECTION", "PART", "Chapter")),
        "num_sections": rng.randint(2, 6),
    },
)
def multiple_sections(response: str, *, section_spliter: Text, num_sections: Count) -> Check:
    """At least so many marks such as `Section 2`."""
    found = len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response))
    return at_least(found, num_sections, "sections")


@instruction(
    "detectable_format:json_format",
    describe=lambda: "Give nothing but JSON; a Markdown code block around it is fine.",
)
def json_format(response: str) -> Check:
    """All of it is JSON, also in a block of code."""
    text = response.strip().removesuffix("```")
    if text.startswith("```"):
        text = text[7:] if text[3:7].lower() == "json" else text[3:]
    try:
        json.loads(text)
    except ValueError as error:
        return Check(False, f"not JSON: {error}"[:200])
    except RecursionError:
        return Check(False, "JSON nested too deeply to be read")
    return Check(True)


@instruction(
    "detectable_format:title",
    describe=lambda: "Give it a title, in double angular brackets like <<a title>>.",
)
def title(response: str) -> Check:
    """A line has a title <<in double angular brackets>>."""
    for line in response.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].lstrip("<").rstrip(">").strip():
            return Check(True)
    return Check(False, "no <<title>>")


@instruction(
    "combination:two_responses",
    describe=lambda: f"Give two different responses, with six asterisks ({RESPONSES}) between them and nowhere else.",
)
def two_responses(response: str) -> Check:
    """Two responses that differ; before the first and after the last mark there may be nothing."""
    parts = [part.strip() for part in response.split(RESPONSES)]
    found = [part for part in parts if part]
    if any(not part for part in parts[1:-1]) or len(found) != 2:
        return Check(False, f"{counted(len(found), 'response')} between marks {RESPONSES}")
    return Check(found[0] != found[1], "the two responses are the same")


@instruction(
    "combination:repeat_prompt",
    describe=lambda prompt_to_repeat="": (
        "Before you answer, repeat the request word for word, with nothing before it"
        + (f". The request to repeat: {prompt_to_repeat}" if prompt_to_repeat else " and without this instruction.")
    ),
)
def repeat_prompt(response: str, *, prompt_to_repeat: str = "", prompt: str = "") -> Check:
    """It begins with a text, by default the prompt, in any case."""
    text = prompt_to_repeat.strip() or prompt.strip()
    if not text:
        raise FactoryError(
            "instruction combination:repeat_prompt: there is nothing to repeat: give the argument 'prompt_to_repeat', "
            "or the prompt"
        )
    return Check(response.strip().lower().startswith(text.lower()), "it does not begin with the request")


@instruction(
    "startend:end_checker",
    describe=lambda end_phrase: f'The very last words are "{end_phrase}", with nothing after them.',
    draw=lambda rng: {"end_phrase": rng.choice(ENDS)},
)
def end_checker(response: str, *, end_phrase: Text) -> Check:
    """It ends with a phrase, in any case; quotation marks may stand after it."""
    found = response.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    return Check(found, f'it does not end with "{end_phrase}"')


@instruction("startend:quotation", describe=lambda: "Put double quotation marks around the whole of it.")
def quotation(response: str) -> Check:
    """It begins and ends with a double quotation mark."""
    text = response.strip()
    return Check(len(text) > 1 and text[0] == text[-1] == '"', "not between double quotation marks")


@instruction("punctuation:no_comma", describe=lambda: "Do without commas.")
def no_comma(response: str) -> Check:
    """There is no comma."""
    found = response.count(",")
    return Check(not found, counted(found, "comma"))
