"""Trackers get the numbers of metrics.jsonl and evals.jsonl; what is not installed is said before anything trains."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from kernel import recipe

import limbeck
from limbeck import cli
from limbeck.recipe import load
from limbeck.recipe.identity import identity
from limbeck.running import stages, trackers
from limbeck.running.trackers import OF_EVALUATION, OF_STEP


class Kept:
    """A tracker that keeps what it is told."""

    requires_logging_directory = True
    made: list[Kept] = []  # noqa: RUF012

    def __init__(self, run_name: str, logging_dir: str) -> None:
        self.run, self.folder = run_name, logging_dir
        self.words: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.events: list[str] = []
        Kept.made.append(self)

    def start(self) -> None:
        self.events.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.words = values

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.events.append("finish")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """The trackers that are made, in place of TensorBoard's."""
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Kept)
    monkeypatch.setitem(trackers.PACKAGES, "tensorboard", ("json",))
    monkeypatch.setattr(Kept, "made", [])
    return Kept.made


def expected(run: limbeck.Run) -> list[tuple[int, dict[str, float]]]:
    """What the files of a run hold, as a tracker is told: evaluations after the steps they follow."""
    found: list[tuple[int, dict[str, float]]] = []
    for step in range(max(row["step"] for row in run.metrics) + 1):
        values: dict[str, float] = {}
        for row in (it for it in run.metrics if it["step"] == step):
            named = {name: row[name] for name in OF_STEP} | {f"terms/{it}": row["terms"][it] for it in row["terms"]}
            values |= {f"{row['learner']}/{name}": value for name, value in named.items() if value is not None}
        found += [(step, values)] if values else []
        values = {}
        for row in (it for it in run.evals if it["step"] == step):
            named = {f"{row['split']}/{name}": row[name] for name in OF_EVALUATION}
            values |= {f"{row['learner']}/{name}": value for name, value in named.items() if value is not None}
        found += [(step, values)] if values else []
    return found


def test_a_tracker_is_told_what_is_written(train: Callable[..., limbeck.Run], kept: list[Kept]) -> None:
    run = train("told", report_to=["tensorboard"])
    (one,) = kept
    by_name = sorted(one.logged, key=lambda pair: (pair[0], any("/test/" in name for name in pair[1])))
    assert by_name == expected(run), "the evaluation at step 0 too"
    assert one.run == "tiny" and one.folder == str(run.folder / "trackers") and one.events == ["start", "finish"]
    assert one.words["train.lr"] == 1e-2 and one.words["seeds"] == "[0]" and one.words["name"] == "tiny"
    assert all(isinstance(value, int | float | bool | str) for value in one.words.values())


def test_without_the_word_there_is_none(train: Callable[..., limbeck.Run], kept: list[Kept]) -> None:
    train("plain", train={"steps": 1})
    assert kept == []


def test_a_tracker_is_no_part_of_the_run(
    train: Callable[..., limbeck.Run], kept: list[Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train("same", train={"steps": 2})
    trained: list[Any] = []
    monkeypatch.setattr(stages, "_train", lambda *given: trained.append(given))
    again = train("same", train={"steps": 2}, report_to=["tensorboard"])
    assert trained == [] and again.evals == plain.evals, "the finished run is the same one"
    tables = [load.load(recipe(Path("x"), Path("y"), report_to=names)) for names in ([], ["tensorboard"])]
    assert identity(tables[0]) == identity(tables[1])


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    "more", [{}, {"vary": {"train.lr": [1, 2]}}, {"equal": "seconds"}, {"tune": {"vary": {"train.lr": [1, 2]}}}]
)
def test_what_is_not_installed_is_said_first(
    command: str, more: dict[str, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "trackio", ("no_such_package",))
    table = recipe(world, tmp_path / "run", report_to=["trackio"]) | more
    table["data"]["cache"] = str(tmp_path / "cache")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(table))
    monkeypatch.setattr(sys, "argv", ["limbeck", command, str(tmp_path / "tiny.yaml")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    line = "limbeck: error: report_to: trackio is not installed; pip install limbeck[trackio], or leave the key out"
    *told, last = err.splitlines()
    assert (end.value.code, out, last) == (2, "", line)
    assert all(it.startswith("precision ") for it in told), told
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists(), "before any text is read"
