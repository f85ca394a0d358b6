"""The shipped recipe of reward pairs on samples of two checkpoints: together by prompt, judged, paired, told of."""

from __future__ import annotations

import pyarrow as pa

from factory.engine import recipe
from factory.report import funnel
from factory.verify.mathematics import correct
from tests.conftest import REPOSITORY
from tests.engine.build import build, check_law, make
from tests.prefer.samples import read, source

COLUMNS = {"prompt": pa.large_string(), "gold": pa.large_string(), "response": pa.large_string(), "sample": pa.int32()}


def test_samples_of_several_checkpoints_become_pairs(tmp_path, checkpoint):
    runs = tmp_path / "runs"
    for shift, name in enumerate(("hot", "cool")):
        rows = []
        for n in range(12):
            for k in range(3):
                right = (n + k + shift) % 3 > 0 and n < 10
                end, sums = n + 5 if right else n + 6, n + 5 if k < 2 else n + 7
                rows.append({"id": f"q{n}-{k}", "prompt": f"Ann has {n} eggs, and gets 5.\n", "gold": str(n + 5)})
                rows[-1] |= {"response": f"{n}+5={sums}\n{'So it is. ' * k}{shift}\n#### {end}", "sample": k}
        build(make(source(tmp_path / name, rows, COLUMNS), name=name), runs)
    settings = {"samples": "hot@1", "also": '["cool@1"]', "language": str(checkpoint)}
    pairs = recipe.load(str(REPOSITORY / "recipes" / "reward_pairs.toml"), settings)
    built = build(pairs, runs)
    check_law(built)
    assert built.counts["rows_in"] == 72
    found = read(built, "select prompt, gold, chosen, rejected, margin from rows")
    assert len(found) > 20 and len({row[0] for row in found}) == 10
    for _, gold, chosen, rejected, margin in found:
        assert correct(chosen, gold).passed and margin > 0
        left, _, rest = rejected.partition("+5=")
        assert not correct(rejected, gold).passed or int(left) + 5 != int(rest.split()[0])
    # Pairs are of both checkpoints: a chosen one of the one against a rejected one of the other.
    assert {(chosen.split()[-3], rejected.split()[-3]) for _, _, chosen, rejected, _ in found} >= {
        ("0", "1"),
        ("1", "0"),
    }
    shown = funnel.text(built)
    assert "2 prompts without pairs: nothing passes" in shown and "10 prompts with pairs" in shown
    assert "votes of correct steps_hold likelihood on 72 responses" in shown
    assert "correct and steps_hold agree on" in shown and "Krippendorff's alpha" in shown
