"""Seeded damage: to bytes, to tables, to files of text and to folders of models; and what may come of it."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

from limbeck.errors import UserError

HANG, WAITING = 20.0, 12  # seconds of a process's own time; how many times that it may last on a busy machine
LONGEST_LINE = 1500  # characters of an error

TOKENS = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b" ", b"'", b'"', b"{", b"}", b"[", b"]", b":", b"- ", b"&a ", b"*a",
    b"<<: *a", b"!!int ", b"!!bool ", b"!!timestamp ", b"!!set ", b"!!binary ", b"|", b">", b"#", b"%", b"@", b"`", b"?", b",",
    b"null", b"true", b".nan", b"-.inf", b"1e999", b"0x", b"9" * 40, b"-1", b"\\ud800", b"\\u0000", b"\x1b[31m", b"../", b"~",
)  # fmt: skip


class Hang(BaseException):
    """It took too long."""


@contextmanager
def soon(seconds: float = HANG) -> Iterator[None]:
    """Ends what hangs: after so many seconds of this process's own time, or `WAITING` times as many of the clock.

    What waits for others on a busy machine does not hang; what waits for what never comes does.
    """

    def ring(number: int, _: Any) -> None:
        raise Hang(f"not done after {seconds:g} s of its own time" if number == signal.SIGPROF else "waits for ever")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, WAITING * seconds)}
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def refusal(call: Callable[[], Any]) -> str:
    """What a call is refused with, "" where it ends well. Whatever else it raises is a fault, and goes on."""
    with soon():
        try:
            call()
        except UserError as error:
            line = str(error)
            assert line.isprintable() and 10 < len(line) < LONGEST_LINE, line[:LONGEST_LINE]
            return line
    return ""


# bytes


def of_bytes(raw: bytes, draw: Random) -> bytes:
    """The bytes with one to four wounds."""
    for _ in range(draw.choice((1, 1, 1, 4))):
        raw = _wound(raw, draw)
    return raw


def _wound(raw: bytes, draw: Random) -> bytes:
    start = draw.randrange(len(raw) + 1)
    end = min(len(raw), start + int(2 ** draw.uniform(0, 8)))
    before, span, after = raw[:start], raw[start:end], raw[end:]
    how = draw.choice(("flip", "drop", "twice", "insert", "cut", "other", "token", "token"))
    if how == "flip" and span:
        return before + bytes([span[0] ^ 1 << draw.randrange(8)]) + span[1:] + after
    if how == "twice":
        return before + span * draw.choice((2, 3, 50)) + after
    if how == "insert":
        return before + draw.randbytes(draw.randrange(1, 9)) + span + after
    if how == "cut":
        return before
    if how == "other":
        return before + draw.randbytes(len(span)) + after
    if how == "token":
        return before + draw.choice(TOKENS) + (span if draw.random() < 0.5 else b"") + after
    return before + after


# tables

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-300, 1e308, math.nan, math.inf, 2**31, 2**63, 10**30, 10**400, "", " ", "x",
    "0", "1e3", "null", "x" * 300, "x" * 5000, "../x", "/", ".", "..", "~", "~nobody-is-here", "a\0b", "a\nb", "<script>", "\x1b[31m", "ä",
    "%s{0}", "$previous", "$hints", "$hints/../x", "@", "x@", "last", "none", "teacher", "peers", "ema", "self", "random", "hub:",
    [], {}, [[]], [{}], [None], {"": 1}, {1: 2}, {"x": {"y": {"z": []}}}, ["a", "a"], date(2024, 1, 1), list(range(300)),
)  # fmt: skip


def places(table: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a table."""
    pairs = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    return [path for key, value in pairs for path in ((*here, key), *places(value, (*here, key)))]


def of_table(table: Any, draw: Random, odd: tuple[Any, ...] = ODD) -> Any:
    """A copy of a table with one or two values replaced, dropped, moved, renamed, or said twice."""
    table = copy.deepcopy(table)
    for _ in range(draw.choice((1, 1, 1, 2))):
        if paths := places(table):
            _change(table, draw.choice(paths), paths, draw, odd)
    return table


def _change(table: Any, path: tuple[Any, ...], paths: list[Any], draw: Random, odd: tuple[Any, ...]) -> None:
    inside, word = at(table, path[:-1]), path[-1]
    how = draw.choice(("odd", "odd", "odd", "drop", "move", "wrap", "rename", "twice"))
    if how == "odd":
        inside[word] = copy.deepcopy(draw.choice(odd))
    elif how == "drop":
        del inside[word]
    elif how == "move":
        inside[word] = copy.deepcopy(at(table, draw.choice(paths)))
    elif how == "wrap":
        inside[word] = draw.choice(([inside[word]], {"x": inside[word]}, [inside[word]] * 2))
    elif isinstance(inside, dict):
        name = str(word) + draw.choice("xs_ .") if how == "rename" else draw.choice([path[-1] for path in paths])
        inside[name] = copy.deepcopy(inside[word]) if how == "twice" else inside.pop(word)
    else:
        inside.insert(word, copy.deepcopy(inside[word]))


def at(table: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for word in path:
        table = table[word]
    return table


# what is left behind


def halves(cache: Path) -> list[str]:
    """The entries of a cache that are not whole: there should be none, whatever was refused."""
    entries = [entry for kind in ("tokens", "tasks") for entry in cache.glob(f"{kind}/*")]
    return [str(entry) for entry in entries if entry.suffix == ".tmp" or not (entry / "facts.json").is_file()]
