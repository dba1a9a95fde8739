"""What the models of a study cost when they answer: profile.json."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedModel

from limbeck.assemble.study import Study
from limbeck.measure.evaluation import evaluating
from limbeck.measure.profile import Facts, measure
from limbeck.recipe import actor_names

BATCHES, ROUNDS = (1, 32), 10  # of a study


def of_study(made: Study, seconds: float, turn: Callable[[str], None] = lambda what: None) -> Facts:
    """Profiles of the students and teachers of a study as it holds them, at its precision: what profile.json holds.

    One student stands for all settings whose students have its shape, and one teacher for all that play its role in this shape.
    `turn` receives whose turn it is.
    """
    plan, kinds = made.design, {}
    for learner in made.learners:
        name, setting, model = learner.name, made.settings[learner.name], learner.folded().model
        kinds.setdefault(_shape(model), (name, model, {}))[2].setdefault(setting)
    for actor in (actor for roles in made.teachers.values() for actor in roles.values()):
        for name, inside in ((one.name, one.everywhere()) for one in actor.members()):
            if inside is None:  # no model, or not here
                continue
            model = inside.model
            role, _ = actor_names.role_and_student(name)
            kinds.setdefault(f"{role} {_shape(model)}", (name, model, {}))

    def around() -> AbstractContextManager[Any]:
        return torch.autocast(made.world.device.type, dtype=plan.autocast, enabled=plan.autocast is not None)

    said, length = list(kinds.values()), plan.recipe.data.max_length
    with evaluating(made.learners):
        loaded = [model for _, model, _ in said]
        how: dict[str, Any] = {"length": length, "batches": BATCHES, "rounds": ROUNDS, "seconds": seconds}
        found = measure(
            loaded, around=around, turn=lambda number, rows: turn(f"{said[number][0]}, rows: {rows}"), **how
        )
    rows = [
        {"name": name, "settings": list(settings), **facts}
        for (name, _, settings), facts in zip(said, found["models"], strict=True)
    ]
    return found | {"precision": plan.recipe.train.precision, "models": rows}


def _shape(model: PreTrainedModel) -> str:
    return str({word: value for word, value in model.config.to_dict().items() if word != "_name_or_path"})
