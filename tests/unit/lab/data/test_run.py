from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import limbeck
from limbeck.errors import UserError
from limbeck.lab.data.run import read
from limbeck.lab.names import compared


def test_series_are_the_numbers_of_the_file(make_run):
    folder = make_run()
    run = read(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mine = [line for line in lines if (line["setting"], line["seed"]) == ("multi", 1)]
    steps, values = run.series("logit_loss", "multi", 1)
    assert steps.tolist() == list(range(1, 41))
    assert values.tolist() == [line["logit_loss"] for line in mine]
    assert run.series("terms.hidden", "multi", 1)[1].tolist() == [line["terms"]["hidden"] for line in mine]
    assert run.series("grad_norm_layers", "multi", 1)[1].shape == (40, 3)
    assert run.series("logit_loss", "multi", 1, "test")[0].tolist() == [0, 10, 20, 30, 40]
    assert (run.settings, run.seeds("logit"), run.splits) == (["logit", "multi"], [0, 1], ["train", "test"])
    assert run.terms("multi") == ["embedding", "hidden", "attention", "logit"]
    assert run.notes == ()


@pytest.mark.parametrize("damage", ['{"step": 41, "sta', '{"step": 41, "setting": "\u00e9'])
def test_a_damaged_last_line_is_skipped_and_noted(make_run, damage):
    folder = make_run()
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(damage.encode()[:-1])
    run = read(folder)
    assert run.series("loss", "multi", 1)[0][-1] == 40
    assert run.notes == ("The last line of metrics.jsonl (line 161) is damaged and was skipped.",)


def test_a_damaged_line_before_the_last_is_an_error_that_names_it(make_run):
    folder = make_run()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:4], lines[4][:30], *lines[5:]]))
    with pytest.raises(UserError, match="line 5 is damaged; restore"):
        read(folder)


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl"])
def test_a_missing_file_is_named(make_run, name):
    folder = make_run()
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing; give a folder"):
        read(folder)
    with pytest.raises(UserError, match="no such run directory"):
        read(folder / "nowhere")


@pytest.mark.parametrize(("status", "words"), [("interrupted", "was interrupted"), ("running", "has not ended")])
def test_an_unfinished_run_says_so(make_run, status, words):
    (note,) = read(make_run(status=status)).notes
    assert words in note
    assert "step 40" in note


def test_null_is_nan_and_missing_evaluations_are_noted(make_run):
    folder = make_run()
    (folder / "evals.jsonl").unlink()
    text = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in text]
    rows[0]["grad_norm"] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read(folder)
    assert np.isnan(run.series("grad_norm", "logit", 0)[1][0])
    assert "no evaluation yet" in run.notes[0]
    assert compared(run).key == "logit_loss"


def test_tied_learners_of_a_setting_are_told_apart_and_the_last_stage_counts(make_run):
    folder = make_run(settings=("mutual",), seeds=(0,))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    peers = [row | {"stage": "second", "learner": f"mutual-seed0-{peer}"} for row in rows for peer in "ab"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *peers]))
    run = read(folder)
    assert run.settings == ["mutual-a", "mutual-b"]
    assert "stages train, second; shown is the last" in run.notes[0]


def test_the_lab_imports_no_torch():
    root = Path(limbeck.__file__).parent
    modules = [path.relative_to(root.parent).with_suffix("") for path in sorted((root / "lab").rglob("*.py"))]
    names = ", ".join(".".join(module.parts) for module in modules if module.name != "__init__")
    code = f"import sys, {names}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
