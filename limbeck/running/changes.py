"""What has changed since a run began: its recipe, its text, its models, its machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from limbeck import rundir
from limbeck.assemble.kinds import kind_of
from limbeck.errors import UserError
from limbeck.recipe import stages
from limbeck.recipe.identity import FREE, identity
from limbeck.recipe.plain_yaml import of_run
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.settings import OF_RUN
from limbeck.recipe.stage_texts import placed
from limbeck.running.manifest import Facts, now, own_code
from limbeck.system import files
from limbeck.system.files import path_of
from limbeck.text import unchanged

OWN = "the code of a change, an actor, a kind or a writer of text"
HARMFUL = {
    "the text": ("data", "sha256"),
    "the held-out text": ("data", "heldout_sha256"),
    "the unlabelled text": ("data", "unlabelled", "sha256"),
    "a text of the mixture": ("data", "mixture"),
    "the tokenizer": ("data", "tokenizer_sha256"),
    "the teacher": ("teacher", "sha256"),
    "another teacher": ("teachers",),
    "the initial students": ("initial",),
    "the code of a loss": ("losses",),
    OWN: ("own",),
}
MODELS = {"models.teacher": "the teacher", "models.student.init": "the initial students"}  # by their place in a recipe
HARMLESS = {  # the same run, to rounding
    "versions": ("versions",),
    "processes": ("processes",),
    "device": ("device",),
    "threads": ("machine", "threads"),
}
KEPT = (
    "started",
    "finished",
    "seconds",
    "status",
    "command",
    "baselines",
    "forced",
    "changed",
)  # by a run that goes on
NAMED = 4  # changed keys of a recipe that an error names


class Changes(NamedTuple):
    """What differs between a run as it began and as it would go on."""

    harmful: list[str]  # it would be another run
    rounding: list[str]  # the same run, but not in the same bits
    free: list[str]  # nothing depends on it


def precision(folder: Path) -> str | None:
    """The precision of the run that has begun in a folder; None where none has."""
    try:
        told = files.read_json(folder / rundir.MANIFEST)
        if "precision" in told:
            return told["precision"]
        before = _recorded(folder, told["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return before.train.precision if before else "fp32"  # as all recipes began that said none


def changes(began: Facts, goes_on: Facts) -> Changes:
    """What a run was made of and is no more, by two manifests; the recipe apart."""
    differs = {what: _at(began, path) != _at(goes_on, path) for what, path in (HARMFUL | HARMLESS).items()}
    return Changes([it for it in HARMFUL if differs[it]], [it for it in HARMLESS if differs[it]], [])


def compared(
    folder: Path, began: Facts, goes_on: Facts, table: Recipe, force: bool, tell: Callable[[str], None]
) -> Changes:
    """All that has changed since the run in a folder began, a line for each.

    Raises:
        UserError: it would be another run, and nobody said `force`.
    """
    keys, facts = changed_keys(folder, began, table), changes(began, goes_on)
    if facts.harmful and not force:
        raise other_facts(folder, facts.harmful)
    found = Changes(*(one + other for one, other in zip(keys, facts, strict=True)))
    ends = ("by force, and is no function of its recipe any more", "but not in the same bits", "in the same bits")
    for several, end in zip(found, ends, strict=True):
        for what in several:
            tell(f"{folder}: {what} changed since this run began: it goes on, {end}")
    return found


def finished(folder: Path, table: Recipe, before: Mapping[str, Recipe]) -> list[str]:
    """What a run that is done was made of and finds no more, in the words of `changes`, with the reason where it is gone.

    No model is built and the Hub is not asked: weights are held together as files. `before` are the stages before it.
    """
    began, found = files.read_json(folder / rundir.MANIFEST), []
    if table.write and not files.is_same(folder / rundir.TEXT, began["written"]):
        found.append("the text that it wrote")
    texts = (
        kind_of(table).texts if not table.write else lambda data: None
    )  # of what a writer reads only the files are known
    texts = unchanged.changed(placed(table.data, before), began.get("data", {}), texts)
    for what, path in HARMFUL.items():
        if path[0] == "data" and path[1] in texts:
            found.append(f"{what} ({why})" if (why := texts[path[1]]) else what)
    found += _other_code(began, table)
    known = began.get("weights", {})  # runs of earlier versions have none
    for place, source in stages.placed_sources(table):
        there, what = path_of(source.source), MODELS.get(place, "another teacher")
        if source.source in known and not there.is_dir():
            found.append(f"{what} ({there}: no such folder)")
        elif not all(files.is_same(there / name, file) for name, file in known.get(source.source, {}).items()):
            found.append(what)
    return found


def _other_code(began: Facts, table: Recipe) -> list[str]:
    """Which code of one's own is another than a run was made with, or gone."""
    try:
        now = own_code(table)
    except UserError as error:
        return [f"{OWN} ({str(error).partition(';')[0]})"]
    words = {"the code of a loss": "losses", OWN: "own"}
    return [what for what, key in words.items() if began.get(key, {}) != now.get(key, {})]


def changed_keys(folder: Path, began: Facts, table: Recipe) -> Changes:
    """The keys of a recipe that are others than when the run in a folder began, each with both values.

    More updates do no harm where the rate of those that are done does not depend on their number: under a constant schedule
    with the same warm-up.
    """
    other = identity(table) != began["recipe_sha256"]
    before = _recorded(folder, table.stage)
    if before is None or identity(before) != began["recipe_sha256"]:  # recipe.yaml was lost or edited
        return Changes(["the recipe"] if other else [], [], [])
    then, now = (_flat(one) for one in _named(before.model_dump(mode="json"), table.model_dump(mode="json")))
    harmful, free = [], []
    for key in dict.fromkeys([*then, *now]):
        if then.get(key) != now.get(key) and key not in ("out", "name"):
            longer = key == "train.steps" and extends(before, table)
            said = f"{key} ({_short(then.get(key))} then, {_short(now.get(key))} now)"
            chooses = key == "train.eval_every" and table.measure is not None  # the weights that are kept
            (free if longer or (_is_free(key) and not chooses) else harmful).append(said)
    if before.name != table.name:
        harmful.append(f"name ({before.name} then, {table.name} now)")
    return Changes(harmful, [], free)


def _named(*sides: Facts) -> tuple[Facts, ...]:
    """Two recipes in which a setting that the other lacks stands by its name alone."""
    both = sides[0]["settings"].keys() & sides[1]["settings"].keys()
    named = ({name: it if name in both else "a setting" for name, it in side["settings"].items()} for side in sides)
    return tuple(side | {"settings": settings} for side, settings in zip(sides, named, strict=True))


def extends(before: Recipe, table: Recipe) -> bool:
    """Whether a recipe that asks for more updates begins with those of another."""
    one, other = before.train, table.train
    return (
        other.steps > one.steps
        and {one.schedule, other.schedule} == {"constant"}
        and one.warmup_steps == other.warmup_steps
    )


def longer(folder: Path, began: Facts, table: Recipe) -> bool:
    """Whether a recipe asks for more updates than the run in a folder, which may be done."""
    before = _recorded(folder, table.stage)
    return before is not None and identity(before) == began["recipe_sha256"] and table.train.steps > before.train.steps


def other_recipe(folder: Path, keys: Sequence[str]) -> UserError:
    """The error for a recipe whose changes make it another run."""
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return UserError(
        f"{folder}: holds a run of another recipe; choose another folder with out=DIR, put back what changed: "
        f"{', '.join(keys[:NAMED])}{more}; or, while it is not done, go on all the same with --force"
    )


def other_facts(folder: Path, what: Sequence[str]) -> UserError:
    """The error for data and models that are others."""
    return UserError(
        f"{folder}: {', '.join(what)} changed since this run began; put it back, choose another folder with out=DIR, or go on "
        "all the same with --force"
    )


def gone_on(began: Facts, goes_on: Facts, found: Changes) -> Facts:
    """The manifest of a run that goes on with changes: what it is made of now, and in `forced` and `changed` what it was."""
    entry = {"when": now(), "recipe_sha256": began["recipe_sha256"]}
    kept = {name: began[name] for name in KEPT if name in began}
    told = {**began, **goes_on, **kept}
    if found.harmful:
        told["forced"] = [*began.get("forced", []), entry | {"what": found.harmful}]
    if found.rounding or found.free:
        told["changed"] = [*began.get("changed", []), entry | {"what": [*found.rounding, *found.free]}]
    return told


def recipes(began: Facts) -> set[str]:
    """The hashes of the recipes by which a run has trained so far."""
    return {
        began["recipe_sha256"],
        *(it["recipe_sha256"] for it in (*began.get("forced", []), *began.get("changed", []))),
    }


def _recorded(folder: Path, stage: str) -> Recipe | None:
    """The recipe that stands in a run directory; None where there is none that can be read."""
    try:
        plain = of_run((folder / rundir.RECIPE).read_text(encoding="utf-8"))
        if "stages" in plain:
            (own,) = (it for it in plain["stages"] if it["stage"] == stage)
            plain = {key: plain[key] for key in stages.SHARED} | own
        return Recipe.model_validate(plain, context=OF_RUN)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _flat(value: Any, place: str = "") -> Facts:
    """Every value of nested tables and lists under its path."""
    if isinstance(value, dict):
        parts = {f"{place}.{key}" if place else key: it for key, it in value.items()}
    elif isinstance(value, list):
        parts = {f"{place}[{number}]": it for number, it in enumerate(value)}
    else:
        return {place: value}
    return {path: it for part, inner in parts.items() for path, it in _flat(inner, part).items()} or {place: value}


def _is_free(key: str) -> bool:
    top, _, inner = key.partition(".")
    said = FREE.get(top.partition("[")[0])
    return said is True or (isinstance(said, set) and inner in said)


def _short(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.40}"


def _at(facts: Facts, path: tuple[str, ...]) -> Any:
    if path == ("initial",):
        return {name: student["initial_sha256"] for name, student in facts["students"].items()}
    if path == ("data", "mixture"):
        return {name: text["sha256"] for name, text in facts["data"].get("mixture", {}).items()}
    if path == ("teachers",):
        return [teacher["sha256"] for teacher in facts.get("teachers", [])]
    value: Any = facts
    for key in path:
        value = value and value.get(key)
    return value
