"""Runs with factorised students: the same however they go, at the end as after, what they leave, what is refused before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import recipe
from runfiles import same_run, same_state, stopped, tensors
from safetensors.torch import load_file

import limbeck
from limbeck.assemble import design
from limbeck.errors import UserError
from limbeck.models import compressed
from limbeck.models.changes import low_rank
from limbeck.recipe.load import load

TERMS = [{"loss": "forward_kl"}, {"loss": "mse", "tap": "embedding"}]
SEEN = {"share": 0.6, "by": "activations", "head": True}
SETTINGS: dict[str, Any] = {
    "plain": {"terms": TERMS},
    "low": {"terms": TERMS, "changes": [{"factorise": SEEN}]},
    "end": {"terms": TERMS, "changes": [{"factorise": {"rank": 4}}], "changes_at": "end"},
}


def table(world: Path, out: Path, settings: dict[str, Any] = SETTINGS, **train: Any) -> dict[str, Any]:
    return recipe(world, out, settings=settings, train={"steps": 4, "eval_every": 2} | train)


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.lab.page.report.write", lambda folder: folder)
        return limbeck.run(table(world, tmp_path_factory.mktemp("low") / "all"), quiet=True)


def test_stopped_and_gone_on_is_undisturbed(
    world: Path, tmp_path: Path, run: limbeck.Run, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments and factors are made anew when a run goes on; the checkpoint decides."""
    said = table(world, tmp_path / "stopped")
    stopped(said, monkeypatch, 3)
    gone_on = limbeck.run(said, quiet=True)
    same_run(gone_on, run, checkpoints=False)
    same_state(gone_on, run)


def test_at_the_end_is_after(run: limbeck.Run) -> None:
    """The student whose matrices are cut at the end is the plain one, cut: the same training, the factors beside the weights."""
    plain, end = tensors(run, "plain-seed0"), tensors(run, "end-seed0")
    factors = compressed.read(run.students["end-seed0"]).factors
    assert len(factors) == 13
    for name, weight in plain.items():
        place = name.removesuffix(".weight")
        if place in factors:
            up, down = low_rank(weight, 4)
            torch.testing.assert_close(end[name].double(), up.double() @ down.double(), rtol=0, atol=1e-6)
        else:
            assert torch.equal(end[name], weight), name
    rows = {row["learner"]: row for row in run.evals if row["step"] == 4 and row["split"] == "test"}
    assert rows["end-seed0"]["logit_loss"] != rows["plain-seed0"]["logit_loss"]


def test_what_is_left_says_how_small_it_is(run: limbeck.Run) -> None:
    """The sidecar's products are the weights; the manifest knows the change, and the parameters that were trained."""
    folder, told = run.students["low-seed0"], run.manifest["students"]
    small, whole = compressed.read(folder), load_file(folder / "model.safetensors")
    assert len(small.factors) == 14
    for name, (down, up) in small.factors.items():
        product = down @ up.mT if "word" in name else up @ down
        torch.testing.assert_close(whole[f"{name}.weight"], product, rtol=1e-5, atol=1e-6)
    facts = {"share": 0.6, "by": "activations", "embedding": True, "layers": True, "head": True, "skip": []}
    assert told["low-seed0"]["changes"] == [{"factorise": facts}] and told["end-seed0"]["changes_at"] == "end"
    sizes = {name: told[f"{name}-seed0"]["parameters"] for name in SETTINGS}
    assert sizes["low"] < sizes["plain"] and sizes["end"] < sizes["plain"], "as they are exported"


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ([{"factorise": {"rank": 64}}], {}, "rank 64 makes no matrix smaller; the largest that does is 12"),
        ([{"factorise": 0.01}], {}, "a share of 0.01 leaves no matrix a rank of 1; raise it to"),
        ([{"factorise": {}}], {}, "no size given; give one of share, energy and rank"),
        ([{"factorise": {"rank": 2, "share": 0.5}}], {}, "share and rank given; give one"),
        ([{"factorise": {"rank": 2, "embedding": False, "layers": False}}], {}, "nothing to factorise; set embedding"),
        ([{"factorise": {"rank": 2, "layers": False, "by": "activations"}}], {}, "by.*the embedding is factorised by"),
        ([{"quantise": "int8"}, {"factorise": 0.5}], {}, "write it first"),
        ([{"factorise": 0.5}, {"quantise": "int8"}, {"factorise": 0.5}], {}, "write it first"),
        ([{"factorise": 0.5}], {"exits": [1]}, r"settings\.low: early exits share the embedding, which factorise"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    world: Path, tmp_path: Path, changes: list[Any], more: dict[str, Any], said: str
) -> None:
    exit_term = [{"loss": "cross_entropy", "tap": "exit", "name": "exit"}] if more else []
    settings = {"low": {"terms": [*TERMS, *exit_term], "changes": changes, **more}}
    with pytest.raises(UserError, match=said):
        design.design(load(table(world, tmp_path / "run", settings)))


def test_early_exits_go_with_factorised_layers(world: Path, tmp_path: Path) -> None:
    terms = [*TERMS, {"loss": "cross_entropy", "tap": "exit", "name": "exit"}]
    settings = {"low": {"terms": terms, "exits": [1], "changes": [{"factorise": {"rank": 2, "embedding": False}}]}}
    assert design.design(load(table(world, tmp_path / "run", settings)))
