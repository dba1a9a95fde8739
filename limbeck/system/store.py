"""A cache of folders: each is written whole or not at all, and its bytes are checked when it is opened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.system import files
from limbeck.system.files import json_sha256, path_of
from limbeck.system.leftovers import filling
from limbeck.system.progress import doing

Tell = Callable[[str], None]
Facts = dict[str, Any]


def cache_folder(folder: str | None = None) -> Path:
    """The cache: the given folder, else the environment variable LIMBECK_CACHE, else `~/.cache/limbeck`."""
    return path_of(folder or os.environ.get("LIMBECK_CACHE") or "~/.cache/limbeck")


def open_or_make(folder: Path, write: Callable[[Path], Facts], tell: Tell) -> Facts:
    """The facts of an entry of the cache, which is made first where it is missing or damaged.

    Args:
        folder: the entry, named by a key of its content.
        write: fills an empty folder with files and returns facts that JSON can hold.
        tell: receives a line when an entry is damaged.

    Raises:
        UserError: the cache cannot be written, or the entry is another one, copied here.
    """
    facts = _open(folder, tell)
    if facts is None:
        _make(folder, write)
        facts = _open(folder, tell)
    if facts is None:
        raise UserError(f"{folder}: what was just written reads back damaged; set data.cache to a sound disk")
    return facts


def _open(folder: Path, tell: Tell) -> Facts | None:
    if not folder.exists():
        return None
    try:
        table = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        with doing(f"checking what is kept in {folder.parent}"):
            damaged = [name for name, file in table["files"].items() if file != _describe(folder / name)]
        if table.pop("sha256") != json_sha256(table):
            damaged.append("facts.json")
        mine = table["entry"] == folder.name
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        damaged, table, mine = ["a missing file or facts.json"], {}, True
    if not damaged and not mine:
        raise UserError(f"{folder}: holds another entry than its name says; remove the folder")
    if not damaged:
        return table["facts"]
    tell(f"{folder}: the cache is damaged ({', '.join(damaged)}); making it again")
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:  # another process makes it anew
        pass
    except OSError as error:
        raise UserError(f"{folder}: is damaged and cannot be removed ({error.strerror}); set data.cache") from None
    return None


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": files.file_sha256(path)}


def _make(folder: Path, write: Callable[[Path], Facts]) -> None:
    """Fill a folder beside the entry, then rename it; where another process was faster, its entry stays."""
    with ExitStack() as stack:
        try:
            new = stack.enter_context(filling(folder))
        except OSError as error:
            raise UserError(f"{folder.parent}: cannot be written ({error.strerror}); set data.cache") from None
        try:
            facts = write(new)
            table = {
                "entry": folder.name,
                "files": {path.name: _describe(path) for path in sorted(new.iterdir())},
                "facts": facts,
            }
            text = json.dumps(table | {"sha256": json_sha256(table)}, indent=1)
            (new / "facts.json").write_text(text, encoding="utf-8")
            for path in (*new.iterdir(), new):
                files.sync(path)
            try:
                os.rename(new, folder)
            except OSError:
                if not folder.exists():
                    raise
            files.sync(folder.parent)
        except OSError as error:
            if (why := files.full(error)) is None:
                raise
            raise UserError(
                f"{folder.parent}: {why}; {files.readable(files.size(new))} were written and more is needed: "
                "make room, or name another disk with data.cache"
            ) from None
