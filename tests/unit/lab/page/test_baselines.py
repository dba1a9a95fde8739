"""Columns beside the settings that nobody trained: the initial student and the teacher; and settings that end apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe

import limbeck
from limbeck.lab.data import joined
from limbeck.lab.data.run import read
from limbeck.lab.page import tables, verdicts
from limbeck.lab.page.baselines import of_baselines
from limbeck.lab.page.results import as_text, best, cells, rows, title
from limbeck.lab.page.summary import findings

ASKED = {"baselines": ["initial", "teacher"]}
TEACHER = {"teacher_label_loss": 2.5, "teacher_label_accuracy": 0.75}


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None], name: str = "evals") -> Path:
    """The run with other lines; a line of which None is made is dropped."""
    path = folder / f"{name}.jsonl"
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
    return folder


def test_the_initial_student_is_the_evaluation_at_step_0(make_run: Any) -> None:
    folder = rewritten(make_run(facts=ASKED), lambda row: row | TEACHER)
    initial, teacher = of_baselines(read(folder))
    assert (initial["setting"], initial["step"], teacher["setting"], teacher["step"]) == ("initial", 0, "teacher", 40)
    assert initial["test_logit_loss"].by_seed == {0: 9.0, 1: pytest.approx(9.09)}
    assert initial["label_loss"].by_seed == {0: 9.5, 1: pytest.approx(9.59)}
    assert initial["seconds"] is None and initial["flops"] is None and initial["grad_norm_mean"] is None
    assert teacher["test_logit_loss"].by_seed == {0: 0.0, 1: 0.0} and teacher["agreement"].mean == 1.0
    assert (teacher["label_loss"].mean, teacher["label_accuracy"].mean) == (2.5, 0.75)
    assert teacher["flops"] is None and teacher["teacher_label_loss"] is None


def test_no_baseline_is_the_best_or_judged(make_run: Any) -> None:
    folder = rewritten(make_run(facts=ASKED), lambda row: row | TEACHER)
    run = read(folder)
    results = [*rows(run), *of_baselines(run)]
    found = {column.key: best(results, column) for column, _ in cells(results)}
    assert found["test_logit_loss"] == found["label_loss"] == [False, True, False, False]
    assert all("initial" not in line for each in verdicts.judged(run) for line in each.lines)
    plain = read(make_run("plain"))
    assert findings(run, rows(run)) == findings(plain, rows(plain))


def test_the_teachers_labels_are_told_below_the_students(make_run: Any) -> None:
    text = as_text(rows(read(rewritten(make_run(), lambda row: row | TEACHER)))).splitlines()
    places = {line.split("  (")[0].strip().split("  ")[0]: number for number, line in enumerate(text)}
    assert places["the teacher's label loss"] == places["label loss, test text (nats per token)"] + 1
    assert places["the teacher's label accuracy"] == places["label accuracy, test text"] + 1
    assert text[places["the teacher's label accuracy"]].split()[-4:] == ["75.0", "%", "75.0", "%"]
    plain = as_text(rows(read(make_run("older"))))
    assert "the teacher's" not in plain


def test_rows_of_a_task(make_run: Any) -> None:
    initial, teacher = of_baselines(read(make_run(task="regression", facts=ASKED)))
    assert initial["metrics.pearson"].by_seed == {0: 0.5, 1: 0.51}
    assert teacher["metrics.pearson"].mean == pytest.approx(0.9) and teacher["agreement"] is None
    assert teacher["compared"] == teacher["metrics.pearson"] and teacher["label_loss"] is None


def test_different_beginnings_and_teachers_stand_apart(make_run: Any) -> None:
    def other(row: dict[str, Any]) -> dict[str, Any]:
        if row["setting"] == "multi":
            return row | {"label_loss": row["label_loss"] + 1, "teacher_label_loss": 4.0}
        return row | {"teacher_label_loss": 3.0}

    found = of_baselines(read(rewritten(make_run(facts=ASKED), other)))
    assert [row["setting"] for row in found] == [
        "initial of logit",
        "initial of multi",
        "teacher of logit",
        "teacher of multi",
    ]
    assert [row["label_loss"].by_seed[0] for row in found] == [9.5, 10.5, 3.0, 4.0]


def test_nothing_is_shown_that_nobody_asked_for_or_recorded(make_run: Any) -> None:
    assert of_baselines(read(make_run())) == []
    (initial,) = of_baselines(read(make_run("labels", teacher=False, facts=ASKED)))
    assert initial["setting"] == "initial" and initial["test_logit_loss"] is None
    started = rewritten(make_run("late", facts=ASKED), lambda row: row if row["step"] else None)
    assert [row["setting"] for row in of_baselines(read(started))] == ["teacher"]


def test_the_files_have_them(make_run: Any) -> None:
    folder = rewritten(make_run(facts=ASKED), lambda row: row | TEACHER)
    paths = {path.name: path.read_text() for path in tables.write(read(folder))}
    assert paths["results.md"].splitlines()[0].endswith("| logit | multi | initial | teacher |")
    assert " & initial & teacher " in paths["results.tex"]
    lines = [line.rsplit(",", 3) for line in paths["results.csv"].splitlines()]
    assert [line[-1] for line in lines if line[1:3] == ["teacher", "1"] and "label loss" in line[0]] == ["2.5"]


# a real run


def test_a_run_that_is_asked_again_only_shows_them(
    train: Callable[..., limbeck.Run], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("run")
    assert run.manifest["baselines"] == [] and "initial" not in run.table()
    before = (run.folder / "metrics.jsonl").read_bytes()
    limbeck.run(recipe(world, tmp_path / "run") | {"baselines": ["initial", "teacher"]})
    assert "this run is done" in capsys.readouterr().err
    assert run.manifest["baselines"] == ["initial", "teacher"] and run.manifest["status"] == "done"
    assert (run.folder / "metrics.jsonl").read_bytes() == before
    _, _, head, _, loss, *_ = run.table().splitlines()
    assert head.split()[-4:] == ["logit", "multi", "initial", "teacher"] and loss.split()[-1] == "0.000"
    evals = [row for row in run.evals if row["split"] == "test"]
    initial, teacher = of_baselines(read(run.folder))
    assert {row["teacher_label_loss"] for row in evals} == set(teacher["label_loss"].by_seed.values())
    assert {row["label_loss"] for row in evals if row["step"] == 0} == set(initial["label_loss"].by_seed.values())


# settings that end apart


def ladder(make_run: Any, folder: Path, steps: tuple[int, int]) -> Path:
    """A study of two arms of one setting each, of so many steps."""
    told = []
    for number, (name, end) in enumerate(zip(("logit", "multi"), steps, strict=True), start=1):
        arm = make_run(f"study/arms/0{number}", settings=(name,))
        for file in ("evals", "metrics"):
            rewritten(arm, lambda row, end=end: row if row["step"] <= end else None, file)
        told.append({"name": "", "folder": f"arms/0{number}", "settings": {name: name}, "steps": end})
    study = folder / "study"
    (study / "study.json").write_text(json.dumps({"name": "study", "arms": told}))
    return study


def test_each_setting_at_its_own_end(make_run: Any, tmp_path: Path) -> None:
    run = joined.gather(ladder(make_run, tmp_path, (40, 20)))
    logit, multi = results = rows(run)
    assert (logit["step"], multi["step"]) == (40, 20)
    assert logit["test_logit_loss"].by_seed[0] == pytest.approx(9 / 2.2)
    assert multi["test_logit_loss"].by_seed[0] == pytest.approx(9 / 1.8)
    assert (multi["updates"].by_seed, multi["flops"].mean) == ({0: 20, 1: 20}, 20 * 1.5e9)
    assert title(results) == "at the end of each setting (20 to 40 steps), mean (min..max) of 2 seeds"
    assert findings(run, results)[0].startswith(
        "At the end of each setting (20 to 40 steps): logit is better than multi: "
    )
    (verdict,) = verdicts.judged(run)[0].lines
    assert verdict[3] == f"+{9.045 * (1 / 1.8 - 1 / 2.2):.4f}", "of the ends"
    assert as_text(results).splitlines()[-3].split() == ["updates", "40", "20"]


def test_equal_steps_are_compared_as_ever(make_run: Any, tmp_path: Path) -> None:
    """Also when one arm has not come as far yet: what is not by design is compared where all have been."""
    study = ladder(make_run, tmp_path, (40, 20))
    told = json.loads((study / "study.json").read_text())
    for arm in told["arms"]:
        arm["steps"] = 40
    (study / "study.json").write_text(json.dumps(told))
    results = rows(joined.gather(study))
    assert [row["step"] for row in results] == [20, 20] and results[0]["updates"] is None
    assert title(results).startswith("after 20 steps, ")
