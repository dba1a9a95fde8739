"""`projection` was called `bridge` before 0.1: refused in what a user says, read in what a run wrote, and the hash is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import artefacts
import pytest
import yaml
from kernel import answer

from limbeck.errors import UserError
from limbeck.recipe import arms
from limbeck.recipe.identity import identity, text
from limbeck.recipe.load import load
from limbeck.recipe.study_keys import StudyKeys
from limbeck.running import arms as studies
from limbeck.running.changes import changed_keys, longer

TERM: dict[str, Any] = {"loss": "mse", "tap": "hidden"}


def table(**more: Any) -> dict[str, Any]:
    return {"name": "x", "models": {"teacher": "embedded"}, "settings": {"x": {"terms": [TERM | more]}}}


@pytest.mark.parametrize("value", ["shared", "auto", 3, None])
def test_a_user_who_says_it_is_told_the_new_one(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(table(bridge=value)))
    for command in ("check", "run"):
        status, out, err = answer(monkeypatch, capsys, command, str(tmp_path / "mine.yaml"))
        said = "settings.x.terms[0].bridge: is called projection now; write projection in its place"
        assert (status, out, err) == (2, "", f"limbeck: error: {tmp_path / 'mine.yaml'}: {said}\n")


@pytest.mark.parametrize(
    "override",
    ["settings.x.terms.0.bridge=each", "settings.x.terms[0].bridge=each", "settings.x.terms=[{bridge: each}]"],
)
def test_an_override_too(override: str) -> None:
    with pytest.raises(UserError, match=r"settings\.x\.terms\[0\]\.bridge: is called projection now"):
        load(table(), [override])


def test_in_a_stage_and_beside_the_new_one() -> None:
    staged = table() | {"stages": [{"stage": "a"}, {"settings": {"x": {"terms": [TERM | {"bridge": "each"}]}}}]}
    with pytest.raises(UserError, match=r"stages\[1\]: settings\.x\.terms\[0\]\.bridge: is called projection now"):
        arms.asked(staged).arms()
    with pytest.raises(UserError, match="is called projection now"):
        load(table(bridge="each", projection="each"))


@pytest.mark.parametrize("name", artefacts.RUNS)
def test_the_hash_of_a_run_of_before(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recipe as it is said now; what the run wrote down is read as the same, and nothing has changed."""
    folder = artefacts.unpacked(tmp_path, artefacts.BEFORE) / name
    began, written = json.loads((folder / "manifest.json").read_text()), (folder / "recipe.yaml").read_text()
    assert "bridge: auto" in written and "projection" not in written
    monkeypatch.chdir(tmp_path)
    now = load(artefacts.table(name, name))
    assert identity(now) == began["recipe_sha256"]
    assert changed_keys(folder, began, now) == ([], [], []) and not longer(folder, began, now)
    assert "projection: auto" in text([now]) and "bridge" not in text([now])


@pytest.mark.parametrize("staged", [False, True])
def test_a_value_that_changed_is_named_by_the_new_one(staged: bool, tmp_path: Path) -> None:
    before, after = (load(table(projection=how)) for how in ("shared", "each"))
    written = yaml.safe_load(text([before.model_copy(update={"stage": "first"}), before] if staged else [before]))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written).replace("projection:", "bridge:"))
    began = {"recipe_sha256": identity(before)}
    assert changed_keys(tmp_path, began, before) == ([], [], [])
    assert changed_keys(tmp_path, began, after).harmful == [
        "settings.x.terms[0].projection ('shared' then, 'each' now)"
    ]


def test_the_names_in_a_recipe_are_not_keys() -> None:
    """A setting, a term or an argument that is called so is hashed as it is."""
    said = table()
    said["settings"]["projection"] = {"terms": [TERM | {"name": "projection", "layers": {1: 4}}]}
    assert "'projection': {'terms'" in repr(load(said).model_dump(mode="json", by_alias=True)["settings"])


def test_a_study_that_varies_it_is_the_one_of_before() -> None:
    words = ["vary.settings.x.terms.0.projection=[each, shared]", "vary.settings.projection=[1]", "vary.train.lr=[1]"]
    grid = StudyKeys.model_validate({"vary": {it[5:].partition("=")[0]: [1] for it in words}})
    hashed = {"settings.x.terms.0.bridge", "settings.projection", "train.lr"}
    assert grid.model_dump(mode="json")["vary"].keys() == hashed
    asked = arms.asked(table(), words[:1])
    assert [arm.last.settings["x"].terms[0].projection for arm in asked.arms()] == ["each", "shared"]
    assert len(studies.key(asked.keys, asked.arms())) == 64
