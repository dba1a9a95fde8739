"""The manifest of a run: what it was made of, and what has changed when it is gone on with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limbeck import rundir
from limbeck.assemble import changes, design, own
from limbeck.assemble.study import Study
from limbeck.distil.learner import Learner
from limbeck.models import fingerprint, pretrained
from limbeck.recipe import actor_names, stages
from limbeck.recipe.identity import identity
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.stage_texts import corpora
from limbeck.running import changed
from limbeck.system import environment, files
from limbeck.system.files import json_sha256
from limbeck.system.processes import World
from limbeck.text.blocks import corpora_of

Facts = dict[str, Any]


def show(folder: Path, baselines: Sequence[str]) -> bool:
    """Writes which baselines the page shows beside the settings; whether they were others before."""
    now = files.read_json(folder / rundir.MANIFEST)
    if now.get("baselines", []) == list(baselines):
        return False
    files.write_json(folder / rundir.MANIFEST, now | {"baselines": list(baselines)})
    return True


def of(study: Study, flops: Mapping[str, float]) -> Facts:
    """The manifest of a study that has not trained yet; `flops` are those of a mean update of each setting."""
    plan, (first, *others) = study.design, _teachers(study) or [None]
    return {
        **_begins(plan, study.world),
        "teacher": first,
        "teachers": others,
        "data": study.material.facts,
        "layers": design.facts(plan),
        "losses": _losses(plan.recipe),
        "kept_by": plan.recipe.measure,
        "students": {
            learner.name: {
                "initial_sha256": fingerprint.digest(learner.model.named_parameters()),
                "parameters": _exported(plan, learner),
                "flops_per_step": flops[study.settings[learner.name]],
                **learner.facts(),
            }
            for learner in study.learners
        },
    }


def _exported(plan: design.Design, learner: Learner) -> int:
    """The parameters that its student has when it is exported."""
    done = [*learner.changes, *learner.finishing]
    return changed.size_of(plan, done)[0].parameters if done else learner.model.num_parameters()


def of_text(plan: design.Design, world: World) -> Facts:
    """The manifest of a stage that has not written its text yet; of its own text what tells whether it is another one later."""
    local = not any(spec.startswith("hub:") for _, spec in corpora(plan.data))
    data = {"corpus": plan.recipe.data.corpus, "corpora_sha256": json_sha256(corpora_of(plan.data)) if local else None}
    return {**_begins(plan, world), "data": data, "students": {}}


def _begins(plan: design.Design, world: World) -> Facts:
    """What every stage has: its recipe, its place among others, the machine."""
    table = plan.recipe
    return {
        "name": table.name,
        "question": table.question,
        "stage": table.stage,
        "earlier": {
            name: {"folder": plan.recipe.run_dir, "recipe_sha256": identity(plan.recipe)}
            for name, plan in plan.earlier.items()
        },
        "recipe_sha256": identity(table),
        "command": shlex.join(["limbeck", *sys.argv[1:]]),
        "limbeck": (versions := environment.versions())["limbeck"],
        "versions": versions,
        "machine": environment.machine(),
        "precision": table.train.precision,
        "processes": world.size,
        "device": str(world.device),
        "weights": pretrained.files_of(source.source for _, source in stages.placed_sources(table)),
        **_own(table),
        "status": "running",
        "started": now(),
        "finished": None,
        "seconds": 0.0,
    }


def own_code(table: Recipe) -> Facts:
    """The sha256 of the files of everything that is one's own: `losses`, and `own` where there is any."""
    return {"losses": _losses(table), **_own(table)}


def _losses(table: Recipe) -> Facts:
    """The sha256 of the file of every loss that is one's own."""
    paths = {term.loss for setting in table.chosen.values() for term in setting.terms if ":" in term.loss}
    return {path: own.source_sha256(path) for path in sorted(paths)}


def _own(table: Recipe) -> Facts:
    """Likewise of changes, actors, kinds and writers of text, where there are any."""
    paths = {*changes.own_paths(table), *(it.actor for it in table.models.fixed if it.actor)}
    paths |= {path for path in (table.data.kind, table.write) if path}
    return {"own": {path: own.source_sha256(path) for path in sorted(paths)}} if paths else {}


def _teachers(study: Study) -> list[Facts]:
    """What every pretrained model is, in the order of the recipe."""
    roles = {actor.name: actor for teachers in study.teachers.values() for actor in teachers.values()}
    return [
        {"name": one.name, "source": _source(study, one.name), **one.facts()}
        for actor in roles.values()
        for one in actor.members()
    ]


def _source(study: Study, name: str) -> str:
    """Where a teacher comes from; a base is what its students begin as."""
    models, role = study.design.recipe.models, actor_names.role_and_student(name)[0]
    said = design.named_sources(models) | ({"base": models.beginning} if models.beginning else {})
    return said[role].source if role in said else models.student.init


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
