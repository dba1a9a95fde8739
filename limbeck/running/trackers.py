"""Trackers beside metrics.jsonl, through Accelerate's: the same numbers for TensorBoard or trackio, where a recipe asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from limbeck.errors import UserError
from limbeck.training.loop import Record

FOLDER = "trackers"
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",)}  # one of them is needed
OF_STEP = ("loss", "logit_loss", "grad_norm", "lr", "tokens_per_second")
OF_EVALUATION = ("logit_loss", "agreement", "label_loss", "label_accuracy")


class Trackers:
    """A hook that hands every record on.

    Args:
        names: `tensorboard`, `trackio`.
        run: what the trackers call the run.
        folder: the run directory; files of trackers go to `trackers/` in it.
        recipe: what is kept as the configuration of the run.
    """

    def __init__(self, names: tuple[str, ...], run: str, folder: Path, recipe: dict[str, Any]) -> None:
        self._trackers = [_tracker(name, run, folder) for name in names]
        for tracker in self._trackers:
            tracker.store_init_configuration(_flat(recipe))

    def __call__(self, record: Record) -> None:
        """The lines of metrics.jsonl of a step."""
        values: dict[str, float] = {}
        for row in record.rows:
            values |= {f"{row['learner']}/{name}": row[name] for name in OF_STEP if row[name] is not None}
            values |= {f"{row['learner']}/terms/{name}": value for name, value in row["terms"].items()}
        self._log(values, record.step)

    def evaluated(self, rows: list[dict[str, Any]], step: int) -> None:
        """The lines of evals.jsonl of an evaluation."""
        values: dict[str, float] = {}
        for row in rows:
            found = {name: row[name] for name in OF_EVALUATION} | (row.get("metrics") or {})
            place = f"{row['learner']}/{row['split']}"
            values |= {f"{place}/{name}": value for name, value in found.items() if value is not None}
        self._log(values, step)

    def _log(self, values: dict[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def finish(self) -> None:
        """Nothing more comes."""
        for tracker in self._trackers:
            tracker.finish()


def require(names: Sequence[str]) -> None:
    """Whether the packages of trackers are installed; asked before anything is read or trained.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if not any(map(find_spec, PACKAGES[name])):
            raise UserError(f"report_to: {name} is not installed; pip install limbeck[{name}], or leave the key out")


def _tracker(name: str, run: str, folder: Path) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    where = {"logging_dir": str(folder / FOLDER)} if kind.requires_logging_directory else {}
    tracker = kind(run, **where)
    tracker.start()
    return tracker


def _flat(table: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Every value of nested tables under its path, as trackers want them."""
    found: dict[str, Any] = {}
    for word, value in table.items():
        path = f"{place}{word}"
        inside = value if isinstance(value, dict) else None
        found |= (
            _flat(inside, f"{path}.")
            if inside
            else {path: value if isinstance(value, int | float | bool) else str(value)}
        )
    return found
