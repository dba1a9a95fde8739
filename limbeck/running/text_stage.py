"""A stage that writes a text: one file of JSON lines in its run directory, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from limbeck import rundir
from limbeck.assemble.design import Design
from limbeck.assemble.text_writers import TextWriter, writer_of
from limbeck.errors import Interrupted, UserError
from limbeck.running import manifest
from limbeck.system import clock, files
from limbeck.system.processes import World
from limbeck.system.progress import doing
from limbeck.system.signals import at_once, interruptible

T = TypeVar("T")


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
    failed: UserError | None = None
    if world.is_main:
        try:
            with interruptible(), at_once():
                _begin_and_write(writer, plan, world, folder, recipe, tell)
        except UserError as error:
            failed = error
    if world.total([failed is not None])[0]:
        raise failed or UserError(f"{folder}: the first process could not write the text; it says why")


def _begin_and_write(
    writer: TextWriter, plan: Design, world: World, folder: Path, recipe: str, tell: Callable[[str], None]
) -> None:
    begin, told = perf_counter(), manifest.of_text(plan, world)
    try:
        files.write_text(folder / rundir.RECIPE, recipe)
        files.write_json(folder / rundir.MANIFEST, told)
        (folder / rundir.TEXT).unlink(missing_ok=True)
        written = _write(writer, plan, folder / rundir.TEXT)
        end = {"status": "done", "finished": manifest.now(), "seconds": clock.since(begin), "written": written}
        files.write_json(folder / rundir.MANIFEST, told | end)
    except OSError as error:
        if (why := files.full(error)) is None:
            raise
        raise UserError(
            f"{folder}: no room for the text ({why}); make room there, or choose another disk with out=DIR"
        ) from None
    tell(f"{folder / rundir.TEXT}: {written['rows']:,} rows, {files.readable(written['size'])}")


def _write(writer: TextWriter, plan: Design, path: Path) -> dict[str, Any]:
    """Writes the file; returns what the manifest says of it."""
    count, where = 0, f"write: {plan.recipe.write}"
    with files.replacing(path) as temporary, doing(f"writing {path.name}", "rows") as done:
        with temporary.open("wb") as out:
            for count, line in enumerate(_lines(writer, plan, where), start=1):
                out.write(line)
                done(count)
        if count == 0:
            raise UserError(f"{where}: it wrote no row, and a later stage has nothing to read; mend it")
        facts = _asked(lambda: dict(writer.facts()), where, "facts")
    return facts | {"rows": count, **files.identity(path)}


def _lines(writer: TextWriter, plan: Design, where: str) -> Iterator[bytes]:
    rows = _asked(lambda: iter(writer.rows(plan)), where, "rows")
    while (row := _asked(lambda: next(rows, None), where, "rows")) is not None:
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: a row is {row!r:.80}, and must be a table such as {{'text': ...}}; mend it")
        yield _asked(partial(_line, row), where, "rows")


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n").encode()


def _asked(ask: Callable[[], T], where: str, what: str) -> T:
    """What somebody else's class answers; raises UserError where it fails."""
    try:
        return ask()
    except (UserError, Interrupted):
        raise
    except Exception as error:
        raise UserError(f"{where}: its {what} fail ({type(error).__name__}: {error}); mend it") from error
