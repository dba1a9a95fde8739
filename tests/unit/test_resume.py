"""Runs that are stopped, killed, damaged, changed or finished, and run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe, with_dropout
from runfiles import hashes, same_run, untimed, weights

import limbeck
from limbeck import api, chain, manifest, rundir, session
from limbeck.errors import Interrupted, UserError

# stopping and going on


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """A signal that arrives during the step."""
    asked: list[None] = []

    @contextmanager
    def signals() -> Iterator[Callable[[], bool]]:
        yield lambda: len(asked) >= steps or asked.append(None) or len(asked) >= steps

    monkeypatch.setattr(chain, "interruptible", signals)


@pytest.mark.parametrize("after", [1, 4, 5])
def test_interrupted_and_gone_on_is_undisturbed(
    train: Callable[..., limbeck.Run], through: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, after)
        with pytest.raises(Interrupted, match=f"step {after}"):
            train("stopped", 0.1)
    folder = tmp_path / "stopped"
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"
    assert (folder / "checkpoints" / f"step-{after:06d}").is_dir() and not (folder / "students").exists()
    gone_on = train("stopped", 0.1)
    assert gone_on.manifest["status"] == "done"
    assert gone_on.manifest["students"] == through.manifest["students"]
    assert [row["step"] for row in gone_on.metrics[::2]] == [1, 2, 3, 4, 5, 6]
    same_run(gone_on, through, checkpoints=False)  # the stop saved one more


class Killed(Exception):
    """What a killed process does not get to handle."""


@pytest.mark.parametrize("at", [1, 5])
def test_killed_and_gone_on_is_undisturbed(
    train: Callable[..., limbeck.Run], through: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed after the lines of a step were written and before anything was saved: no line stands there twice."""

    def die(self: Any, record: Any) -> None:
        if record.step == at:
            raise Killed
        plain(self, record)

    plain = session.Session._save_now
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_save_now", die)
        with pytest.raises(Killed):
            train("killed", 0.1)
    folder = tmp_path / "killed"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lea')  # the line during which the power went
    same_run(train("killed", 0.1), through)


def test_a_damaged_checkpoint_costs_steps_and_no_bits(
    train: Callable[..., limbeck.Run],
    through: limbeck.Run,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            train("damaged", 0.1)
    folder = tmp_path / "damaged"
    (folder / "checkpoints" / "step-000005" / "multi-seed0.safetensors").write_bytes(b"")
    limbeck.run(with_dropout(recipe(world, folder), 0.1))
    said = capsys.readouterr().err
    assert "step-000005" in said and "goes on after step 4" in said
    assert not (folder / "checkpoints" / "step-000005").exists(), "a damaged one stands where a sound one should"
    same_run(api.Run(folder), through)


def test_killed_while_finishing(
    train: Callable[..., limbeck.Run], through: limbeck.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is saved, the run is not yet called done: going on finishes it, with its numbers."""

    def die(self: Any, status: str, begin: float) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_status", die)
        with pytest.raises(Killed):
            train("late", 0.1)
    late = train("late", 0.1)
    assert late.manifest["status"] == "done"
    same_run(late, through)
    cards = [
        (run.students["multi-seed0"] / "README.md").read_text().partition("## Recipe")[0] for run in (late, through)
    ]
    assert cards[0] == cards[1], "the model card has its numbers"


def test_killed_while_the_run_directory_is_made(
    train: Callable[..., limbeck.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before, between and after the first two files: running again trains the run."""
    plain = rundir.write_text

    def die(path: Path, text: str) -> None:
        if path.name == dies_at:
            path.with_name(f".{path.name}.1.tmp").write_text(text[:10])
            raise Killed
        plain(path, text)

    for dies_at in ("manifest.json", "recipe.yaml"):
        with monkeypatch.context() as patch:
            patch.setattr(rundir, "write_text", die)
            with pytest.raises(Killed):
                train(f"early-{dies_at}")
        again = train(f"early-{dies_at}")
        assert again.manifest["status"] == "done"
        assert (again.folder / "recipe.yaml").is_file()


def test_changed_inputs_are_not_gone_on_with(
    train: Callable[..., limbeck.Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that has begun refuses another text or teacher, and says what else has changed."""
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_finish", lambda self, begin: None)
        run = train("changed")
    began = run.manifest
    for table, name, what in (("data", "sha256", "the text"), ("teacher", "sha256", "the teacher")):
        rundir.write_json(run.folder / "manifest.json", began | {table: began[table] | {name: "0"}})
        with pytest.raises(UserError, match=f"{what} changed since this run began"):
            train("changed")
    lines = manifest.changes(began, began | {"versions": {"torch": "1.0"}, "processes": 7}, run.folder)
    assert [line.split(": ")[1].split(" changed")[0] for line in lines] == ["versions", "processes"]


def test_a_finished_run_run_again_does_nothing(finished: limbeck.Run, world: Path) -> None:
    before = hashes(finished.folder)
    times = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    again = limbeck.run(recipe(world, finished.folder, seeds=[0, 1]), quiet=True)
    assert again.folder == finished.folder and hashes(finished.folder) == before
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == times


def test_a_finished_run_without_its_page_gets_it(finished: limbeck.Run, world: Path) -> None:
    """Killed after it was called done and before the page was written."""
    page = finished.report.read_bytes()
    finished.report.unlink()
    limbeck.run(recipe(world, finished.folder, seeds=[0, 1]), quiet=True)
    assert finished.report.read_bytes() == page


def test_the_folder_of_another_recipe_is_left_alone(finished: limbeck.Run, world: Path, tmp_path: Path) -> None:
    before = hashes(finished.folder)
    with pytest.raises(UserError, match="another recipe"):
        limbeck.run(recipe(world, finished.folder), quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="out=DIR"):
        limbeck.run(recipe(world, tmp_path / "mine"), quiet=True)
    assert hashes(finished.folder) == before and [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_loss_that_explodes_ends_with_one_line(train: Callable[..., limbeck.Run], tmp_path: Path) -> None:
    wild = [{"loss": "mse", "tap": "hidden", "name": "far", "weight": 1e38}]
    with pytest.raises(UserError, match=r"setting wild, seed 0, step \d: .*(the term|the gradient)"):
        train("wild", settings={"wild": {"terms": wild}}, train={"lr": 1e18, "clip": None})
    assert not list((tmp_path / "wild").glob("students/*"))


KILL = """
import os, signal, sys
from limbeck import cli, session
plain = session.require_finite
def at(record):
    plain(record)
    if record.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
session.require_finite = at
sys.argv = ["limbeck", *sys.argv[1:]]
cli.main()
"""


def test_sigterm_is_exit_status_75_and_the_command_goes_on(
    world: Path, tmp_path: Path, train: Callable[..., limbeck.Run], through: limbeck.Run
) -> None:
    """A real process, a real signal; what it left is gone on with here."""
    table = with_dropout(recipe(world, tmp_path / "signalled"), 0.1)
    (tmp_path / "tiny.yaml").write_text(json.dumps(table))
    told = subprocess.run(
        [sys.executable, "-c", KILL, "run", str(tmp_path / "tiny.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 75, told.stderr
    assert "step 3" in told.stderr and "Traceback" not in told.stderr and told.stdout == ""
    gone_on = train("signalled", 0.1)
    assert all(weights(gone_on, name) == weights(through, name) for name in through.students)
    assert untimed(gone_on.metrics) == untimed(through.metrics) and untimed(gone_on.evals) == untimed(through.evals)
