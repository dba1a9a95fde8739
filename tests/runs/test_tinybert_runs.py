"""TinyBERT's four stages at the smallest size: stopped anywhere and gone on with, or run twice, they end in the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kernel import lay_out
from rows import opinions, table
from runfiles import hashes, same_run, stopped

import limbeck

STEPS = {"general": 4, "teacher": 5, "intermediate": 4, "prediction": 6}
LAYERS = [
    {"loss": "mse", "tap": "embedding", "projection": "each"},
    {"loss": "cosine", "tap": "hidden", "layers": "uniform", "projection": "each"},
    {"loss": "attention_scores_mse", "tap": "scores", "layers": "uniform"},
]

pytestmark = pytest.mark.usefixtures("fast")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model, running text, and rows."""
    folder = lay_out(tmp_path_factory.mktemp("world"))
    table(folder / "train.tsv", opinions(48))
    table(folder / "dev.tsv", opinions(21, 48))
    return folder


def said(place: Path, out: Path) -> dict[str, Any]:
    lm = str(place / "teacher")
    rows = {"corpus": str(place / "train.tsv"), "heldout": str(place / "dev.tsv"), "max_length": 24}
    rows |= {"cache": str(out.parent / "cache"), "task": {"kind": "classification"}}
    text = {"corpus": str(place / "corpus.txt"), "heldout": 0.2, "task": None, "masking": {"mode": "none"}}
    copies = {"task": {"augment": {"copies": 3}}}
    stages: list[dict[str, Any]] = [
        {
            "stage": "general",
            "models": {"teacher": lm, "student": {"layers": 2, "hidden": 16, "heads": 4, "intermediate": 32}},
            "data": text,
            "settings": {"general": {"terms": LAYERS}},
        },
        {
            "stage": "teacher",
            "models": {"student": {"init": lm, "dropout": 0.1}},
            "settings": {"tuned": {"terms": [{"loss": "cross_entropy"}]}},
            "train": {"keep": "best"},
        },
        {
            "stage": "intermediate",
            "models": {"teacher": "$teacher", "student": {"init": "$general"}},
            "data": copies,
            "settings": {"tinybert": {"terms": LAYERS}},
        },
        {
            "stage": "prediction",
            "models": {"teacher": "$teacher", "student": {"init": "$intermediate", "dropout": 0.1}},
            "data": copies,
            "settings": {"tinybert": {"terms": [{"loss": "forward_kl"}]}},
            "train": {"keep": "label_loss", "patience": 4},
        },
    ]
    for one in stages:
        one.setdefault("train", {})["steps"] = STEPS[one["stage"]]
    how = {"batch_size": 8, "lr": 1e-2, "warmup": 0, "eval_every": 1, "checkpoint_every": 2, "reasons_blocks": 0}
    return {
        "name": "tiny",
        "data": rows,
        "stages": stages,
        "seeds": [0, 1],
        "out": str(out),
        "train": how | {"threads": 1, "device": "cpu"},
    }


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.lab.page.report.write", lambda folder: folder)
        return limbeck.run(said(place, tmp_path_factory.mktemp("runs") / "whole"), quiet=True)


@pytest.mark.slow
def test_it_is_what_it_says(whole: limbeck.Run) -> None:
    assert sorted(whole.manifest["earlier"]) == ["general", "intermediate", "teacher"]
    assert whole.manifest["data"]["documents"] > 48, "with copies"
    rows = [row for row in whole.evals if row["split"] == "test"]
    for name in whole.students:
        mine = [row for row in rows if row["learner"] == name]
        assert mine[-1]["label_loss"] == min(
            row["label_loss"] for row in mine if row["step"]
        )  # a new head begins untrained
        assert mine[-1]["teacher_metrics"]["accuracy"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 6, 11, 15])
def test_stopped_in_any_stage(
    whole: limbeck.Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    made = said(place, tmp_path / "run")
    stopped(made, monkeypatch, after)
    run = limbeck.run(made, quiet=True)
    same_run(run, whole, checkpoints=False)
    for stage in ("general", "teacher", "intermediate"):
        mine, theirs = (hashes(each.folder / "stages" / stage / "students") for each in (run, whole))
        weights = {name: digest for name, digest in mine.items() if name.endswith(".safetensors")}
        assert weights and weights == {name: theirs[name] for name in weights}


@pytest.mark.slow
def test_a_second_run_gives_the_same_numbers(whole: limbeck.Run, place: Path, tmp_path: Path) -> None:
    same_run(limbeck.run(said(place, tmp_path / "again"), quiet=True), whole)
