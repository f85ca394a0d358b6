"""The command line: `factory run | plan | show | sql | steps | inspect | sandbox | task`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable

import factory
from factory.engine.errors import FactoryError


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Mistakes in what was given are one line and exit code 2; a failed task is exit code 1."""
    options = _parser().parse_args(arguments)
    # The script does not look here for modules, as `python -m` does: a step of one's own may lie beside the recipe.
    sys.path.insert(0, os.getcwd())
    try:
        command: Callable[[argparse.Namespace], int | None] = options.command
        return command(options) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            traceback.print_exc()
        message, code = _told(error)
        print(f"factory: {message}", file=sys.stderr)
        return code


def _told(error: BaseException) -> tuple[str, int]:
    """An error as one line, and its exit code."""
    if isinstance(error, FactoryError):
        return " ".join(str(error).split()), 2
    if isinstance(error, KeyboardInterrupt):
        return "stopped; run again to go on from here", 130
    name = type(error).__name__
    first = (str(error).splitlines() or [""])[0]
    return f"{first if name == 'TaskFailed' else f'{name}: {first}'}  (--debug shows where)", 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("factory", description="Recipes in, dataset shards out.")
    parser.add_argument("--version", action="version", version=f"factory {factory.__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", default=os.environ.get("FACTORY_RUNS", "runs"), help="where datasets lie (runs)")
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, command: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[shared])
        added.set_defaults(command=command)
        return added

    run = add("run", _run, "Build the dataset of a recipe.")
    run.add_argument("recipe")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a declared parameter")
    run.add_argument("--name", default="", help="build under this name, not the recipe's")
    run.add_argument(
        "--workers", type=_whole, default=None, help="processes (one a core); 0: in this process, to debug"
    )
    run.add_argument("--memory", default="", help="what a worker may hold, as 2GB (its share of 4/5 of the machine)")
    run.add_argument("--seconds", type=_seconds, default=120.0, help="time limit of one call of a step (120)")
    run.add_argument("--annotate", action="store_true", help="keep every row, write all scores and reasons")
    run.add_argument(
        "--dropped", choices=["full", "ids", "sample"], help="how dropped rows are kept (full below 10 GB)"
    )

    planned = add("plan", _plan, "Say what a run would do and cost, from measured rates. Runs nothing.")
    planned.add_argument("recipe")
    planned.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a declared parameter")
    planned.add_argument("--name", default="", help="build under this name, not the recipe's")
    planned.add_argument("--tokens", default="", help="as if the input had so many tokens, as 18T (4.2 bytes each)")
    planned.add_argument("--annotate", action="store_true", help="plan an annotated run")

    show = add("show", _show, "Print a dataset's funnel: rows in, kept, dropped by reason, failed.")
    show.add_argument("dataset", nargs="?", help="name or name@version; without it, all datasets are listed")

    sql = add("sql", _sql, "Query the datasets: views name, name_dropped, name_failed, name@version, receipts.")
    sql.add_argument("query")
    sql.add_argument("--rows", type=_count, default=40, help="rows to print (40)")
    sql.add_argument("--csv", action="store_true", help="all rows and columns as CSV")
    sql.add_argument("--export", action="store_true", help="also write catalog.duckdb for other tools")

    steps = add("steps", _steps, "List the steps, or describe one with its options.")
    steps.add_argument("step", nargs="?")
    steps.add_argument("--markdown", action="store_true", help="the whole recipe reference")

    inspect = add("inspect", _inspect, "Print sampled kept rows, and dropped rows by reason.")
    inspect.add_argument("dataset")
    inspect.add_argument("--reason", default="", help="only rows dropped for this reason")
    inspect.add_argument("--rows", type=_count, default=2, help="rows of each kind (2)")
    inspect.add_argument("--width", type=_count, default=400, help="characters of text shown (400)")

    doctor = add("sandbox", _doctor, "Judge programs: `doctor` tries every language in a box and says what works.")
    doctor.add_argument("what", choices=["doctor"])
    doctor.add_argument("languages", nargs="*", help="only these")
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    doctor.add_argument("--isolation", help="how boxes are closed: bubblewrap; degraded by explicit choice")

    task = add("task", _task, "Do one task of a stage: what other executors call.")
    task.add_argument("stage", help="the stage's key")
    task.add_argument("shard", type=int)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _settings(options: argparse.Namespace) -> dict[str, str]:
    found = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise FactoryError(f"--set {text}: write key=value")
        found[key] = value
    return found


def _run(options: argparse.Namespace) -> None:
    from factory.engine import catalog, recipe, run
    from factory.report import funnel

    chosen = run.Options(
        root=options.out,
        workers=-1 if options.workers is None else options.workers,
        memory=run.parse_bytes(options.memory) if options.memory else 0,
        seconds=options.seconds,
        annotate=options.annotate,
        dropped=options.dropped,
    )
    built = run.run(recipe.load(options.recipe, _settings(options), options.name), chosen)
    catalog.export(options.out)
    print(funnel.text(built))


def _plan(options: argparse.Namespace) -> None:
    from factory.engine import plan, recipe
    from factory.report import forecast

    planned = plan.make(recipe.load(options.recipe, _settings(options), options.name), options.out, options.annotate)
    print(forecast.text(planned, forecast.parse_count(options.tokens) if options.tokens else None))


def _show(options: argparse.Namespace) -> None:
    from factory.engine import manifest
    from factory.report import funnel

    if options.dataset:
        print(funnel.text(manifest.load(options.out, options.dataset)))
    else:
        print(funnel.listing(options.out))


def _sql(options: argparse.Namespace) -> None:
    from factory.engine import catalog

    if options.export:
        catalog.export(options.out)
    if options.csv:
        catalog.show_csv(options.out, options.query)
    else:
        catalog.show(options.out, options.query, options.rows, _width())


def _width() -> int:
    import shutil

    return max(shutil.get_terminal_size((120, 24)).columns, 60)


def _steps(options: argparse.Namespace) -> None:
    from factory.report import reference

    if options.markdown:
        sys.stdout.write(reference.markdown())
    else:
        print(reference.text(options.step))


def _inspect(options: argparse.Namespace) -> None:
    from factory.engine import manifest
    from factory.report import inspect

    dataset = manifest.load(options.out, options.dataset)
    print(inspect.text(dataset, options.reason, options.rows, options.width))


def _doctor(options: argparse.Namespace) -> None:
    from factory.sandbox import doctor

    findings = list(doctor.examine(options.languages, options.isolation))
    print(doctor.as_json(findings) if options.json else doctor.table(findings, _width()))


def _task(options: argparse.Namespace) -> None:
    from factory.engine import files, plan, worker
    from factory.engine.guard import Suspicion

    folder = plan.stage_folder(options.out, options.stage)
    if not files.exists(files.join(folder, "stage.json")):
        raise FactoryError(f"{folder}: no such stage: factory run makes it when it plans the stage")
    bench = worker.Workbench()
    bench.do(("stage", folder, options.shard), Suspicion(), lambda *_: None)
    bench.close()


if __name__ == "__main__":
    sys.exit(main())
