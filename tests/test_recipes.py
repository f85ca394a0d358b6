"""Every shipped recipe loads, and the quickstart's run end to end on two small packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from factory.engine import recipe, run
from tests.conftest import REPOSITORY
from tests.engine.build import check_law, content

RECIPES = sorted((REPOSITORY / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe_loads_and_says_what_it_makes(path):
    loaded = recipe.load(str(path))
    assert loaded.name == path.stem
    assert loaded.description
    cards = [card.read_text() for card in (REPOSITORY / "data_cards").glob("*.md")]
    assert any(f"recipes/{path.name}" in card for card in cards), "no data card tells of this recipe"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes" / "train").glob("*.toml")), ids=lambda p: p.stem)
def test_a_shipped_training_recipe_loads(path):
    from model.posttrain import config as posttrain
    from model.recipe import load_recipe, read_table

    load = posttrain.load_recipe if isinstance(read_table(path).get("stage"), str) else load_recipe
    assert load(str(path), ["data=runs/x@1"]).name == path.stem


def small_quickstart(folder: Path) -> Path:
    """The quickstart's recipes, on two small packages."""
    target = folder / "recipes"
    target.mkdir()
    for path in RECIPES:
        text = path.read_text()
        if path.stem == "quickstart":
            start, end = text.index("packages = ["), text.index("]", text.index("packages = [")) + 1
            text = text[:start] + 'packages = ["fsspec", "jinja2"]' + text[end:]
            text = text.replace("stdlib = true", "stdlib = false").replace(
                "shard_bytes = 4_000_000", "shard_bytes = 200_000"
            )
        if path.stem == "quickstart_tokens":
            text = text.replace("vocab_size   = 4096", "vocab_size   = 600")
        (target / path.name).write_text(text)
    return target


def test_the_quickstart_runs_end_to_end(tmp_path):
    recipes = small_quickstart(tmp_path)
    options = run.Options(root=str(tmp_path / "runs"), workers=2, quiet=True)
    text = run.run(recipe.load(str(recipes / "quickstart.toml")), options)
    check_law(text)
    assert text.counts["rows_kept"] > 20 and text.counts["rows_dropped"] > 0
    tokens = run.run(recipe.load(str(recipes / "quickstart_tokens.toml")), options)
    check_law(tokens)
    assert tokens.counts["rows_consumed"] == text.counts["rows_kept"]
    tokenizer = tmp_path / "runs" / "quickstart_tokens@2026.11.20" / "tokenizer"
    # The same tokenizer given as a folder packs the same sequences, and goes with them.
    source = {"use": "ingest.Dataset", "name": "quickstart@2026.11.20"}
    pack = {"use": "tokens.Pack", "tokenizer": str(tokenizer), "sequence_length": 256}
    again = run.run(recipe.build({"name": "again", "version": "1", "step": [source, pack]}), options)
    assert content(again) == content(tokens)
    copied = Path(again.folder) / again.artifacts["tokenizer"] / "tokenizer.json"
    assert copied.read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_the_demo_shows_the_whole_journey(tmp_path):
    """What `make demo FAST=1` runs, with its conditions; a second time it finds all of it done."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FACTORY_RUNS": str(tmp_path / "runs"), "FAST": "1"}
    for _ in range(2):
        result = subprocess.run([REPOSITORY / "recipes" / "demo.sh"], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        for shown in ("rows in", "package", "YaRN", "95% intervals", "grpo - dpo", "holds:", "What lies where"):
            assert shown in result.stdout, shown
    for picture in ("accuracy/accuracy.png", "length/extrapolation.png", "train/math_base/loss.png"):
        assert (tmp_path / "runs" / picture).stat().st_size > 1000
    fed = (tmp_path / "runs" / "train" / "math_grpo" / "recipe.json").read_text()  # with what fed those before it
    for dataset in ("grpo_prompts", "math_pairs", "math_sft", "math_tokens", "text_tokens"):
        assert f'"name": "{dataset}"' in fed
