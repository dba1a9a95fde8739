"""The results of a run: one row per setting at the last step, and the same at equal compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from limbeck.lab.curves import flat
from limbeck.lab.read import Run


@dataclass(frozen=True)
class Spread:
    """Values of one quantity by seed; nan where a value was not finite."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(list(self.by_seed.values())))

    @property
    def low(self) -> float:
        """The lowest seed."""
        return float(np.min(list(self.by_seed.values())))

    @property
    def high(self) -> float:
        """The highest seed."""
        return float(np.max(list(self.by_seed.values())))

    def show(self, write: Callable[[float], str]) -> str:
        """The mean, and in brackets the range over the seeds where they differ as written."""
        mean, low, high = write(self.mean), write(self.low), write(self.high)
        return mean if low == high else f"{mean} ({low}..{high})"


def number(value: float) -> str:
    """Four significant digits: 2.310, 12.30, 0.0001234 -> 1.234e-04."""
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return f"{value:#.4g}".rstrip(".")


def percent(value: float) -> str:
    """Three significant digits of a share: 0.4123 -> 41.2 %."""
    return f"{100 * value:#.3g}".rstrip(".") + " %" if math.isfinite(value) else "not finite"


def duration(seconds: float) -> str:
    """Three significant digits in a fitting unit: 1404 -> 23.4 min."""
    if not math.isfinite(seconds):
        return "not finite"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:#.3g}".rstrip(".") + " " + unit
    return f"{seconds:#.3g}".rstrip(".") + " s"


def flops(value: float) -> str:
    """Three significant digits: 1.23e15."""
    return f"{value:.2e}".replace("e+", "e") if math.isfinite(value) else "not finite"


class Column(NamedTuple):
    """One quantity of the table. better: -1 lower, +1 higher, 0 neither."""

    key: str
    heading: str
    write: Callable[[Any], str]
    better: int = 0


COLUMNS = (
    Column("test_logit_loss", "logit loss, test text (nats per token)", number, -1),
    Column("train_logit_loss", "logit loss, training text (nats per token)", number, -1),
    Column("agreement", "top-1 agreement with the teacher, test text", percent, +1),
    Column("label_loss", "label loss, test text (nats per token)", number, -1),
    Column("label_accuracy", "label accuracy, test text", percent, +1),
    Column("equal_flops", "{loss}, test text, at equal compute ({flops} FLOPs)", number, -1),
    Column("equal_seconds", "{loss}, test text, at equal time ({seconds})", number, -1),
    Column("grad_norm_mean", "average gradient norm, last quarter of the steps", number),
    Column("least_share", "smallest share of a term in the gradient, last probe", percent),
    Column("seconds", "time it would take alone", duration),
    Column("flops", "training compute (FLOPs)", flops),
)


def rows(run: Run) -> list[dict[str, Any]]:
    """One dict per setting, in the order of the run.

    Keys: setting, seeds (list), step (the last one at which every learner was evaluated), loss ("logit_loss"
    or "label_loss": what equal_* refer to), flops_budget, seconds_budget (float or None), and for every entry
    of COLUMNS a `Spread` over the seeds, or None if it was not recorded.

    "At equal compute": the test loss of each learner, linear in its cumulative cost between evaluations, at
    the largest cost that all learners have reached.
    """
    step = _common_step(run)
    budgets = {by: _budget(run, by) for by in ("flops", "seconds")}
    return [_result(run, setting, step, budgets) for setting in run.settings]


def _result(run: Run, setting: str, step: int, budgets: dict[str, float | None]) -> dict[str, Any]:
    def spread(value: Callable[[int], float | None]) -> Spread | None:
        values = {seed: value(seed) for seed in run.seeds(setting)}
        kept = {seed: number for seed, number in values.items() if number is not None}
        return Spread(kept) if kept else None

    def at_step(name: str, split: str) -> Spread | None:
        return spread(lambda seed: _at(*run.series(name, setting, seed, split), step))

    row: dict[str, Any] = {
        "setting": setting,
        "seeds": run.seeds(setting),
        "step": step,
        "loss": run.yardstick,
    }
    row |= {
        "test_logit_loss": at_step("logit_loss", "test"),
        "train_logit_loss": at_step("logit_loss", "train"),
    }
    row |= {key: at_step(key, "test") for key in ("agreement", "label_loss", "label_accuracy")}
    row["grad_norm_mean"] = spread(lambda seed: _last_quarter(*run.series("grad_norm_mean", setting, seed)))
    row["least_share"] = spread(lambda seed: _least_share(run, setting, seed))
    for by, budget in budgets.items():
        row[by] = spread(lambda seed, by=by: _cost_at(run, setting, seed, by, step))
        row[f"{by}_budget"] = budget
        row[f"equal_{by}"] = spread(lambda seed, by=by, at=budget: at_budget(run, setting, seed, by, at))
    return row


def cost(run: Run, setting: str, seed: int, by: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps from 0 on and the cumulative cost, `[N + 1]` each; by: "flops" or "seconds". None if unknown."""
    steps, values = run.series(by, setting, seed)
    if not len(steps) or not np.isfinite(values).all():
        return None
    total = np.cumsum(values) if by == "seconds" else values  # flops are cumulative already
    return np.concatenate([[0], steps]), np.concatenate([[0.0], total])


def at_budget(run: Run, setting: str, seed: int, by: str, budget: float | None) -> float | None:
    """Test loss of one learner where its cumulative cost is `budget`, linear between two evaluations."""
    spent, values = _loss_by_cost(run, setting, seed, by)
    if budget is None or not np.isfinite(values).any():
        return None
    return float(np.interp(budget, spent, values))


def _loss_by_cost(run: Run, setting: str, seed: int, by: str) -> tuple[np.ndarray, np.ndarray]:
    known = cost(run, setting, seed, by)
    steps, values = run.series(run.yardstick, setting, seed, "test")
    if known is None:
        return np.empty(0), np.empty(0)
    return np.interp(steps, *known), values


def _budget(run: Run, by: str) -> float | None:
    """The smallest of the final costs; None for a single setting, or if a cost is unknown."""
    if len(run.settings) < 2:
        return None
    spent = [_loss_by_cost(run, setting, seed, by)[0] for setting, seed in run.metrics]
    if any(not len(each) or each[-1] <= 0 for each in spent):
        return None
    return float(min(each[-1] for each in spent))


def _common_step(run: Run) -> int:
    """The last step at which every learner was evaluated; the last step of all without evaluations."""
    lines = run.evals.get("test") or run.evals.get("train") or run.metrics
    done = [{row["step"] for row in lines.get(key, [])} for key in run.metrics]
    common = set.intersection(*done)
    return max(common) if common else max(rows[-1]["step"] for rows in run.metrics.values())


def _at(steps: np.ndarray, values: np.ndarray, step: int) -> float | None:
    """The value at a step: nan if it is not finite there, None if the column was never recorded."""
    if not np.isfinite(values).any() or step not in steps:
        return None
    return float(flat(values)[steps == step][0])


def _cost_at(run: Run, setting: str, seed: int, by: str, step: int) -> float | None:
    known = cost(run, setting, seed, by)
    return None if known is None else float(np.interp(step, *known))


def _last_quarter(steps: np.ndarray, values: np.ndarray) -> float | None:
    late = values[steps > 0.75 * steps[-1]] if len(steps) else values
    return float(late.mean()) if np.isfinite(values).any() else None


def _least_share(run: Run, setting: str, seed: int) -> float | None:
    """The smallest gradient share of a term at the last probe; None without a probe, or with a single term."""
    probed = [
        row["gradient_share"] for row in run.metrics[setting, seed] if isinstance(row.get("gradient_share"), dict)
    ]
    return min(probed[-1].values()) if probed and len(probed[-1]) > 1 else None


def cells(rows: list[dict[str, Any]]) -> list[tuple[Column, str, list[str]]]:
    """What to print: for every quantity that was recorded its column, heading and one text per setting."""
    words = {"loss": compared(rows)}
    for by, write in (("flops", flops), ("seconds", duration)):
        words[by] = write(rows[0][f"{by}_budget"] or 0.0)
    return [
        (column, column.heading.format(**words), [_cell(row, column) for row in rows])
        for column in COLUMNS
        if any(row[column.key] is not None for row in rows)
    ]


def _cell(row: dict[str, Any], column: Column) -> str:
    return "\u2013" if row[column.key] is None else row[column.key].show(column.write)


def compared(rows: list[dict[str, Any]]) -> str:
    """The loss that is compared, in words: "logit loss" or "label loss"."""
    return rows[0]["loss"].replace("_", " ")


def best(rows: list[dict[str, Any]], column: Column) -> list[bool]:
    """Which settings have the best mean; none where there is nothing to compare."""
    means = [row[column.key].mean * column.better if row[column.key] else math.nan for row in rows]
    finite = [mean for mean in means if math.isfinite(mean)]
    return [len(finite) > 1 and column.better != 0 and mean == max(finite) for mean in means]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: quantities down, settings across."""

    def safe(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

    head = [title(rows), *(safe(row["setting"]) for row in rows)]
    lines = [head, ["---"] + ["---:"] * len(rows)]
    lines += [[heading, *texts] for _, heading, texts in cells(rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def as_text(rows: list[dict[str, Any]]) -> str:
    """A plain table for a terminal: quantities down, settings across, columns aligned."""
    lines = [[title(rows), *(row["setting"] for row in rows)]]
    lines += [[heading, *texts] for _, heading, texts in cells(rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(rows) + 1)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + "\n" for line in lines
    )


def title(rows: list[dict[str, Any]]) -> str:
    """What a table shows: "after 2,000 steps, mean (min..max) of 3 seeds"."""
    seeds = max(len(row["seeds"]) for row in rows)
    spread = f", mean (min..max) of {seeds} seeds" if seeds > 1 else ""
    return f"after {rows[0]['step']:,} steps{spread}"
