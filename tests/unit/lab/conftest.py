"""Synthetic run directories: numbers that follow from formulas, no training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from limbeck.lab.page.report import write

STEPS, EVERY, LAYERS = 40, 10, 3
TERMS = {
    "logit": {"logit": 1.0},
    "multi": {"embedding": 1.0, "hidden": 1.0, "attention": 1.0, "logit": 0.5},
}
FLOPS = {"logit": 1.0e9, "multi": 1.5e9}  # per step
SECONDS = {"logit": 0.5, "multi": 0.6}


def logit_loss(setting: str, seed: int, step: int) -> float:
    """9 at the start; multi falls faster; seeds lie 1 % apart."""
    rate = 0.03 if setting.startswith("logit") else 0.04
    return 9.0 * (1 + 0.01 * seed) / (1 + rate * step)


def metric(setting: str, seed: int, step: int, teacher: bool) -> dict[str, Any]:
    weights = TERMS.get(setting, TERMS["multi"]) if teacher else {"labels": 1.0}
    values = {"embedding": 1.2, "hidden": 2.3, "attention": 60.1, "labels": 8.0, "logit": 9.0}
    terms = {term: values[term] / (1 + 0.05 * step) for term in weights}
    layers = [0.5 / (1 + layer) / (1 + 0.02 * step) * (1 + 0.1 * (step % 3)) for layer in range(LAYERS)]
    return {
        "step": step, "stage": "train", "setting": setting, "seed": seed, "learner": f"{setting}-seed{seed}",
        "loss": sum(terms[term] * weights[term] for term in terms), "terms": terms, "weights": weights,
        "logit_loss": logit_loss(setting, seed, step) * (1 + 0.02 * (step % 5)) if teacher else None,
        "grad_norm": 3.0, "grad_norm_mean": sum(layers) / LAYERS, "grad_norm_layers": layers, "lr": 1e-3,
        "tokens": 2048 * step, "tokens_per_second": 1000.0, "seconds": SECONDS.get(setting, 0.6),
        "flops": FLOPS.get(setting, 1.5e9) * step,
    }  # fmt: skip


def evaluation(setting: str, seed: int, step: int, split: str, teacher: bool) -> dict[str, Any]:
    loss = logit_loss(setting, seed, step) * (1.0 if split == "test" else 0.95)
    test = split == "test"
    return {
        "step": step, "stage": "train", "setting": setting, "seed": seed, "learner": f"{setting}-seed{seed}",
        "split": split, "logit_loss": loss if teacher else None, "agreement": 1 / loss if teacher else None,
        "label_loss": loss + 0.5, "label_accuracy": 0.9 / loss, "tokens": 4096,
        "logit_grad_norm_layers": [loss / 10] * LAYERS if test and teacher else None,
        "update_ratio_layers": [1e-3 / (1 + step)] * LAYERS if test and step else None,
    }  # fmt: skip


CLASSES = {"classification": ["no", "yes"], "regression": []}
METRICS = {"classification": ("accuracy", "f1", "matthews"), "regression": ("pearson", "spearman")}


def scores(task: str, setting: str, seed: int, step: int, split: str) -> dict[str, float]:
    """0.5 at the start; multi rises to 0.82, logit to 0.74; seeds lie 0.01 apart; each metric 0.1 below the one before."""
    best = (0.08 if setting.startswith("multi") else 0.06) / 10
    first = 0.5 + best * step + 0.01 * seed + (0.02 if split == "train" else 0.0)
    return {name: first - 0.1 * place for place, name in enumerate(METRICS[task])}


def of_task(row: dict[str, Any], task: str, teacher: bool) -> dict[str, Any]:
    """An evaluation of rows: with metrics; scores have no agreement and no accuracy."""
    mine = scores(task, row["setting"], row["seed"], row["step"], row["split"])
    theirs = {name: 0.9 - 0.1 * place for place, name in enumerate(METRICS[task])} if teacher else None
    without = {"agreement": None, "label_accuracy": None} if task == "regression" else {}
    return row | without | {"metrics": mine, "teacher_metrics": theirs, "exits": {}, "tokens": 50}


def with_exits(row: dict[str, Any]) -> dict[str, Any]:
    """An evaluation with heads behind layers 2 and 10, the losses of which are 1.5 and 1.1 times those of the last layer."""
    losses = ("logit_loss", "label_loss")
    exits = {
        f"exit.{layer}": {
            **{name: row[name] for name in ("agreement", "label_accuracy")},
            **{name: None if row[name] is None else times * row[name] for name in losses},
            **(
                {"metrics": {name: value - 0.3 / layer for name, value in row["metrics"].items()}}
                if "metrics" in row
                else {}
            ),
        }
        for layer, times in ((10, 1.1), (2, 1.5))
    }
    return row | {"exits": exits}


def write_run(
    folder: Path,
    settings: tuple[str, ...] = ("logit", "multi"),
    seeds: tuple[int, ...] = (0, 1),
    teacher: bool = True,
    status: str = "done",
    task: str | None = None,
    exits: tuple[str, ...] = (),
    facts: Mapping[str, Any] = {},
) -> Path:
    """A finished run of 40 steps, evaluated every 10; `facts` stand over those of its manifest."""
    folder.mkdir(parents=True)
    learners = [(setting, seed) for setting in settings for seed in seeds]
    metrics = [metric(*learner, step, teacher) for step in range(1, STEPS + 1) for learner in learners]
    evals = [
        evaluation(*learner, step, split, teacher)
        for step in range(0, STEPS + 1, EVERY)
        for learner in learners
        for split in ("train", "test")
    ]
    evals = [of_task(row, task, teacher) if task else row for row in evals]
    evals = [with_exits(row) if row["setting"] in exits else row for row in evals]
    for name, rows in (("metrics", metrics), ("evals", evals)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = {
        "name": "first", "recipe_sha256": "ab12", "command": "limbeck run first.yaml", "limbeck": "0.1.0",
        "versions": {"python": "3.11", "torch": "2.13.0"}, "machine": {"cpu": "one", "cores": 2},
        "teacher": {"source": "embedded", "revision": None, "parameters": 1234} if teacher else None,
        "data": {"corpus": "docs", "documents": 10} | ({"classes": CLASSES[task]} if task else {}), "students": {}, "status": status,
        "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:01:00Z", "seconds": 60.0,
    } | dict(facts)  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "recipe.yaml").write_text("name: first\nquestion: Does multi beat logit?\n")
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a synthetic run (see `write_run`) and returns its folder."""
    return lambda name="run", **how: write_run(tmp_path / name, **how)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a synthetic run; to be read only, or written again as it is."""
    return write(write_run(tmp_path_factory.mktemp("lab") / "run"))
