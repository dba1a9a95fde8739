"""Folders that `limbeck export` made: `export.json` says by what they are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.system import files
from limbeck.system.files import path_of
from limbeck.tools.formats.format import Runner, require
from limbeck.tools.formats.known import format_of

FACTS = "export.json"


def is_one(folder: str | Path) -> bool:
    """Whether a folder was made by `limbeck export`."""
    return (path_of(folder) / FACTS).is_file()


def facts(folder: str | Path) -> dict[str, Any]:
    """What its export found.

    Raises:
        UserError: the file is damaged.
    """
    path = path_of(folder) / FACTS
    try:
        found = files.read_json(path)
        return {"format": found["format"], "bytes": found["bytes"], "parameters": found["parameters"], **found}
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path}: is damaged; export the student anew") from None


def runner(folder: str | Path) -> Runner:
    """How it answers, by its own runtime.

    Raises:
        UserError: its files are refused or damaged, or its runtime is not installed.
    """
    place = path_of(folder)
    if refused := sorted(place.glob("*.refused")):
        raise UserError(f"{refused[0]}: refused when it was exported, for it answers otherwise than its student")
    form = format_of(facts(place)["format"])
    require(f"{place}: {form.name}", form.packages)
    try:
        return form.runner(place)
    except Exception as error:  # what a runtime raises of a damaged file is not documented
        raise UserError(
            f"{place}: cannot be run ({str(error).splitlines()[0]:.200}); export the student anew"
        ) from error
