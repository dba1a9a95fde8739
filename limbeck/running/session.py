"""One run in its directory: what is written when. The loop itself is `training.loop.fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck import rundir
from limbeck.assemble import costs, evaluations
from limbeck.assemble.study import Study, first_stages
from limbeck.distil.learner import Learner
from limbeck.errors import Failed, Interrupted, UserError
from limbeck.lab.data.evaluated import last_rows
from limbeck.lab.page import report
from limbeck.recipe import identity
from limbeck.running import changes, disk_space, hooks, manifest, profile, records
from limbeck.running.trackers import Trackers
from limbeck.system import clock, files
from limbeck.system.progress import Done, doing
from limbeck.system.signals import at_once
from limbeck.training import checkpoint, export
from limbeck.training.best import Keeper
from limbeck.training.loop import Course, Record, RunState, fit, untaken

PROFILING, PROFILED = 10.0, 0.02  # seconds, or the share of the run's time where that is more, for profile.json


class Session:
    """A study, its directory, and the hooks that write there.

    `recipe` is the text of its recipe.yaml, `baselines` are shown beside its settings; with `force` a run that was made of
    something else goes on.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        tell: Callable[[str], None],
        recipe: str,
        baselines: Sequence[str] = (),
        force: bool = False,
    ) -> None:
        self.force = force
        self.study, self.folder, self.tell, self.recipe, self.baselines = study, folder, tell, recipe, baselines
        self.table, self.how = study.design.recipe, study.design.recipe.train
        self.evaluation, self.reasons = evaluations.evaluation(study, tell), evaluations.reasons(study, tell)
        self.cost = evaluations.cost(study)
        self.tokens: dict[str, int] = {}
        self.way = RunState()
        self.keeper = Keeper(study.bests, self.table.measure, self.how.patience) if self.table.measure else None
        self.trackers: list[Trackers] = []

    def go(self, stopped: Callable[[], bool]) -> None:
        """Begins or resumes, trains, and finishes.

        Raises:
            Interrupted: `stopped` said so, or a signal in another phase; a checkpoint is saved.
            UserError: the disk has no room for the run, or the run was made of something else.
            Failed: some settings did not end; the others did, and everything is saved.
        """
        begin = perf_counter()
        with at_once():
            with doing(f"beginning in {self.folder}"):
                if not self.force:
                    disk_space.require(self.study, self.folder)
                start = self._resume() if self._exists() else self._begin()
                self._track()
            if start == 0:
                first_stages(self.study, stopped, self.tell)
        if start == 0:
            self._evaluate(0, None)
        with doing("training", "steps") as now:
            now(start, self.how.steps)
            first = [self._record, self._tell_failures, hooks.silent_terms(self.tell)]
            then = [self._evaluate_now, self._save_now, hooks.shows(now, self.how.steps, self.tell)]
            course = self._course(start)
            done = fit(course, [*first, *then, *self.trackers], stopped)
        ended = done < self.how.steps and bool(self._left) and not self._training
        if ended:
            with at_once():
                self._evaluate(self.how.steps, None)
        for tracker in self.trackers:
            tracker.finish()
        if done > start:
            self._save(done)
        try:
            if done < self.how.steps and self._training:
                raise Interrupted(f"stopped after step {done}; run it again to go on")
            self.way.failed |= untaken(course)  # not in the checkpoint: a longer run may take some
            with at_once():
                self._finish(begin)
        except Interrupted:
            self._status("interrupted", begin)
            raise
        if self.way.failed:
            raise Failed(self.way.failed.values())

    def _track(self) -> None:
        """The trackers that the recipe asks for, in the first process."""
        if self.table.report_to and self.study.world.is_main:
            plain = self.table.model_dump(mode="json")
            self.trackers.append(Trackers(self.table.report_to, self.table.name, self.folder, plain))

    def _course(self, start: int) -> Course:
        return Course(
            stills=self.study.stills,
            feeds=self.study.feeds,
            steps=self.how.steps,
            accumulate=self.how.accumulate,
            describe=self._describe,
            measure=self._evaluates,
            probes=lambda step: step % self.how.probe_every == 0,
            world=self.study.world,
            start=start,
            tokens=self.tokens,
            way=self.way,
            price=lambda learner, counts: self.cost.flops(self.study.settings[learner], costs.Load.of(counts)),
            skips=self.how.skips,
            tell=self.tell,
        )

    @property
    def _left(self) -> list[Learner]:
        """The learners that have not failed."""
        return [learner for learner in self.study.learners if learner.name not in self.way.failed]

    @property
    def _training(self) -> list[Learner]:
        """The learners that have neither failed nor waited long enough."""
        return [learner for learner in self._left if learner.name not in self.way.ended]

    def _describe(self, learner: str) -> dict[str, Any]:
        return {"stage": self.table.stage, "setting": self.study.settings[learner], "seed": self.study.seeds[learner]}

    # what is written

    def _exists(self) -> bool:
        """Whether there is a run to go on with, as the first process sees it: another would see what it just wrote."""
        world = self.study.world
        return bool(world.total([world.is_main and (self.folder / rundir.MANIFEST).exists()])[0])

    def _begin(self) -> int:
        """Writes recipe and manifest of a new run."""
        if self.study.world.is_main:
            begun = manifest.of(self.study, self.cost.flops_per_step)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self.folder}: cannot be made ({error.strerror}); choose another with out=DIR"
                ) from None
            rundir.remove_left(self.folder)  # of one that was killed before it had a manifest
            files.write_json(self.folder / rundir.MANIFEST, begun | {"baselines": list(self.baselines)})
            files.write_text(self.folder / rundir.RECIPE, self.recipe)
        self.study.world.wait()
        return 0

    def _resume(self) -> int:
        """Takes the newest checkpoint that verifies, and drops the lines written after it.

        Raises:
            UserError: the recipe, the text, the teacher or the initial students are others than when the run began.
        """
        began = files.read_json(self.folder / rundir.MANIFEST)
        goes_on = manifest.of(self.study, self.cost.flops_per_step)
        found = changes.compared(self.folder, began, goes_on, self.table, self.force, self.tell)
        taken = checkpoint.newest(self.folder / rundir.CHECKPOINTS, self.tell, changes.recipes(began))
        start = taken[1]["step"] if taken else 0
        if start > self.how.steps:
            raise UserError(f"{self.folder}: has {start} updates already; set train.steps to that, or to more")
        if taken:
            checkpoint.restore(taken[0], self.study.changing)
            self.tokens.update(taken[1]["tokens"])
            before = {name: said["flops_per_step"] * start for name, said in began["students"].items()}
            self.way = RunState(**{"flops": before, **taken[1]["way"]})  # earlier versions kept no sum
        self.tell(f"{self.folder}: goes on after step {start}")
        self.study.world.wait()  # all have read what is now taken away
        if self.study.world.is_main:
            told = changes.gone_on(began, goes_on, found) if any(found) else began
            files.write_json(self.folder / rundir.MANIFEST, told | {"baselines": list(self.baselines)})
            files.write_text(self.folder / rundir.RECIPE, self.recipe)
            rundir.remove_left(self.folder)
            checkpoint.drop_after(self.folder / rundir.CHECKPOINTS, start)
            checkpoint.rotate(self.folder / rundir.CHECKPOINTS)  # a kill may have come before that
            rundir.drop_after(self.folder, start if taken else -1)
        self._status("running", perf_counter())
        self.study.world.wait()
        return start

    def _record(self, record: Record) -> None:
        if self.study.world.is_main:
            files.append_lines(self.folder / rundir.METRICS, record.rows)

    def _tell_failures(self, record: Record) -> None:
        """Says, and writes down, which settings stop after this step."""
        for line in dict.fromkeys(record.failed.values()):
            self.tell(line)
        if record.failed and self.study.world.is_main:
            now = files.read_json(self.folder / rundir.MANIFEST)
            files.write_json(self.folder / rundir.MANIFEST, now | {"failed": self.way.failed})

    def _evaluates(self, step: int) -> bool:
        return step % self.how.eval_every == 0 or step == self.how.steps

    def _evaluate_now(self, record: Record) -> None:
        if self._evaluates(record.step):
            self._evaluate(record.step, record)
            self._end(record.step)

    def _end(self, step: int) -> None:
        """Has the learners stop that have waited long enough for a better evaluation, peers together."""
        if self.keeper is None or self.how.patience is None or step == self.how.steps:
            return
        who = [(learner.name, tuple(self._describe(learner.name).values())[1:3]) for learner in self._training]
        waiting = (
            {key for name, key in who if self.keeper.patient(name, self.way)} if self.study.world.is_main else set()
        )
        over = self.study.world.total([self.study.world.is_main and key not in waiting for _, key in who])
        for name in (name for (name, _), ends in zip(who, over, strict=True) if ends):
            self.way.ended[name] = step
            self.tell(f"{name}: ends at step {step}, {self.how.patience} evaluations without a better one")

    def _evaluate(self, step: int, record: Record | None) -> None:
        """Measures the learners that are trained; at the end all that have not failed, with the weights that are kept."""
        if not self._left:
            return
        last = step == self.how.steps and (self.keeper or any(it.finishing for it in self._left))
        found = self._measured(step, self._training) if self.keeper or not last else {}
        if self.keeper:
            ready = {learner.name for learner in self._training if learner.ready(step)}
            rows = {name: said for (name, split), said in found.items() if split == "test" and name in ready}
            self.keeper.see(step, rows, self.way)
        if not last:
            self._write(step, record, self._training, found)
            return
        with self._as_exported(self._left):
            self._write(step, record, self._left, self._measured(step, self._left))

    @contextmanager
    def _as_exported(self, learners: Sequence[Learner]) -> Iterator[None]:
        """Inside, learners have the weights that are kept, and the changes at the end of their training are made."""
        with ExitStack() as stack:
            if self.keeper:
                stack.enter_context(self.keeper.worn(learners))
            for learner in learners:
                stack.enter_context(learner.finished())
            yield

    def _measured(self, step: int, learners: Sequence[Learner]) -> records.Evaluated:
        what, noun = f"evaluation at step {step}" if step else "first evaluation", evaluations.noun(self.study)
        with doing(what, noun) as done:
            return self.evaluation(learners, done)

    def _write(self, step: int, record: Record | None, learners: Sequence[Learner], found: records.Evaluated) -> None:
        """Writes what an evaluation found, and looks for reasons."""
        last = step == self.how.steps
        norms = record.norms if record else {}
        kept = self.way.best if self.keeper and last else None
        rows, documents = records.evaluation_rows(found, self._describe, step, norms, kept)
        if self.study.world.is_main:
            files.append_lines(self.folder / rundir.EVALS, rows)
            for tracker in self.trackers:
                tracker.evaluated(rows, step)
            (self.folder / rundir.DOCUMENTS).mkdir(exist_ok=True)
            with files.replacing(self.folder / rundir.DOCUMENTS / f"{rundir.step_name(step)}.parquet") as place:
                pq.write_table(pa.Table.from_pylist(documents), place)
        if self.reasons is not None:
            at = {"step": step, "stage": self.table.stage}
            rows = records.reason_rows(self.reasons, learners, self._describe, at, last)
            if self.study.world.is_main:
                files.append_lines(self.folder / rundir.REASONS, rows)

    def _save_now(self, record: Record) -> None:
        if record.step % self.how.checkpoint_every == 0 and record.step < self.how.steps:
            self._save(record.step)

    def _save(self, step: int) -> None:
        if self.study.world.is_main:
            for name in rundir.LINES:  # no line may be younger than a checkpoint that counts on it
                if (self.folder / name).exists():
                    files.sync(self.folder / name)
        facts = {"recipe_sha256": identity.identity(self.table), "tokens": self.tokens, "way": vars(self.way)}
        with doing(f"saving step {step}"):
            checkpoint.save(self.folder / rundir.CHECKPOINTS, step, self.study.changing, facts, self.study.world)
        self.study.world.wait()

    def _finish(self, begin: float) -> None:
        """Exports the students, profiles them, draws the figures, writes the report."""
        if self.study.world.is_main:
            facts = files.read_json(self.folder / rundir.MANIFEST)
            with doing("export", "students") as done:
                self._export(facts, done)
            spent = facts["seconds"] + clock.since(begin)
            with doing("profile") as now, self._as_exported(self._left):
                told = profile.of_study(self.study, seconds=max(PROFILING, PROFILED * spent), turn=now.at)
            files.write_json(self.folder / rundir.PROFILE, told)
        self._status("done" if self._left else "failed", begin)
        if self.study.world.is_main:
            report.write(self.folder)
        self.study.world.wait()

    def _export(self, facts: dict[str, Any], done: Done) -> None:
        left, told = {learner.name for learner in self._left}, files.read_lines(self.folder / rundir.EVALS)[0]
        last = last_rows(row for row in told if row["learner"] in left)
        for number, learner in enumerate(self._left):
            done(number, len(self._left))
            rows = [row for row in last if row["learner"] == learner.name]
            card = export.model_card(facts, self.recipe, self._describe(learner.name), learner.name, rows)
            with self._as_exported([learner]):
                export.export(self.folder, learner, self.study.design.student_tokenizer, card)

    def _status(self, status: str, begin: float) -> None:
        if self.study.world.is_main:
            now = files.read_json(self.folder / rundir.MANIFEST)
            spent = now["seconds"] + clock.since(begin)
            ended = None if status == "running" else max(manifest.now(), now["started"])  # a clock may be set back
            now |= {"status": status, "finished": ended, "seconds": round(spent, 1), "failed": self.way.failed}
            if self.keeper:
                now |= {"ended": self.way.ended}
            files.write_json(self.folder / rundir.MANIFEST, now)
