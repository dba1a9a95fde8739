"""A run in the terminal while it goes on: one picture of every kind of directory, and when it is over."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_run
from rich.console import Console

from limbeck.errors import UserError
from limbeck.lab.terminal import watch
from limbeck.system.files import write_json


def picture(folder: Path) -> list[str]:
    """What is shown, line by line, with single spaces."""
    console = Console(file=io.StringIO(), width=140)
    console.print(watch.frame(folder))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]


def study_of(folder: Path, *names: str) -> Path:
    """A study whose arms have not begun."""
    folder.mkdir()
    arms = [
        {"name": name, "folder": f"arms/0{number}", "settings": {"logit": f"logit {name}"}}
        for number, name in enumerate(names, start=1)
    ]
    write_json(folder / "study.json", {"arms": arms})
    return folder


def status(folder: Path, value: str, **more: Any) -> None:
    """Changes what the manifest of a run says."""
    path = folder / "manifest.json"
    write_json(path, json.loads(path.read_text()) | {"status": value, **more})


@pytest.mark.parametrize("state", ["running", "done", "interrupted"])
def test_a_run(tmp_path: Path, state: str) -> None:
    lines = picture(write_run(tmp_path / "first", status=state))
    assert lines[0] == f"first: {state}"
    assert lines[1] == "student step loss tokens/s held out"
    learners = [line.split()[0] for line in lines[2:]]
    assert learners == ["logit-seed0", "logit-seed1", "multi-seed0", "multi-seed1"]
    _, step, loss, curve, speed, heldout, second = lines[2].split()
    assert (step, loss, speed, heldout) == ("40", "3", "1,000", "4.091")
    assert len(curve) == watch.WIDTH and (curve[0], curve[-1]) == ("█", "▁") and second == "█▅▃▂▁"
    assert watch._is_over(tmp_path / "first") == (state != "running")


def test_a_damaged_last_line_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", settings=("logit",), seeds=(0,), status="running")
    before = picture(folder)
    for name in ("metrics.jsonl", "evals.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 41, "lear')
    assert picture(folder) == before
    (folder / "metrics.jsonl").unlink()
    (folder / "evals.jsonl").unlink()
    assert picture(folder) == ["run: running", "student step loss tokens/s held out"], "nothing is written yet"


def test_without_a_teacher_the_labels_are_shown(tmp_path: Path) -> None:
    lines = picture(write_run(tmp_path / "run", settings=("plain",), seeds=(0,), teacher=False))
    assert lines[2].split()[5] == "3.962"


def test_a_study(tmp_path: Path) -> None:
    folder = study_of(tmp_path / "study", "lr=1", "lr=2")
    assert picture(folder) == ["no arm has begun"] and not watch._is_over(folder)
    write_run(folder / "arms" / "01", settings=("logit",), seeds=(0,))
    assert [line for line in picture(folder) if ": " in line] == ["logit lr=1: done"]
    assert not watch._is_over(folder), "the second arm has not begun"
    write_run(folder / "arms" / "02", settings=("logit",), seeds=(0,), status="running")
    assert [line for line in picture(folder) if ": " in line] == ["logit lr=1: done", "logit lr=2: running"]
    assert not watch._is_over(folder)
    for state in ("interrupted", "done"):
        status(folder / "arms" / "02", state)
        assert watch._is_over(folder)


def test_trials_are_shown_until_the_study_begins(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for number, state in ((1, "done"), (2, "running")):
        write_run(folder / "tuning" / f"0{number}", settings=("logit",), seeds=(0,), status=state)
    assert [line for line in picture(folder) if ": " in line] == ["trial 01: done", "trial 02: running"]
    assert not watch._is_over(folder)
    write_json(folder / "study.json", {"arms": []})
    assert picture(folder) == ["no arm has begun"]


def test_stages(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name, began in (("second", "2026-01-02"), ("first", "2026-01-01")):
        write_run(folder / "stages" / name, settings=("logit",), seeds=(0,), facts={"started": began})
    titles = ["run, stage first: done", "run, stage second: done"]
    assert [line for line in picture(folder) if ": " in line] == titles and not watch._is_over(folder)
    path = write_run(tmp_path / "last", settings=("logit",), seeds=(0,), status="running")
    for file in path.iterdir():
        file.rename(folder / file.name)
    assert [line for line in picture(folder) if ": " in line] == [*titles, "run: running"]
    assert not watch._is_over(folder)
    status(folder, "done")
    assert watch._is_over(folder)


def test_what_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"no run directory; it has no manifest\.json"):
            watch.watch(folder)
    folder = write_run(tmp_path / "run")
    (folder / "manifest.json").write_text('{"status"')
    with pytest.raises(UserError, match=r"manifest\.json: is damaged; restore it, or run the recipe again"):
        watch.watch(folder)
    study = study_of(tmp_path / "study", "a")
    (study / "study.json").write_text("3")
    with pytest.raises(UserError, match=r"study\.json: is damaged; restore it, or run the recipe again"):
        watch.watch(study)


def test_into_a_file_it_is_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch.watch(write_run(tmp_path / "run", status="running"))  # and it returns, though the run goes on
    out = capsys.readouterr().out
    assert out.count("run: running") == 1 and "multi-seed1" in out and "\x1b" not in out


def test_on_a_terminal_the_end_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = write_run(tmp_path / "run", settings=("logit",), seeds=(0,), status="running")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            status(folder, "done")

    monkeypatch.setattr(watch.time, "sleep", sleep)
    watch.watch(folder, every=7.0)
    assert slept == [7.0, 7.0] and "run: done" in capsys.readouterr().out
    status(folder, "running")

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", stop)
    watch.watch(folder)  # Ctrl-C ends the looking, not the run


def test_curves() -> None:
    assert watch.curve([]) == watch.curve([None, None]) == ""
    assert watch.curve([2.0, 2.0]) == "▁▁" and watch.curve([1.0, None, 2.0]) == "▁█"
    assert watch.curve([1.0, 3.0, 9.0, 11.0], width=2) == "▁█", "each block is the mean of its part"
    assert len(watch.curve([float(i) for i in range(1000)])) == watch.WIDTH
    assert watch.curve([float(i) for i in range(33)]) == "".join(sorted(watch.curve([float(i) for i in range(33)])))
