"""Files written whole or not at all, JSON, hashes, room on a disk; what a path of a user means."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # what a disk that takes no more says


def sync(path: Path) -> None:
    """Has a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; at the end it is synced and takes its place in one stroke, or it is gone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def require_free(place: Path) -> None:
    """Raises UserError where something is already that a command would make."""
    if os.path.lexists(place):
        raise UserError(f"{place}: is there already; choose another folder")


@contextmanager
def appearing(place: Path) -> Iterator[Path]:
    """A folder beside `place` to write to; at the end it takes its place, or it is gone.

    Raises:
        UserError: it cannot be written.
    """
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(place)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one stroke: a reader sees the old text or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(value: Any) -> str:
    """Strict JSON as files hold it: a number that is not finite becomes null."""
    return json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON in one stroke."""
    write_text(path, as_json(value))


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Appends one JSON object a line and flushes it."""
    text = "".join(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """All whole lines of a JSON-lines file, and whether a damaged last line was left out."""
    rows, lines = [], path.read_bytes().split(b"\n") if path.exists() else []
    lines = lines[:-1] if lines and not lines[-1] else lines
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: not JSON; the file is damaged, restore it or run again"
                ) from None
            return rows, True
    return rows, False


def full(error: BaseException) -> str | None:
    """What the disk said, if an error is that it takes no more; of libraries it stands in the text.

    >>> full(OSError(28, "No space left on device")), full(OSError(2, "No such file")), full(ValueError("os error 28"))
    ('No space left on device', None, 'No space left on device')
    """
    found = re.search(r"(?:os error|Errno) (\d+)", str(error))
    number = (error.errno if isinstance(error, OSError) else None) or (int(found[1]) if found else None)
    return os.strerror(number) if number in FULL else None


def free(folder: Path) -> int:
    """Bytes that can still be written there, whether the folder is there already or not."""
    place = next(it for it in (folder.absolute(), *folder.absolute().parents) if it.exists())
    return shutil.disk_usage(place).free


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable(size: float) -> str:
    """Bytes for people.

    >>> readable(0), readable(3 << 20), readable(1.5 * 2**30)
    ('0.0 MiB', '3.0 MiB', '1.5 GiB')
    """
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def finite(value: Any) -> Any:
    """The value with every number that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def json_sha256(table: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def path_of(text: str | Path) -> Path:
    """The path that a user writes: `~` is the home, and a relative path begins at the working directory.

    Raises:
        UserError: there is no such home.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{str(text)[:80]!r}: there is no such home; write the whole path") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: Path) -> dict[str, Any]:
    """What tells a file from another one: its size, its sha256, and when it was changed."""
    said = path.stat()
    return {"size": said.st_size, "changed": said.st_mtime_ns, "sha256": file_sha256(path)}


def is_same(path: Path, known: dict[str, Any]) -> bool:
    """Whether a file is there and is the one of an `identity`; one that nobody has touched since is not read."""
    if not path.is_file():
        return False
    now = path.stat()
    same = now.st_size == known["size"]
    return same and (now.st_mtime_ns == known["changed"] or file_sha256(path) == known["sha256"])
