"""The command line. Words only: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.errors import Failed, Interrupted, UserError, printable
from limbeck.system import files
from limbeck.system.environment import wait_briefly
from limbeck.system.progress import doing, shown, tell

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer(
    epilog="Start with: limbeck run quickstart. Copy a recipe with: limbeck recipes quickstart > mine.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"limbeck {version('limbeck')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil a large transformer language model into a small one, compare the ways of doing so, see why one wins."""


class Precision(StrEnum):
    """Of a profile."""

    fp32 = "fp32"
    bf16 = "bf16"


HEAVY = "loading torch and transformers"  # takes seconds, and is said

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A built-in recipe's name, or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, such as train.lr=3e-4 seeds=[0,1] out=DIR."),
]


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Only go on with a run that has begun.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although recipe, data or models changed, or room may be short.")
    ] = False,
) -> None:
    """Train, evaluate, draw and export. Run it again to go on after an interruption."""
    from limbeck.recipe.arms import asked
    from limbeck.system.signals import at_once, interruptible

    asked(recipe, overrides or []).arms()  # what is wrong with the keys is said before anything heavy is imported
    with shown(), interruptible():
        if "torch" not in sys.modules:
            tell(HEAVY)
        with at_once(), doing(HEAVY):
            from limbeck import api
            from limbeck.system.processes import World
        try:
            done = api.run(recipe, overrides or [], resume=resume, force=force)
        finally:
            World.leave()
        table = done.table()
    if os.environ.get("RANK", "0") == "0":
        print(f"{table}\nreport: {done.report}")


@app.command()
def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Say what can be known before training, and what is wrong."""
    from limbeck.recipe.arms import asked

    asked(recipe, overrides or []).arms()  # what is wrong with the keys is said before anything heavy is imported
    with shown():
        with doing(HEAVY):
            from limbeck import api
        found = api.check(recipe, overrides or [])
    for line in found:
        print(printable(line))


@app.command()
def cache(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Write teachers' answers to disk, for recipes that say `cache`. `run` does it where they are missing."""
    from limbeck.recipe.arms import asked
    from limbeck.system.signals import at_once, interruptible

    asked(recipe, overrides or []).arms()
    with shown(), interruptible():
        with at_once(), doing(HEAVY):
            from limbeck import api
            from limbeck.system.processes import World
        try:
            written = api.cache(recipe, overrides or [])
        finally:
            World.leave()
    for folder, size in written.items():
        print(f"{folder}  {size / 2**20:,.1f} MiB")


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run directories; of several, one page for all.")],
    csv: Annotated[
        bool, typer.Option("--csv", help="Also write the numbers: CSV, Markdown and LaTeX in tables/.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="SETTING", help="Compare each setting with this one, not all pairs: for an ablation."),
    ] = None,
) -> None:
    """Draw a run's figures and page anew, or several runs on one page."""
    from limbeck.lab.page import report as page_report
    from limbeck.lab.terminal import results

    run = page_report.gathered(runs, against)
    page = page_report.page(run)
    print(f"{results.text(run)}\nreport: {page}")
    if csv:
        from limbeck.lab.page import tables

        print("\n".join(str(path) for path in tables.write(run)))


def _file(option: str, name: str | None) -> Path | None:
    """The file that an option names, before work that would be for nothing."""
    path = None if name is None else files.path_of(name)
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder;" if path.is_dir() else "its folder is not there; make it, or"
        raise UserError(f"{path}: {what} choose another file with {option}")
    return path


@app.command()
def profile(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Folders or Hub ids; the first is compared with.")
    ],
    length: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 128,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Rows of a pass; give it again for more.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each model.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number when left out.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the parameters and of the computation.")] = Precision.fp32,
    task: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Rows as long as the held-out ones of its task, not of --length."),
    ] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Also write the numbers.")] = None,
) -> None:
    """Show what models cost when they answer. Parameters, MACs, size, memory and latency, side by side."""
    from limbeck.lab.terminal import profiles

    path = _file("--json", json_file)
    how: dict[str, Any] = {"length": length, "batches": batch or [1, 32], "rounds": rounds, "threads": threads}
    with shown():
        if task is not None:
            from limbeck.recipe.arms import asked

            how["data"] = asked(task, []).arms()[0].data
        with doing(HEAVY):
            from limbeck.tools.profile import of_sources
        found = of_sources(models, precision=precision.value, tell=tell, **how)
    profiles.show(found)
    if path is not None:
        files.write_json(path, found)


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder, such as an exported student, or a Hub id.")
    ],
    task: Annotated[
        str, typer.Option(metavar="RECIPE", help="Whose `data` it is measured on: a recipe's name or file.")
    ],
    overrides: Overrides = None,
    predictions: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the answer to every row.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp64.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Measure any model on the held-out part of a recipe's data. Its metrics, its loss, its answers as a file."""
    from limbeck.recipe.arms import asked

    path = _file("--predictions", predictions)
    data = asked(task, overrides or []).arms()[0].data
    if precision not in ("fp32", "bf16", "fp64"):
        raise UserError(f"--precision: {precision} is none; give fp32, bf16 or fp64")
    with shown():
        with doing(HEAVY):
            from limbeck.tools import evaluate_model
        found = evaluate_model.examine(model, data, precision=precision, device=device, answering=path is not None)
    if path is not None:
        evaluate_model.write_answers(found, path)
    noun = "rows" if data.task else "tokens"
    print(f"{'held out':14} {found.rows:,} {noun} of {data.heldout if isinstance(data.heldout, str) else data.corpus}")
    for name, value in {"label loss": found.label_loss, **found.metrics}.items():
        print(f"{name:14} {'-' if value is None else f'{value:.4f}'}")


@app.command()
def sensitivity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a Hub id.")],
    task: Annotated[str, typer.Option(metavar="RECIPE", help="On whose held-out text it is measured.")],
    overrides: Overrides = None,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Of a weight.")] = 8,
    group: Annotated[int | None, typer.Option(min=1, help="Inputs that share a scale. [a whole row]")] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Also write the numbers.")] = None,
) -> None:
    """Show which layers of a model suffer from few bits. Each is quantised alone; the last line is for a recipe."""
    from limbeck.lab.terminal import sensitivities
    from limbeck.recipe.arms import asked

    path, data = _file("--json", json_file), asked(task, overrides or []).arms()[0].data
    with shown():
        with doing(HEAVY):
            from limbeck.tools.sensitivity import of_model
        found = of_model(model, data, bits=bits, group=group)
    sensitivities.show(found)
    if path is not None:
        files.write_json(path, found)


@app.command()
def trim(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or a Hub id.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder that is made.")],
    vocabulary: Annotated[int, typer.Option(min=1, help="How many tokens stay, special tokens included.")],
    corpus: Annotated[list[str], typer.Option(help="Where tokens are counted: a file, folder, ...; again for more.")],
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            "--column",
            metavar="NAME",
            help="Where a corpus has its text, or its number (from 0); again for more. [text]",
        ),
    ] = None,
) -> None:
    """Give a model a smaller vocabulary. Its most frequent tokens stay, with their rows of its weights."""
    from limbeck.tools import trim as tools_trim

    print("\n".join(tools_trim.trim(model, out, vocabulary, corpus, field or ["text"]).lines()))


@app.command()
def watch(run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Show a run while it goes on: its curves in the terminal."""
    from limbeck.lab.terminal import watch as terminal_watch

    terminal_watch.watch(files.path_of(run))


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one, to copy.")] = None) -> None:
    """List the built-in recipes, or print one."""
    from limbeck.errors import nearest
    from limbeck.recipe.load import built_in

    known = built_in()
    if name is None:
        for path in known.values():
            print(f"{path.stem:20} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    elif name in known:
        print(known[name].read_text(encoding="utf-8"), end="")
    else:
        raise UserError(f"{name}: no built-in recipe of that name; {nearest(name, tuple(known))}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from limbeck.recipe import arms

    print(json.dumps(arms.schema(), indent=2))


@app.command()
def env() -> None:
    """Print the versions and the machine, for a bug report."""
    from limbeck.system import environment

    for name, value in {**environment.versions(), **environment.machine()}.items():
        print(f"{name:14} {value}")


def main() -> None:
    """Runs a command. Exit status: 0 done, 2 a user's mistake, 3 settings that failed, 75 interrupted with everything saved."""
    wait_briefly()
    try:
        app()
    except UserError as error:
        print(f"limbeck: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Failed as failure:
        print(f"limbeck: {failure}", file=sys.stderr)
        sys.exit(3)
    except Interrupted as notice:
        print(f"limbeck: {notice}", file=sys.stderr)
        sys.exit(75)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C
            print(
                "limbeck: stopped at once; a run that had begun goes on from its last checkpoint when run again",
                file=sys.stderr,
            )
        raise
