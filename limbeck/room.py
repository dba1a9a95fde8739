"""Room on the disk: what a run still writes, held against what is free."""

from __future__ import annotations

from pathlib import Path

from limbeck import checkpoint, rundir
from limbeck.build import Study
from limbeck.errors import UserError

LINE, PAGE = 2048, 8 << 20  # bytes of a learner's lines of a step, and of page, figures and evaluations: estimates


def needed(study: Study, folder: Path) -> int:
    """Bytes that a run still writes: checkpoints, one of them while the older ones are there, students, lines."""
    saved = sum(map(checkpoint.size, study.changing)) * (checkpoint.KEPT + 1)
    exported = sum(p.nbytes for learner in study.learners for p in learner.model.parameters())
    there = sum(rundir.size(folder / name) for name in (rundir.CHECKPOINTS, rundir.STUDENTS))
    return max(0, saved + exported - there) + LINE * study.design.recipe.train.steps * len(study.learners) + PAGE


def require(study: Study, folder: Path) -> None:
    """Whether the disk holds what is still to be written.

    Raises:
        UserError: it does not.
    """
    wanted, free = needed(study, folder), rundir.free(folder)
    if study.world.total([wanted > free])[0]:
        raise UserError(
            f"{folder}: the run writes about {rundir.readable(wanted)} more, and {rundir.readable(free)} are free there; "
            "make room, or name another disk with out=DIR"
        )


def refused(study: Study, folder: Path, why: str) -> UserError:
    """The error for a disk that took no more, and said why."""
    return UserError(
        f"{folder}: {why}; the run writes about {rundir.readable(needed(study, folder))} more: make room and run it again, it "
        "goes on from its last checkpoint"
    )
