"""Writers of texts: what a stage with `write` does in place of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from limbeck.assemble import own
from limbeck.errors import UserError
from limbeck.recipe.recipe import Recipe

if TYPE_CHECKING:
    from limbeck.assemble.design import Design


class TextWriter(Protocol):
    """Writes the text that later stages read. One's own is a class of it, made without arguments.

    What it writes is to be a function of the stage's recipe and of what the recipe names: a text that was not written whole is written
    again from its beginning.

    Example:
        class Short(TextWriter):
            '''The short documents of the stage's own corpus.'''

            def rows(self, plan):
                for part, name, text in separate(plan.data):  # of limbeck.text.heldout
                    if part == "train" and len(text) < 1000:
                        yield {"text": text}
    """

    def rows(self, plan: Design) -> Iterator[Mapping[str, Any]]:
        """The documents, or the rows of a task: column -> value, as JSON."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {}


def writer_of(table: Recipe) -> TextWriter | None:
    """The writer of a stage; None of a stage that trains.

    Raises:
        UserError: there is no such class.
    """
    if not table.write:
        return None
    writer = own.made(table.write, "write", TextWriter)
    if type(writer).rows is TextWriter.rows:
        raise UserError(f"write: {table.write}: it has no rows; write `def rows(self, plan)`, which yields them")
    return writer
