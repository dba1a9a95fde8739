"""One run for a directory: a lock of the operating system, which ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from limbeck.errors import UserError

FILE = "run.lock"

_held: set[Path] = set()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made where it is missing and removed again when it is left empty.

    Who holds it already, further out, holds it on.

    Raises:
        UserError: another process holds it; it is named.
    """
    place = folder.absolute()
    if place in _held:
        yield
        return
    made = _made(place)
    try:
        descriptor = _locked(place)
        _held.add(place)
        try:
            yield
        finally:
            _held.remove(place)
            (place / FILE).unlink(missing_ok=True)  # while it is held: nobody else's can lie there
            os.close(descriptor)
    finally:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()


def in_use(folder: Path) -> UserError:
    """The error that names who holds a folder."""
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        who = f"process {said['pid']} on {said['host']} since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return UserError(f"{folder}: is in use by {who}; wait until it ends, or choose another folder with out=DIR")


def _made(folder: Path) -> list[Path]:
    """Makes a folder; returns those that were missing, innermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        above = next(place for place in folder.parents if place.exists())
        raise UserError(f"{folder}: no folder can be made in {above}; choose another with out=DIR") from None
    return missing


def _locked(folder: Path) -> int:
    """The open lock file, locked."""
    while True:
        try:
            descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); choose another folder with out=DIR"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / FILE)):
                owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps(owner).encode())
                return descriptor
        except FileNotFoundError:
            pass  # it was given back, and removed, between the two: again
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise in_use(folder) from None
            raise UserError(
                f"{folder}: cannot be locked ({error.strerror}); choose another folder with out=DIR"
            ) from None
        os.close(descriptor)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
