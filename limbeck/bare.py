"""Teachers without a head: their states are learned, and nobody asks for their predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.errors import UserError
from limbeck.models import is_bare
from limbeck.words import OF_TEACHER

if TYPE_CHECKING:
    from limbeck.designs import Design


def names(plan: Design) -> list[str]:
    """The teachers that were saved without a head."""
    return [name for name, config in plan.teachers.items() if is_bare(config)]


def require_states_alone(plan: Design) -> None:
    """Whether nothing asks a teacher without a head what it predicts.

    Raises:
        UserError: a term, the student, the cache or the choice of weights does.
    """
    table, found = plan.recipe, names(plan)
    if plan.origin is not None and is_bare(plan.origin) and table.models.student.origin:
        raise UserError(
            f"models.student.init: {table.models.student.init}: saved as {plan.origin.architectures[0]}, without a head; "
            "take the model that predicts"
        )
    if not found:
        return
    what = f"models.{found[0]}: saved as {(plan.teachers[found[0]].architectures or ['?'])[0]}, without a head, and"
    remedy = "take the model that predicts"
    roles = [name if name in plan.roles else "teacher" for name in found]  # members of an ensemble play one role
    for setting, terms in plan.terms.items():
        for term in terms:
            if term.teacher in roles and term.on_logits and "teacher" in term.needs:
                raise UserError(f"{what} settings.{setting}.{term.name} learns predictions; {remedy}, or drop the term")
    asked = {
        "models.student.init begins as it is": table.models.student.init == "teacher" and "teacher" in roles,
        "an ensemble averages predictions": len(table.models.members) > 1 and "teacher" in roles,
        "cache keeps predictions": table.cache is not None,
        "train.teacher_precision: int8 is measured by predictions": table.train.teacher_precision == "int8",
        f"train.keep measures {table.measure}": table.measure in OF_TEACHER and "teacher" in roles,
    }
    for who in (who for who, asks in asked.items() if asks):
        raise UserError(f"{what} {who}; {remedy}")
