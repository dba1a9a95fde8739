"""Folders that are being filled: whoever fills one holds a lock on it, which ends with the process, so what the dead left is known."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENDING = ".tmp"


@contextmanager
def filling(entry: Path) -> Iterator[Path]:
    """A new folder beside an entry of a cache, to be filled and renamed; gone at the end if it was not. Those of the dead go first.

    Args:
        entry: what the folder is to become.

    Raises:
        OSError: it cannot be made.
    """
    new = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}{ENDING}")
    entry.parent.mkdir(parents=True, exist_ok=True)
    above = os.open(entry.parent, os.O_RDONLY)
    try:
        if locks := _locked(above, fcntl.LOCK_EX):  # nobody makes one while the dead are looked for
            for left in entry.parent.glob(f"*{ENDING}"):
                _remove_of_the_dead(left)
        new.mkdir()
        mine = os.open(new, os.O_RDONLY)
        if locks:
            _locked(mine, fcntl.LOCK_EX)
    finally:
        os.close(above)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        os.close(mine)


def _remove_of_the_dead(folder: Path) -> None:
    with suppress(OSError):  # it was removed, or renamed, in between
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _locked(descriptor: int, how: int) -> bool:
    """Whether a lock was got: a living process may hold it, and some file systems have none."""
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True
