"""The one exception that a user's mistake raises."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: one line that says what is wrong, where, and the remedy.

    The command line prints it without a traceback and ends with exit status 2.

    >>> str(UserError("two\\nlines"))
    'two\\\\nlines'
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


class Interrupted(Exception):
    """The run was asked to stop: everything is saved, and running it again goes on. Exit status 75."""
