"""Studies of several arms: how many updates each gets, which settings share memory, and what is written down of it.

What is resolved (updates for equal cost, groups that fit into memory) is resolved once, before anything trains, and kept in
`study.json`: a study that is gone on with does not measure again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from limbeck import rundir
from limbeck.assemble import costs, design
from limbeck.assemble.kinds import kind_of
from limbeck.assemble.model_files import ModelFiles
from limbeck.assemble.study import build_study
from limbeck.assemble.text import feed_of
from limbeck.errors import UserError
from limbeck.lab.data.evaluated import last_rows, loss_of
from limbeck.recipe import identity
from limbeck.recipe.arms import FOLDER, TUNING, Arm, Asked, placed_all, restricted
from limbeck.recipe.study_keys import StudyKeys
from limbeck.running import changes, disk_space, stages
from limbeck.system import files, locks
from limbeck.system.processes import World
from limbeck.training.loop import Course, Record, fit

MEASURED, WARM = 12, 4  # updates that are timed for equal seconds, and those before them
ROOM = 0.8  # share of the free memory that a study may take

OWN = (FOLDER, TUNING, locks.FILE)  # what a study puts into its folder before study.json

Tell = Callable[[str], None]


class Planned(NamedTuple):
    """An arm, and the designs of its stages where they were made."""

    arm: Arm
    plans: design.Plans | None = None


def resolved(
    keys: StudyKeys,
    arms: list[Planned],
    folder: Path,
    world: World,
    tell: Tell,
    key: str,
    facts: dict[str, Any] | None = None,
) -> list[Planned]:
    """The arms as they are run: equal in cost where that is asked for, in groups that the memory holds.

    `key` is that of what was asked for, `facts` what study.json says beside the arms. Parts of an arm have its designs.

    Raises:
        UserError: the folder holds another study, or something else.
    """
    if len(arms) == 1 and not keys.resolves and (folder / rundir.MANIFEST).is_file():
        return arms  # it has begun as one run
    known = _read(folder, key)
    arms = arms if known else _planned(arms, world)
    parts = known["parts"] if known else _parts(keys, arms, world, tell)
    whole = [arms[part["arm"]] for part in parts]
    found = [restricted(it.arm, part["settings"], steps=part["steps"]) for it, part in zip(whole, parts, strict=True)]
    if len(parts) == len(arms) and all(part["whole"] for part in parts):
        found = [it.arm for it in arms]
    tuned = "tuned" in (facts or {})
    several = len(found) > 1 or tuned
    found = placed_all(found, folder, always=tuned)
    if several:
        free(folder, key)
    world.wait()  # all have read what is now written
    if several and world.is_main:
        _write(folder, key, parts, found, facts or {})
    world.wait()
    return [Planned(arm, it.plans) for arm, it in zip(found, whole, strict=True)]


def _planned(arms: Sequence[Planned], world: World) -> list[Planned]:
    """The arms with their designs; those that are missing are made."""
    read = ModelFiles()
    return [Planned(arm, plans or stages.plans_of(arm.tables, world, read)) for arm, plans in arms]


def precision(asked: Asked) -> str | None:
    """What `train.precision: auto` became where this run or study has begun; None where nothing has.

    A run that goes on elsewhere, on a machine that would choose another one, keeps its own.
    """
    arms = [*asked.arms(), *(arm for _, arm in asked.trials())]
    root = Path(arms[0].last.run_dir)
    try:
        told = files.read_json(root / rundir.STUDY)
        known, folders = told.get("precision"), [root / arm["folder"] for arm in told["arms"]]
    except (OSError, ValueError, KeyError, TypeError):  # there is none; a damaged one is refused where it is read
        known, folders = None, []
    autos = [table for arm in arms for table in arm.tables if table.train.precision == "auto"]
    folders += [Path(table.run_dir) for table in autos]
    return known or next(filter(None, map(changes.precision, dict.fromkeys(folders))), None)


def free(folder: Path, key: str) -> None:
    """Whether a study may lie in a folder: nothing is there, or what it left there itself.

    Raises:
        UserError: the folder holds something else.
    """
    if not folder.exists() or _read(folder, key):
        return
    if (folder / rundir.MANIFEST).is_file():
        raise UserError(f"{folder}: holds a single run; choose another folder with out=DIR, or remove it")
    if not folder.is_dir() or any(not it.name.endswith(".tmp") and it.name not in OWN for it in folder.iterdir()):
        raise UserError(f"{folder}: is there and is no study; choose another folder with out=DIR")


def tuned(asked: Asked, trials: Sequence[tuple[dict[str, Any], Arm]]) -> tuple[list[Arm], dict[str, Any]]:
    """The arms of settings that were tuned, each with the values of its best trial, and what was found of each."""
    found: dict[str, list[float]] = {}
    for _, arm in trials:
        losses = _losses(Path(arm.last.run_dir))
        for name in arm.last.chosen:
            found.setdefault(name, []).append(losses.get(name, math.inf))
    chosen: dict[int, list[str]] = {}
    for name, values in found.items():
        chosen.setdefault(min(range(len(values)), key=lambda number: (values[number], number)), []).append(name)
    arms = [restricted(asked.arm(trials[number][0]), names) for number, names in chosen.items()]
    told = {
        name: {
            "chosen": trials[number][0],
            "losses": {arm.name: loss for (_, arm), loss in zip(trials, found[name], strict=True)},
        }
        for number, names in chosen.items()
        for name in names
    }
    return [Arm(arm.name, arm.tables, {name: name for name in arm.shown}) for arm in arms], told


def _losses(folder: Path) -> dict[str, float]:
    """The held-out loss of each setting of a trial, the mean over its learners: logit loss, or without a teacher label loss.

    Settings that failed are left out.
    """
    failed = files.read_json(folder / rundir.MANIFEST).get("failed", {})
    rows = [row for row in files.read_lines(folder / rundir.EVALS)[0] if row["split"] == "test"]
    lost = {row["setting"] for row in rows if row["learner"] in failed}
    values: dict[str, list[float]] = {}
    for row in last_rows(row for row in rows if row["setting"] not in lost):
        loss = loss_of(row)
        values.setdefault(row["setting"], []).append(math.inf if loss is None else loss)
    return {name: sum(each) / len(each) for name, each in values.items()}


def key(keys: StudyKeys, arms: Sequence[Arm]) -> str:
    """sha256 of what was asked for."""
    plain = [[identity.hashed(table) for table in arm.tables] for arm in arms]
    return hashlib.sha256(json.dumps([keys.model_dump(mode="json"), plain], sort_keys=True).encode()).hexdigest()


def _read(folder: Path, key: str) -> dict[str, Any] | None:
    path = folder / rundir.STUDY
    if not path.is_file():
        return None
    try:
        told = files.read_json(path)
        same = told["key"] == key and bool(told["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; restore it, or choose another folder with out=DIR") from None
    if not same:
        raise UserError(f"{folder}: holds another study; choose another folder with out=DIR, or remove it")
    return told


def _parts(keys: StudyKeys, arms: Sequence[Planned], world: World, tell: Tell) -> list[dict[str, Any]]:
    """Every arm in parts: its settings, one by one or in groups, and the updates of each."""
    parts: list[dict[str, Any]] = []
    one: float | None = None  # what an update of the first setting of the first arm costs
    for number, (arm, plans) in enumerate(arms):
        assert plans is not None
        plan, names, steps = plans[arm.last.stage], list(arm.last.chosen), arm.last.train.steps
        if keys.equal:
            price = (_seconds if keys.equal == "seconds" else _flops)(plan, world, tell)
            one = one or price[names[0]]
            count = {name: max(1, round(steps * one / price[name])) for name in names}
            tell(f"equal {keys.equal}: " + ", ".join(f"{name} {count[name]:,} updates" for name in names))
            groups = [[name] for name in names]
        else:
            count, groups = dict.fromkeys(names, steps), _groups(plan, names, keys.together, world, tell)
        parts += [
            {"arm": number, "settings": group, "steps": count[group[0]], "whole": len(groups) == 1} for group in groups
        ]
    return parts


def _groups(plan: design.Design, names: list[str], together: int | None, world: World, tell: Tell) -> list[list[str]]:
    """The settings in groups of `together`, or of as many as the memory holds."""
    size = together or len(names)
    (free,) = world.total([disk_space.free_memory(world) if world.is_main else 0.0])  # one answer for all processes
    while together is None and size > 1 and costs.of_study(_of(plan, names[:size])).memory > ROOM * free:
        size -= 1
    if together is None and size < len(names):
        tell(f"{len(names)} settings do not fit into memory together: {size} at a time")
    return [names[start : start + size] for start in range(0, len(names), size)]


def require(keys: StudyKeys, plan: design.Design, world: World, whole: bool) -> None:
    """Whether the machine holds an arm, by estimates: as a `whole`, or split into as small groups as the keys of the study allow.

    Raises:
        UserError: it does not.
    """
    names = list(plan.recipe.chosen)
    size = len(names) or 1 if whole else keys.together or 1
    for start in range(0, len(names), size):
        disk_space.fits(_of(plan, names[start : start + size]), world)


def _of(plan: design.Design, names: Sequence[str]) -> design.Design:
    """The design of some of the settings."""
    return plan.with_recipe(plan.recipe.model_copy(update={"only": tuple(names)}))


def _flops(plan: design.Design, world: World, tell: Tell) -> dict[str, float]:
    """The FLOPs of a mean update of each setting alone; of a task its rows are looked at."""
    if kind_of(plan.recipe).one_length:
        return costs.of_study(plan).flops_per_step
    feed = feed_of(plan, stages.text(plan, world, tell), plan.recipe.seeds[0])
    return costs.of_study(plan, costs.mean(plan, feed, world.size)).flops_per_step


def _seconds(plan: design.Design, world: World, tell: Tell) -> dict[str, float]:
    """The seconds that an update of each setting takes alone, measured on a throw-away beginning of the run."""
    material = stages.text(plan, world, tell)
    first = plan.with_recipe(plan.recipe.model_copy(update={"seeds": plan.recipe.seeds[:1]}))
    study, spent = build_study(first, world, material), dict.fromkeys(plan.recipe.chosen, 0.0)

    def time(record: Record) -> None:
        if record.step > WARM:
            for row in record.rows:
                spent[row["setting"]] += row["seconds"]

    said = {"stage": plan.recipe.stage, "seed": first.recipe.seeds[0]}
    course = Course(
        study.stills,
        study.feeds,
        steps=WARM + MEASURED,
        accumulate=plan.recipe.train.accumulate,
        describe=lambda learner: {**said, "setting": study.settings[learner]},
        measure=lambda step: False,
        world=world,
    )
    fit(course, [time])
    shared = world.total(list(spent.values()))  # all processes count the same updates
    return dict(zip(spent, (total / MEASURED for total in shared), strict=True))


def _write(folder: Path, key: str, parts: list[dict[str, Any]], arms: Sequence[Arm], facts: dict[str, Any]) -> None:
    """Writes study.json: what the lab reads."""
    last = arms[0].last
    told = {
        "name": last.name,
        "question": last.question,
        "key": key,
        "parts": parts,
        **facts,
        "arms": [
            {
                "name": arm.name,
                "folder": str(Path(arm.last.run_dir).relative_to(folder)),
                "settings": dict(arm.shown),
                "steps": arm.last.train.steps,
            }
            for arm in arms
        ],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another with out=DIR") from None
    files.write_json(folder / rundir.STUDY, told)
