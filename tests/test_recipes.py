"""Every shipped recipe loads, and the quickstart's run end to end on two small packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.engine import recipe, run
from tests.conftest import REPOSITORY
from tests.engine.build import check_law

RECIPES = sorted((REPOSITORY / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_shipped_recipe_loads_and_says_what_it_makes(path):
    loaded = recipe.load(str(path))
    assert loaded.name == path.stem
    assert loaded.description


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes" / "train").glob("*.toml")), ids=lambda p: p.stem)
def test_a_shipped_training_recipe_loads(path):
    from model.config import load_recipe

    assert load_recipe(str(path), ["data=runs/x@1"]).name == path.stem


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
    assert (tmp_path / "runs" / "quickstart_tokens@2026.11.20" / "tokenizer" / "tokenizer.json").exists()
