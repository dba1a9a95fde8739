"""How the numbers of a run are called: text or rows, nats or squared errors, and the metrics of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from limbeck.errors import printable
from limbeck.lab.data.run import RunData
from limbeck.lab.numbers import coefficient, number, points, share
from limbeck.recipe.keys import MEASURES


class NamedMeasure(NamedTuple):
    """One quantity of the evaluations, as people read it."""

    key: str  # its column in evals.jsonl
    name: str
    write: Callable[[float], str]
    unit: str = ""

    @property
    def better(self) -> int:
        """-1: less is better, +1: more."""
        return MEASURES[self.key.removeprefix("metrics.")].better

    def gap(self, value: float) -> str:
        """A difference of this quantity: of shares in points."""
        return points(value) if self.write is share else self.write(value)


@dataclass(frozen=True)
class RunNames:
    """What stands in tables, sentences and figures; `of` gives those of a run."""

    text: str
    train: str
    heldout: str
    test: str  # the held-out part in tables
    never: str
    logit_loss: str
    label_loss: str
    unit: str  # of losses
    logit_axis: str
    label_axis: str
    slope: str  # unit of the gradient of the logit loss
    metrics: tuple[NamedMeasure, ...] = ()

    @property
    def of_unit(self) -> str:
        """The unit of losses, in brackets behind a heading."""
        return f" ({self.unit})" if self.unit else ""

    def measure(self, key: str) -> NamedMeasure:
        """A loss or a metric by its column in evals.jsonl."""
        losses = {"logit_loss": self.logit_loss, "label_loss": self.label_loss}
        if key in losses:
            return NamedMeasure(key, losses[key], number, self.unit)
        return next(metric for metric in self.metrics if metric.key == key)


TEXT = RunNames(
    text="text",
    train="training text",
    heldout="held-out text",
    test="test text",
    never="The text was never trained on.",
    logit_loss="logit loss",
    label_loss="label loss",
    unit="nats per token",
    logit_axis="KL(teacher || student), nats per token",
    label_axis="cross-entropy with the labels, nats per token",
    slope="nats per token and unit of weight",
)
CLASSES = replace(
    TEXT,
    text="rows",
    train="training rows",
    heldout="held-out rows",
    test="held-out rows",
    never="The rows were never trained on.",
    unit="nats per row",
    logit_axis="KL(teacher || student), nats per row",
    label_axis="cross-entropy with the labels, nats per row",
    slope="nats per row and unit of weight",
)
SCORES = replace(
    CLASSES,
    logit_loss="squared error against the teacher",
    label_loss="squared error against the labels",
    unit="",
    logit_axis="squared error against the teacher",
    label_axis="squared error against the labels",
    slope="squared error per unit of weight",
)


def of(run: RunData) -> RunNames:
    """The words of a run."""
    part = measured(run, "test") if run.task else None
    test = f"{part[0]:,} of {part[1]:,} held-out rows" if part and part[0] < part[1] else CLASSES.test
    if run.task == "classification":
        return replace(CLASSES, test=test, metrics=_of_classes([str(name) for name in run.data["classes"]]))
    if run.task == "regression":
        pearson = NamedMeasure("metrics.pearson", "Pearson correlation", coefficient)
        spearman = NamedMeasure("metrics.spearman", "Spearman correlation", coefficient)
        return replace(SCORES, test=test, metrics=(pearson, spearman))
    return TEXT


def measured(run: RunData, split: str) -> tuple[int, int] | None:
    """How many tokens (of a task rows) of a split the evaluations read, and how many there are; None where unknown."""
    what = ("heldout_" if split == "test" else "") + ("documents" if run.task else "tokens")
    read = [rows[-1].get("tokens") for rows in run.evals.get(split, {}).values()]
    known = [number for number in read if isinstance(number, int)]
    there = run.data.get(what)
    return (max(known), there) if known and isinstance(there, int) else None


def _of_classes(classes: list[str]) -> tuple[NamedMeasure, ...]:
    averaged = f"F1 of class {printable(classes[1]):.40}" if len(classes) == 2 else "F1, mean over the classes"
    return (
        NamedMeasure("metrics.accuracy", "accuracy", share),
        NamedMeasure("metrics.f1", averaged, coefficient),
        NamedMeasure("metrics.matthews", "Matthews correlation", coefficient),
    )


def compared(run: RunData) -> NamedMeasure:
    """What settings are compared by: the first metric of a task, else the logit loss.

    The label loss where there is no teacher, or where each setting has its own.
    """
    said = of(run)
    first = said.metrics[0] if said.metrics else None
    if first and any(run.has(first.key, split) for split in run.splits):
        return first
    labelled = run.has("label_loss", "test") and not run.shares_teacher
    return said.measure("label_loss" if labelled or not run.taught else "logit_loss")
