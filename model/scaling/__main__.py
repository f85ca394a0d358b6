"""The command line: `python -m model.scaling RECIPE.toml data=DATASET [key=value ...]`.

Trains the grid of the recipe's section [scaling], or goes on where it was stopped, fits the laws and leaves

    points.parquet    a row for each training
    law.json          the laws: `optimizer.scaling = "…/law.json"` in a recipe
    losses.png        the losses of each (N, D) with the quadratic that gives the optimum
    law.png           the optima with the fitted law and the public ones
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from factory.engine.errors import FactoryError
from factory.engine.files import make_folder, remove
from model.data import open_datasets
from model.pretrain import Stopped
from model.recipe import load_recipe
from model.scaling import grid
from model.scaling.fit import Fit, PowerFit, fit
from model.scaling.law import BUILT_IN, Scale
from model.scaling.picture import law_picture, losses_picture
from model.train import fit as complete

USAGE = "usage: python -m model.scaling RECIPE.toml data=DATASET_FOLDER [out=FOLDER] [key=value ...]"


def scaling(path: str, words: list[str]) -> Path:
    """Run the grid of a recipe and fit its laws; the folder with all of it. Prints as it goes."""
    recipe = load_recipe(path, words)
    data = open_datasets(recipe.data)
    recipe = complete(recipe, data)
    folder = Path(recipe.out or Path(os.environ.get("FACTORY_RUNS", "runs")) / "scaling" / recipe.name)
    make_folder(str(folder))
    rows = grid.run(recipe, data, folder)
    found = fit(rows, recipe.scaling.batch_by_size)
    print(table(found))
    losses_picture(rows, found, folder / "losses.png")
    law_picture(found, folder / "law.png", compute_of(found))
    if found.learning_rate is None:
        remove(str(folder / "law.json"))  # of an earlier grid in this folder
        print(f"\n{found.problem}; what the grid lacks is said above, its trainings are kept in {folder}")
        return folder
    kind = "the last of training" if rows[0]["evaluation_loss"] is None else "held-out data"
    names = ", ".join(f"{one.name}@{one.version}" for one in data.values())
    law = found.law(recipe.name, f"optima of the loss on {kind}, trained on {names}")
    law.save(folder / "law.json")
    print(f"\n{equation('learning rate', found.learning_rate)}")
    print(equation("batch, tokens", found.batch_tokens) if found.batch_tokens else found.problem)
    print(f"\nin {folder}: law.json, points.parquet, losses.png, law.png")
    print(f'in a recipe: [optimizer] learning_rate = "scaling", scaling = "{folder / "law.json"}"')
    return folder


def table(found: Fit) -> str:
    """The optima, a line for each (N, D), beside what the public laws say there."""
    names = [f"{law.name} rate / batch" for law in BUILT_IN.values()]
    lines = [
        f"{'N':>12} {'D':>14} {'loss':>7} {'best rate ±':>18} {'batch ±':>14}" + "".join(f"{n:>24}" for n in names)
    ]
    for one in found.optima:
        place = f"{one.scale.N:>12,} {one.scale.D:>14,}"
        if one.problem:
            lines.append(f"{place}  left out: {one.problem}")
            continue
        errors = one.errors(found.variance)
        batch = f"{one.batch_tokens:,.0f} {errors[1]:.0%}" if one.with_batch else f"{one.batch_tokens:,.0f}"
        laws = [
            f"{law.learning_rate(one.scale):.2e} / "
            + (f"{law.batch_tokens(one.scale):,.0f}" if law.batch_tokens else "-")
            for law in BUILT_IN.values()
        ]
        rate = f"{one.learning_rate:.2e} {errors[0]:.0%}"
        lines.append(f"{place} {one.loss:>7.3f} {rate:>18} {batch:>14}" + "".join(f"{law:>24}" for law in laws))
    return "\n".join(lines)


def equation(name: str, found: PowerFit) -> str:
    """The law as a line, the 95% intervals of its exponents, and its errors."""
    factors = "".join(f" {variable}^{value:.3f}" for variable, value in found.power.exponents.items())
    ends = ", ".join(f"{part} {low:.3f} to {high:.3f}" for part, (low, high) in found.intervals().items())
    return (
        f"{name} = {math.exp(found.power.intercept):.4g}{factors}   (95%: {ends})\n"
        f"  an optimum that was left out is missed by {found.left_out_error:.0%}; scatter {found.scatter:.2f}"
    )


def compute_of(found: Fit) -> Callable[[Scale], float]:
    """C for a scale between those of the grid: M, the operations a token, goes along with N."""
    known = sorted({(one.scale.N, one.scale.C / one.scale.D) for one in found.optima})
    sizes, costs = np.log(np.array(known)).T

    def depth(scale: Scale) -> float:
        return scale.D * math.exp(float(np.interp(math.log(scale.N), sizes, costs)))

    return depth


def main(words: list[str] | None = None) -> int:
    """Exit code 0 when all is trained, 2 after an error, 128 + signal when stopped by one."""
    given = sys.argv[1:] if words is None else words
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    try:
        scaling(given[0], given[1:])
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print("stopped; run the same command to go on", file=sys.stderr)
        return 128 + stop.signal
    return 0


if __name__ == "__main__":
    sys.exit(main())
