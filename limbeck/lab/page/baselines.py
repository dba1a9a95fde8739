"""Baselines that train nothing, as columns beside the settings: the untouched initial student, and the teacher itself.

They have no part in verdicts, and none of them is called the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from limbeck.lab.data.run import Row, RunData
from limbeck.lab.numbers import Spread
from limbeck.lab.page.results import columns, rows

Told = Callable[[Row], Mapping[str, Any]]  # a line of evals.jsonl -> columns of the table


def of_baselines(run: RunData) -> list[dict[str, Any]]:
    """Rows as those of `table.rows`, of the baselines that the recipe asked for: `initial`, `teacher`.

    `initial` is the evaluation at step 0. `teacher` is what the evaluations say of the teacher: its logit loss is 0 and its
    agreement 1. Where settings begin as different students, or are measured against different teachers, there is a row for
    each: `initial of A`. Costs are None, for nothing was trained.
    """
    kinds: dict[str, Told] = {"initial": _initial, "teacher": _teacher}
    asked = [name for name in run.manifest.get("baselines") or [] if name in kinds]
    results = rows(run) if asked else []
    return [row for name in asked for row in _rows(run, name, kinds[name], results)]


def _rows(run: RunData, name: str, told: Told, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all settings of which the same is told."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}  # what is told -> the first setting of which it is, its row
    for result in results:
        row = _row(run, name, told, result)
        if row is not None:
            same = str({key: value.by_seed for key, value in row.items() if isinstance(value, Spread)})
            found.setdefault(same, (result["setting"], row))
    return [row | {"setting": name if len(found) == 1 else f"{name} of {setting}"} for setting, row in found.values()]


def _row(run: RunData, name: str, told: Told, result: dict[str, Any]) -> dict[str, Any] | None:
    """What is told of one setting, seed by seed; None where nothing is."""
    step = 0 if name == "initial" else result["step"]
    values: dict[str, dict[int, float]] = {}
    for split in ("train", "test"):
        for seed in run.seeds(result["setting"]):
            lines = run.evals.get(split, {}).get((result["setting"], seed), [])
            line = next((line for line in lines if line["step"] == step), None)
            for key, value in _of_split(told(line), split).items() if line else ():
                values.setdefault(key, {})[seed] = math.nan if value is None else float(value)
    known = {key: Spread(each) for key, each in values.items() if any(map(math.isfinite, each.values()))}
    blank = dict.fromkeys([column.key for column in columns(result)])
    said = {key: result[key] for key in ("words", "measure", "one_teacher", "flops_budget", "seconds_budget")}
    where = {"setting": name, "seeds": result["seeds"], "step": step, "baseline": True, "exits": {}, "apart": False}
    return {**blank, **said, **where, **known, "compared": known.get(result["measure"].key)} if known else None


def _of_split(told: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The columns of the table that a line of this split fills: of the training part the logit loss alone."""
    loss = {f"{split}_logit_loss": told.get("logit_loss")}
    return loss if split == "train" else {**loss, **{key: it for key, it in told.items() if key != "logit_loss"}}


def _initial(line: Row) -> dict[str, Any]:
    return {key: line.get(key) for key in ("logit_loss", "agreement", "label_loss", "label_accuracy")} | _metrics(
        line.get("metrics")
    )


def _teacher(line: Row) -> dict[str, Any]:
    """Against itself it has no loss and agrees always; a score has no agreement."""
    if line.get("logit_loss") is None and line.get("teacher_label_loss") is None:
        return {}
    own = {"logit_loss": 0.0, "agreement": None if line.get("agreement") is None else 1.0}
    own |= {key: line.get(f"teacher_{key}") for key in ("label_loss", "label_accuracy")}
    return own | _metrics(line.get("teacher_metrics"))


def _metrics(scores: Mapping[str, Any] | None) -> dict[str, Any]:
    return {f"metrics.{name}": value for name, value in (scores or {}).items()}
