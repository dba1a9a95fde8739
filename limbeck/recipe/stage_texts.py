"""Texts that a stage writes: `$NAME` in place of a corpus is the text of the stage NAME, several are joined by ` + ` as corpora are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck import rundir
from limbeck.errors import UserError, nearest
from limbeck.recipe.data import Data
from limbeck.system.files import read_json

if TYPE_CHECKING:
    from limbeck.recipe.recipe import Recipe

JOINED = " + "  # between the corpora of one word


def stage_of(source: str) -> str | None:
    """`hints` of `$hints` and of `$hints/NAME`; None for what comes from no stage."""
    return source.partition("/")[0].removeprefix("$") if source.startswith("$") else None


def parts(spec: str) -> list[str]:
    """The corpora that are joined in one word."""
    return [part.strip() for part in spec.split(JOINED)]


def corpora(data: Data) -> list[tuple[str, str]]:
    """Place in the recipe, and what it says, of every corpus; joined ones one by one."""
    heldout = [("data.heldout", data.heldout)] if isinstance(data.heldout, str) else []
    others = [(f"data.{place}.corpus", part) for place, it in data.others.items() for part in parts(it.corpus)]
    return [*(("data.corpus", part) for part in parts(data.corpus)), *heldout, *others]


def named(data: Data) -> list[tuple[str, str]]:
    """Place in the recipe and stage of every text that a stage writes.

    >>> named(Data(corpus="docs + $echo", heldout="mine.txt"))
    [('data.corpus', 'echo')]
    """
    return [(place, part[1:]) for place, part in corpora(data) if part.startswith("$")]


def refers(one: Recipe, before: Sequence[Recipe], where: str) -> None:
    """Whether every stage whose text a recipe names is before it and writes one.

    Raises:
        UserError: it is not, or trains students.
    """
    earlier = {stage.stage: stage for stage in before}
    for place, name in named(one.data):
        if not earlier:
            raise UserError(f"{where}: {place}: '${name}' is the text of a stage, and none is before; name a corpus")
        if name not in earlier:
            raise UserError(f"{where}: {place}: '${name}': no stage before is named so; {nearest(name, earlier)}")
        if earlier[name].write is None:
            writers = [stage.stage for stage in before if stage.write]
            remedy = f"name ${writers[-1]}" if writers else "a stage with `write` writes one"
            raise UserError(f"{where}: {place}: '${name}': this stage trains students and writes no text; {remedy}")


def file_of(writer: Recipe) -> Path:
    """Where a stage leaves its text."""
    return Path(writer.run_dir) / rundir.TEXT


def placed(data: Data, before: Mapping[str, Recipe]) -> Data:
    """The table in which files stand for the texts of stages."""
    if not named(data):
        return data

    def at(spec: str) -> str:
        return JOINED.join(str(file_of(before[it[1:]])) if it.startswith("$") else it for it in parts(spec))

    unlabelled = data.unlabelled and data.unlabelled.model_copy(update={"corpus": at(data.unlabelled.corpus)})
    mixture = {name: it.model_copy(update={"corpus": at(it.corpus)}) for name, it in data.mixture.items()}
    heldout = at(data.heldout) if isinstance(data.heldout, str) else data.heldout
    words = {"corpus": at(data.corpus), "heldout": heldout, "unlabelled": unlabelled, "mixture": mixture}
    return data.model_copy(update=words)


def missing(data: Data, before: Mapping[str, Recipe]) -> list[str]:
    """The stages whose texts it reads that have not written them, or not to the end."""
    return list(dict.fromkeys(name for _, name in named(data) if not is_written(before[name])))


def is_written(writer: Recipe) -> bool:
    """Whether a stage has written its text and said so."""
    try:
        told = read_json(Path(writer.run_dir) / rundir.MANIFEST)
        return told["status"] == "done" and file_of(writer).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False
