"""A stage that writes a text: one file of JSON lines in its run directory, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from limbeck import rundir
from limbeck.assemble.design import Design
from limbeck.assemble.text_writers import TextWriter, writer_of
from limbeck.errors import Interrupted, UserError
from limbeck.running import manifest
from limbeck.system import clock, files
from limbeck.system.processes import World
from limbeck.system.progress import doing
from limbeck.system.signals import at_once, interruptible


def write(plan: Design, world: World, recipe: str, tell: Callable[[str], None]) -> None:
    """Has the stage's writer write its text, in the first process; the others wait.

    Args:
        plan: the design of the stage.
        recipe: text of its recipe.yaml.
        tell: receives the line that says what was written.

    Raises:
        UserError: it writes nothing, or what is no row.
        Interrupted: SIGINT or SIGTERM; the text is begun again.
    """
    writer, folder = writer_of(plan.recipe), Path(plan.recipe.run_dir)
    assert writer is not None
    if world.is_main:
        with interruptible(), at_once():
            begin, told = perf_counter(), manifest.of_text(plan, world)
            files.write_text(folder / rundir.RECIPE, recipe)
            files.write_json(folder / rundir.MANIFEST, told)
            written = _write(writer, plan, folder / rundir.TEXT) | writer.facts()
            end = {"status": "done", "finished": manifest.now(), "seconds": clock.since(begin)}
            files.write_json(folder / rundir.MANIFEST, told | end | {"written": written})
            tell(f"{folder / rundir.TEXT}: {written['rows']:,} rows, {files.readable(written['size'])}")
    world.wait()


def _write(writer: TextWriter, plan: Design, path: Path) -> dict[str, Any]:
    """Writes the file; returns what the manifest says of it."""
    count, where = 0, f"write: {plan.recipe.write}"
    with files.replacing(path) as temporary, doing(f"writing {path.name}", "rows") as done:
        with temporary.open("w", encoding="utf-8") as out:
            for count, line in enumerate(_lines(writer, plan, where), start=1):
                out.write(line)
                done(count)
        if count == 0:
            raise UserError(f"{where}: it wrote no row, and a later stage has nothing to read; mend it")
    return {"rows": count, **files.identity(path)}


def _lines(writer: TextWriter, plan: Design, where: str) -> Iterator[str]:
    try:
        for row in writer.rows(plan):
            yield json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n"
    except (UserError, Interrupted):
        raise
    except Exception as error:  # whatever somebody else's class does
        raise UserError(f"{where}: its rows fail ({type(error).__name__}: {error}); mend it") from error
