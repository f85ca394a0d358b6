"""The final answer of a response.

In this order, and of each kind the last:

1. what is in `\\boxed{}` (boxes joined by "and", "or" or a comma are one answer);
2. what follows `####` on its line;
3. what follows "the answer is", "Answer:", a line's "A:", 答案是, 故选 and the like, up to the end of the sentence;
4. the response itself, where it is one short line;
5. at its end: an option's letter in brackets, mathematics between dollar signs, else the last number.

A box that is not closed is a response that was cut off: it has no answer. Of a response with `</think>` only what
follows counts, and of one that goes on to another question only what comes before.
"""

from __future__ import annotations

import re

from factory.verify.notation import DECIMAL, clean, exact
from factory.verify.units import unit_of

LONG = 200_000
"""Characters from the end of a response that are looked at."""
SENTENCE = 1000
"""Characters of the sentence of an answer."""
BRIEF = 100
"""Characters of a response that may be an answer as it stands."""

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{}\\$.,]))")
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
JOINED = re.compile(r"(?:[\s$,;]|\\[()\[\]])*(?:(?P<word>and|or|和|或)(?:[\s$]|\\[()\[\]])*)?")
HASHES = re.compile(r"####[ \t]*([^\n]{1,1000})")
TURN = re.compile(r"<\|(?:im_end|endoftext|eot_id|end)\|>|</s>|<\|im_start\|>\s*(?:user|system)")
ANOTHER = re.compile(r"\n[ \t]*(?:\*\*|#+ )?(?:Question|Problem|Q|Human|User|问题|题目) ?\d{0,4} ?[:：]")
CUE = re.compile(
    r"\b(?:answers?|(?:correct|right|best)\s+(?:option|choice))\b"
    r"(?:(?P<between>[^\n.:：=]{0,80}?)(?:\b(?:is|are|was|would\s+be|will\s+be|equals)\b\s*:?|[:：=])|\W{0,6}\n)",
    re.IGNORECASE,
)
MARKED = re.compile(r"(?:^|\n)[ \t]*\**(?:A|Ans)\**[ \t]*:(?P<between>)")
CHINESE = re.compile(
    r"(?:答案|结果)(?:应该|应)?(?:是|为|選|选|[:：])+|^答\s*[:：]|(?:故|应|因此|所以)\s*(?:选择?|答案(?:是|为)?)\s*[:：]?(?P<between>)",
    re.MULTILINE,
)
ASIDE = re.compile(r"\b(?:not|if|whether|check|verify|what|your|must|should)\b", re.IGNORECASE)
WRAP = re.compile(r"[\s*_]*")
STOP = re.compile(r"[.!?](?=[\s*_\"')]|$)|[。！；]|\n|<\|")
NUMBER = re.compile(
    r"(?<![\w.^\\{])(?:(?<=[\s(=:$€£])-|^-)?\s?[\$€£]?(?:\\\$)?-?"
    r"(?:\d{1,3}(?:(?:,|\{,\}|\\,|,\\!)\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:[eE][+-]?\d+)?(?:\s+\d+/\d+|\s*/\s*\d+(?![\w/])|\s*\\[dt]?frac\{\d+\}\{\d+\})?"
    r"(?:\s?\\?%|\s+(?:percent|hundred|thousand|[mbtr]+illion|dozen)\b)?"
    r"|-?\\[dt]?frac\{-?\d+\}\{\d+\}(?:\s?\\?%)?"
)
MATH = re.compile(
    r"\$\$([^$]{1,400})\$\$|(?<![\\$])\$([^$\n]{1,400})\$|\\\(((?:[^\\]|\\[^)]){1,400}?)\\\)|\\\[((?:[^\\]|\\[^\]]){1,400}?)\\\]"
)
MONEY = re.compile(r"^\\?\$\s*")
DENIED = re.compile(
    r"\b(?:not|or|either|neither|between|than|least|most|cannot|unknown|except|unless|never|unlikely|whether)\b"
    r"|\banything but\b|n't\b|不",
    re.IGNORECASE,
)
DENIAL = re.compile(
    r"(?:\bnot|n't|\bthan|\bat least|\bat most|\bcannot|\bbetween \S+ and|\bnever|\banything but|\bunlikely to|不是?)"
    r"(?:\s+be)?[\s$]*$",
    re.IGNORECASE,
)
DOUBTED = re.compile(
    r"\b(?:(?:doubt|unlikely|whether|if|suppose|assum\w+|false|untrue|deny)|(?:not|\w+n't) (?:think|believe|say|true))"
    r"(?: that)?(?: the| my)?(?: \w+)? answers?\b(?:[^\n.!?]|\.(?=\d))*"
    r"|\b(?:wrong|incorrect|false) answers?\b(?:[^\n.!?]|\.(?=\d))*",
    re.IGNORECASE,
)
"""What is said of an answer that is not given."""
ALTERED = (
    re.compile(
        r"(?:\b(?:half|twice|thrice|double|triple|over|under|above|below|beyond|up to|minus|negative|log|ln|sin|cos|tan"
        r"|sqrt|(?:square|cube) root|root|square|cube|sum|product|reciprocal|inverse|opposite|negation|factorial)"
        r"(?:\s+of)?(?:\s+the)?(?:\s+number)?|\\sqrt)[\s$({]*$",
        re.IGNORECASE,
    ),
    re.compile(
        r"[$)}\s]*(?:(?:squared|cubed|factorial)\b|and (?:a|one|two|three)\b|(?:st|nd|rd|th)\b)"
        r"|[^\n.!]{0,200}\?",
        re.IGNORECASE,
    ),
)
"""Before and after a number: words that make another value of it, or a question."""
HEDGE = re.compile(r"(\S+)\s+or\s+(?:maybe\s+|perhaps\s+|possibly\s+|it\s+is\s+|it's\s+)?$", re.IGNORECASE)
LISTED = re.compile(
    r"(\d[\d.]*)(?:[ \t,;|&]+(?:and|maybe|perhaps|possibly)[ \t]+|[ \t]*[;|&][ \t]*|[ \t,]+\d[\d.]*[ \t,]+)$",
    re.IGNORECASE,
)
"""Before the last number: another, which it does not replace."""
WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[\u4e00-\u9fff]")
EQUALS = re.compile(r"(?<![<>!=])=(?!=)|\\approx|≈")
OPTION = re.compile(
    r"(?:option|choice)?\s*\(?([A-J])\)?"
    r"(?:\s*[.,]?\s+(?:is(?!\s+(?:not|never|wrong|incorrect|false|out|im\w+|un\w+)\b)|because|since|as)\b.*)?",
    re.DOTALL,
)
LABEL = re.compile(r"\A\s*[A-J][.)]\s+")


def final_answer(response: str) -> str:
    """The final answer that `response` gives, in its own spelling; '' where it gives none."""
    text = _spoken(response[-LONG:])
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    hashes = HASHES.findall(text)
    if hashes:
        return tidy(hashes[-1])
    text = DOUBTED.sub(" ", text)
    cued = _cued(text)
    if cued is not None:
        return cued
    text = text.strip()
    if len(text) <= BRIEF and "\n" not in text and not re.search(r"[.!?]\s+\S", LABEL.sub("", text, 1)):
        whole = tidy(text)
        if not _prose(whole):
            return whole
    return _last(text)


def _spoken(text: str) -> str:
    """What the response says itself: after its thoughts, before the next turn."""
    text = text[text.rfind("<|im_start|>assistant") + 21 :] if "<|im_start|>assistant" in text else text
    if "<think>" in text or "</think>" in text:
        _, closed, text = text.rpartition("</think>")
        if not closed or "<think>" in text:
            return ""
    turn = TURN.search(text)
    text = text[: turn.start()] if turn else text
    another = ANOTHER.search(text)
    if another and (
        _boxed(text[: another.start()]) or HASHES.search(text, 0, another.start()) or _cues(text[: another.start()])
    ):
        return text[: another.start()]
    return text


def boxes(text: str) -> list[tuple[int, int, str]] | None:
    """Where each box begins and ends, and what is in it; None where one is never closed."""
    found = []
    at = 0
    while match := BOX.search(text, at):
        if match[1]:
            end, inside = match.end(), match[1]
        else:
            end = _close(text, match.end())
            if end < 0:
                return None
            inside = text[match.end() : end - 1]
        if inside.strip():
            found.append((match.start(), end, inside.strip()))
        at = end
    return found


def _close(text: str, start: int) -> int:
    """Behind the brace that closes the one before `start`; -1 where none does."""
    depth = 1
    for match in BRACES.finditer(text, start):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.end()
    return -1


def _boxed(text: str) -> str | None:
    if "boxed" not in text and "fbox" not in text:
        return None
    found = boxes(text)
    if found is None:
        return ""
    if not found:
        return None
    return _joined(text, found)[0]


def _joined(text: str, parts: list[tuple[int, int, str]]) -> tuple[str, int]:
    """The last part, with those before it that "and", "or" or a comma join to it, and where the first begins."""
    start, _, answer = parts[-1]
    for before, end, inside in reversed(parts[:-1]):
        joint = JOINED.fullmatch(text, end, start)
        if not joint or not (joint["word"] or "," in joint[0]):
            break
        answer, start = f"{inside}{' or ' if joint['word'] in ('or', '或') else ', '}{answer}", before
    return answer, start


def _cues(text: str) -> list[re.Match[str]]:
    """All cues; most responses have none of a kind, and looking for a word is faster than for a pattern."""
    lowered = text.lower()
    found: list[re.Match[str]] = []
    if "answer" in lowered or "option" in lowered or "choice" in lowered:
        found += CUE.finditer(text)
    if ":" in text:
        found += MARKED.finditer(text)
    if not text.isascii():
        found += CHINESE.finditer(text)
    return found


def _cued(text: str) -> str | None:
    """What follows the last cue that is followed by anything."""
    for match in sorted(_cues(text), key=re.Match.end, reverse=True):
        if not match["between"] or not ASIDE.search(match["between"]):
            found = _sentence(text, match.end())
            if found:
                return found
    return None


def _sentence(text: str, start: int) -> str:
    """The answer in the sentence that begins at `start`; in mathematics between delimiters a stop does not end it."""
    lead = WRAP.match(text, start)
    start = lead.end() if lead else start
    span = MATH.match(text, start)
    end = min(len(text), start + SENTENCE)
    stop = STOP.search(text, span.end() if span else start, end)
    if stop and stop[0] == "?":
        return ""
    return tidy(text[start : stop.start() if stop else end])


def tidy(text: str) -> str:
    """An answer without markdown and full stops; of a sentence around one number, or after `=`, that alone."""
    text = text.strip().strip("*_`\"' \t").rstrip(".,;:!。，").strip("*_`\"' \t")
    if DECIMAL.fullmatch(text):
        return text
    text = re.sub(
        r"^(?:is|are|be|that|equals?(?: to)?|approximately|about|roughly|therefore|simply|just)\b[\s:]*",
        "",
        text,
        flags=re.I,
    )
    text = re.sub(r"^(?:negative|minus)\s+(?=[\d.])", "-", text.strip(), flags=re.I)
    option = OPTION.fullmatch(text)
    if option:
        return option[1]
    span = MATH.fullmatch(text)
    if span:
        text = next(filter(None, span.groups())).strip()
    sides = EQUALS.split(text)
    if len(sides) > 1 and _reckoned(sides[0]):
        text = sides[-1].strip()
    if not _prose(text):
        return text
    spans = [next(filter(None, match.groups())) for match in MATH.finditer(text)]
    if len(spans) == 1 and not NUMBER.search(MATH.sub(" ", text)) and not _denied(text):
        return _right(spans[0])
    numbers = list(NUMBER.finditer(text))
    if len(numbers) == 1 and not spans and not _denied(text) and not _altered(text, *numbers[0].span()):
        return MONEY.sub("", numbers[0][0].strip())
    return text


def _reckoned(side: str) -> bool:
    """Whether the left of an equals sign is a calculation or a name in words, not an unknown of an equation."""
    return exact(clean(side)) is not None or (bool(WORDS.search(side)) and not re.search(r"[\\$]", side))


def _denied(text: str) -> bool:
    return bool(DENIED.search(text))


def _altered(text: str, start: int, end: int) -> bool:
    """Whether words beside a number make another value of it: `twice 5`, `5 squared`, `5?`."""
    before, after = ALTERED
    return bool(before.search(text, max(0, start - 60), start) or after.match(text, end))


def _prose(text: str) -> bool:
    """Whether words stand before the value, or a sentence around it: not a unit, nor a text answer without digits."""
    if not re.search(r"\d|\$|\\\(", text):
        return False
    value, _ = unit_of(clean(text))
    return bool(WORDS.search(re.sub(r"\\[A-Za-z]+\s*(?:\{[A-Za-z .]*\})?", " ", value)))


def _right(text: str) -> str:
    """What stands right of the last equals sign where a calculation stands left of it."""
    sides = EQUALS.split(text)
    return sides[-1].strip() if len(sides) > 2 or (len(sides) == 2 and _reckoned(sides[0])) else text.strip()


def _last(text: str) -> str:
    """At the end of a response without a cue: an option in brackets, mathematics, or the last number."""
    option = re.search(r"\(([A-J])\)[\s.*]*$", text)
    if option:
        return option[1]
    tail = text[-2000:]
    number = None
    for number in NUMBER.finditer(tail):  # noqa: B007
        pass
    spans = [(m.start(), m.end(), _right(next(filter(None, m.groups())))) for m in MATH.finditer(tail)]
    if spans and (number is None or spans[-1][1] > number.end()):
        value, start = _joined(tail, spans)
    elif number:
        value, start = MONEY.sub("", number[0].strip()), number.start()
        before = tail[:start].rstrip("$ ")
        if before[-1:] in tuple("+*/×÷^") or re.match(r"\s*[+*×÷^=]|\s+-\s", tail[number.end() :]):
            return ""  # the response breaks off in a calculation
    else:
        return ""
    denial = DENIAL.search(tail, max(0, start - 60), start)
    if denial:
        return f"{denial[0].strip()} {value}"
    if number and start == number.start() and _altered(tail, *number.span()):
        return ""
    near = tail[max(0, start - 60) : start]
    hedge = HEDGE.search(near) or LISTED.search(near)
    return f"{hedge[1]} or {value}" if hedge else value
