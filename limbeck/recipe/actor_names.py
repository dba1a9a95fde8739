"""What actors are called, made and read back: `logit-seed0`, `mutual-seed0-a`, `logit-seed0-ema`, `teacher-1`, `teacher@logit-seed0`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_lowercase
from typing import Any

TAKEN = re.compile(r"teacher-\d+|.+-seed\d+.*")  # names of members of an ensemble, of learners and their averages
_MEASURE = re.compile(r"teacher(-\d+)?")
_LEARNER = re.compile(r"(?P<setting>.+)-seed(?P<seed>\d+)(-[a-z])?")


def learner(setting: str, seed: int, number: int | None = None) -> str:
    """A student of a setting and a seed; of peers the n-th.

    >>> learner("logit", 0), learner("mutual", 0, 1)
    ('logit-seed0', 'mutual-seed0-b')
    """
    return f"{setting}-seed{seed}" + ("" if number is None else f"-{ascii_lowercase[number]}")


def setting_and_seed(name: str) -> tuple[str, int] | None:
    """Those of a learner; None where it is no name of one.

    >>> setting_and_seed("mutual-seed0-b"), setting_and_seed("teacher")
    (('mutual', 0), None)
    """
    found = _LEARNER.fullmatch(name)
    return (found["setting"], int(found["seed"])) if found else None


def peer(row: Mapping[str, Any]) -> str:
    """What tells the learner of a line from the peers of its setting and seed: `-a`; "" where it has none.

    >>> peer({"setting": "mutual", "seed": 0, "learner": "mutual-seed0-b"})
    '-b'
    """
    alone = learner(row["setting"], row["seed"])
    return row["learner"].removeprefix(alone) if row["learner"].startswith(f"{alone}-") else ""


def average(of: str) -> str:
    """The average of a learner's weights."""
    return f"{of}-ema"


def members(count: int) -> list[str]:
    """The teacher, or the members of an ensemble: `teacher-1` and so on."""
    return ["teacher"] if count == 1 else [f"teacher-{number}" for number in range(1, count + 1)]


def is_of_measure(role: str) -> bool:
    """Whether a role is that of the teacher, or of a member of the ensemble, that students are measured against."""
    return _MEASURE.fullmatch(role) is not None


def from_stage(role: str, student: str) -> str:
    """Who plays a role and was a student of an earlier stage: `teacher@logit-seed0`."""
    return f"{role}@{student}"


def role_and_student(name: str) -> tuple[str, str]:
    """The role of a teacher, and which student of an earlier stage plays it; "" for any other model."""
    role, _, student = name.partition("@")
    return role, student
