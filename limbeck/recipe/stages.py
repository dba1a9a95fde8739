"""Staged recipes: a list of stages, each a recipe over what all share, and what a later one takes from an earlier one.

    stages:
      - stage: hints
        settings: {...}
      - stage: logits
        models: {student: {init: $previous}}

A stage's keys stand over the shared ones, table by table; its settings, its layer map and the models that it names replace
theirs. `$hints`, or `$previous`, is the student that the stage trained with the same seed (or with its only seed): of the setting
of the same name, or of its only setting; `$hints/NAME` names one. Of peers it is the first. A stage with `write` trains nothing and
writes a text, which a later one reads as the corpus `$NAME`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck import rundir
from limbeck.errors import UserError, nearest
from limbeck.recipe import load, stage_texts
from limbeck.recipe.models import Source
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.stage_texts import JOINED, stage_of

PREVIOUS = "$previous"
SHARED = ("name", "question", "out")  # keys of the whole
TRAINS = ("settings", "only", "cache", "report_to")  # keys of a stage that trains
OF_A_PROCESS = ("device", "threads", "deterministic")  # keys of train that one process cannot change
REPLACED = ("settings", "from_layers")  # tables whose keys are names: a stage's stands in place of the shared one
MERGED = ("Data", "Masking", "Mixture", "Models", "Student", "Task", "Train", "Unlabelled")  # the other tables
FOLDER = "stages"

_OF_LIST = re.compile(r"stages(?=[.\[=])")
_OF_ONE = re.compile(r"stages(?:\[(\d+)\]|\.(\d+))\.(?=.)")


def expand(recipe: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipes that are trained one after another: one, or those of its stages.

    Overrides stand over all stages, and those of `stages[0]...` over these in one; none of all goes into a table that a stage
    sets to null. An earlier stage's run directory lies in that of the last.

    Raises:
        UserError: as `load.load`; a stage refers to one that is not before it.
    """
    return of_table(*load.read(recipe), overrides)


def of_table(where: str, table: dict[str, Any], overrides: Sequence[str] = ()) -> list[Recipe]:
    """As `expand`, of a table that is read already; `where` is what errors call it."""
    for override in overrides:
        if _OF_LIST.match(override) and not _OF_ONE.match(override) and ("stages" in table or override[6] == "="):
            table = load.overridden(table, override)
    if "stages" in table:
        return _staged(where, table, overrides)
    for override in overrides:
        if _OF_LIST.match(override):
            raise UserError(f"{override.partition('=')[0]}: {where} has no stages; leave the prefix out")
    return [alone(load.validated(where, table, overrides), where)]


def alone(one: Recipe, where: str = "recipe") -> Recipe:
    """The recipe, which is no stage and refers to none."""
    if one.write:
        raise UserError(f"{where}: write: nothing trains on this text; make it a stage of a recipe with `stages`")
    refers(one, (), where)
    return one


def _staged(where: str, table: dict[str, Any], overrides: Sequence[str]) -> list[Recipe]:
    listed, shared = table["stages"], {word: value for word, value in table.items() if word != "stages"}
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{where}: stages: must be a list of tables, one for each stage, not {listed!r:.80}")
    if not any(word == "name" or word.startswith("name=") for word in (*shared, *overrides)):
        raise UserError(f"{where}: name: missing; set it")
    everywhere = [override for override in overrides if not _OF_LIST.match(override)]
    mine = _of_each(overrides, len(listed))
    found: list[Recipe] = []
    for number, own in enumerate(listed):
        found.append(_stage(where, shared, own, found, everywhere, mine[number]))
    _one_process(found, where)
    if found[-1].write:
        raise UserError(f"{where}: stages[{len(found) - 1}].write: nothing trains on this text; add a stage that does")
    root = Path(found[-1].run_dir)
    if JOINED in str(root) and any(one.write for one in found):
        raise UserError(f"{where}: out: '{JOINED}' joins corpora, and a stage writes one there; choose another folder")
    inner = [one.model_copy(update={"out": str(root / FOLDER / one.stage)}) for one in found[:-1]]
    return [*inner, found[-1]]


def _of_each(overrides: Sequence[str], count: int) -> list[list[str]]:
    """The overrides of every stage, without their prefixes."""
    mine: list[list[str]] = [[] for _ in range(count)]
    for override in overrides:
        if found := _OF_ONE.match(override):
            number, rest = int(found[1] or found[2]), override[found.end() :]
            if number >= count:
                raise UserError(f"{override}: there is no stage {number}; the list has {count}, counted from 0")
            mine[number].append(rest)
    return mine


def _stage(
    where: str, shared: dict[str, Any], own: Any, before: Sequence[Recipe], everywhere: list[str], mine: list[str]
) -> Recipe:
    """One stage: defaults < shared keys < its own < overrides of all stages < overrides of this one."""
    place = f"{where}: stages[{len(before)}]"
    if not isinstance(own, dict):
        raise UserError(f"{place}: must be a table of keys and values, not {own!r:.80}")
    for word in (*own, *(re.split(r"[.\[=]", override)[0] for override in mine)):
        if word in (*SHARED, "stages"):
            raise UserError(f"{place}.{word}: belongs to the whole; put it above the stages")
    if "write" in own:  # it trains none of those that all share
        shared = {word: value for word, value in shared.items() if word not in TRAINS}
        everywhere = [each for each in everywhere if re.split(r"[.\[=]", each)[0] not in TRAINS]
    merged = {"stage": f"stage-{len(before) + 1}"} | _over(shared, own)
    try:
        for override in (*(each for each in everywhere if not _into_null(own, each)), *mine):
            merged = load.overridden(merged, override)
        for word in ("models", "data"):
            merged[word] = _named(merged.get(word, {}), before[-1].stage if before else None)
        one = load.validated("", merged)
    except UserError as error:
        said = str(error).removeprefix(": ")
        path = [part for part in re.split(r"[.\[\]]", said.partition(":")[0]) if part]
        everyones = _holds(shared, path) and not _holds(own, path)
        raise UserError(f"{where if everyones else place}: {said}") from None
    if one.stage == PREVIOUS[1:] or one.stage in [other.stage for other in before]:
        taken = "another stage has this name" if one.stage != PREVIOUS[1:] else f"{PREVIOUS} is the stage before"
        raise UserError(f"{place}.stage: {one.stage}: {taken}; choose another name")
    refers(one, before, place)
    return one


def _over(shared: Any, own: Any) -> Any:
    """A stage's value over the shared one: tables key by key, but not those that name a model."""
    if not isinstance(shared, dict) or not isinstance(own, dict) or own.keys() & {"source", "ensemble"}:
        return own
    return shared | {word: value if word in REPLACED else _over(shared.get(word), value) for word, value in own.items()}


def _holds(table: Any, path: Sequence[str]) -> bool:
    """Whether a table has a value at a path."""
    for part in path:
        if isinstance(table, list) and part.isdigit() and int(part) < len(table):
            table = table[int(part)]
        elif isinstance(table, dict) and part in table:
            table = table[part]
        else:
            return False
    return True


def _into_null(own: Any, override: str) -> bool:
    """Whether an override of all stages goes into a table that this one is without: `data.task.label=x` over `task: null`."""
    for part in override.partition("=")[0].split(".")[:-1]:
        if not isinstance(own, dict) or part not in own:
            return False
        if (own := own[part]) is None:
            return True
    return False


def _named(value: Any, previous: str | None) -> Any:
    """The value with `$previous` replaced by the name of the stage before."""
    if isinstance(value, dict):
        return {word: _named(each, previous) for word, each in value.items()}
    if isinstance(value, list):
        return [_named(each, previous) for each in value]
    parts = value.split(JOINED) if isinstance(value, str) else []
    if not any(map(_is_previous, parts)):
        return value
    if previous is None:
        raise UserError(f"{PREVIOUS}, but no stage is before this one; name a model or a corpus")
    return JOINED.join(f"${previous}{part[len(PREVIOUS) :]}" if _is_previous(part) else part for part in parts)


def _is_previous(part: str) -> bool:
    return part.partition("/")[0] == PREVIOUS


def _one_process(found: Sequence[Recipe], where: str) -> None:
    """Whether one process can train all stages."""
    for word in OF_A_PROCESS:
        for one in found:
            if getattr(one.train, word) != getattr(found[0].train, word):
                raise UserError(
                    f"{where}: train.{word}: the stages {found[0].stage} and {one.stage} have different ones, and one process "
                    "trains both; put it above the stages"
                )


# what a stage takes from those before it


def placed_sources(one: Recipe) -> list[tuple[str, Source]]:
    """Place in the recipe, and what it says, of all its models."""
    said = one.models
    found = [("models.teacher", member) for member in said.members]
    found += [(f"models.teachers.{name}", source) for name, source in said.teachers.items()]
    return found + ([("models.student.init", said.student.origin)] if said.student.origin else [])


def refers(one: Recipe, before: Sequence[Recipe], where: str) -> None:
    """Whether every stage that a recipe names has trained or written what it takes from it."""
    stage_texts.refers(one, before, where)
    earlier = {stage.stage: stage for stage in before}
    for place, source in placed_sources(one):
        said, name = source.source, stage_of(source.source)
        if name is None:
            continue
        if not earlier:
            raise UserError(f"{where}: {place}: '{said}' is the student of a stage, and none is before; name a model")
        if name not in earlier:
            raise UserError(f"{where}: {place}: '{said}': no stage before is named so; {nearest(name, earlier)}")
        if earlier[name].write:
            raise UserError(f"{where}: {place}: '{said}': this stage writes a text and trains nobody; name another")
        if source.revision:
            raise UserError(f"{where}: {place}: '{said}' has no revisions; leave @{source.revision} out")
        for setting in one.chosen:
            for seed in one.seeds:
                student_of(earlier[name], said, setting, seed, f"{where}: {place}")


def student_of(earlier: Recipe, source: str, setting: str, seed: int, where: str = "models") -> str:
    """Which learner of an earlier stage `source` means for a setting and a seed of a later one.

    Raises:
        UserError: the earlier stage trained no such setting or seed, or several that it could be.
    """
    known, wanted = earlier.chosen, source.partition("/")[2]
    name = wanted or (setting if setting in known or len(known) > 1 else next(iter(known)))
    if name not in known:
        remedy = nearest(name, known) if wanted else f"say which one {setting} takes"
        raise UserError(
            f"{where}: the stage {earlier.stage} trained {', '.join(known)} and no {name}; {remedy}, such as "
            f"${earlier.stage}/{next(iter(known))}"
        )
    first, *more = earlier.seeds
    if seed not in earlier.seeds and more:
        raise UserError(f"{where}: stage {earlier.stage} has no seed {seed}; give both stages the same seeds")
    return earlier.learner(name, seed if seed in earlier.seeds else first)


def folder_of(earlier: Recipe, source: str, setting: str, seed: int) -> Path:
    """Where an earlier stage left the student that `source` means.

    Raises:
        UserError: it is not there.
    """
    folder = Path(earlier.run_dir) / rundir.STUDENTS / student_of(earlier, source, setting, seed)
    if not (Path(earlier.run_dir) / rundir.MANIFEST).is_file():
        raise UserError(
            f"{source}: the stage {earlier.stage} has not been trained; run the recipe, which trains it first"
        )
    if not folder.is_dir():
        raise UserError(
            f"{folder}: this student of the stage {earlier.stage} is gone; put it back, or remove {earlier.run_dir} to train it "
            "again"
        )
    return folder


def taken(one: Recipe, finished: Mapping[str, Recipe]) -> list[Path]:
    """The folders of all students that a stage takes from finished ones.

    Raises:
        UserError: one is not there.
    """
    named = [(source.source, stage_of(source.source) or "") for _, source in placed_sources(one)]
    return [
        folder_of(finished[name], said, setting, seed)
        for said, name in named
        if name in finished
        for setting in one.chosen
        for seed in one.seeds
    ]


# what is written


def dump(tables: Sequence[Recipe]) -> dict[str, Any]:
    """What stands in the recipe.yaml of a run: of a single recipe itself, else the whole with its stages."""
    plain = [one.model_dump(mode="json") for one in tables]
    if len(plain) == 1:
        return plain[0]
    whole: Mapping[str, Any] = {word: plain[-1][word] for word in SHARED}
    return {**whole, "stages": [{k: v for k, v in one.items() if k not in SHARED} for one in plain]}


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with stages or without."""
    whole = Recipe.model_json_schema()
    tables, said = whole["$defs"], whole["properties"]
    tables["Source"] = {"anyOf": [tables["Source"], {"type": "string", "minLength": 1}]}  # a bare name is enough
    said["only"]["anyOf"].append({"type": "string"})
    own = {word: value for word, value in said.items() if word not in SHARED}
    parts = {name: {**tables[name], "required": []} for name in MERGED} | {"": {"type": "object", "properties": own}}
    text = json.dumps({f"Stage{name}": part | {"additionalProperties": False} for name, part in parts.items()})
    for name in MERGED:
        text = text.replace(f'"#/$defs/{name}"', f'"#/$defs/Stage{name}"')
    listed = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Stage"}}
    listed["description"] = "recipes that are trained one after another, each over the keys above"
    either = [{"required": ["settings"]}, {"required": ["stages"]}]
    more = {"$defs": tables | json.loads(text), "properties": said | {"stages": listed}}
    return whole | more | {"required": ["name"], "anyOf": either}
