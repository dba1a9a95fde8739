"""The manifest of a run: what it was made of, and what has changed when it is gone on with."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from limbeck import build, custom, designs, environment, models, rundir, stages, students
from limbeck.actors import Frozen
from limbeck.ensemble import Ensemble
from limbeck.recipe import Recipe

Facts = dict[str, Any]
# words of a recipe that no bit of a student depends on, but for `eval_every` where the best weights are kept
FREE: dict[str, Any] = {
    "out": True,
    "question": True,
    "report_to": True,
    "data": {"cache"},
    "train": {"eval_every", "checkpoint_every"},
}
_KNOWN: dict[str, str] = {}  # recipe -> its identity


def identity(table: Recipe) -> str:
    """sha256 of everything in the recipe that a result is a function of."""
    plain = table.model_dump(mode="json", exclude=FREE)
    key = repr(plain)
    if key not in _KNOWN:  # YAML takes its time, and a run asks often
        _KNOWN[key] = hashlib.sha256(_yaml(plain).encode()).hexdigest()
    return _KNOWN[key]


def dump(table: Recipe, exclude: Any = None) -> str:
    """The resolved recipe as YAML."""
    return _yaml(table.model_dump(mode="json", exclude=exclude))


def text(tables: Sequence[Recipe]) -> str:
    """What stands in the recipe.yaml of a run: its recipe, or the last of some stages with those before it."""
    return _yaml(stages.dump(tables))


def _yaml(plain: Any) -> str:
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def show(folder: Path, baselines: Sequence[str]) -> bool:
    """Writes which baselines the page shows beside the settings; whether they were others before."""
    now = rundir.read_json(folder / rundir.MANIFEST)
    if now.get("baselines", []) == list(baselines):
        return False
    rundir.write_json(folder / rundir.MANIFEST, now | {"baselines": list(baselines)})
    return True


def of(study: build.Study, flops: Mapping[str, float]) -> Facts:
    """The manifest of a study that has not trained yet; `flops` are those of a mean update of each setting."""
    table, (first, *others) = study.design.recipe, _teachers(study) or [None]
    return {
        "name": table.name,
        "question": table.question,
        "stage": table.stage,
        "earlier": {
            name: {"folder": plan.recipe.run_dir, "recipe_sha256": identity(plan.recipe)}
            for name, plan in study.design.earlier.items()
        },
        "recipe_sha256": identity(table),
        "command": shlex.join(["limbeck", *sys.argv[1:]]),
        "limbeck": (versions := environment.versions())["limbeck"],
        "versions": versions,
        "machine": environment.machine(),
        "precision": table.train.precision,
        "processes": study.world.size,
        "device": str(study.world.device),
        "teacher": first,
        "teachers": others,
        "weights": models.files_of(source.source for _, source in stages.sources(table)),
        "data": study.material.facts,
        "layers": designs.facts(study.design),
        "losses": _losses(table),
        "kept_by": table.measure,
        "students": {
            learner.name: {
                "initial_sha256": students.digest(learner.model.named_parameters()),
                "parameters": learner.model.num_parameters(),
                "flops_per_step": flops[study.settings[learner.name]],
            }
            for learner in study.learners
        },
        "status": "running",
        "started": now(),
        "finished": None,
        "seconds": 0.0,
    }


def _losses(table: Recipe) -> Facts:
    """The sha256 of the file of every loss that is one's own."""
    paths = {term.loss for setting in table.chosen.values() for term in setting.terms if ":" in term.loss}
    return {path: custom.source_sha256(path) for path in sorted(paths)}


def _teachers(study: build.Study) -> list[Facts]:
    """What every pretrained model is, in the order of the recipe."""
    roles = {actor.name: actor for teachers in study.teachers.values() for actor in teachers.values()}
    actors = [it for actor in roles.values() for it in (actor.members if isinstance(actor, Ensemble) else [actor])]
    said = designs.sources(study.design.recipe.models)
    return [
        {
            "name": actor.name,
            "source": said[actor.name.partition("@")[0]].source,
            "revision": getattr(actor.model.config, "_commit_hash", None),
            "sha256": students.digest(actor.model.named_parameters()),  # of the weights as the run holds them
            "parameters": actor.model.num_parameters(),
            **({"int8": actor.effect.facts()} if isinstance(actor, Frozen) and actor.effect else {}),
        }
        for actor in actors
    ]


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
