"""The metrics of tasks, by scikit-learn and scipy: accuracy, F1 and Matthews' correlation of classes, Pearson and Spearman of scores."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from limbeck.batch import IGNORED
from limbeck.recipe.keys import METRICS


def scores(kind: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """The metrics of some rows.

    Args:
        kind: classification or regression.
        logits: `[n, C]`; of a regression the scores `[n, 1]`.
        labels: class numbers or scores `[n]`, `IGNORED` where there is none: such rows are left out.

    Returns:
        `accuracy`, `f1` (of class 1 where there are two classes, else the mean over those that stand among labels or answers)
        and `matthews` (0, as scikit-learn has it, where all answers or all labels are alike), or `pearson` and `spearman`
        (None there). None without rows, and where a logit is not finite.

    >>> scores("classification", np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), np.array([1, 0, 0]))["accuracy"]
    0.6666666666666666
    """
    kept = labels != IGNORED
    logits, labels = logits[kept].astype(np.float64), labels[kept]
    if not len(labels) or not np.isfinite(logits).all():
        return dict.fromkeys(METRICS[kind])
    found = _of_classes(logits, labels) if kind == "classification" else _of_scores(logits[:, 0], labels)
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}


def _of_classes(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    answers = logits.argmax(1)
    average: dict[str, Any] = {"average": "binary" if logits.shape[1] == 2 else "macro", "zero_division": 0.0}
    vary = len(np.union1d(labels, answers)) > 1  # else scikit-learn warns
    return {
        "accuracy": float(accuracy_score(labels, answers)),
        "f1": float(f1_score(labels, answers, **average)),
        "matthews": float(matthews_corrcoef(labels, answers)) if vary else 0.0,
    }


def _of_scores(answers: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    from scipy.stats import pearsonr, spearmanr

    if len(labels) < 2 or np.ptp(answers) == 0 or np.ptp(labels) == 0:
        return dict.fromkeys(METRICS["regression"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant answers: the number says it
        found: dict[str, Any] = {"pearson": pearsonr(answers, labels)[0], "spearman": spearmanr(answers, labels)[0]}
    return {name: float(value) for name, value in found.items()}
