"""What `check` says of changes before a weight is read, against the students that come out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import lay_out, recipe
from torch.utils.flop_counter import FlopCounterMode

from limbeck.assemble import changes, design
from limbeck.models import students
from limbeck.models.changes.layers import matrices
from limbeck.models.compressed import Compressed
from limbeck.models.taps import Tapped
from limbeck.recipe import stages
from limbeck.running import changed

CHANGES: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "single weights": [{"prune": 0.5}],
    "units": [{"prune": {"neurons": 0.5, "hidden": 0.5, "layers": 0.5}}],
    "factors": [{"factorise": {"rank": 3, "head": True}}],
    "factors of what is cut": [{"factorise": {"rank": 3}}, {"prune": {"neurons": 0.25, "hidden": 0.5}}],
    "all": [{"factorise": 0.7}, {"prune": {"neurons": 0.25, "layers": 0.5}}, {"prune": 0.5}],
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict[str, Any]]], design.Design]:
    """The design of a student with changes."""
    world: Path = lay_out(tmp_path_factory.mktemp("world"))

    def made(said: list[dict[str, Any]]) -> design.Design:
        settings = {"one": {"terms": [{"loss": "forward_kl"}], "changes": said}}
        return design.chain(stages.expand(recipe(world, world / "out", settings=settings)))["train"]

    return made


@pytest.mark.parametrize("name", CHANGES)
def test_parameters_and_multiplications_are_those_of_the_student(plan: Any, name: str) -> None:
    """Counted on the student itself: its factors are what it trains, its masks are folded away."""
    one = plan(CHANGES[name])
    done, _ = changes.of_setting(one.recipe, "one", tuple)
    size, said = changed.size_of(one, done)
    model, small = students.build(one.student, seed=0), Compressed()
    for change in done:
        change.apply(model)
    masked = copy.deepcopy(model)
    for change in reversed(done):
        model = change.fold(model, small)
    whole = sum(p.numel() for p in model.parameters())
    layers = matrices(model)
    for path, factors in small.factors.items():
        whole += sum(it.numel() for it in factors) - layers[path].get_parameter("weight").numel()
    assert size.parameters == whole
    assert {path: [it.shape for it in pair] for path, pair in said.factors.items()} == {
        path: [it.shape for it in pair] for path, pair in small.factors.items()
    }
    assert {it.removesuffix(".down").removesuffix(".up") for it in small.pruned} == set(said.pruned)
    assert size.bytes == 4 * whole
    if name in ("factors", "nothing", "single weights"):  # no units: the student in training multiplies as much
        row = {"input_ids": torch.zeros(1, 10, dtype=torch.long), "attention_mask": torch.ones(1, 10, dtype=torch.long)}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            _ = Tapped(masked.eval())(row)["logits"]
        assert size.macs == counter.get_total_flops() // 2


def test_lines(plan: Any) -> None:
    told = changed.rows(plan(CHANGES["units"]))
    assert [row[0] for row in told] == ["changes", "  before", "  one"]
    assert "neurons 0.5" in str(told[2][1]) and int(str(told[2][2])) < int(str(told[1][2]))
    assert "smaller or gone" in str(told[2][-1]) and changed.rows(plan([])) == []
