"""The outcome of a run: every measure by setting and seed, and the verdicts on its pairs of settings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.errors import UserError
from limbeck.lab.data.evaluated import last_rows
from limbeck.lab.statistics.verdicts import Verdict, verdicts
from limbeck.recipe.keys import MEASURES, Measure


@dataclass(frozen=True)
class Outcome:
    """One measure of a run: its values by setting and seed at a step (the last one of any, with `own_ends`), the settings
    without any, and the verdicts."""

    measure: Measure
    step: int
    values: dict[str, dict[int, float]]
    missing: tuple[str, ...]
    verdicts: list[Verdict]


def of_run(
    rows: Sequence[Mapping[str, Any]],
    confidence: float = 0.95,
    split: str = "test",
    own_ends: bool = False,
    against: str | None = None,
) -> list[Outcome]:
    """Values and verdicts of every measure that a run recorded, at the last step at which all learners were evaluated.

    Args:
        rows: lines of evals.jsonl in their order. The last stage counts, and of a line that was written twice the later one.
            Learners that a setting ties together (peers) count by their mean. A null among the seeds of a setting is nan.
        confidence: as in `compare`.
        split: whose lines count.
        own_ends: of each setting the last step at which its own learners were evaluated, for settings that are to differ in it.
        against: as in `verdicts`.

    >>> rows = [{"step": 9, "setting": s, "seed": i, "learner": f"{s}-seed{i}", "split": "test", "logit_loss": loss}
    ...         for s, losses in {"a": [2.0, 3.0, 4.0], "b": [1.5, 2.4, 3.6]}.items() for i, loss in enumerate(losses)]
    >>> [(o.measure.name, o.step, o.verdicts[0].word) for o in of_run(rows)]
    [('logit_loss', 9, 'better')]
    """
    stage = rows[-1].get("stage") if rows else None
    kept = [row for row in rows if row["split"] == split and row.get("stage") == stage]
    if not kept:
        return []
    settings = dict.fromkeys(row["setting"] for row in kept)
    groups = [[row for row in kept if row["setting"] == it] for it in settings] if own_ends else [kept]
    ends = [last_rows(group) for group in groups]
    if not all(ends):
        raise UserError("evals.jsonl: no step at which all students were evaluated; run the recipe again to go on")
    last = [row for rows in ends for row in rows]
    step = max(row["step"] for row in last)
    found = (
        _outcome(measure, step, _by_seed(last, measure.name), confidence, against) for measure in MEASURES.values()
    )
    return [outcome for outcome in found if outcome.values]


def _by_seed(last: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[int, float]]:
    """Setting -> seed -> mean over its learners; nan where one has none."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in last:
        value = row.get(name, (row.get("metrics") or {}).get(name))
        values[row["setting"]][row["seed"]].append(math.nan if value is None else float(value))
    return {setting: {seed: float(np.mean(each)) for seed, each in seeds.items()} for setting, seeds in values.items()}


def _outcome(
    measure: Measure, step: int, table: dict[str, dict[int, float]], confidence: float, against: str | None
) -> Outcome:
    values = {setting: seeds for setting, seeds in table.items() if np.isfinite(list(seeds.values())).any()}
    missing = tuple(setting for setting in table if setting not in values)
    return Outcome(measure, step, values, missing, verdicts(values, measure, confidence, against))
