"""The results of a run: one row per setting at the last step, and the same at equal compute; baselines beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from limbeck.errors import printable
from limbeck.lab.data.curves import flat
from limbeck.lab.data.evaluated import last_step
from limbeck.lab.data.run import RunData
from limbeck.lab.names import NamedMeasure, RunNames, compared, measured, of
from limbeck.lab.numbers import Spread, count, duration, flops, number, percent, whole
from limbeck.lab.page import exits
from limbeck.recipe.keys import MEASURED_BY_TEACHER, MEASURES

LEAST_TEACHER = 0.1  # metric of a teacher of which a share is told
TEACHERS_OWN = ("teacher_label_loss", "teacher_label_accuracy")


class Column(NamedTuple):
    """One quantity of the table. better: -1 lower, +1 higher, 0 neither. under: it belongs to the one above."""

    key: str
    heading: str
    write: Callable[[Any], str]
    better: int = 0
    under: bool = False


def columns(row: dict[str, Any]) -> list[Column]:
    """What a table shows of runs such as this row's."""
    words, measure, unit = row["words"], row["measure"], row["words"].of_unit
    here = f"{measure.name}, {words.test}"
    return [
        *(column for metric in words.metrics for column in _of_metric(metric, words)),
        Column("test_logit_loss", f"{words.logit_loss}, {words.test}{unit}", number, _better(row, "logit_loss")),
        Column("train_logit_loss", f"{words.logit_loss}, {words.train}{unit}", number, _better(row, "logit_loss")),
        Column("agreement", f"top-1 agreement with the teacher, {words.test}", percent, _better(row, "agreement")),
        Column("label_loss", f"{words.label_loss}, {words.test}{unit}", number, _better(row, "label_loss")),
        Column("teacher_label_loss", f"the teacher's {words.label_loss}", number, under=True),
        *([] if words.metrics else _accuracies(row)),
        Column("measured", f"tokens measured, {words.test}", whole),
        Column(
            "equal_flops",
            f"{here}, at equal compute ({flops(row['flops_budget'] or 0.0)} FLOPs)",
            measure.write,
            measure.better,
        ),
        Column(
            "equal_seconds",
            f"{here}, at equal time ({duration(row['seconds_budget'] or 0.0)})",
            measure.write,
            measure.better,
        ),
        Column("grad_norm_mean", "average gradient norm, last quarter of the steps", number),
        Column("least_share", "smallest share of a term in the gradient, last probe", percent),
        Column("updates", "updates", whole),
        Column("skipped", "skipped updates", whole),
        Column("seconds", "time it would take alone", duration),
        Column("flops", "training compute (FLOPs)", flops),
    ]


def _better(row: dict[str, Any], name: str) -> int:
    """Which way a measure is better; 0 where it does not compare, for not all settings have one teacher."""
    return MEASURES[name].better if row["one_teacher"] or name not in MEASURED_BY_TEACHER else 0


def _accuracies(row: dict[str, Any]) -> list[Column]:
    return [
        Column("label_accuracy", f"label accuracy, {row['words'].test}", percent, _better(row, "label_accuracy")),
        Column("teacher_label_accuracy", "the teacher's label accuracy", percent, under=True),
    ]


def _of_metric(metric: NamedMeasure, words: RunNames) -> list[Column]:
    """The student's, the teacher's, and the one as a share of the other."""
    return [
        Column(metric.key, f"{metric.name}, {words.test}", metric.write, metric.better),
        Column(f"teacher_{metric.key}", f"the teacher's {metric.name}", metric.write, under=True),
        Column(f"share_{metric.key}", f"share of the teacher's {metric.name}", percent, under=True),
    ]


def rows(run: RunData) -> list[dict[str, Any]]:
    """One dict per setting, in the order of the run.

    Keys: setting, seeds (list), step (the last one at which every learner was evaluated; see `ends`), words, measure
    (what settings are compared by, and equal_* refer to) and under "compared" its values, one_teacher (of all settings),
    flops_budget, seconds_budget (float or None), exits, baseline (False), and for every one of `columns` a `Spread` over
    the seeds, or None if it was not recorded. "updates" are told only where settings end at different steps, "skipped" only
    where some were, "measured" only of running text, where the manifest says how much there is.

    "At equal compute": the measure of each learner, linear in its cumulative cost between evaluations, at
    the largest cost that all learners have reached.
    """
    words, measure = of(run), compared(run)
    steps = ends(run) or dict.fromkeys(run.settings, _common_step(run, list(run.metrics)))
    budgets = {by: _budget(run, measure.key, by) for by in ("flops", "seconds")}
    said = {"words": words, "measure": measure, "one_teacher": run.shares_teacher, "baseline": False}
    results = [
        _result(run, setting, {**said, "step": steps[setting], "apart": len(set(steps.values())) > 1}, budgets)
        for setting in run.settings
    ]
    some = any(row["skipped"].mean for row in results)
    return results if some else [row | {"skipped": None} for row in results]


def ends(run: RunData) -> dict[str, int] | None:
    """Setting -> its own last evaluated step, where each is told at its own; None elsewhere."""
    if not run.own_ends:
        return None
    return {name: _common_step(run, [key for key in run.metrics if key[0] == name]) for name in run.settings}


def _result(run: RunData, setting: str, said: dict[str, Any], budgets: dict[str, float | None]) -> dict[str, Any]:
    step, measure = said["step"], said["measure"].key

    def spread(value: Callable[[int], float | None]) -> Spread | None:
        values = {seed: value(seed) for seed in run.seeds(setting)}
        if all(number is None for number in values.values()):
            return None
        return Spread({seed: math.nan if number is None else number for seed, number in values.items()})

    def at_step(name: str, split: str) -> Spread | None:
        return spread(lambda seed: _at(*run.series(name, setting, seed, split), step))

    row: dict[str, Any] = {"setting": setting, "seeds": run.seeds(setting), **said}
    row |= {f"{split}_logit_loss": at_step("logit_loss", split) for split in ("test", "train")}
    row |= {key: at_step(key, "test") for key in ("agreement", "label_loss", "label_accuracy", *TEACHERS_OWN)}
    row["updates"] = spread(lambda seed: step) if said["apart"] else None
    row["skipped"] = spread(lambda seed: sum(line.get("skipped") is not None for line in run.metrics[setting, seed]))
    row["measured"] = at_step("tokens", "test") if measured(run, "test") and not run.task else None
    for metric in said["words"].metrics:
        mine, theirs = at_step(metric.key, "test"), at_step(f"teacher_{metric.key}", "test")
        shares = _shares(mine, theirs)
        row |= {metric.key: mine, f"teacher_{metric.key}": theirs, f"share_{metric.key}": shares}
    row |= {"compared": at_step(measure, "test"), "exits": exits.of_setting(run, setting, step)}
    row["grad_norm_mean"] = spread(lambda seed: _last_quarter(*run.series("grad_norm_mean", setting, seed)))
    row["least_share"] = spread(lambda seed: _least_share(run, setting, seed))
    for by, budget in budgets.items():
        row[by] = spread(lambda seed, by=by: _cost_at(run, setting, seed, by, step))
        row[f"{by}_budget"] = budget
        row[f"equal_{by}"] = spread(lambda seed, by=by, at=budget: at_budget(run, measure, setting, seed, by, at))
    return row


def _shares(mine: Spread | None, theirs: Spread | None) -> Spread | None:
    """By seed. None where a teacher is near 0 or below, or a student below 0: such a share says nothing."""
    if mine is None or theirs is None:
        return None
    known = [(seed, mine.by_seed[seed], theirs.by_seed.get(seed, 0.0)) for seed in mine.by_seed]
    if not all(value >= 0 and teacher >= LEAST_TEACHER for _, value, teacher in known):  # nan neither
        return None
    return Spread({seed: value / teacher for seed, value, teacher in known})


def cost(run: RunData, setting: str, seed: int, by: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps from 0 on and the cumulative cost, `[N + 1]` each; by: "flops" or "seconds". None if unknown."""
    steps, values = run.series(by, setting, seed)
    if not len(steps) or not np.isfinite(values).all():
        return None
    total = np.cumsum(values) if by == "seconds" else values  # flops are cumulative already
    return np.concatenate([[0], steps]), np.concatenate([[0.0], total])


def at_budget(run: RunData, measure: str, setting: str, seed: int, by: str, budget: float | None) -> float | None:
    """The measure on held-out text where a learner's cumulative cost is `budget`, linear between two evaluations."""
    spent, values = _by_cost(run, measure, setting, seed, by)
    if budget is None or not np.isfinite(values).any():
        return None
    return float(np.interp(budget, spent, values))


def _by_cost(run: RunData, measure: str, setting: str, seed: int, by: str) -> tuple[np.ndarray, np.ndarray]:
    known = cost(run, setting, seed, by)
    steps, values = run.series(measure, setting, seed, "test")
    if known is None:
        return np.empty(0), np.empty(0)
    return np.interp(steps, *known), values


def _budget(run: RunData, measure: str, by: str) -> float | None:
    """The smallest of the final costs; None for a single setting, or if a cost is unknown."""
    if len(run.settings) < 2:
        return None
    spent = [_by_cost(run, measure, setting, seed, by)[0] for setting, seed in run.metrics]
    if any(not len(each) or each[-1] <= 0 for each in spent):
        return None
    return float(min(each[-1] for each in spent))


def _common_step(run: RunData, learners: list[tuple[str, int]]) -> int:
    """The last step at which all these learners were evaluated; the last step of all without evaluations."""
    lines = run.evals.get("test") or run.evals.get("train") or run.metrics
    step = last_step([row["step"] for row in lines.get(key, [])] for key in learners)
    return max(run.metrics[key][-1]["step"] for key in learners) if step is None else step


def _at(steps: np.ndarray, values: np.ndarray, step: int) -> float | None:
    """The value at a step: nan if it is not finite there, None if the column was never recorded."""
    if not np.isfinite(values).any() or step not in steps:
        return None
    return float(flat(values)[steps == step][0])


def _cost_at(run: RunData, setting: str, seed: int, by: str, step: int) -> float | None:
    known = cost(run, setting, seed, by)
    return None if known is None else float(np.interp(step, *known))


def _last_quarter(steps: np.ndarray, values: np.ndarray) -> float | None:
    late = values[steps > 0.75 * steps[-1]] if len(steps) else values
    return float(late.mean()) if np.isfinite(values).any() else None


def _least_share(run: RunData, setting: str, seed: int) -> float | None:
    """The smallest gradient share of a term at the last probe; None without a probe, or with a single term."""
    probed = [
        row["gradient_share"] for row in run.metrics[setting, seed] if isinstance(row.get("gradient_share"), dict)
    ]
    return min(probed[-1].values()) if probed and len(probed[-1]) > 1 else None


def cells(rows: list[dict[str, Any]]) -> list[tuple[Column, list[str]]]:
    """What to print: every quantity that was recorded, and one text per setting."""
    return [
        (column, [_cell(row, column) for row in rows])
        for column in columns(rows[0])
        if any(row[column.key] is not None for row in rows)
    ]


def _cell(row: dict[str, Any], column: Column) -> str:
    return "\u2013" if row[column.key] is None else row[column.key].show(column.write)


def best(rows: list[dict[str, Any]], column: Column) -> list[bool]:
    """Which settings have the best mean; none where there is nothing to compare, or all are equal, and no baseline."""
    means = [
        row[column.key].mean * column.better if row[column.key] and not row["baseline"] else math.nan for row in rows
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    return [column.better != 0 and len(set(finite)) > 1 and mean == max(finite) for mean in means]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: quantities down, settings across; below it that of the early exits, where there are some."""

    def safe(text: str) -> str:
        return re.sub(r"([\\|`*\[\]])", r"\\\1", printable(text)).replace("&", "&amp;").replace("<", "&lt;")

    def written(lines: list[list[str]], left: int) -> str:
        head, *body = [[safe(text) for text in line] for line in lines]
        ruled = [head, ["---"] * left + ["---:"] * (len(head) - left), *body]
        return "".join("| " + " | ".join(line) + " |\n" for line in ruled)

    results = [[column.heading, *texts] for column, texts in cells(rows)]
    return _with_exits(rows, written, [[title(rows), *(row["setting"] for row in rows)], *results])


def as_text(rows: list[dict[str, Any]]) -> str:
    """A plain table for a terminal: quantities down, settings across, columns aligned; below it the early exits."""

    def written(lines: list[list[str]], left: int) -> str:
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
        aligned = [[str.ljust] * left + [str.rjust] * (len(widths) - left)] * len(ruled)
        return "".join(
            "  ".join(place(text, width) for place, text, width in zip(places, line, widths, strict=True)) + "\n"
            for places, line in zip(aligned, ruled, strict=True)
        )

    results = [["  " * column.under + printable(column.heading), *texts] for column, texts in cells(rows)]
    return _with_exits(rows, written, [[title(rows), *(row["setting"] for row in rows)], *results])


def _with_exits(rows: list[dict[str, Any]], written: Callable[[list[list[str]], int], str], lines: Any) -> str:
    found = exits.lines(rows)
    heading = f"early exits, {rows[0]['words'].test}"
    return written(lines, 1) + (f"\n{heading}\n\n{written(found, 2)}" if found else "")


def title(rows: list[dict[str, Any]]) -> str:
    """What a table shows: "after 2,000 steps, mean (min..max) of 3 seeds"."""
    seeds = max(len(row["seeds"]) for row in rows)
    spread = f", mean (min..max) of {seeds} seeds" if seeds > 1 else ""
    return when(rows) + spread


def when(rows: list[dict[str, Any]]) -> str:
    """When the settings are compared: "after 2,000 steps", or each at its own end."""
    steps = [row["step"] for row in rows if not row["baseline"]]
    if len(set(steps)) == 1:
        return f"after {count(steps[0], 'step')}"
    return f"at the end of each setting ({min(steps):,} to {max(steps):,} steps)"
