"""What the commands do, as functions: `run`, `check`, `report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck import rundir
from limbeck.assemble import design
from limbeck.assemble.model_files import ModelFiles
from limbeck.errors import Failed, UserError
from limbeck.lab.page import report
from limbeck.models import pretrained
from limbeck.recipe import arms as recipe_arms
from limbeck.recipe import stages as recipe_stages
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.study_keys import StudyKeys
from limbeck.running import arms, stages, trackers
from limbeck.running import check as running_check
from limbeck.system import environment, files, precision, progress
from limbeck.system.processes import World
from limbeck.system.signals import at_once, interruptible


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @property
    def arms(self) -> dict[str, Run]:
        """The runs of a study, by the folders that they lie in; none for a single run."""
        told = files.read_json(self.folder / rundir.STUDY)["arms"] if (self.folder / rundir.STUDY).is_file() else []
        return {arm["folder"]: Run(self.folder / arm["folder"]) for arm in told}

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run was: versions, hashes, machine."""
        return files.read_json(self.folder / rundir.MANIFEST)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one for each step and student."""
        return files.read_lines(self.folder / rundir.METRICS)[0]

    @property
    def evals(self) -> list[dict[str, Any]]:
        """The lines of evals.jsonl: one for each evaluation, student and split."""
        return files.read_lines(self.folder / rundir.EVALS)[0]

    @property
    def students(self) -> dict[str, Path]:
        """Student -> folder of the exported model; of a study `arms/01/STUDENT`."""
        if self.arms:
            return {f"{arm}/{name}": path for arm, run in self.arms.items() for name, path in run.students.items()}
        told, folder = self.manifest, self.folder / rundir.STUDENTS
        return {name: folder / name for name in told["students"] if name not in told.get("failed", {})}

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / rundir.REPORT

    def table(self) -> str:
        """The result as plain text: the verdict, the table (quantities down, settings across), the verdicts in numbers."""
        from limbeck.lab.data import joined
        from limbeck.lab.terminal import results

        return results.text(joined.gather(self.folder))


def run(
    recipe: Recipe | str | Path | dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    quiet: bool = False,
    resume: bool = False,
    force: bool = False,
) -> Run:
    """Trains every setting of a recipe with every seed, evaluates, draws, exports. Goes on where an earlier run stopped.

    Args:
        recipe: a file, the name of a built-in one, a table, or a loaded one.
        overrides: `key=value`.
        quiet: nothing is told.
        resume: only go on; where nothing has begun, that is an error.
        force: go on with a run although its recipe, data or models were changed; its manifest says so.

    Example:
        >>> limbeck.run("quickstart", ["train.steps=20"]).students   # doctest: +SKIP

    Raises:
        UserError: the recipe cannot be run, or another run is in its directory.
        Interrupted: SIGINT or SIGTERM; everything is saved.
        Failed: some settings did not end, for numbers that are not finite; the others did.
    """
    tell = (lambda line: None) if quiet else progress.tell
    asked = _asked(recipe, overrides)
    compared = asked.arms()
    first, folder = compared[0], Path(compared[0].last.run_dir)
    if resume and not _has_begun(asked, compared):
        raise UserError(f"{folder}: nothing has begun there that could go on; leave --resume out, or set out=DIR")
    alone = compared == [first] and not asked.keys.resolves and not (folder / rundir.STUDY).is_file()
    if alone and stages.are_done(first.tables, force)[-1]:
        stages.train(first.tables, World(), tell, asked.keys.shown, force)  # says so
        return Run(folder)
    with progress.shown(quiet), interruptible():
        with at_once():
            stages.prepare_libraries(first.last)
            world = World.join(first.last.train.device)
            asked = _settled(asked, world)
            compared = asked.arms()
            for line in _arithmetic(asked, world) if world.is_main else ():
                tell(line)
            for arm in compared:
                for table in arm.tables:
                    stages.divides(table, world)
        with stages.alone(folder, world):
            _train(asked, compared, world, tell if world.is_main else (lambda line: None), force)
    return Run(folder)


def _has_begun(asked: recipe_arms.Asked, compared: Sequence[recipe_arms.Arm]) -> bool:
    """Whether any part of what is asked for has a directory with something in it."""
    several = [*compared, *(arm for _, arm in asked.trials())]
    places = [Path(table.run_dir) for arm in several for table in arm.tables]
    study = Path(compared[0].last.run_dir) / rundir.STUDY
    return study.is_file() or any((place / rundir.MANIFEST).is_file() for place in places)


def _train(
    asked: recipe_arms.Asked, compared: list[recipe_arms.Arm], world: World, tell: Callable[[str], None], force: bool
) -> None:
    """All arms of what was asked for, one after another."""
    folder = Path(compared[0].last.run_dir)
    with at_once():
        trials, key = asked.trials(), arms.key(asked.keys, compared)
        if trials or len(compared) > 1:
            arms.free(folder, key)
        planned = [arms.Planned(arm) for arm in (*compared, *(arm for _, arm in trials))]
        if len(planned) > 1 or asked.keys.resolves:
            planned = _hold_together(planned, asked.keys, folder, world, ModelFiles(), force)
    planned, tried = planned[: len(compared)], planned[len(compared) :]
    for number, (arm, plans) in enumerate(tried, start=1):
        tell(f"trial {number} of {len(tried)}: {arm.name}")
        with suppress(Failed):  # the worst of all
            stages.train(arm.tables, world, tell, force=force, plans=plans)
    facts: dict[str, Any] = {"precision": asked.precision}
    failed: list[str] = []
    with at_once(), progress.doing("counting what the settings cost"):
        if trials:
            best, facts["tuned"] = arms.tuned(asked, trials)
            planned = [arms.Planned(arm) for arm in best]
        planned = arms.resolved(asked.keys, planned, folder, world, tell, key, facts)
    for number, (arm, plans) in enumerate(planned, start=1):
        if len(planned) > 1:
            tell(f"arm {number} of {len(planned)}: {', '.join(arm.shown.values())}")
        try:
            stages.train(arm.tables, world, tell, asked.keys.shown, force, plans)
        except Failed as failure:
            failed += failure.lines
    if (len(planned) > 1 or trials) and world.is_main:
        with at_once():
            tell(f"{folder}: {len(planned)} arms are done; the report of all is {report.write(folder)}")
    if failed:
        raise Failed(failed)


def _asked(recipe: Recipe | str | Path | dict[str, Any], overrides: Sequence[str]) -> recipe_arms.Asked:
    """What a recipe asks for; what has begun keeps the precision that it has."""
    plain = recipe_stages.alone(recipe).model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    asked = recipe_arms.asked(plain, overrides)
    return replace(asked, precision=arms.precision(asked))


def _settled(asked: recipe_arms.Asked, world: World) -> recipe_arms.Asked:
    """What was asked, with what `train.precision: auto` becomes on this device, unless it has begun with another one."""
    return replace(asked, precision=asked.precision or precision.fastest(world.device))


def _arithmetic(asked: recipe_arms.Asked, world: World) -> list[str]:
    """How a run multiplies, in a line; and in another one what makes that slow."""
    said = {table.train.precision for arm in replace(asked, precision=None).arms() for table in arm.tables}
    assert asked.precision is not None
    words = [precision.because(asked.precision, world.device) if it == "auto" else it for it in sorted(said)]
    slow = (precision.emulated(it, world.device) for it in sorted(said))
    count = environment.machine()["threads"]
    threads = f", {count} thread{'s' * (count > 1)}" if world.device.type == "cpu" else ""
    return [f"precision {' and '.join(words)} on {world.device}{threads}", *(line for line in slow if line)]


def _hold_together(
    several: Sequence[arms.Planned],
    keys: StudyKeys,
    folder: Path,
    world: World,
    files: ModelFiles,
    force: bool = False,
) -> list[arms.Planned]:
    """All arms of a study with their designs, asked before the first one trains whether they can be run; what has begun was
    asked then."""
    found = list(several)
    for number, (arm, _) in enumerate(several) if not (folder / rundir.STUDY).is_file() else ():
        with suppress(*([pretrained.NotDownloaded] if files.offline else [])):
            plans = stages.plans_of(arm.tables, world, files)
            for plan in plans.values() if not force else ():
                arms.require(keys, plan, world, whole=plan.recipe.stage != arm.last.stage)
            found[number] = arms.Planned(arm, plans)
    return found


def cache(recipe: Recipe | str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> dict[Path, int]:
    """Writes what the teachers answer to the training text, as the recipe's `cache` asks: folder -> its bytes.

    `run` does the same before it trains; done ahead, it can be done elsewhere, or by more processes.

    Raises:
        UserError: the recipe has no `cache`, or cannot be run.
        Interrupted: SIGINT or SIGTERM; what is written stays.
    """
    asked = _asked(recipe, overrides)
    last = asked.arms()[0].last
    stages.prepare_libraries(last)
    world, found = World.join(last.train.device), {}
    tell = progress.tell if world.is_main else (lambda line: None)
    for arm in _settled(asked, world).arms():
        found |= stages.answers(arm.tables, world, tell)
    return found


def check(recipe: Recipe | str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> list[str]:
    """Everything that can be known before training, as lines to read. The Hub is asked for names, once each; nothing is downloaded.

    Raises:
        UserError: what `run` would stop with.
    """
    asked = _asked(recipe, overrides)
    world = World.join(asked.arms()[0].last.train.device)
    asked = _settled(asked, world)
    compared = asked.arms()
    first, folder, trials = compared[0], Path(compared[0].last.run_dir), asked.trials()
    done = [False] * len(first.tables)
    if len(compared) == 1 and not asked.keys.resolves and not (folder / rundir.STUDY).is_file():
        done = stages.are_done(first.tables)
        stages.same(first.tables, done, False, progress.tell)
    for table in first.tables:
        trackers.require(table.report_to)
        stages.divides(table, world)
    local = ModelFiles(offline=True)
    if trials or len(compared) > 1:
        others = [arms.Planned(arm) for arm in (*compared[1:], *(arm for _, arm in trials))]
        arms.free(folder, arms.key(asked.keys, compared))
        _hold_together(others, asked.keys, folder, world, local)

    def require(plan: design.Design) -> None:
        begun = (Path(plan.recipe.run_dir) / rundir.MANIFEST).is_file()  # and stays as it is
        if not done[[table.stage for table in first.tables].index(plan.recipe.stage)]:
            arms.require(asked.keys, plan, world, whole=begun or plan.recipe.stage != first.last.stage)

    found = running_check.lines(first.tables, world, require, local)
    if asked.keys.asks:
        found += ["", *running_check.study(asked.keys, compared, len(trials))]
    return found
