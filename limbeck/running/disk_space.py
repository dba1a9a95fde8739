"""Room in memory and on the disk: what a run takes, held against what is free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from limbeck import rundir
from limbeck.assemble import costs, design
from limbeck.assemble.study import Study
from limbeck.errors import UserError
from limbeck.system import files
from limbeck.system.processes import World
from limbeck.training import checkpoint

# of a container (a control group): its limit, what is used, and what of that files may give back; version 2, then 1
LIMITS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
LINE, PAGE = 2048, 8 << 20  # bytes of a learner's lines of a step, and of page, figures and evaluations: estimates


def fits(plan: design.Design, world: World) -> None:
    """Whether the machine holds a run, by estimates, before anything of it is built.

    On a GPU that is short of memory, micro-batches become smaller by themselves: there the least counts, one row at a time.

    Raises:
        UserError: it does not.
    """
    cost, folder = costs.of_study(plan), Path(plan.recipe.run_dir)
    memory, free = cost.memory if world.device.type == "cpu" else cost.least, free_memory(world)
    if world.total([memory > free])[0]:
        raise UserError(
            f"{folder}: needs about {files.readable(memory)} of memory, and {files.readable(free)} are free here; lower "
            "train.batch_size or data.max_length, raise train.accumulate, train fewer settings together (together: 1) or a smaller "
            "student, or go on all the same with --force"
        )
    disk, free = cost.disk - _there(folder), files.free(folder)
    if world.total([disk > free])[0]:
        raise UserError(
            f"{folder}: needs about {files.readable(disk)} of disk, and {files.readable(free)} are free there; make room, name "
            "another disk with out=DIR, or go on all the same with --force"
        )


def free_memory(world: World, root: Path = Path("/")) -> float:
    """Bytes of the device that are free now, in the containers around this process too; infinitely many where nobody says."""
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0]
    if world.device.type != "cpu":
        return math.inf
    lines = _text(root / "proc/meminfo").splitlines()
    machine = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return max(0.0, min([*machine, *_of_containers(root)], default=math.inf))


def _of_containers(root: Path) -> Iterator[float]:
    """What each control group around this process has left of its limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, kinds, place = line.split(":", 2)
        kind = "memory" if "memory" in kinds.split(",") else kinds
        if kind not in LIMITS:
            continue
        top = root / "sys/fs/cgroup" / kind
        inner = top / place.strip("/")
        limit, used, cached = LIMITS[kind]
        for folder in (inner, *inner.parents[: len(inner.parts) - len(top.parts)]):
            most, now = _text(folder / limit).strip(), _text(folder / used).strip()
            given = [it.split()[1] for it in _text(folder / "memory.stat").splitlines() if it.startswith(f"{cached} ")]
            if most.isdigit() and now.isdigit():
                yield float(most) - float(now) + float(given[0] if given else 0)


def _text(path: Path) -> str:
    """What stands in a file of the system; nothing where it has none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _there(folder: Path) -> int:
    """Bytes of checkpoints and students that a run has written already."""
    return sum(files.size(folder / name) for name in (rundir.CHECKPOINTS, rundir.STUDENTS))


def needed(study: Study, folder: Path) -> int:
    """Bytes that a run still writes: checkpoints, one of them while the older ones are there, students, lines."""
    saved = sum(it.size() for it in study.changing) * (checkpoint.KEPT + 1)
    exported = sum(p.nbytes for learner in study.learners for p in learner.model.parameters())
    return (
        max(0, saved + exported - _there(folder)) + LINE * study.design.recipe.train.steps * len(study.learners) + PAGE
    )


def require(study: Study, folder: Path) -> None:
    """Whether the disk holds what is still to be written.

    Raises:
        UserError: it does not.
    """
    wanted, free = needed(study, folder), files.free(folder)
    if study.world.total([wanted > free])[0]:
        raise UserError(
            f"{folder}: the run writes about {files.readable(wanted)} more, and {files.readable(free)} are free there; "
            "make room, or name another disk with out=DIR"
        )


def refused(study: Study, folder: Path, why: str) -> UserError:
    """The error for a disk that took no more, and said why."""
    return UserError(
        f"{folder}: {why}; the run writes about {files.readable(needed(study, folder))} more: make room and run it again, it "
        "goes on from its last checkpoint"
    )
