"""One run in its directory: what is written when. The loop itself is `engine.fit`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck import build, checkpoint, costs, export, manifest, progress, rundir
from limbeck.engine import Course, Record, fit, require_finite, to_device
from limbeck.errors import Interrupted, UserError
from limbeck.evaluate import Evaluation, document_rows
from limbeck.lab import report
from limbeck.trackers import Trackers

BLOCKS = 64  # of an evaluation
SILENT = 0.01  # share of the gradient below which a term is named


class Session:
    """A study, its directory, and the hooks that write there; `recipe` is the text of its recipe.yaml."""

    def __init__(self, study: build.Study, folder: Path, tell: Callable[[str], None], recipe: str) -> None:
        self.study, self.folder, self.tell, self.recipe = study, folder, tell, recipe
        self.table, self.how = study.design.recipe, study.design.recipe.train
        self.evaluation = self._evaluation()
        self.flops = costs.of_study(study.design).flops_per_step
        self.tokens: dict[str, int] = {}
        self.silent: set[str] = set()
        self.trackers: list[Trackers] = []

    def go(self, stopped: Callable[[], bool], quiet: bool) -> None:
        """Begins or resumes, trains, and finishes.

        Raises:
            Interrupted: `stopped` said so; a checkpoint is saved.
        """
        begin = time.time()
        start = self._resume() if self._exists() else self._begin()
        self._track()
        if start == 0:
            build.first_stages(self.study, stopped, self.tell)
            self._evaluate(0, None)
        with progress.shown(self.how.steps, start, quiet) as bar:
            hooks = [require_finite, self._record, self._silent_terms, self._evaluate_now, self._save_now, bar]
            done = fit(self._course(start), [*hooks, *self.trackers], stopped)
        for tracker in self.trackers:
            tracker.finish()
        if done < self.how.steps:
            self._save(done)
            self._status("interrupted", begin)
            raise Interrupted(f"stopped after step {done}; run it again to go on")
        self._finish(begin)

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
        )

    def _describe(self, learner: str) -> dict[str, Any]:
        setting = self.study.settings[learner]
        seed = int(learner.removeprefix(f"{setting}-seed").split("-")[0])
        return {"stage": self.table.stage, "setting": setting, "seed": seed, "flops_per_step": self.flops[setting]}

    # what is written

    def _exists(self) -> bool:
        """Whether there is a run to go on with, as the first process sees it: another would see what it just wrote."""
        world = self.study.world
        return bool(world.total([world.is_main and (self.folder / rundir.MANIFEST).exists()])[0])

    def _begin(self) -> int:
        """Writes recipe and manifest of a new run."""
        if self.study.world.is_main:
            begun = manifest.of(self.study, self.flops)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self.folder}: cannot be made ({error.strerror}); choose another with out=DIR"
                ) from None
            rundir.write_json(self.folder / rundir.MANIFEST, begun)
            rundir.write_text(self.folder / rundir.RECIPE, self.recipe)
        self.study.world.wait()
        return 0

    def _resume(self) -> int:
        """Takes the newest checkpoint that verifies, and drops the lines written after it.

        Raises:
            UserError: the text, a tokenizer, the teacher or the initial students are others than when the run began.
        """
        began = rundir.read_json(self.folder / rundir.MANIFEST)
        for line in manifest.changes(began, manifest.of(self.study, self.flops), self.folder):
            self.tell(line)
        found = checkpoint.newest(self.folder / rundir.CHECKPOINTS, self.tell)
        start = found[1]["step"] if found else 0
        if found:
            checkpoint.restore(found[0], self.study.changing)
            self.tokens.update(found[1]["tokens"])
        self.tell(f"{self.folder}: goes on after step {start}")
        self._status("running", time.time())
        self.study.world.wait()  # all have read what is now taken away
        if self.study.world.is_main:
            rundir.write_text(self.folder / rundir.RECIPE, self.recipe)
            checkpoint.drop_after(self.folder / rundir.CHECKPOINTS, start)
            for left in (
                *self.folder.glob(f"{rundir.CHECKPOINTS}/.*.tmp"),
                *self.folder.glob(f"{rundir.STUDENTS}/.*.tmp"),
            ):
                shutil.rmtree(left)
            for name in (rundir.METRICS, rundir.EVALS):
                rundir.keep_until(self.folder / name, start if found else -1)
        self.study.world.wait()
        return start

    def _record(self, record: Record) -> None:
        if self.study.world.is_main:
            rundir.append_lines(self.folder / rundir.METRICS, record.rows)

    def _silent_terms(self, record: Record) -> None:
        """Names each term, once, whose share of the gradient is below 1 % at a probe."""
        for row in record.rows:
            shares = row["gradient_share"] if record.step > 1 else None  # at first, an average teaches nothing yet
            for term, share in (shares or {}).items():
                who = f"{row['setting']}: the term {term}"
                if share < SILENT and row["weights"][term] and who not in self.silent:
                    self.silent.add(who)
                    self.tell(
                        f"{who} has {share:.1%} of the gradient at step {record.step}; raise its weight, or set balance"
                    )

    def _evaluates(self, step: int) -> bool:
        return step % self.how.eval_every == 0 or step == self.how.steps

    def _evaluate_now(self, record: Record) -> None:
        if self._evaluates(record.step):
            self._evaluate(record.step, record)

    def _evaluate(self, step: int, record: Record | None) -> None:
        if not self.study.world.is_main:
            return
        rows, documents = [], []
        for (learner, split), found in self.evaluation(self.study.learners).items():
            said = self._describe(learner)
            who = {"setting": said["setting"], "seed": said["seed"], "learner": learner, "split": split}
            documents += [who | row for row in document_rows(found.pop("documents"))]
            ratios = record.norms[learner].update_ratios if record else None
            rows.append({"step": step, "stage": said["stage"], **who, **found, "update_ratio_layers": ratios})
        rundir.append_lines(self.folder / rundir.EVALS, rows)
        for tracker in self.trackers:
            tracker.evaluated(rows, step)
        (self.folder / rundir.DOCUMENTS).mkdir(exist_ok=True)
        place = self.folder / rundir.DOCUMENTS / f"{rundir.step_name(step)}.parquet"
        pq.write_table(pa.Table.from_pylist(documents), place)

    def _save_now(self, record: Record) -> None:
        if record.step % self.how.checkpoint_every == 0 and record.step < self.how.steps:
            self._save(record.step)

    def _save(self, step: int) -> None:
        if self.study.world.is_main:
            for name in (rundir.METRICS, rundir.EVALS):  # no line may be younger than a checkpoint that counts on it
                checkpoint.sync(self.folder / name)
            facts = {"recipe_sha256": manifest.identity(self.table), "tokens": self.tokens}
            checkpoint.save(self.folder / rundir.CHECKPOINTS, step, self.study.changing, facts)
        self.study.world.wait()

    def _finish(self, begin: float) -> None:
        """Exports the students, saves, draws the figures, writes the report."""
        if self.study.world.is_main:
            facts = rundir.read_json(self.folder / rundir.MANIFEST)
            last = [row for row in rundir.read_lines(self.folder / rundir.EVALS)[0] if row["step"] == self.how.steps]
            for learner in self.study.learners:
                rows = [row for row in last if row["learner"] == learner.name]
                card = export.model_card(facts, self.recipe, self.study.settings[learner.name], learner.name, rows)
                export.export(self.folder, learner, self.study.design.student_tokenizer, card)
        self._save(self.how.steps)
        self._status("done", begin)
        if self.study.world.is_main:
            report.write(self.folder)
        self.study.world.wait()

    def _status(self, status: str, begin: float) -> None:
        if self.study.world.is_main:
            now = rundir.read_json(self.folder / rundir.MANIFEST)
            spent, ended = now["seconds"] + time.time() - begin, None if status == "running" else manifest.now()
            now |= {"status": status, "finished": ended, "seconds": round(spent, 1)}
            rundir.write_json(self.folder / rundir.MANIFEST, now)

    def _evaluation(self) -> Evaluation:
        """The fixed blocks of both splits."""
        plan, material, world = self.study.design, self.study.material, self.study.world
        batches = {}
        task = self.table.data.task
        count = self.how.eval_blocks or (len(material.corpus.heldout) if task else BLOCKS)
        for split, part in (("train", "train"), ("test", "heldout")):
            feed = build.feed(plan, build.Material(material.corpus, None), 0, part)
            batches[split] = [to_device(b, world.device) for b in feed.fixed(count, batch_size=16)]
        return Evaluation(
            self.study.measures,
            batches,
            chunk=self.how.chunk,
            autocast=plan.autocast,
            device=world.device,
            task=task.kind if task else None,
        )
