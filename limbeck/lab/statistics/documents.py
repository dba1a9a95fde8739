"""How a mean varies over documents: told beside a verdict, which it does not make."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import UserError
from limbeck.lab.data.run import shown
from limbeck.recipe.keys import MEASURES, Measure
from limbeck.rundir import DOCUMENTS, step_name

Documents = Mapping[int, tuple[float, float]]  # document -> sum of a measure, number of tokens


@dataclass(frozen=True)
class Inner:
    """A mean over tokens (or a difference of two), its standard error over documents (None for one), their number."""

    mean: float
    error: float | None
    documents: int


def documents_of(rows: Iterable[Mapping[str, Any]], measure: Measure) -> dict[int, tuple[float, float]]:
    """Sum and count of every document that was counted, of rows of evals/step-*.parquet of one split.

    Rows of the same document add up: those of several seeds give the documents of their mean.

    >>> documents_of([{"document": 7, "tokens": 4, "logit_loss_sum": 6.0}] * 2, MEASURES["logit_loss"])
    {7: (12.0, 8.0)}
    """
    count = "labels_sum" if measure.name.startswith("label_") else "tokens"
    sums: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for row in rows:
        sums[row["document"]] += row[f"{measure.name}_sum"], row[count]
    return {document: (float(total), float(number)) for document, (total, number) in sums.items() if number}


def inner_variance(first: Documents, second: Documents | None = None) -> Inner:
    """How sure a mean over tokens is of its documents: the part of the noise that more held-out text would lower.

    With sums x_i and counts n_i of D documents, r = sum x / sum n is a ratio, whose linearised variance is
    D / (D - 1) sum e_i^2 with e_i = (x_i - r n_i) / sum n. Of a pair on the same documents it is r_2 - r_1, with
    e_i the difference of theirs. It is blind to what a new seed would change, so it makes no verdict.

    Args:
        first, second: document -> sum and count, from `documents_of`; without second, the mean of the first.

    Raises:
        UserError: the two were evaluated on different documents.

    >>> inner_variance({0: (2.0, 2.0), 1: (6.0, 2.0)})
    Inner(mean=2.0, error=1.0, documents=2)
    """
    if second is not None and first.keys() != second.keys():
        raise UserError("the settings were evaluated on different documents: give rows of one step and split of both")
    mean, errors = _linearised(first, list(first))
    if second is not None:
        other, others = _linearised(second, list(first))
        mean, errors = other - mean, others - errors
    n = len(errors)
    return Inner(mean, math.sqrt(n / (n - 1) * float(np.square(errors).sum())) if n > 1 else None, n)


def _linearised(documents: Documents, order: list[int]) -> tuple[float, np.ndarray]:
    sums, counts = np.array([documents[document] for document in order], dtype=np.float64).T
    ratio = float(sums.sum() / counts.sum())
    return ratio, (sums - ratio * counts) / counts.sum()


def of_settings(folder: Path, step: int, measure: str) -> dict[str, Documents]:
    """The held-out documents of every setting of a run directory at a step; none where the file does not tell them."""
    path = folder / DOCUMENTS / f"{step_name(step)}.parquet"
    if measure not in MEASURES or not path.is_file():
        return {}
    import pyarrow.parquet as pq

    rows = [shown(row) for row in pq.read_table(path).to_pylist() if row["split"] == "test"]
    if not rows or f"{measure}_sum" not in rows[0]:
        return {}
    names = dict.fromkeys(row["setting"] for row in rows)
    return {name: documents_of([row for row in rows if row["setting"] == name], MEASURES[measure]) for name in names}
