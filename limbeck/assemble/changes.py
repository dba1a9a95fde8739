"""Changes of a student from the keys of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from transformers import PretrainedConfig

from limbeck.assemble import own
from limbeck.batch import Batch
from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models import compressed, kept_units, layer_maps, students
from limbeck.models.changes import Change, prune, quantise, sizes
from limbeck.models.changes.cubic import Cuts
from limbeck.models.changes.factorise import Factorise
from limbeck.models.changes.quantise import Quantise
from limbeck.models.changes.sizes import Shares
from limbeck.models.changes.units import Units
from limbeck.recipe import changes as keys
from limbeck.recipe.recipe import Recipe

Calibration = Callable[[], Iterable[Batch]]  # some batches of training text, the same in every process

UNITS = ("neurons", "heads", "hidden", "layers")


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
    made = [_made(one, table.train.steps, text) for one in table.changes_of(setting)]
    return ([], made) if at_end else (made, [])


def _made(said: keys.OneChange, steps: int, text: Calibration) -> Change:
    if isinstance(said, str):
        return own.change(said)
    if isinstance(said.said, keys.Quantise):
        return _quantise(said.said)
    if isinstance(said.said, keys.Factorise):
        return _factorise(said.said, text)
    return _prune(said.said, steps, text)


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


def _prune(said: keys.Prune, steps: int, text: Calibration) -> Change:
    cuts = Cuts(round(said.begin * steps), round(said.until * steps), said.every)
    if said.weights is None:
        return Units(Shares(**{name: getattr(said, name) for name in UNITS}), cuts, said.by, text)
    if said.weights == "2:4":
        return prune.Pairs(cuts)
    if said.by == "movement":
        return prune.Movement(said.weights, cuts, said.rate)
    return prune.Magnitude(cuts, said.weights)


def kept_zeros(
    folder: Path, origin: PretrainedConfig, student: PretrainedConfig, which: layer_maps.LayerMap
) -> list[Change]:
    """What keeps the zeros of a student that begins as one whose single weights were pruned; nothing where they were not.

    Args:
        folder: the student that it begins as.
        origin: its config.
        student: that of the student that is trained.
        which: which of its layers each layer of the student is.

    Raises:
        UserError: its `compression.json` is damaged.
    """
    pruned = compressed.read(folder).pruned
    depths = [kept_units.sizes(config).layers for config in (student, origin)]
    there, here = (f"{row.base}.{row.layers}." for row in (family(it.model_type) for it in (origin, student)))
    names = []
    for mine, theirs in layer_maps.resolve(which, *depths).items():
        begins = f"{there}{theirs - 1}."
        names += [f"{here}{mine - 1}.{name.removeprefix(begins)}" for name in pruned if name.startswith(begins)]
    return [prune.Zeros(names=tuple(names))] if names else []


def shrunk(table: Recipe, setting: str, config: PretrainedConfig) -> PretrainedConfig:
    """The config of the students of a setting as they are exported; `config` is the one with which they train."""
    made, finishing = of_setting(table, setting, tuple)
    for change in (*made, *finishing):
        config = change.shrunk(config)
    return config


def require(table: Recipe, student: PretrainedConfig) -> None:
    """Whether everything that the changes of a recipe need is there, and fits the students; said before any weight is read.

    Args:
        table: the recipe.
        student: the config of its students.

    Raises:
        UserError: something is not there, or does not fit.
    """
    for path in own_paths(table):
        own.change(path)
    for name in table.chosen:
        said = [it.said for it in table.changes_of(name) if isinstance(it, keys.ChangeKeys)]
        if any(isinstance(it, keys.Quantise) for it in said):
            quantise.require()
        for number, one in enumerate(said):
            if isinstance(one, keys.Prune):
                _fits(table, name, one, [it for it in said[:number] if isinstance(it, keys.Prune)], student)
        _grids_fit(name, said)
        _shapes_fit(table, name, said, student)


def _fits(table: Recipe, name: str, one: keys.Prune, before: Sequence[keys.Prune], student: PretrainedConfig) -> None:
    """Whether a student can be pruned so."""
    where, setting = f"settings.{name}: prune", table.settings[name]
    cut = [unit for unit in UNITS if getattr(one, unit) is not None]
    if setting.changes_at == "end":
        if one.by in ("movement", "taylor"):
            raise UserError(
                f"{where}: by: {one.by} needs training, and changes_at is end; choose magnitude"
                f"{' or activations' if cut else ''}, or set changes_at to start"
            )
        if one.until > 0:
            raise UserError(f"{where}: begin and end say when in the training, and changes_at is end; leave one out")
    for unit in cut:
        if any(getattr(it, unit) is not None for it in before):
            raise UserError(f"{where}: {unit}: two changes cut them; say it in one")
    if one.by == "movement" and any(it.by == "movement" for it in before):
        raise UserError(f"{where}: by: movement: two changes have scores; make one of them")
    if setting.exits and {"hidden", "layers"} & set(cut):
        raise UserError(
            f"{where}: {' and '.join(cut)}: heads of early exits stand behind layers of this width; leave exits out, or prune "
            "neurons or weights"
        )
    if cut:
        sizes.require(student, Shares(**{unit: getattr(one, unit) for unit in UNITS}))
    elif one.weights == "2:4":
        _fours(student)


def _fours(student: PretrainedConfig) -> None:
    """Whether four divides the inputs of every layer that is cut 2:4."""
    found = kept_units.sizes(student)
    for what, inputs in (("hidden", found.hidden), ("context", found.axes["context"]), ("neuron", found.neurons)):
        if inputs % 4:
            raise UserError(
                f"changes: prune: weights: 2:4 cuts two of four inputs, and four does not divide the {inputs} {what} inputs of "
                f"a layer; give weights a share such as 0.5, or the student another width"
            )


def _grids_fit(name: str, said: Sequence[object]) -> None:
    """Groups of inputs that share a scale, and fours, are others when inputs are gone."""
    units = [it for it in said if isinstance(it, keys.Prune) and it.weights is None]
    grouped = [it for it in said if isinstance(it, keys.Quantise) and it.group]
    if grouped and any(it.neurons or it.heads or it.hidden for it in units):
        raise UserError(
            f"settings.{name}: quantise: group: groups of {grouped[0].group} inputs are others when prune has cut inputs away; "
            "leave group out, or prune weights or layers"
        )
    fours = any(isinstance(it, keys.Prune) and it.weights == "2:4" for it in said)
    if fours and any(it.neurons or it.heads or it.hidden for it in units):
        raise UserError(
            f"settings.{name}: prune: weights: 2:4 counts inputs in fours, which are others when neurons, heads or hidden are cut; make "
            "two stages of it, or give weights a share"
        )


def _shapes_fit(table: Recipe, setting: str, said: Sequence[object], student: PretrainedConfig) -> None:
    """Whether factors become smaller and groups divide, as far as shapes tell, and nothing else holds the embedding."""
    for one in (it for it in said if isinstance(it, keys.Factorise | keys.Quantise)):
        tied = student.tie_word_embeddings and not student.problem_type
        if isinstance(one, keys.Factorise) and one.embedding and tied and table.settings[setting].exits:
            raise UserError(
                f"settings.{setting}: early exits share the embedding, which factorise takes apart; set its embedding to false"
            )
        with torch.device("meta"):
            shape = students.build(student, seed=0)
        made = _factorise(one, tuple) if isinstance(one, keys.Factorise) else _quantise(one)
        made.chosen(shape)


def own_paths(table: Recipe) -> list[str]:
    """The import paths of changes of one's own, each once."""
    said: Sequence[keys.OneChange] = [it for name in table.chosen for it in table.changes_of(name)]
    return list(dict.fromkeys(it for it in said if isinstance(it, str)))
