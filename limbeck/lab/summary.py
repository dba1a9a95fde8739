"""The question of a run and what its numbers answer, in plain sentences."""

from __future__ import annotations

import math
from typing import Any

import yaml

from limbeck.lab.numbers import Spread, count, duration, flops, number, share
from limbeck.lab.read import Run
from limbeck.lab.table import when
from limbeck.lab.words import Measure


def question(run: Run) -> str:
    """The question in the recipe, or one such as "logit against multi: 3 seeds, 2,000 steps"."""
    recipe = yaml.safe_load(run.recipe)
    asked = recipe.get("question") if isinstance(recipe, dict) else None
    if isinstance(asked, str) and asked.strip():
        return asked.strip()
    seeds = len({seed for _, seed in run.metrics})
    steps = max(rows[-1]["step"] for rows in run.metrics.values())
    return f"{' against '.join(run.settings)}: {count(seeds, 'seed')}, {count(steps, 'step')}"


def findings(rows: list[dict[str, Any]]) -> list[str]:
    """One sentence each on what settings are compared by, held out, at equal steps, compute and time, as recorded."""
    row = rows[0]
    where = when(rows)
    first = _finding(rows, "compared", where[0].upper() + where[1:])
    sentences = [" ".join(part for part in (first, _teachers(rows)) if part)]
    if row["flops_budget"]:
        where = f"At equal compute ({flops(row['flops_budget'])} FLOPs each)"
        sentences.append(_finding(rows, "equal_flops", where))
    if row["seconds_budget"]:
        where = f"At equal time ({duration(row['seconds_budget'])} each)"
        sentences.append(_finding(rows, "equal_seconds", where))
    return [sentence for sentence in sentences if sentence]


def _teachers(rows: list[dict[str, Any]]) -> str:
    """The metric of the teacher of all settings; nothing where each has its own."""
    measure, key = rows[0]["measure"], f"teacher_{rows[0]['measure'].key}"
    found = {spread.mean: spread for row in rows if (spread := row.get(key)) is not None}
    shown = [spread for mean, spread in found.items() if math.isfinite(mean)]
    return f"The teacher's is {shown[0].show(measure.write)}." if len(found) == len(shown) == 1 else ""


def _finding(rows: list[dict[str, Any]], key: str, where: str) -> str:
    measure = rows[0]["measure"]
    found = {row["setting"]: row[key] for row in rows if row[key] is not None}
    finite = [name for name in found if math.isfinite(found[name].mean)]
    ranked = sorted(finite, key=lambda name: -measure.better * found[name].mean)
    lost = [name for name in found if name not in ranked]
    what, how = ("loss", "not finite") if measure.better < 0 else (measure.name, "undefined")
    aside = f" The {what} of {' and '.join(lost)} is {how} there." if lost else ""
    if not ranked:
        return aside.strip()
    if len(ranked) == 1:
        alone = found[ranked[0]].mean
        return f"{where}, the held-out {measure.name} of {ranked[0]} is {_with_unit(alone, measure)}.{aside}"
    equal = [name for name in ranked if found[name].mean == found[ranked[0]].mean]
    if len(equal) > 1:
        how, same = "same" if equal == ranked else _most(measure), _with_unit(found[ranked[0]].mean, measure)
        who = f"{', '.join(equal[:-1])} and {equal[-1]}"
        return f"{where}, {who} have the {how} held-out {measure.name}: {same}.{aside}"
    return _comparison(found[ranked[0]], found[ranked[1]], ranked, where, measure) + aside


def _comparison(first: Spread, second: Spread, ranked: list[str], where: str, measure: Measure) -> str:
    """The best against the next one, and for how many seeds the sign holds."""
    gap = abs(second.mean - first.mean)
    shared = sorted(first.by_seed.keys() & second.by_seed.keys())
    ahead = sum(measure.better * (first.by_seed[seed] - second.by_seed[seed]) > 0 for seed in shared)
    way = "lower" if measure.better < 0 else "higher"
    rank = way if len(ranked) == 2 else _most(measure)
    than = ranked[1] if len(ranked) == 2 else f"the next, {ranked[1]}"
    return (
        f"{where}, {ranked[0]} has the {rank} held-out {measure.name}: {_with_unit(first.mean, measure)} against "
        f"{measure.write(second.mean)} for {than}, a difference of {_gap(gap, second.mean, measure)}; "
        f"it is {way} in {ahead} of {count(len(shared), 'seed')}."
    )


def _most(measure: Measure) -> str:
    return "lowest" if measure.better < 0 else "highest"


def _gap(gap: float, other: float, measure: Measure) -> str:
    """A loss also as a share of the other one; an accuracy in points."""
    if measure.better < 0:
        return f"{number(gap)} ({100 * gap / other:.2g} %)"
    return f"{100 * gap:#.3g}".rstrip(".") + " points" if measure.write is share else measure.write(gap)


def _with_unit(value: float, measure: Measure) -> str:
    return f"{measure.write(value)} {measure.unit}".strip()
