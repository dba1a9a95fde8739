"""Arms of a study: what a recipe asks to be compared beyond its settings, as recipes that are run one after another.

`baselines` and `ablate` add settings. `vary` makes an arm of every combination of values; `together` splits the settings of an
arm into groups that share memory. Whatever the arms, a setting ends in the bits that it has alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from limbeck.errors import UserError, nearest
from limbeck.recipe import explain, load, stages
from limbeck.recipe.data import Data
from limbeck.recipe.keys import LOSS_KEYS
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.settings import Setting
from limbeck.recipe.stage_texts import named, placed, stage_of
from limbeck.recipe.study_keys import NO_TEACHER, Grid, StudyKeys

FOLDER = "arms"
TUNING = "tuning"


@dataclass(frozen=True)
class Arm:
    """One run of a study, or one chain of stages."""

    name: str
    tables: tuple[Recipe, ...]  # its stages, the last one is what is compared
    shown: Mapping[str, str]  # setting -> what the study calls it

    @property
    def last(self) -> Recipe:
        """The recipe whose settings are compared."""
        return self.tables[-1]

    @property
    def data(self) -> Data:
        """Its text, in which files stand for what earlier stages have written."""
        return placed(self.last.data, {table.stage: table for table in self.tables})


@dataclass(frozen=True)
class Asked:
    """A recipe and what its study asks of it."""

    where: str
    keys: StudyKeys
    table: dict[str, Any]
    overrides: tuple[str, ...]
    precision: str | None = None  # what `train.precision: auto` becomes; None: not known yet

    def arm(self, values: Mapping[str, Any], *more: str) -> Arm:
        """The arm in which some keys of the recipe have other values."""
        changes = [f"{word}={_flow(value)}" for word, value in values.items()]
        found = stages.of_table(self.where, self.table, [*self.overrides, *changes, *more])
        found = [_precise(table, self.precision) for table in found]
        found[-1] = _with_more(found[-1], self.keys)
        stages.refers(found[-1], found[:-1], self.where)  # settings that were added take students too
        name = ",".join(f"{_tail(word, values)}={_flow(value)}" for word, value in values.items())
        return Arm(name, tuple(found), {each: f"{each} {name}".strip() for each in found[-1].chosen})

    def arms(self) -> list[Arm]:
        """The arms that are compared."""
        found = [self.arm(values) for values in _combinations(self.keys)]
        _one_process(found, self.where)
        for arm in found if self.keys.equal else ():
            _is_countable(arm, self.keys.equal, self.where)
        return found

    def trials(self) -> list[tuple[dict[str, Any], Arm]]:
        """What is tried first: the same combinations for every setting, on a validation part that no verdict reads."""
        tune = self.keys.tune
        if tune is None:
            return []
        more = ["data.fold=validation", *([f"train.steps={tune.steps}"] if tune.steps else [])]
        more += [f"seeds={list(tune.seeds)}"] if tune.seeds is not None else []
        known: dict[str, str] = {}
        tried = enumerate(_combinations(tune), start=1)
        found = [(values, _trial(self.arm(values, *more), tune.seeds, number, known)) for number, values in tried]
        _one_process([arm for _, arm in found], self.where)
        return found


def _is_countable(arm: Arm, equal: str | None, where: str) -> None:
    """Whether what an arm costs can be known before anything runs."""
    for place, name in named(arm.last.data):
        raise UserError(
            f"{where}: equal: counted before anything runs, and {place} is the text of the stage {name}; leave equal out"
        )
    for place, source in stages.placed_sources(arm.last) if equal == "seconds" else ():
        if stage_of(source.source):
            raise UserError(
                f"{where}: equal: seconds are measured before anything trains, and {place} is the student of a stage; say equal: flops"
            )


def asked(recipe: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Asked:
    """What a recipe asks to be compared.

    Raises:
        UserError: as `stages.expand`; a key of the study is wrong.
    """
    where, table = load.read(recipe)
    own = [it for it in overrides if it.partition("=")[0].partition(".")[0] in StudyKeys.model_fields]
    for override in own:
        table = _with_own(table, override)
    said = {word: value for word, value in table.items() if word in StudyKeys.model_fields}
    plain = {word: value for word, value in table.items() if word not in said}
    rest = tuple(it for it in overrides if it not in own)
    for word in (*plain, *(re.split(r"[.\[=]", it)[0] for it in rest)):
        near = nearest(str(word), {*Recipe.model_fields, *StudyKeys.model_fields, "stages"})
        if word not in Recipe.model_fields and near in {f"did you mean '{it}'?" for it in StudyKeys.model_fields}:
            raise UserError(f"{where}: {word}: unknown key; {near}")
    return Asked(where, _validated(where, said), plain, rest)


def _with_own(table: dict[str, Any], override: str) -> dict[str, Any]:
    """A study's table with an override in it: `tune.steps=50`; behind `vary` stands a key of the recipe, `vary.train.lr=[1e-3, 1e-4]`."""
    key, equals, text = override.partition("=")
    word, _, rest = key.partition(".")
    inner = {} if table.get(word) is None else table[word]
    if not rest or not equals or not isinstance(inner, dict):
        return load.overridden(table, override)
    if word == "vary":
        return {**table, word: inner | {rest: load.overridden({}, f"vary={text}")["vary"]}}
    return {**table, word: _with_own(inner, f"{rest}={text}")}


def _validated(where: str, said: dict[str, Any]) -> StudyKeys:
    try:
        keys = StudyKeys.model_validate(said)
    except ValidationError as error:
        raise UserError(f"{where}: {explain.explain(error, said, StudyKeys)}") from None
    for place, grid in (("", keys), ("tune.", keys.tune)):
        if grid is None:
            continue
        if grid.sample and not grid.vary:
            raise UserError(f"{where}: {place}sample: there is nothing to draw from; set {place}vary")
        for word, values in grid.vary.items():
            if word in ("out", "name"):
                raise UserError(f"{where}: {place}vary.{word}: arms lie in one folder, under one name; leave it out")
            if len({_flow(value) for value in values}) < max(1, len(values)):
                raise UserError(f"{where}: {place}vary.{word}: give different values, such as [1, 2]")
    if keys.tune and (keys.vary or keys.equal):
        raise UserError(f"{where}: tune: settings that are tuned differ already; leave vary and equal out")
    if keys.tune and not keys.tune.vary:
        raise UserError(f"{where}: tune.vary: missing; say which keys are tried, such as {{train.lr: [1e-4, 3e-4]}}")
    return keys


def _precise(table: Recipe, precision: str | None) -> Recipe:
    """The recipe with this precision where it says auto."""
    if precision is None or table.train.precision != "auto":
        return table
    return table.model_copy(update={"train": table.train.model_copy(update={"precision": precision})})


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _combinations(keys: Grid) -> list[dict[str, Any]]:
    """Every combination of the values, or the sample."""
    every = [dict(zip(keys.vary, values, strict=True)) for values in product(*keys.vary.values())]
    if keys.sample is None or keys.sample.count >= len(every):
        return every
    drawn = random.Random(keys.sample.seed).sample(range(len(every)), keys.sample.count)
    return [every[number] for number in sorted(drawn)]


def _with_more(table: Recipe, keys: StudyKeys) -> Recipe:
    """The recipe with the settings that baselines and ablations add."""
    plain = {name: setting.model_dump(mode="json") for name, setting in table.settings.items()}
    more: dict[str, Any] = {}
    if NO_TEACHER in keys.baselines:
        loss = "squared_error" if table.data.task and table.data.task.kind == "regression" else "cross_entropy"
        more[NO_TEACHER] = {"terms": [{"loss": loss, "name": "label"}]}
    for name, setting in table.chosen.items() if keys.ablate else ():
        more |= dict(_ablations(name, setting))
    if "teacher" in keys.shown and table.models.teacher is None:
        raise UserError("baselines: there is no teacher to show; set models.teacher, or leave teacher out")
    taken = {*more, *keys.shown} & set(plain)
    if taken:
        raise UserError(f"settings.{min(taken)}: baselines and ablate make a setting of that name; give it another")
    if not more:
        return table
    only = [*table.chosen, *more] if table.only else None
    return Recipe.model_validate(table.model_dump(mode="json") | {"settings": plain | more, "only": only})


def _ablations(name: str, setting: Setting) -> Iterator[tuple[str, dict[str, Any]]]:
    """The setting without each of its terms, and with each one alone; of two terms these are the same."""
    labels = [term.label for term in setting.terms]
    if len(labels) < 2:
        return
    for label in labels:
        yield f"{name}-without-{label}", _only(setting, [it for it in labels if it != label])
    for label in labels if len(labels) > 2 else ():
        yield f"{name}-only-{label}", _only(setting, [label])


def _only(setting: Setting, labels: Sequence[str]) -> dict[str, Any]:
    """The setting with some of its terms, under the names that they have in it, and without a cast that nobody needs."""
    kept = [term for term in setting.terms if term.label in labels]
    plain = setting.model_dump(mode="json")
    said = {term.label: row for term, row in zip(setting.terms, plain["terms"], strict=True)}
    plain["terms"] = [said[label] | {"name": label} for label in labels]
    roles = {term.teacher for term in kept if term.loss not in LOSS_KEYS or "teacher" in LOSS_KEYS[term.loss].needs}
    if "peers" not in roles:
        plain |= {"peers": 1, "alternate": False}
    if "ema" not in roles:
        plain["ema"] = None
    if not any("exit" in term.taps for term in kept):
        plain["exits"] = []
    return plain


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe and of what a study asks of it."""
    whole, own = stages.schema(), StudyKeys.model_json_schema()
    properties = whole["properties"] | own["properties"]
    return whole | {"$defs": whole["$defs"] | own["$defs"], "properties": properties}


def restricted(arm: Arm, names: Sequence[str], **train: Any) -> Arm:
    """The arm with some of its settings alone, and other keys of `train`."""
    last = arm.last.model_copy(update={"only": tuple(names), "train": arm.last.train.model_copy(update=train)})
    return Arm(arm.name, (*arm.tables[:-1], last), {each: arm.shown[each] for each in names})


def _trial(arm: Arm, seeds: tuple[int, ...] | None, number: int, known: dict[str, str]) -> Arm:
    """A trial: few seeds, in a folder below that of the study."""
    root = Path(arm.last.run_dir)
    few = [table.model_copy(update={"seeds": seeds or table.seeds[:1]}) for table in arm.tables]
    return _placed(Arm(arm.name, tuple(few), arm.shown), root, f"{TUNING}/{number:02}", known)


def _one_process(arms: Sequence[Arm], where: str) -> None:
    """Whether one process can train all arms."""
    for word in stages.OF_A_PROCESS:
        if len({getattr(arm.last.train, word) for arm in arms}) > 1:
            raise UserError(f"{where}: vary: train.{word} is one for all arms; run the recipe once for each value")


def _tail(word: str, keys: Iterable[str]) -> str:
    """The end of a key that no other one has: `lr` of `train.lr`."""
    parts = [each.split(".") for each in keys]
    mine = word.split(".")
    alone = (n for n in range(1, len(mine)) if sum(other[-n:] == mine[-n:] for other in parts) == 1)
    return ".".join(mine[-next(alone, len(mine)) :])


def placed_all(arms: list[Arm], root: Path, always: bool = False) -> list[Arm]:
    """Several arms (or `always`) each in a folder of its own, `OUT/arms/01`; what two of them have as the same earlier stage is trained once."""
    if len(arms) == 1 and not always:
        return arms
    known: dict[str, str] = {}
    return [_placed(arm, root, f"{FOLDER}/{number:02}", known) for number, arm in enumerate(arms, start=1)]


def _placed(arm: Arm, root: Path, here: str, known: dict[str, str]) -> Arm:
    tables, chain = [], ""
    for table in arm.tables:
        chain += table.model_dump_json(exclude={"out"})
        inside = root / here / Path(table.run_dir).relative_to(arm.last.run_dir)
        where = known.setdefault(chain, str(inside)) if table is not arm.last else str(inside)
        tables.append(table.model_copy(update={"out": where}))
    return Arm(arm.name, tuple(tables), arm.shown)
