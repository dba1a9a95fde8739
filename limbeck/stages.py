"""Staged recipes: a list of stages, each a recipe over what all share, and what a later one takes from an earlier one.

    stages:
      - stage: hints
        settings: {...}
      - stage: logits
        models: {student: {init: $previous}}

A stage's words stand over the shared ones, table by table; its settings replace theirs. `$hints`, or `$previous`, is the student
that the stage trained with the same seed: of the setting of the same name, or of its only setting; `$hints/NAME` names one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck import load
from limbeck.errors import UserError
from limbeck.recipe import Recipe
from limbeck.words import nearest

PREVIOUS = "$previous"
SHARED = ("name", "question", "out")  # words of the whole
FOLDER = "stages"


def expand(recipe: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipes that are trained one after another: one, or those of its stages.

    Overrides stand over all stages, those of `stages[0]...` over one. An earlier stage's run directory lies in that of the last.

    Raises:
        UserError: as `load.load`; a stage refers to one that is not before it.
    """
    where, table = load.read(recipe)
    if not isinstance(table.get("stages"), list) or not table["stages"]:
        if "stages" in table:
            raise UserError(f"{where}: stages: must be a list of tables, each with its own settings")
        found = [load.validated(where, table, overrides)]
    else:
        found = _staged(where, table, overrides)
    for number, one in enumerate(found):
        _refers(one, found[:number], where)
    return found


def _staged(where: str, table: dict[str, Any], overrides: Sequence[str]) -> list[Recipe]:
    for override in overrides:
        table = load.overridden(table, override) if override.startswith("stages") else table
    shared = {word: value for word, value in table.items() if word != "stages"}
    found: list[Recipe] = []
    for number, own in enumerate(table["stages"]):
        place = f"{where}: stages[{number}]"
        if not isinstance(own, dict):
            raise UserError(f"{place}: must be a table of words and values, not {own!r:.80}")
        for word in (*SHARED, "stages"):
            if word in own:
                raise UserError(f"{place}.{word}: belongs to the whole; put it above the stages")
        merged = _over(shared, own) | {"stage": own.get("stage", f"stage-{number + 1}")}
        if "settings" in own:
            merged["settings"] = own["settings"]
        merged["models"] = _named(merged.get("models", {}), found[-1].stage if found else None, place)
        found.append(load.validated(place, merged, [it for it in overrides if not it.startswith("stages")]))
    names = [one.stage for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two stages are named '{name}'; give one of them another name")
    root = Path(found[-1].run_dir)
    inner = [one.model_copy(update={"out": str(root / FOLDER / one.stage)}) for one in found[:-1]]
    return [*inner, found[-1]]


def _over(shared: Any, own: Any) -> Any:
    """A stage's value over the shared one: tables word by word."""
    if not isinstance(shared, dict) or not isinstance(own, dict):
        return own
    return shared | {word: _over(shared.get(word), value) for word, value in own.items()}


def _named(value: Any, previous: str | None, where: str) -> Any:
    """The value with `$previous` replaced by the name of the stage before."""
    if isinstance(value, dict):
        return {word: _named(each, previous, where) for word, each in value.items()}
    if isinstance(value, list):
        return [_named(each, previous, where) for each in value]
    if not isinstance(value, str) or value.partition("/")[0] != PREVIOUS:
        return value
    if previous is None:
        raise UserError(f"{where}: {PREVIOUS}, but no stage is before this one; name a model")
    return value.replace(PREVIOUS, f"${previous}", 1)


def _sources(one: Recipe) -> list[tuple[str, str]]:
    """Place in the recipe, and what it says, of all its models."""
    said = one.models
    found = [("models.teacher", member.source) for member in said.members]
    found += [(f"models.teachers.{name}", source.source) for name, source in said.teachers.items()]
    return found + ([("models.student.init", said.student.origin.source)] if said.student.origin else [])


def _refers(one: Recipe, before: Sequence[Recipe], where: str) -> None:
    """Whether every stage that a recipe names has trained what it takes from it."""
    earlier = {stage.stage: stage for stage in before}
    for place, source in _sources(one):
        name = stage_of(source)
        if name is None:
            continue
        if name not in earlier:
            said = f"; {nearest(name, earlier)}" if earlier else ", in a recipe with stages"
            raise UserError(f"{where}: {place}: '{source}' is the student of an earlier stage{said}")
        for setting in one.chosen:
            for seed in one.seeds:
                student_of(earlier[name], source, setting, seed, f"{where}: {place}")


def stage_of(source: str) -> str | None:
    """`hints` of `$hints` and of `$hints/NAME`; None for what is no student of a stage."""
    return source.partition("/")[0].removeprefix("$") if source.startswith("$") else None


def student_of(earlier: Recipe, source: str, setting: str, seed: int, where: str = "models") -> str:
    """Which learner of an earlier stage `source` means for a setting and a seed of a later one.

    Raises:
        UserError: the earlier stage trained no such setting or seed, or several that it could be.
    """
    known, wanted = earlier.chosen, source.partition("/")[2]
    name = wanted or (setting if setting in known else next(iter(known)))
    if name not in known or (not wanted and name != setting and len(known) > 1):
        raise UserError(
            f"{where}: stage {earlier.stage} trained {', '.join(known)}; say which one teaches {setting}, such as ${earlier.stage}/{next(iter(known), name)}"
        )
    first, *more = earlier.seeds
    if seed not in earlier.seeds and more:
        raise UserError(f"{where}: stage {earlier.stage} has no seed {seed}; give both stages the same seeds")
    return earlier.learner(name, seed if seed in earlier.seeds else first)


def dump(tables: Sequence[Recipe]) -> dict[str, Any]:
    """What stands in the recipe.yaml of a run: of a single recipe itself, else the whole with its stages."""
    plain = [one.model_dump(mode="json") for one in tables]
    if len(plain) == 1:
        return plain[0]
    whole: Mapping[str, Any] = {word: plain[-1][word] for word in SHARED}
    return {**whole, "stages": [{k: v for k, v in one.items() if k not in SHARED} for one in plain]}
