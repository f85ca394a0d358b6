"""Small files in the forms of LV-Eval, InfiniteBench and NeedleBench, made of public books."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BOOKS = {
    "alice": "Alice-s-Adventures-in-Wonderland_11/11-0.txt",
    "pride": "Pride-and-Prejudice_1342/1342-0.txt",
    "moby": "Moby-Dick--Or-The-Whale_2701/2701-0.txt",
}
NAMES = {
    "English": "Ada Byron,Ben Okri,Cora Lund,Dan Rossi,Eva Novak,Finn Berg,Gus Hall,Hana Mori,Ivo Kral,Jin Park,Al Lee",
    "Chinese": "王芳,李强,张敏,刘洋,陈静,杨光,赵磊,黄丽,周涛,吴刚,徐明",
}


def book(data: Path, name: str, words: int, skip: int = 1500) -> str:
    """So many words of a book, behind its front matter, in paragraphs."""
    found = (data / "books" / BOOKS[name]).read_text("utf-8-sig").split("\n\n")
    kept: list[str] = []
    for paragraph in (" ".join(one.split()) for one in found):
        skip -= len(paragraph.split())
        if skip < 0 and paragraph:
            kept.append(paragraph)
            words -= len(paragraph.split())
        if words <= 0:
            break
    return "\n\n".join(kept)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def lveval(folder: Path, data: Path) -> Path:
    text = book(data, "pride", 700)

    def row(context: str, question: str, answer: str, keywords: str, language: str) -> dict[str, Any]:
        return {
            "input": question,
            "context": context,
            "answers": [answer],
            "length": len(context.split()),
            "dataset": "made",
            "language": language,
            "answer_keywords": keywords,
            "confusing_facts": "",
        }

    fact = "\n\nThe lighthouse of Port Ellen was built by a baker named Ruth Sorley.\n\n"
    english = row(text + fact + text, "Who built the lighthouse?", "The baker Ruth Sorley", "Ruth Sorley", "en")
    chinese = row(
        "港口的灯塔是面包师王芳在一九二一年建成的。" * 20, "灯塔是谁建成的？", "面包师王芳建成了灯塔", "王芳", "zh"
    )
    for dataset in ("hotpotwikiqa_mixup", "loogle_SD_mixup", "loogle_CR_mixup", "loogle_MIR_mixup"):
        write_lines(folder / f"{dataset}_16k.jsonl", [english])
    write_lines(folder / "multifieldqa_en_mixup_16k.jsonl", [english, english | {"answer_keywords": None}])
    write_lines(folder / "factrecall_en_32k.jsonl", [english])
    for dataset in ("multifieldqa_zh_mixup", "factrecall_zh", "lic_mixup", "dureader_mixup"):
        write_lines(folder / f"{dataset}_16k.jsonl", [chinese])
    without = {key: value for key, value in chinese.items() if key != "answer_keywords"}
    write_lines(folder / "cmrc_mixup_256k.jsonl", [without])
    return folder


def infinitebench(folder: Path, data: Path) -> Path:
    text = book(data, "alice", 500)
    keys = {f"key-{number}": f"value-{number * 7}" for number in range(40)}
    code = "\n\n".join(f"def func_{number}(x):\n    return x + {number}" for number in range(30))
    options = ["the Hatter", "the Queen", "Bill", "the Dodo"]
    rows: dict[str, tuple[str, str, list[Any], list[str]]] = {
        "passkey": (f"{text}\nThe pass key is 71432.\n{text}", "What is the pass key?", ["71432"], []),
        "number_string": (f"{text}\nThe digits are 0033445.\n{text}", "What are the digits?", ["0033445"], []),
        "kv_retrieval": (json.dumps(keys), 'Key: "key-9". The value is:', ["value-63"], []),
        "longbook_sum_eng": (text, "", ["Alice follows a rabbit.\nShe falls down a well."], []),
        "longbook_choice_eng": (text, "Who has the tarts?", ["the Queen"], options),
        "longbook_qa_eng": (text, "Whom does Alice follow?", ["the White Rabbit", "a rabbit"], []),
        "longbook_qa_chn": ("爱丽丝跟着一只白兔。" * 40, "爱丽丝跟着谁？", ["一只白兔"], []),
        "longdialogue_qa_eng": ("HATTER: Tea?\n$$MASK$$: No tea.\n" * 30, "Who is $$MASK$$?", ["ALICE"], []),
        "math_find": (str([3, 8, 41, 7] * 50), "The largest number of the list is:", [41], []),
        "math_calc": ("1 + 3 + 4 - 2", "", [[1, 4, 8, 6]], []),
        "code_run": (code, "Please give me the exact number of the return value of func_7(-3).", [4], []),
        "code_debug": (code, "Which function has the error?", ["func_2"], ["func_5", "func_2", "func_1", "func_8"]),
    }
    for dataset, (context, asked, answer, choices) in rows.items():
        row = {"id": 0, "context": context, "input": asked, "answer": answer, "options": choices}
        write_lines(folder / f"{dataset}.jsonl", [row, row | {"id": 1}])
    return folder


def needlebench(folder: Path, data: Path) -> Path:
    paragraphs = [one for name in BOOKS for one in book(data, name, 3000).split("\n\n")]
    write_lines(folder / "PaulGrahamEssays.jsonl", ({"text": text + "\n"} for text in paragraphs))
    line = "港口的灯塔在夜里照亮了整个海湾，渔船一艘接一艘地回来了。"
    write_lines(folder / "zh_finance.jsonl", ({"text": line * 8} for _ in range(200)))
    needles = []
    places, things = "Oslo Lima Cairo Perth Quito Minsk Dakar", "brass rope silk salt amber flint cork"
    for number, (place, thing) in enumerate(zip(places.split(), things.split(), strict=True)):
        asked = f"What lies under {place}? Please answer in the format 'Under {place} lies ______.'"
        needles.append((f"Under {place} lies hidden {thing}.", asked, place, f"hidden {thing}", "English"))
        asked = f"第{number}座山里藏着什么？请按照'第{number}座山里藏着______。'的格式回答。"
        needles.append(
            (f"第{number}座山里藏着{number}号宝石。", asked, f"第{number}座山", f"{number}号宝石", "Chinese")
        )
    random.Random(0).shuffle(needles)
    fields = ("needle", "retrieval_question", "arg1", "arg2", "language")
    write_lines(folder / "needles.jsonl", (dict(zip(fields, one, strict=True)) for one in needles))
    (folder / "names.json").write_text(json.dumps(NAMES, ensure_ascii=False), "utf-8")
    derived = [
        {
            "derivation_count": count,
            "derivations": [f"Clue {number} of {count} points to the harbour." for number in range(count)],
            "question": "Where do the clues lead?",
            "answer": "Port Ellen Harbour",
        }
        for count in (2, 3)
    ]
    (folder / "multi_needle_reasoning_en.json").write_text(json.dumps(derived), "utf-8")
    return folder
