"""Labels of a task: what stands in a file becomes the number of a class, or a score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.batch import IGNORED
from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.recipe.data import Task

Places = Mapping[str, str]  # class -> where it was first seen

INTEGER = re.compile(r"[+-]?\d+")
NAMELESS = re.compile(r"LABEL_\d+")  # what transformers calls the classes of a model that was given no names
MOST = 10_000  # classes; more are texts or scores
SHOWN = 12  # how many classes an error names
LARGEST = float(np.finfo(np.float32).max)


def class_name(label: Any, where: str) -> str:
    """The class that a label names: 1, 1.0 and "1" are one, and true is `true`.

    Raises:
        UserError: neither a text nor a number.
    """
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    if not isinstance(label, str | int | float) or (isinstance(label, float) and isnan(label)):
        raise UserError(f"{where}: the label {_short(label)} names no class; set data.task.label to another column")
    return str(label)


def score(label: Any, where: str) -> float:
    """The number that a label of a regression says.

    Raises:
        UserError: not a finite number, or the one that stands for "no label".
    """
    try:
        value = None if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        value = None
    if value is None or not abs(value) <= LARGEST:
        remedy = "set data.task.label to a column of numbers, or data.task.kind to classification"
        raise UserError(f"{where}: the label {_short(label)} is no finite number; {remedy}")
    if np.float32(value) == IGNORED:
        raise UserError(f"{where}: the score {IGNORED} stands for no label; leave the label empty, or shift the scores")
    return value


def choose(task: Task, given: Sequence[str] | None, found: Places) -> tuple[str, ...]:
    """The classes in the order of their logits.

    Args:
        task: whose own `classes` come first.
        given: those of the teacher's config; where it only counts them (`LABEL_0`, ...), the rows name them.
        found: the classes of the training rows, taken sorted, integers by their size.

    Raises:
        UserError: fewer than two classes, or not as many as the teacher has.
    """
    if task.classes:
        return task.classes
    named = given and not all(NAMELESS.fullmatch(name) for name in given)
    if given and (named or set(found) <= set(given)):
        return tuple(given)
    names = tuple(sorted(found, key=lambda name: (int(name), name))) if _integers(found) else tuple(sorted(found))
    if given and len(given) != len(names):
        counts = f"the teacher has {len(given)} classes, the training rows have {len(names)}"
        raise UserError(f"{counts} ({_listed(names)}); name them in data.task.classes in the order of its logits")
    if len(names) < 2:
        what = f"the training rows have one class only ({names[0]})" if names else "no row is labelled"
        raise UserError(f"{what}; name the classes in data.task.classes")
    return names


def numbers(found: Places, classes: Sequence[str]) -> list[int]:
    """The number of each class found.

    Raises:
        UserError: one that is not among the classes, with its file and line.
    """
    known = {name: number for number, name in enumerate(classes)}
    for name, place in found.items():
        if name not in known:
            remedy = "name the labels of the rows in data.task.classes, in the order of the teacher's logits"
            raise UserError(f"{place}: the label {_short(name)} is not among the classes {_listed(classes)}; {remedy}")
    return [known[name] for name in found]


def _integers(names: Places) -> bool:
    return all(INTEGER.fullmatch(name) for name in names)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _short(label: Any) -> str:
    text = repr(label)
    return text if len(text) <= 40 else f"{text[:40]}..."
