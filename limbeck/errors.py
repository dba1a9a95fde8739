"""How a command ends that does not end well: a user's mistake, an interruption, settings that failed."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str) -> str:
    """A text in one line, of which nothing steers a terminal: what is not printable is written as its code.

    >>> print(printable("red: \\x1b[31m"))
    red: \\x1b[31m
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """A mistake that the user can mend: one line that says what is wrong, where, and the remedy.

    The command line prints it without a traceback and ends with exit status 2.

    >>> str(UserError("two\\nlines"))
    'two\\\\nlines'
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Interrupted(Exception):
    """The run was asked to stop, or lost one of its processes: running it again goes on. Exit status 75."""


class Failed(Exception):
    """Some settings did not end: their numbers were not finite. The others did. Exit status 3.

    Args:
        lines: what happened to each; one line counts once.

    >>> str(Failed(["a stopped", "b stopped", "a stopped"]))
    'failed: a stopped (and 1 more)'
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = list(dict.fromkeys(lines))
        more = f" (and {len(self.lines) - 1} more)" if len(self.lines) > 1 else ""
        super().__init__(f"failed: {self.lines[0]}{more}")
