"""The question of a run and what its numbers answer, in plain sentences."""

from __future__ import annotations

import math
from typing import Any

import yaml

from limbeck.lab.read import Run
from limbeck.lab.table import Spread, compared, duration, flops, number


def question(run: Run) -> str:
    """The question in the recipe, or one such as "logit against multi: 3 seeds, 2,000 steps"."""
    recipe = yaml.safe_load(run.recipe)
    asked = recipe.get("question") if isinstance(recipe, dict) else None
    if isinstance(asked, str) and asked.strip():
        return asked.strip()
    seeds = len({seed for _, seed in run.metrics})
    steps = max(rows[-1]["step"] for rows in run.metrics.values())
    return f"{' against '.join(run.settings)}: {_count(seeds, 'seed')}, {_count(steps, 'step')}"


def findings(rows: list[dict[str, Any]]) -> list[str]:
    """One sentence each on the held-out loss at equal steps, compute and time, as recorded."""
    row = rows[0]
    loss, key = (
        f"held-out {compared(rows)}",
        "test_logit_loss" if row["loss"] == "logit_loss" else "label_loss",
    )
    sentences = [_finding(rows, key, f"After {_count(row['step'], 'step')}", loss)]
    if row["flops_budget"]:
        where = f"At equal compute ({flops(row['flops_budget'])} FLOPs each)"
        sentences.append(_finding(rows, "equal_flops", where, loss))
    if row["seconds_budget"]:
        where = f"At equal time ({duration(row['seconds_budget'])} each)"
        sentences.append(_finding(rows, "equal_seconds", where, loss))
    return [sentence for sentence in sentences if sentence]


def _finding(rows: list[dict[str, Any]], key: str, where: str, loss: str) -> str:
    found = {row["setting"]: row[key] for row in rows if row[key] is not None}
    ranked = sorted((name for name in found if math.isfinite(found[name].mean)), key=lambda name: found[name].mean)
    lost = [name for name in found if name not in ranked]
    aside = f" The loss of {' and '.join(lost)} is not finite there." if lost else ""
    if not ranked:
        return aside.strip()
    if len(ranked) == 1:
        return f"{where}, the {loss} of {ranked[0]} is {number(found[ranked[0]].mean)} nats per token.{aside}"
    return _comparison(found[ranked[0]], found[ranked[1]], ranked, where, loss) + aside


def _comparison(first: Spread, second: Spread, ranked: list[str], where: str, loss: str) -> str:
    """The lowest against the next one, and for how many seeds the sign holds."""
    gap = second.mean - first.mean
    if gap == 0:
        same = number(first.mean)
        return f"{where}, {ranked[0]} and {ranked[1]} have the same {loss}: {same} nats per token."
    shared = sorted(first.by_seed.keys() & second.by_seed.keys())
    lower = sum(first.by_seed[seed] < second.by_seed[seed] for seed in shared)
    rank = "lower" if len(ranked) == 2 else "lowest"
    than = ranked[1] if len(ranked) == 2 else f"the next, {ranked[1]}"
    return (
        f"{where}, {ranked[0]} has the {rank} {loss}: {number(first.mean)} nats per token against "
        f"{number(second.mean)} for {than}, a difference of {number(gap)} ({100 * gap / second.mean:.2g} %); "
        f"it is lower in {lower} of {_count(len(shared), 'seed')}."
    )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
