"""Names of actors: what is made is read back, whatever a setting is called."""

from __future__ import annotations

import pytest

from limbeck.lab.data.joined import called, together
from limbeck.recipe import actor_names


@pytest.mark.parametrize("number", [None, 0, 25])
@pytest.mark.parametrize("seed", [0, 12])
@pytest.mark.parametrize("setting", ["logit", "a.b_c", "x-seed3", "x-seed3-a", "mutual-a", "-"])
def test_a_learner_is_read_back(setting: str, seed: int, number: int | None) -> None:
    name = actor_names.learner(setting, seed, number)
    row = {"setting": setting, "seed": seed, "learner": name}
    assert actor_names.setting_and_seed(name) == (setting, seed)
    assert actor_names.peer(row) == ("" if number is None else "-a" if number == 0 else "-z")
    assert actor_names.role_and_student(actor_names.from_stage("teacher-2", name)) == ("teacher-2", name)
    assert actor_names.TAKEN.fullmatch(name) and actor_names.TAKEN.fullmatch(actor_names.average(name))
    for other in (f"{setting} lr=0.1", f"run {setting}", "other"):
        assert together(called(setting + actor_names.peer(row), {setting: other}), row) == other


def test_teachers_and_members() -> None:
    assert actor_names.members(0) == [] and actor_names.members(1) == ["teacher"]
    assert actor_names.members(2) == ["teacher-1", "teacher-2"]
    assert all(actor_names.is_of_measure(name) for name in ("teacher", "teacher-1")) and not actor_names.is_of_measure(
        "hint"
    )
    assert not actor_names.is_of_measure("teacher-a") and not actor_names.TAKEN.fullmatch("teacher")
    assert actor_names.role_and_student("teacher") == ("teacher", "")
    assert actor_names.setting_and_seed("logit") is None and actor_names.setting_and_seed("logit-seed") is None
