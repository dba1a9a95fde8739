"""Changes of a student from the keys of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from limbeck.assemble import own
from limbeck.batch import Batch
from limbeck.models.changes import Change, quantise
from limbeck.models.changes.factorise import Factorise
from limbeck.models.changes.quantise import Quantise
from limbeck.recipe import changes as keys
from limbeck.recipe.recipe import Recipe

Calibration = Callable[[], Iterable[Batch]]  # some batches of training text, the same in every process


def of_setting(table: Recipe, setting: str, text: Calibration) -> tuple[list[Change], list[Change]]:
    """What is done to the students of a setting: from the start of their training on, and at its end.

    Args:
        table: the recipe.
        setting: its name.
        text: what data-aware changes look at.

    Raises:
        UserError: one of one's own cannot be made.
    """
    at_end = table.settings[setting].changes_at == "end"
    made = [_made(one, table.train.steps, at_end, text) for one in table.changes_of(setting)]
    return ([], made) if at_end else (made, [])


def _made(said: keys.OneChange, steps: int, at_end: bool, text: Calibration) -> Change:
    if isinstance(said, str):
        return own.change(said)
    if isinstance(said.said, keys.Quantise):
        return _quantise(said.said)
    if isinstance(said.said, keys.Factorise):
        return _factorise(said.said, text)
    raise NotImplementedError


def _factorise(said: keys.Factorise, text: Calibration) -> Factorise:
    return Factorise(
        share=said.share,
        energy=said.energy,
        rank=said.rank,
        text=text if said.by == "activations" else None,
        embedding=said.embedding,
        layers=said.layers,
        skip=said.skip,
    )


def _quantise(said: keys.Quantise) -> Quantise:
    def bits(word: str | None) -> int | None:
        word = said.weights if word == "same" else word
        return int(word.removeprefix("int")) if word else None

    return Quantise(
        bits=bits(said.weights),
        embedding=bits(said.embedding),
        head=bits(said.head),
        group=said.group,
        activations=said.activations is not None,
        skip=said.skip,
    )


def require(table: Recipe) -> None:
    """Whether everything that the changes of a recipe need is there.

    Raises:
        UserError: something is not.
    """
    for path in own_paths(table):
        own.change(path)
    if any(isinstance(it, keys.ChangeKeys) and it.quantise for name in table.chosen for it in table.changes_of(name)):
        quantise.require()


def own_paths(table: Recipe) -> list[str]:
    """The import paths of changes of one's own, each once."""
    said: Sequence[keys.OneChange] = [it for name in table.chosen for it in table.changes_of(name)]
    return list(dict.fromkeys(it for it in said if isinstance(it, str)))
