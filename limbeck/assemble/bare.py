"""Teachers without a head: their states are learned, and nobody asks for their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PretrainedConfig

from limbeck.distil.lessons import Term
from limbeck.errors import UserError
from limbeck.models.pretrained import is_bare
from limbeck.recipe.keys import MEASURED_BY_TEACHER
from limbeck.recipe.recipe import Recipe

REMEDY = "take the model that predicts"


def names(teachers: Mapping[str, PretrainedConfig]) -> list[str]:
    """Those that were saved without a head."""
    return [name for name, config in teachers.items() if is_bare(config)]


def require_states_alone(
    table: Recipe,
    teachers: Mapping[str, PretrainedConfig],
    origin: PretrainedConfig | None,
    learned: Mapping[str, Sequence[Term]],
) -> None:
    """Whether nothing asks a model without a head what it predicts.

    Args:
        table: the recipe.
        teachers: the shape of every pretrained teacher.
        origin: that of what the students begin as.
        learned: the terms of each setting.

    Raises:
        UserError: a term, the student, an ensemble, the cache, int8 or the choice of weights does.
    """
    if origin is not None and is_bare(origin):
        raise UserError(f"models.student.init: {_saved(origin)}; {REMEDY}")
    found = names(teachers)
    if not found:
        return
    what = f"models.{found[0]}: {_saved(teachers[found[0]])}, and"
    measures = any(name not in table.models.teachers for name in found)  # as `teacher`, or a member of that ensemble
    roles = {*found, *(["teacher"] if measures else [])}
    for setting, terms in learned.items():
        for term in terms:
            if term.teacher in roles and term.on_logits and "teacher" in term.needs:
                raise UserError(f"{what} settings.{setting}.{term.name} learns predictions; {REMEDY}, or drop the term")
    asked = {
        "an ensemble averages predictions": measures and len(table.models.members) > 1,
        "cache keeps predictions": table.cache is not None,
        "train.teacher_precision: int8 is measured by predictions": table.train.teacher_precision == "int8",
        f"train.keep measures {table.measure}": measures and table.measure in MEASURED_BY_TEACHER,
    }
    for who in (who for who, asks in asked.items() if asks):
        raise UserError(f"{what} {who}; {REMEDY}")


def _saved(config: PretrainedConfig) -> str:
    return f"saved as {', '.join(config.architectures or [])}, without a head"
