"""Changes of a student from the keys of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from transformers import PretrainedConfig

from limbeck.assemble import own
from limbeck.batch import Batch
from limbeck.errors import UserError
from limbeck.models import students
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


def _factorise(said: keys.Factorise, text: Calibration) -> Factorise:
    return Factorise(
        share=said.share,
        energy=said.energy,
        rank=said.rank,
        embedding=said.embedding,
        layers=said.layers,
        head=said.head,
        skip=said.skip,
        text=text if said.by == "activations" else None,
    )


def require(table: Recipe, student: PretrainedConfig) -> None:
    """Whether everything that the changes of a recipe need is there, and whether they fit its students.

    Raises:
        UserError: something is not, or does not.
    """
    for path in own_paths(table):
        own.change(path)
    if any(isinstance(it, keys.ChangeKeys) and it.quantise for name in table.chosen for it in table.changes_of(name)):
        quantise.require()
    for name in table.chosen:
        _factors_fit(table, name, student)


def _factors_fit(table: Recipe, setting: str, student: PretrainedConfig) -> None:
    """Whether something becomes smaller, as far as shapes tell, and nothing else holds the embedding."""
    said = [it.said for it in table.changes_of(setting) if isinstance(it, keys.ChangeKeys)]
    for one in (it for it in said if isinstance(it, keys.Factorise)):
        tied = student.tie_word_embeddings and not student.problem_type
        if one.embedding and tied and table.settings[setting].exits:
            raise UserError(
                f"settings.{setting}: early exits share the embedding, which factorise takes apart; set its embedding to false"
            )
        with torch.device("meta"):
            shape = students.build(student, seed=0)
        _factorise(one, tuple).chosen(shape)


def own_paths(table: Recipe) -> list[str]:
    """The import paths of changes of one's own, each once."""
    said: Sequence[keys.OneChange] = [it for name in table.chosen for it in table.changes_of(name)]
    return list(dict.fromkeys(it for it in said if isinstance(it, str)))
