"""Lines of evals.jsonl: the last evaluation of all students, and the loss that a line tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

WHO = ("setting", "seed", "learner", "split")  # whose line it is; joined runs may have learners of one name

Row = TypeVar("Row", bound=Mapping[str, Any])


def last_step(evaluated: Iterable[Iterable[int]]) -> int | None:
    """The last step at which all learners were evaluated, from the steps of each; None where there is none.

    >>> last_step([[0, 10, 20], [0, 10]])
    10
    """
    several = [set(steps) for steps in evaluated]
    return max(set.intersection(*several), default=None) if several else None


def last_rows(rows: Iterable[Row]) -> list[Row]:
    """The lines at the last step at which all learners among them were evaluated, learner by learner; none where there is none.

    Of a line that was written twice the later one counts.
    """
    found: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in WHO), {})[row["step"]] = row
    step = last_step(found.values())
    return [] if step is None else [steps[step] for steps in found.values()]


def loss_of(row: Mapping[str, Any]) -> float | None:
    """The loss of a line: from the teacher, or where there is none of the labels."""
    return row["label_loss"] if row["logit_loss"] is None else row["logit_loss"]
