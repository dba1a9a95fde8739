"""The question of a run and what its numbers answer, in plain sentences."""

from __future__ import annotations

import math
from typing import Any

from limbeck.lab.data.run import RunData
from limbeck.lab.names import NamedMeasure
from limbeck.lab.numbers import Spread, count, duration, flops
from limbeck.lab.page.lead import NAMED, lead, listed, lost
from limbeck.lab.page.results import when
from limbeck.recipe.plain_yaml import of_run


def question(run: RunData) -> str:
    """The question in the recipe, or one such as "logit against multi: 3 seeds, 2,000 steps"."""
    recipe = of_run(run.recipe)
    asked = recipe.get("question") if isinstance(recipe, dict) else None
    if isinstance(asked, str) and asked.strip():
        return asked.strip()
    seeds = len({seed for _, seed in run.metrics})
    steps = max(rows[-1]["step"] for rows in run.metrics.values())
    return f"{' against '.join(run.settings)}: {count(seeds, 'seed')}, {count(steps, 'step')}"


def findings(run: RunData, rows: list[dict[str, Any]]) -> list[str]:
    """The verdict in words, and what the settings reach at equal compute and equal time, as recorded.

    rows: those of `table.rows`.
    """
    row, at = rows[0], when(rows)
    at, said = at[0].upper() + at[1:], lead(run)
    said = f"{at}: {said}" if said and run.own_ends else said or _reached(rows, "compared", at)
    sentences = [" ".join(part for part in (said, _teachers(rows)) if part)]
    if row["flops_budget"]:
        where = f"At equal compute ({flops(row['flops_budget'])} FLOPs each, not tested)"
        sentences.append(_reached(rows, "equal_flops", where))
    if row["seconds_budget"]:
        where = f"At equal time ({duration(row['seconds_budget'])} each, not tested)"
        sentences.append(_reached(rows, "equal_seconds", where))
    return [sentence for sentence in sentences if sentence]


def _teachers(rows: list[dict[str, Any]]) -> str:
    """The metric of the teacher of all settings; nothing where each has its own."""
    measure, key = rows[0]["measure"], f"teacher_{rows[0]['measure'].key}"
    found = {spread.mean: spread for row in rows if (spread := row.get(key)) is not None}
    shown = [spread for mean, spread in found.items() if math.isfinite(mean)]
    same = len(found) == len(shown) == 1
    return f"The teacher's held-out {measure.name} is {shown[0].show(measure.write)}." if same else ""


def _reached(rows: list[dict[str, Any]], key: str, where: str) -> str:
    """The means of the settings, the best first, and for how many seeds it is ahead of the next one; "" without any."""
    measure = rows[0]["measure"]
    found = {row["setting"]: row[key] for row in rows if row[key] is not None}
    finite = [name for name in found if math.isfinite(found[name].mean)]
    ranked = sorted(finite, key=lambda name: -measure.better * found[name].mean)
    aside = " ".join(lost([name for name in found if name not in ranked], measure))
    if not ranked:
        return aside
    several = "mean " if max(len(found[name].by_seed) for name in ranked) > 1 else ""
    texts = [measure.write(found[name].mean) for name in ranked[:NAMED]]
    texts[0] = f"{texts[0]} {measure.unit}".strip()
    means = [f"{text} for {name}" for text, name in zip(texts, ranked, strict=False)]
    means += [f"worse for {len(ranked) - NAMED} more"] if len(ranked) > NAMED else []
    ahead = _ahead(found[ranked[0]], found[ranked[1]], ranked, measure) if len(ranked) > 1 else ""
    return f"{where}, the {several}held-out {measure.name} is {listed(means)}{ahead}. {aside}".strip()


def _ahead(first: Spread, second: Spread, ranked: list[str], measure: NamedMeasure) -> str:
    """For how many seeds the best setting is ahead of the next one; "" where it is not, or with one seed."""
    shared = first.by_seed.keys() & second.by_seed.keys()
    if first.mean == second.mean or len(shared) < 2:
        return ""
    ahead = sum(measure.better * (first.by_seed[seed] - second.by_seed[seed]) > 0 for seed in shared)
    return f"; {ranked[0]} is ahead of {ranked[1]} in {ahead} of {count(len(shared), 'seed')}"
