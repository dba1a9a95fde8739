"""Early exits beside the last layer: what each of them reaches on held-out text at the step of the results."""

from __future__ import annotations

import math
from typing import Any

from limbeck.lab.data.run import RunData
from limbeck.lab.numbers import Spread, number, percent

LAST = "last layer"
COLUMNS = ("logit_loss", "agreement", "label_loss", "label_accuracy")


def of_setting(run: RunData, setting: str, step: int) -> dict[str, dict[str, Spread]]:
    """`after layer 2`, ..., `last layer` -> column -> its values by seed, nan where null; empty without exits."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for seed in run.seeds(setting):
        rows = run.evals.get("test", {}).get((setting, seed), [])
        row = next((row for row in rows if row["step"] == step), {})
        layers = sorted((int(tap.removeprefix("exit.")), said) for tap, said in (row.get("exits") or {}).items())
        places = [*((f"after layer {layer}", said) for layer, said in layers), (LAST, row)] if layers else []
        for place, said in places:
            for key, value in _values(said).items():
                found.setdefault(place, {}).setdefault(key, {})[seed] = math.nan if value is None else value
    return {place: {key: Spread(values) for key, values in said.items()} for place, said in found.items()}


def _values(said: dict[str, Any]) -> dict[str, float | None]:
    metrics = {f"metrics.{name}": value for name, value in (said.get("metrics") or {}).items()}
    return {**metrics, **{name: said.get(name) for name in COLUMNS}}


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A table of the rows of `table.rows`: a line of headings, then one for each exit; empty without exits."""
    with_exits = [row for row in rows if row["exits"]]
    if not with_exits:
        return []
    words = with_exits[0]["words"]
    wanted = {metric.key: (metric.name, metric.write) for metric in words.metrics}
    wanted |= {"logit_loss": (words.logit_loss, number), "agreement": ("agreement", percent)}
    wanted |= {"label_loss": (words.label_loss, number)}
    wanted |= {} if words.metrics else {"label_accuracy": ("label accuracy", percent)}
    told = [said for row in with_exits for said in row["exits"].values()]
    known = [key for key in wanted if any(key in said and _any_finite(said[key]) for said in told)]
    body = [
        [row["setting"], place, *(said[key].show(wanted[key][1]) if key in said else "\u2013" for key in known)]
        for row in with_exits
        for place, said in row["exits"].items()
    ]
    return [["setting", "exit", *(wanted[key][0] for key in known)], *body]


def _any_finite(spread: Spread) -> bool:
    return any(map(math.isfinite, spread.by_seed.values()))
