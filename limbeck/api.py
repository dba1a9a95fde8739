"""What the commands do, as functions: `run`, `check`, `report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from limbeck import build, costs, environment, models, progress, rundir
from limbeck.engine import interruptible
from limbeck.errors import UserError
from limbeck.feeds.blocks import Corpus
from limbeck.load import load
from limbeck.recipe import Recipe
from limbeck.session import Session, identity
from limbeck.world import World


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run was: versions, hashes, machine."""
        return rundir.read_json(self.folder / rundir.MANIFEST)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one for each step and learner."""
        return rundir.read_lines(self.folder / rundir.METRICS)[0]

    @property
    def evals(self) -> list[dict[str, Any]]:
        """The lines of evals.jsonl: one for each evaluation, learner and split."""
        return rundir.read_lines(self.folder / rundir.EVALS)[0]

    @property
    def students(self) -> dict[str, Path]:
        """Learner -> folder of the exported model."""
        return {name: self.folder / rundir.STUDENTS / name for name in self.manifest["students"]}

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / rundir.REPORT

    def table(self) -> str:
        """The result as plain text: quantities down, settings across."""
        from limbeck.lab import read, table

        return table.as_text(table.rows(read.read(self.folder)))


def run(recipe: Recipe | str | Path | dict[str, Any], overrides: Sequence[str] = (), *, quiet: bool = False) -> Run:
    """Trains every setting of a recipe with every seed, evaluates, draws, exports. Goes on where an earlier run stopped.

    Example:
        >>> limbeck.run("quickstart", ["train.steps=20"]).students   # doctest: +SKIP

    Raises:
        UserError: the recipe cannot be run.
        Interrupted: SIGINT or SIGTERM; everything is saved.
    """
    table = recipe if isinstance(recipe, Recipe) else load(recipe, overrides)
    folder = Path(table.run_dir)
    tell = (lambda line: None) if quiet else progress.tell
    if _is_done(folder, table):
        tell(f"{folder}: this run is done; its report is {folder / rundir.REPORT}")
        return Run(folder)
    _prepare_libraries(table)
    world = World.join(table.train.device)
    tell = tell if world.is_main else (lambda line: None)
    plan = build.design(table)
    _divides(table, world)
    with interruptible() as stopped:
        corpus = _text(plan, world, tell)
        study = build.study(plan, world, corpus)
        Session(study, folder, tell).go(stopped, quiet=quiet or not world.is_main)
    return Run(folder)


def _text(plan: build.Design, world: World, tell: Callable[[str], None]) -> Corpus:
    """The tokenised corpus; with several processes the first makes it and the others open it."""
    if not world.is_main:
        world.wait()
    corpus = build.text(plan, tell)
    if world.is_main:
        world.wait()
    return corpus


def _prepare_libraries(table: Recipe) -> None:
    environment.keep_freed_memory()
    disable_progress_bar()
    if table.train.threads:
        torch.set_num_threads(table.train.threads)
    if torch.cuda.is_available() and table.train.device != "cpu":
        torch.use_deterministic_algorithms(table.train.deterministic, warn_only=True)


def _divides(table: Recipe, world: World) -> None:
    parts = table.train.accumulate * world.size
    if table.train.batch_size % parts:
        raise UserError(
            f"train.batch_size: {table.train.batch_size} blocks cannot be split into {table.train.accumulate} micro-batches "
            f"of {world.size} processes; make it a multiple of {parts}"
        )


def _is_done(folder: Path, table: Recipe) -> bool:
    """Whether the folder holds this run, finished.

    Raises:
        UserError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / rundir.MANIFEST).is_file():
        raise UserError(f"{folder}: is there and is no run; choose another folder with out=DIR")
    if rundir.read_json(folder / rundir.MANIFEST)["recipe_sha256"] != identity(table):
        raise UserError(f"{folder}: holds a run of another recipe; choose another folder with out=DIR, or remove it")
    return rundir.read_json(folder / rundir.MANIFEST)["status"] == "done"


def check(recipe: Recipe | str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> list[str]:
    """Everything that can be known before training, as lines to read. What is on the Hub is not downloaded.

    Raises:
        UserError: what `run` would stop with.
    """
    table = recipe if isinstance(recipe, Recipe) else load(recipe, overrides)
    _is_done(Path(table.run_dir), table)
    world = World.join(table.train.device)
    _divides(table, world)
    try:
        plan = build.design(table, offline=True)
    except models.NotDownloaded:
        return [f"{table.name}: the recipe holds together", *_to_download(table), "checked up to the download"]
    lines = [*_of_models(table, plan), *_of_terms(plan)]
    if "hub:" in table.data.corpus:
        return [*lines, *_to_download(table), "checked up to the download"]
    notes: list[str] = []
    corpus = build.text(plan, notes.append).facts
    text = (
        f"text: {corpus['documents']:,} documents, {corpus['tokens']:,} tokens; "
        f"held out: {corpus['heldout_documents']:,} documents, {corpus['heldout_tokens']:,} tokens"
    )
    return [*lines, *notes, text, "ok"]


def _to_download(table: Recipe) -> list[str]:
    wanted = [table.models.teacher.source] if table.models.teacher else []
    if "hub:" in table.data.corpus:
        wanted.append(table.data.corpus)
    return [f"a run downloads {name}" for name in wanted]


def _of_models(table: Recipe, plan: build.Design) -> list[str]:
    cost = costs.of_study(plan)
    lines = [f"teacher: {_shape(plan.teacher)}, {cost.teacher.parameters:,} parameters"] if cost.teacher else []
    lines.append(f"student: {_shape(plan.student)}, {cost.student.parameters:,} parameters")
    steps = ", ".join(f"{name} {flops / 1e9:,.1f}" for name, flops in cost.flops_per_step.items())
    rate = costs.matrix_rate(table.train.precision) * costs.EFFICIENCY
    learners = len(plan.terms) * len(table.seeds)
    return [
        *lines,
        f"{learners} learners, {table.train.steps:,} updates of {table.train.batch_size} x {table.data.max_length} tokens",
        f"GFLOP of an update alone: {steps}",
        f"estimated: {cost.total_flops / rate / 60:,.1f} minutes here, {cost.memory / 2**30:,.1f} GiB of memory, "
        f"{cost.disk / 2**30:,.2f} GiB of disk",
    ]


def _shape(config: Any) -> str:
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{config.num_attention_heads} heads, vocabulary {config.vocab_size:,}"
    )


def _of_terms(plan: build.Design) -> list[str]:
    maps = build.facts(plan)
    lines = []
    for name, setting in plan.recipe.chosen.items():
        for term in setting.terms:
            layers = maps.get(name, {}).get(term.label)
            where = f"layers {layers} (student<-teacher)" if layers else f"on {term.tap}"
            lines.append(f"{name}: {term.label}: {term.loss} {where}, weight {term.weight}")
    return lines
