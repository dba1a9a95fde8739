"""Several run directories on one page: the arms of a study, or runs that stand side by side."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe

import limbeck
from limbeck import cli
from limbeck.errors import UserError
from limbeck.lab.data import joined
from limbeck.lab.page import report, results, verdicts

KL: dict[str, Any] = {"loss": "forward_kl"}
MUTUAL = {"terms": [KL, KL | {"teacher": "peers"}], "peers": 2}
SETTINGS: dict[str, Any] = {"logit": {"terms": [KL]}, "mutual": MUTUAL}
NAMES = [f"{name} lr={lr}" for lr in (0.01, 0.001) for name in ("logit", "mutual-a", "mutual-b")]


@pytest.fixture(scope="module")
def study(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Two arms of a setting and of a pair of peers, with its page."""
    out = tmp_path_factory.mktemp("studies") / "study"
    table = recipe(world, out, settings=SETTINGS, seeds=[0, 1], train={"steps": 3, "eval_every": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "figures", lambda run: [])  # they take most of the time
        return limbeck.run(table | {"vary": {"train.lr": [0.01, 0.001]}}, quiet=True)


@pytest.fixture
def copied(study: limbeck.Run, tmp_path: Path) -> Path:
    """A copy of the study, to be spoiled."""
    return shutil.copytree(study.folder, tmp_path / "study")


@pytest.mark.slow
def test_settings_under_the_names_of_the_study(study: limbeck.Run) -> None:
    run = joined.gather(study.folder)
    assert run.name == "tiny" and run.settings == NAMES
    assert all(run.seeds(name) == [0, 1] for name in NAMES) and run.splits == ["train", "test"]
    assert list(run.manifest["students"]) == [
        f"lr={lr}: {name}"
        for lr in (0.01, 0.001)
        for seed in (0, 1)
        for name in (f"logit-seed{seed}", f"mutual-seed{seed}-a", f"mutual-seed{seed}-b")
    ]
    assert not run.notes


def test_the_numbers_are_those_of_the_arms(study: limbeck.Run) -> None:
    found = {row["setting"]: row for row in results.rows(joined.gather(study.folder))}
    for lr, arm in zip((0.01, 0.001), study.arms.values(), strict=True):
        for row in results.rows(joined.gather(arm.folder)):
            mine = found[f"{row['setting']} lr={lr}"]
            for name in ("test_logit_loss", "train_logit_loss", "agreement", "label_loss", "grad_norm_mean", "flops"):
                assert mine[name].by_seed == row[name].by_seed, name
    assert found[NAMES[0]]["test_logit_loss"].by_seed != found[NAMES[3]]["test_logit_loss"].by_seed


def test_the_page_names_every_setting(study: limbeck.Run) -> None:
    page = study.report.read_text()
    assert all(name in page for name in NAMES)
    assert all(name in study.table() for name in NAMES)


def test_a_study_that_is_not_finished(copied: Path) -> None:
    second = copied / "arms" / "02"
    manifest = second / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "interrupted"}))
    run = joined.gather(copied)
    assert run.settings == NAMES
    assert run.notes == ("lr=0.001: The run was interrupted; shown is what it left, up to step 3.",)
    (second / "metrics.jsonl").write_text("")
    for _ in range(2):  # it has begun but has no step yet, then it is not there at all
        run = joined.gather(copied)
        assert run.settings == NAMES[:3] and run.notes == ("1 of 2 arms have not begun.",)
        shutil.rmtree(second, ignore_errors=True)
    shutil.rmtree(copied / "arms" / "01")
    with pytest.raises(UserError, match="no arm of this study has begun; run its recipe"):
        joined.gather(copied)
    for text in ("{", "[]", '{"arms": [{}]}', '{"arms": 3}'):
        (copied / "study.json").write_text(text)
        with pytest.raises(UserError, match=r"study.json: is damaged; restore it, or run the recipe again"):
            joined.gather(copied)


def test_what_differs_is_noted(copied: Path) -> None:
    path = copied / "arms" / "02" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["data"]["sha256"] = manifest["teacher"]["sha256"] = "other"
    path.write_text(json.dumps(manifest))
    assert joined.gather(copied).notes == (
        "The runs were trained on different text; shown is the first one's.",
        "The runs were measured against different teachers; shown is the first one's.",
    )
    manifest["data"]["sha256"] = json.loads((copied / "arms/01/manifest.json").read_text())["data"]["sha256"]
    manifest["data"]["heldout_sha256"] = manifest["data"]["sha256"]
    path.write_text(json.dumps(manifest))
    assert "The runs were measured on different text; shown is the first one's." in joined.gather(copied).notes
    path.write_text(json.dumps(manifest | {"teacher": None}))
    assert not any("teachers" in note for note in joined.gather(copied).notes), "one that has none has no other one"


def test_several_runs_side_by_side(finished: limbeck.Run, study: limbeck.Run, tmp_path: Path) -> None:
    run = joined.several([finished.folder, study.folder], tmp_path)
    assert run.settings == ["logit", "multi", *NAMES] and run.name == "finished and study"
    arm = study.folder / "arms" / "01"
    run = joined.several([finished.folder, arm], tmp_path)
    assert run.settings == ["finished logit", "multi", "01 logit", "mutual-a", "mutual-b"]
    mine = {row["setting"]: row["flops"].by_seed for row in results.rows(run)}
    assert (
        mine["01 logit"] == {row["setting"]: row for row in results.rows(joined.gather(arm))}["logit"]["flops"].by_seed
    )


def test_runs_of_one_name_are_told_apart(finished: limbeck.Run, tmp_path: Path) -> None:
    places = [shutil.copytree(finished.folder, tmp_path / it / "run") for it in ("a", "b")]
    run = joined.several(places, tmp_path)
    assert run.settings == [f"{it}/run {name}" for it in ("a", "b") for name in ("logit", "multi")]
    with pytest.raises(UserError, match="is named twice; name different runs"):
        joined.several([places[0], places[0]], tmp_path)


def test_stages_before_are_noted(finished: limbeck.Run, tmp_path: Path) -> None:
    """Costs are those of the last stage: beside a run of one stage they are not the whole."""
    other = shutil.copytree(finished.folder, tmp_path / "staged")
    told = json.loads((other / "manifest.json").read_text())
    stages = {name: {"folder": name, "recipe_sha256": name} for name in ("general", "layers")}
    (other / "manifest.json").write_text(json.dumps(told | {"earlier": stages}))
    line = "trained after general and layers; updates, time and compute are those of the last stage alone."
    assert f"staged: {line}" in joined.several([finished.folder, other], tmp_path).notes
    same = shutil.copytree(other, tmp_path / "same")
    assert not any(line in note for note in joined.several([other, same], tmp_path).notes)


def test_runs_of_different_kinds_are_not_compared(finished: limbeck.Run, tmp_path: Path) -> None:
    """Nats of a token stand beside no nats of a row."""
    other = shutil.copytree(finished.folder, tmp_path / "rows")
    told = json.loads((other / "manifest.json").read_text())
    for classes, kind in (["bad", "good"], "classification"), ([], "regression"):
        (other / "manifest.json").write_text(json.dumps(told | {"data": told["data"] | {"classes": classes}}))
        with pytest.raises(UserError, match=f"finished is about running text and rows about {kind}; name runs of one"):
            joined.several([finished.folder, other], tmp_path)
    assert joined.several([other], tmp_path).task == "regression"


def _longer(folder: Path) -> Path:
    """The run with steps twice as many, in a stage of another name."""
    for name in ("metrics.jsonl", "evals.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        rows = [row | {"step": 2 * row["step"], "stage": "prediction"} for row in rows]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_that_are_done_are_judged_at_their_own_ends(study: limbeck.Run, tmp_path: Path) -> None:
    one, two = (study.folder / "arms" / "01", _longer(shutil.copytree(study.folder / "arms" / "02", tmp_path / "two")))
    run = joined.several([one, two], tmp_path)
    assert [row["step"] for row in results.rows(run)] == [3, 3, 3, 6, 6, 6]
    assert "updates" in [column.key for column, _ in results.cells(results.rows(run))]
    loss = next(each for each in verdicts.judged(run) if each.main)
    settings = ["01 logit", "01 mutual", "two logit", "two mutual"]  # whatever their runs call the last stage
    assert [(line[2], line[0]) for line in loss.lines] == list(combinations(settings, 2))
    manifest = json.loads((two / "manifest.json").read_text())
    (two / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    run = joined.several([one, two], tmp_path)
    assert {row["step"] for row in results.rows(run)} == {0}  # while one is on its way: where all have been


def test_verdicts_against_one_setting(study: limbeck.Run) -> None:
    with pytest.raises(UserError, match=r"^none: no such setting; there are logit lr=0.01, mutual lr=0.01, "):
        report.gathered([study.folder], against="none")
    run = report.gathered([study.folder], against="logit lr=0.001")
    loss = next(each for each in verdicts.judged(run) if each.main)
    others = ["logit lr=0.01", "mutual lr=0.01", "mutual lr=0.001"]
    assert [(line[0], line[2]) for line in loss.lines] == [(name, "logit lr=0.001") for name in others]
    assert "p by Holm over 3 pairs, each with logit lr=0.001." in loss.remark


def test_the_only_setting_of_a_run_has_its_name(finished: limbeck.Run, study: limbeck.Run, tmp_path: Path) -> None:
    lone = shutil.copytree(study.folder / "arms" / "01", tmp_path / "lone")
    for name in ("metrics.jsonl", "evals.jsonl"):
        lines = [line for line in (lone / name).read_text().splitlines() if '"setting": "logit"' in line]
        (lone / name).write_text("\n".join(lines) + "\n")
    assert joined.several([finished.folder, lone], tmp_path).settings == ["finished logit", "multi", "lone"]


def test_report_of_several_writes_one_page(
    finished: limbeck.Run, study: limbeck.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    one = shutil.copytree(finished.folder, tmp_path / "one")
    before = (one / "report.html").read_bytes()
    monkeypatch.setattr(sys, "argv", ["limbeck", "report", str(one), str(study.folder / "arms" / "02")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    path = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("report: "))
    assert path == tmp_path / "compared" / "report.html" and (one / "report.html").read_bytes() == before
    page = path.read_text()
    assert all(name in page for name in ("one logit", "multi", "02 logit", "mutual-b"))
    with pytest.raises(UserError, match="no such run directory"):
        report.gathered([one, tmp_path / "none"])
