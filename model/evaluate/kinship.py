"""Chains of relatives: who descends from whom, told in sentences out of order (NeedleBench's Ancestral Trace)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

# The generations between two people whom a word relates.
GENERATIONS = {
    "English": {
        "father": 1,
        "mother": 1,
        "dad": 1,
        "mom": 1,
        "grandfather": 2,
        "grandmother": 2,
        "paternal grandfather": 2,
        "paternal grandmother": 2,
        "maternal grandfather": 2,
        "maternal grandmother": 2,
    },
    "Chinese": {
        "父亲": 1,
        "母亲": 1,
        "爸爸": 1,
        "妈妈": 1,
        "爷爷": 2,
        "奶奶": 2,
        "外公": 2,
        "外婆": 2,
        "姥爷": 2,
        "姥姥": 2,
    },
}
SENTENCES = {
    "English": (
        "{old} is the {word} of {young}.",
        "{young}'s {word} is {old}.",
        "{young} grew up with {old}, who is {young}'s {word}.",
        "When {young} speaks of a {word}, it is {old}.",
    ),
    "Chinese": (
        "{old}是{young}的{word}。",
        "{young}的{word}是{old}。",
        "{young}从小跟着{old}长大，{old}是{young}的{word}。",
        "{young}提起{word}时，说的就是{old}。",
    ),
}
QUESTIONS = {
    "English": {
        "eldest": "Who is the eldest relative that {young} can be traced back to?",
        "ancestor": "Who is the ancestor of {young} by {generations} generations?",
        "descendant": "Who is the descendant of {old} by {generations} generations?",
        "distance": "How many generations lie between {old} and {young}?",
    },
    "Chinese": {
        "eldest": "{young}最早可以追溯到的长辈是谁？",
        "ancestor": "{young}往上第{generations}代的长辈是谁？",
        "descendant": "{old}往下第{generations}代的后代是谁？",
        "distance": "{old}和{young}之间相隔几代？",
    },
}
RULES = {
    "English": (
        "A father or a mother is one generation away, a grandfather or a grandmother two. Names say nothing of sex or "
        "family: only what the text says of relatives counts. End with the answer in \\boxed{}, as in "
        "\\boxed{%s}."
    ),
    "Chinese": (
        "父母相隔一代，祖父母和外祖父母相隔两代。姓名不代表性别或家族，只看文中说明的亲属关系。"
        "最后把答案写在\\boxed{}中，例如\\boxed{%s}。"
    ),
}
EXAMPLE = {"English": ("Ann Example", "4"), "Chinese": ("某人", "4")}
KINDS = tuple(QUESTIONS["English"])


@dataclass(frozen=True)
class Chain:
    """What is told of a line of relatives, and what can be asked."""

    sentences: tuple[str, ...]
    question: str
    answer: str


def chain(names: Sequence[str], links: int, language: str, kind: str, seed: int) -> Chain:
    """`links` sentences that lead from the eldest of `links` + 1 names to the youngest, out of order.

    `kind` is what is asked: the "eldest" relative, the "ancestor" or "descendant" by so many generations (the other end
    of the line), or the "distance" in generations.
    """
    draw = random.Random(f"{seed} {links} {language} {kind}")
    people = draw.sample(list(names), links + 1)
    generations, sentences = 0, []
    for old, young in itertools.pairwise(people):
        word = draw.choice(list(GENERATIONS[language]))
        generations += GENERATIONS[language][word]
        sentences.append(draw.choice(SENTENCES[language]).format(old=old, young=young, word=word))
    draw.shuffle(sentences)
    question = QUESTIONS[language][kind].format(old=people[0], young=people[-1], generations=generations)
    answer = {"descendant": people[-1], "distance": str(generations)}.get(kind, people[0])
    rules = RULES[language] % EXAMPLE[language][kind == "distance"]
    return Chain(tuple(sentences), f"{question}\n{rules}", answer)
