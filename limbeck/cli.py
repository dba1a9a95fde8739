"""The command line. Words only: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from limbeck import cli_models
from limbeck.cli_models import HEAVY, Overrides, data_of
from limbeck.errors import Failed, Interrupted, UserError, printable
from limbeck.system import files
from limbeck.system.environment import quiet_imports, wait_briefly
from limbeck.system.progress import doing, shown, tell

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


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A built-in recipe's name, or a YAML file.")]


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
    from limbeck.system.signals import at_once, interruptible

    data_of(recipe, overrides)  # what is wrong with the keys is said before anything heavy is imported
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
    data_of(recipe, overrides)
    with shown():
        with doing(HEAVY):
            from limbeck import api
        found = api.check(recipe, overrides or [])
    print("\n".join(map(printable, found)))


@app.command()
def cache(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Write teachers' answers to disk, for recipes with `cache`. `run` does it where they are missing."""
    from limbeck.system.signals import at_once, interruptible

    data_of(recipe, overrides)
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
    """Draw a run's figures and page anew, or of several runs."""
    from limbeck.lab.page import report as page_report
    from limbeck.lab.terminal import results

    run = page_report.gathered(runs, against)
    page = page_report.page(run)
    print(f"{results.text(run)}\nreport: {page}")
    if csv:
        from limbeck.lab.page import tables

        print("\n".join(str(path) for path in tables.write(run)))


app.command()(cli_models.profile)
app.command("eval")(cli_models.evaluate)
app.command()(cli_models.export)
app.command()(cli_models.sensitivity)
app.command()(cli_models.trim)


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
    """Runs a command. Exit status: 0 done, 2 a user's mistake, 3 settings that failed, or an export that was refused, 75 interrupted with everything saved."""
    wait_briefly()
    quiet_imports()
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
