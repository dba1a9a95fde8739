"""One recipe, or its stages one after another: what is done is left alone, what is not is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from limbeck import rundir
from limbeck.assemble import design
from limbeck.assemble.model_files import ModelFiles
from limbeck.assemble.study import build_study, write_answers
from limbeck.assemble.text import Material, augmented, read_text
from limbeck.errors import Failed, UserError
from limbeck.lab.page import report
from limbeck.recipe import identity
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.stage_texts import is_written
from limbeck.recipe.stages import FOLDER, taken
from limbeck.running import changes, disk_space, manifest, text_stage, trackers
from limbeck.running.session import Session
from limbeck.system import environment, files, locks
from limbeck.system.processes import World
from limbeck.system.progress import doing
from limbeck.system.signals import at_once, interruptible
from limbeck.text.heldout import lying

NOT_A_RUN = (FOLDER, locks.FILE)  # what lies in a folder before its run

Tell = Callable[[str], None]


@contextmanager
def alone(folder: Path, world: World) -> Iterator[None]:
    """Holds a run directory, for all processes together.

    Raises:
        UserError: another run holds it.
    """
    refused = None
    with ExitStack() as stack:
        if world.is_main:
            try:
                stack.enter_context(locks.held(folder))
            except UserError as error:
                refused = error
        if world.total([refused is not None])[0]:
            raise refused or locks.in_use(folder)
        yield


def train(
    tables: Sequence[Recipe],
    world: World,
    tell: Tell,
    baselines: Sequence[str] = (),
    force: bool = False,
    plans: design.Plans | None = None,
) -> None:
    """Trains every stage that is not done, in its own directory.

    Args:
        tables: the recipes of the stages.
        world: the processes.
        tell: receives lines for the user.
        baselines: are shown beside the settings.
        force: a run of a changed recipe goes on all the same.
        plans: the designs of these stages as `plans_of` made them, if in other folders; made here when left out.

    Raises:
        UserError: a stage cannot be run; said before the first one trains.
        Interrupted: SIGINT or SIGTERM; everything is saved.
        Failed: settings of a stage did not end; later stages do not begin.
    """
    done, folder = are_done(tables, force), Path(tables[-1].run_dir)
    same(tables, done, force, tell)
    if done[-1]:
        tell(f"{folder}: this run is done; its report is {folder / rundir.REPORT}")
        if world.is_main:
            others = manifest.show(folder, baselines)
            if others or not (folder / rundir.REPORT).is_file():  # it was killed between the two
                report.write(folder)
        _require_whole(folder)
        return
    with at_once():
        plans, note = design.placed(plans, tables) if plans else plans_of(tables, world), _once(tell)
        missing = [plan for plan, over in zip(plans.values(), done, strict=True) if not over]
        trains = [plan for plan in missing if not plan.recipe.write]
        for plan in trains if not force else ():
            disk_space.fits(plan, world)
        texts = {plan.recipe.stage: text(plan, world, note) for plan in trains if not plan.unwritten}
    for number, plan in enumerate(plans.values()):
        if done[number]:
            tell(f"{plan.recipe.run_dir}: the stage {plan.recipe.stage} is done")
            _require_whole(Path(plan.recipe.run_dir))
            continue
        if len(tables) > 1:
            tell(f"stage {number + 1} of {len(tables)}: {plan.recipe.stage}")
        said = identity.text(tables[: number + 1])
        with alone(Path(plan.recipe.run_dir), world):
            if plan.recipe.write:
                text_stage.write(plan, world, said, tell)
                continue
            material = texts.pop(plan.recipe.stage) if plan.recipe.stage in texts else text(plan, world, note)
            _train(plan, world, material, tell, said, baselines, force)


def _require_whole(folder: Path) -> None:
    """Raises Failed for a run that is done but for settings that failed."""
    if failed := files.read_json(folder / rundir.MANIFEST).get("failed"):
        raise Failed(failed.values())


def _train(
    plan: design.Design,
    world: World,
    material: Material,
    tell: Callable[[str], None],
    said: str,
    baselines: Sequence[str],
    force: bool,
) -> None:
    """One stage; when it returns, nothing holds its models any more."""
    with interruptible() as stopped:
        with at_once():
            with doing("making the models"):
                study = build_study(plan, world, material, stopped, tell)
            with doing("choosing what is measured"):
                session = Session(study, Path(plan.recipe.run_dir), tell, said, baselines, force)
        try:
            session.go(stopped)
        except Exception as error:
            if (why := files.full(error)) is None:
                raise
            raise disk_space.refused(study, session.folder, why) from None


def answers(tables: Sequence[Recipe], world: World, tell: Tell) -> dict[Path, int]:
    """Writes the answers that the stages' caches are to hold: folder -> its bytes.

    Raises:
        UserError: no stage has a cache.
        Interrupted: SIGINT or SIGTERM; what is written stays.
    """
    if not any(table.cache for table in tables):
        raise UserError("cache: this recipe keeps no answers; add `cache: {}` to it, or cache={} to the command")
    found = {}
    for plan in plans_of(tables, world).values():
        if plan.recipe.cache:
            with interruptible() as stopped, at_once():
                found |= write_answers(plan, world, text(plan, world, tell), stopped, tell)
    return found


def plans_of(tables: Sequence[Recipe], world: World, files: ModelFiles | None = None) -> design.Plans:
    """The designs of all stages, held together before the first one trains; `files` are read once for several arms.

    Raises:
        UserError: they do not fit together, or what one of them needs is missing.
    """
    files = files or ModelFiles()
    with doing("reading configurations and tokenizers"):
        plans = design.chain(tables, files)
        for plan in plans.values():
            trackers.require(plan.recipe.report_to)
            with design.naming(plan.recipe, len(tables) > 1):
                divides(plan.recipe, world)
                design.weights_fit(plan, files)
            lying(plan.recipe.data)
    return plans


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Tells each line once: stages often read the same text."""
    told: set[str] = set()

    def once(line: str) -> None:
        if line not in told:
            told.add(line)
            tell(line)

    return once


def text(plan: design.Design, world: World, tell: Callable[[str], None]) -> Material:
    """The tokenised text, rows of a task with their augmented copies; with several processes the first makes it and the others open it."""
    if not world.is_main:
        world.wait()
    material = read_text(plan, tell)
    if world.is_main:
        world.wait()
    return augmented(plan, world, material, tell)


def prepare_libraries(table: Recipe) -> None:
    """Sets what holds for the whole process: threads, deterministic kernels."""
    environment.keep_freed_memory()
    disable_progress_bar()
    if table.train.threads:
        torch.set_num_threads(table.train.threads)
    if torch.cuda.is_available() and table.train.device != "cpu" and table.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)


def divides(table: Recipe, world: World) -> None:
    """Whether the batch can be split over micro-batches and processes.

    Raises:
        UserError: it cannot.
    """
    parts = table.train.accumulate * world.size
    if table.train.batch_size % parts:
        raise UserError(
            f"train.batch_size: {table.train.batch_size} blocks cannot be split into {table.train.accumulate} micro-batches "
            f"of {world.size} processes; make it a multiple of {parts}"
        )


def are_done(tables: Sequence[Recipe], force: bool = False) -> list[bool]:
    """Which stages are finished; with `force` a run of a changed recipe is one that goes on.

    Raises:
        UserError: a folder holds something else, or a finished stage has lost a student that is still needed.
    """
    done = [_is_done(Path(table.run_dir), table, tables[:number], force) for number, table in enumerate(tables)]
    done = [
        it and not (force and table.write and not is_written(table)) for it, table in zip(done, tables, strict=True)
    ]
    finished = {table.stage: table for table, over in zip(tables, done, strict=True) if over}
    for table in tables:
        if table.stage not in finished and not done[-1]:
            taken(table, finished)
    return done


def same(tables: Sequence[Recipe], done: Sequence[bool], force: bool, tell: Tell) -> None:
    """Whether text and models of the stages that are done are still those that they were trained with.

    Raises:
        UserError: something is another, or gone, and nobody said `force`.
    """
    for number, table in enumerate(tables):
        if not done[number]:
            continue
        folder, before = Path(table.run_dir), {earlier.stage: earlier for earlier in tables[:number]}
        if (found := changes.finished(folder, table, before)) and not force:
            raise changes.other_facts(folder, found)
        for what in found:
            tell(f"{folder}: {what} changed since this run began; what stands there is of before")


def _is_done(folder: Path, table: Recipe, before: Sequence[Recipe], force: bool) -> bool:
    """Whether the folder holds this run, finished, after these stages.

    Raises:
        UserError: it holds something else, or cannot be made.
    """
    if not folder.exists():
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"{folder}: no folder can be made in {above}; choose another with out=DIR")
        return False
    if folder.is_dir() and all(path.name.endswith(".tmp") or path.name in NOT_A_RUN for path in folder.iterdir()):
        return False
    try:
        began = files.read_json(folder / rundir.MANIFEST)
        status, earlier = began["status"], began.get("earlier", {})
        harmful = changes.changed_keys(folder, began, table).harmful
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder}: is there and is no run, or a damaged one; choose another folder with out=DIR"
        ) from None
    longer = changes.longer(folder, began, table)
    if harmful and not (force and (status != "done" or longer)):
        raise changes.other_recipe(folder, harmful)
    for stage in before:
        if earlier.get(stage.stage, {}).get("recipe_sha256") != identity.identity(stage):
            raise UserError(
                f"{folder}: was trained after another stage {stage.stage}; choose another folder with out=DIR, or remove it"
            )
    return status == "done" and not longer
