"""The design of a recipe is made once in a command, whoever asks for it: the check, the costs, the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kernel import recipe

import limbeck
from limbeck import api
from limbeck.assemble import design
from limbeck.models import pretrained
from limbeck.running import stages

KL: dict[str, Any] = {"kl": {"terms": [{"loss": "forward_kl"}]}}
HINT: dict[str, Any] = {"kl": {"terms": [{"loss": "mse", "tap": "hidden"}]}}
CHAIN = [{"stage": "hints", "settings": HINT}, {"stage": "end", "models": {"student": {"init": "$previous"}}}]
GRID = {"train.lr": [1e-2, 1e-3]}


@pytest.mark.parametrize(
    ("more", "trained"),
    [
        ({}, ["run"]),
        ({"stages": CHAIN}, ["run/stages/hints", "run"]),
        ({"vary": GRID}, ["run/arms/01", "run/arms/02"]),
        ({"vary": GRID, "stages": CHAIN}, ["run/arms/01/stages/hints", "run/arms/01", "run/arms/02/stages/hints", "run/arms/02"]),
        ({"vary": GRID, "equal": "flops"}, ["run/arms/01", "run/arms/02"]),
    ],
)  # fmt: skip
def test_designs_are_made_once(
    more: dict[str, Any], trained: list[str], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = recipe(world, tmp_path / "run", settings=KL, train={"steps": 2}) | more
    made, read, given = ([] for _ in range(3))
    whole, tokenizer = design.design, pretrained.tokenizer_of
    monkeypatch.setattr(design, "design", lambda table, *how: made.append(table) or whole(table, *how))
    monkeypatch.setattr(pretrained, "tokenizer_of", lambda *how: read.append(how) or tokenizer(*how))
    monkeypatch.setattr(stages, "_train", lambda plan, *how: given.append(plan))
    monkeypatch.setattr(api.report, "write", lambda folder: folder)
    limbeck.check(said)
    assert (len(made), len(read)) == (len(trained), 1)
    made.clear()
    limbeck.run(said, quiet=True)
    assert (len(made), len(read)) == (len(trained), 2)
    assert [Path(plan.recipe.run_dir) for plan in given] == [tmp_path / place for place in trained]
    for plan in given:
        assert list(plan.terms) == list(plan.recipe.chosen)
        assert all(Path(it.recipe.run_dir).parents[1] == Path(plan.recipe.run_dir) for it in plan.earlier.values())
