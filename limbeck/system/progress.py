"""What a command does now, on standard error: on a terminal a bar, elsewhere a plain line every few seconds.

Whoever begins something that takes time says so with `doing`, and may count; a thread of its own shows it, so that nothing waits
and nothing that is computed depends on it. Outside of `shown` nothing is shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from threading import Event, RLock, Thread
from time import monotonic
from typing import TYPE_CHECKING

from limbeck.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY = 4.0  # seconds without a line until one says what goes on: less than the 5 that are promised

Done = Callable[[int, int], None]  # receives how many are done, and of how many


def uncounted(count: int, of: int) -> None:
    """Where nobody wants to know how many are done."""


class Doing:
    """Something that takes time, and how far it is.

    >>> evaluation = Doing("evaluation", "blocks")
    >>> evaluation(0, 64)
    >>> str(evaluation)
    'evaluation: 0 of 64 blocks in 0:00'
    """

    def __init__(self, what: str, noun: str = "") -> None:
        self.what, self.noun, self.more = what, noun, ""
        self.begin = self.last = monotonic()  # of all, and of what is done now
        self.count = self.of = 0
        self._first: tuple[int, float] | None = None  # what was done before, and when: it says nothing of the pace

    def __call__(self, count: int, of: int = 0, more: str = "") -> None:
        """So many are done, of how many (0: nobody knows), and what else is to be said."""
        self.last = monotonic()
        self._first = self._first or (count, self.last)
        self.count, self.of, self.more = min(count, of or count), of, more

    def at(self, more: str) -> None:
        """Says which part of it goes on."""
        self.more = more

    @property
    def share(self) -> float | None:
        """How much of it is done, 0 to 1."""
        return self.count / self.of if self.of else None

    def __str__(self) -> str:
        now = monotonic()
        spent, here = clock(now - self.begin), clock(now - self.last)
        if self._first is None:
            return f"{self.what} ({spent})  {self.more}".rstrip()
        before, first = self._first
        said = f"{self.what}: {self.count:,} {f'of {self.of:,} ' if self.of else ''}{self.noun} in {spent}"
        if self.count < self.of and now - self.last > EVERY:
            said += f", {here} into the next"
        if before < self.count < self.of:
            said += f", {clock((self.last - first) / (self.count - before) * (self.of - self.count))} left"
        return f"{said}  {self.more}".rstrip()


def clock(seconds: float) -> str:
    """Seconds for people.

    >>> clock(7), clock(3675)
    ('0:07', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Lines:
    """Plain lines: what was told, and what goes on where nothing was told for `EVERY` seconds."""

    def __init__(self) -> None:
        self.doing = [Doing("at work")]
        self._said, self._lock, self._over = monotonic(), RLock(), Event()
        self._thread = Thread(target=self._go, name="progress", daemon=True)

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def tell(self, line: str) -> None:
        with self._lock:
            _write(line)
            self._said = monotonic()

    def _go(self) -> None:
        while not self._over.wait(max(0.0, self._said + EVERY - monotonic())):
            if monotonic() - self._said >= EVERY:
                try:
                    self.tell(str(self.doing[-1]))
                except (OSError, ValueError):  # nobody reads it any more
                    return


class _Bar:
    """A terminal's last line, and above it what was told."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.doing, self._console = [Doing("at work")], Console(stderr=True)
        self._live = Live(
            get_renderable=self._line,
            console=self._console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what is piped goes where it was to go
        )

    def __enter__(self) -> _Bar:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, line: str) -> None:
        from rich.text import Text

        self._console.print(Text(printable(line)), soft_wrap=True)

    def _line(self) -> RenderableType:
        """In one line, however narrow."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now, width = self.doing[-1], self._console.width
        text = Text(printable(str(now)), no_wrap=True, overflow="ellipsis")
        if now.share is None:
            return text
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=1.0, completed=now.share, width=min(12, width // 5)), text)
        return row


_showing: ContextVar[_Lines | _Bar | None] = ContextVar("showing", default=None)


@contextmanager
def shown(quiet: bool = False) -> Iterator[None]:
    """Within, the user sees what goes on: of several processes in the first one, and not with `quiet`.

    Within another `shown` it is that one.
    """
    if not quiet and _showing.get():
        yield
        return
    silent = quiet or sys.stderr is None or os.environ.get("RANK", "0") != "0"
    with nullcontext() if silent else _Bar() if _on_terminal() else _Lines() as display:
        token = _showing.set(display)
        try:
            yield
        finally:
            _showing.reset(token)


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def doing(what: str, noun: str = "") -> Iterator[Doing]:
    """Says what goes on within; what is given may be called with how many `noun` are done, and of how many.

    Example:
        >>> with doing("tokenising", "documents") as done:
        ...     done(1024)
    """
    now, display = Doing(what, noun), _showing.get()
    if display is None:
        yield now
        return
    display.doing.append(now)
    try:
        yield now
    finally:
        display.doing.remove(now)


def tell(line: str) -> None:
    """One line of log."""
    display = _showing.get()
    display.tell(line) if display else _write(line)


def _write(line: str) -> None:
    if sys.stderr is not None:
        print(printable(line), file=sys.stderr, flush=True)
