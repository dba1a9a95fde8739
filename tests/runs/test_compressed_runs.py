"""Runs whose students are quantised: who is `base`, what happens at the end, what is exported, what the recipe refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import answer, recipe
from runfiles import same_run, stop_after
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

import limbeck
from limbeck.errors import Interrupted
from limbeck.models import compressed
from limbeck.models.changes.quantise import WeightQuantiser

pytest.importorskip("torchao", reason="needs torchao")
LABELS: list[dict[str, Any]] = [{"loss": "cross_entropy"}]
SETTINGS: dict[str, Any] = {
    "plain": {"changes": [], "terms": LABELS},
    "after": {"changes_at": "end", "terms": LABELS},
    "trained": {"terms": LABELS},
    "based": {"changes": [], "terms": [{"loss": "forward_kl", "teacher": "base"}]},
    "distilled": {"terms": [{"loss": "forward_kl", "teacher": "base"}, {"loss": "forward_kl"}]},
}


def said(world: Path, out: Path, **more: Any) -> dict[str, Any]:
    table = recipe(world, out, **({"settings": SETTINGS, "seeds": [0, 1]} | more))
    student = table["models"]["student"] | {"changes": [{"quantise": {"weights": "int4", "group": 8}}]}
    return table | {"models": table["models"] | {"student": student}}


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    return limbeck.run(said(world, tmp_path_factory.mktemp("compressed") / "all"), quiet=True)


def test_changes_of_before_are_a_plain_run(run: limbeck.Run, world: Path, tmp_path: Path) -> None:
    """A setting without changes trains the same bits as in a recipe that knows of none."""
    same = limbeck.run(recipe(world, tmp_path / "plain", settings={"plain": {"terms": LABELS}}), quiet=True)
    mine, theirs = (load_file(it.students["plain-seed0"] / "model.safetensors") for it in (run, same))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert "changes" not in same.manifest["students"]["plain-seed0"]
    assert not (run.students["plain-seed0"] / compressed.COMPRESSION).exists()


def test_at_the_end_the_trained_weights_are_rounded(run: limbeck.Run) -> None:
    """Trained as `plain` is, to the last bit; then rounded; the last evaluation is that of the rounded model."""
    plain, after = (load_file(run.students[f"{name}-seed0"] / "model.safetensors") for name in ("plain", "after"))
    small = compressed.read(run.students["after-seed0"])
    assert len(small.quantised) > 6
    for name, tensor in plain.items():
        grid = small.quantised.get(name.removesuffix(".weight"))
        rounded = grid and name.endswith(".weight")
        assert torch.equal(after[name], WeightQuantiser(grid.bits, grid.group)(tensor) if rounded else tensor), name
    steps = {row["step"] for row in run.evals}
    told = {
        (row["setting"], row["step"]): row["logit_loss"]
        for row in run.evals
        if row["seed"] == 0 and row["split"] == "test"
    }
    assert all(told["plain", step] == told["after", step] for step in steps - {max(steps)})
    assert told["plain", max(steps)] != told["after", max(steps)]
    losses = {(row["setting"], row["step"]): row["loss"] for row in run.metrics if row["seed"] == 0}
    assert all(loss == losses["after", step] for (name, step), loss in losses.items() if name == "plain")


def test_in_training_the_rounded_weights_are_used(run: limbeck.Run) -> None:
    trained = load_file(run.students["trained-seed0"] / "model.safetensors")
    small = compressed.read(run.students["trained-seed0"])
    for name, grid in small.quantised.items():
        tensor = trained.get(f"{name}.weight")
        if tensor is not None:  # tied ones are in the file once
            assert len((tensor.view(-1, 8) / compressed.on_grid(tensor, grid)[1].view(-1, 1)).round().unique()) <= 16
            torch.testing.assert_close(compressed.from_grid(*compressed.on_grid(tensor, grid)), tensor)
    first = {row["setting"]: row["loss"] for row in run.metrics if row["seed"] == 0 and row["step"] == 1}
    assert first["trained"] != first["plain"] == first["after"]


def test_base_is_the_student_as_it_began(run: limbeck.Run) -> None:
    """Whoever is not changed says the same as base at first: nothing to learn; whoever is, does not."""
    first = {row["setting"]: row for row in run.metrics if row["seed"] == 0 and row["step"] == 1}
    assert first["based"]["loss"] == pytest.approx(0, abs=1e-6) and first["distilled"]["terms"]["logit-base"] > 1e-5
    told = {it["name"]: it for it in run.manifest["teachers"]}
    for seed in (0, 1):
        assert told[f"base@seed{seed}"]["sha256"] == run.manifest["students"][f"plain-seed{seed}"]["initial_sha256"]
    assert run.manifest["students"]["distilled-seed0"]["changes"] == [
        {"quantise": {"bits": 4, "embedding": 4, "head": 4, "group": 8, "activations": False, "skip": []}}
    ]
    assert run.manifest["students"]["after-seed0"]["changes_at"] == "end"


def test_killed_it_ends_in_the_same_bits(run: limbeck.Run, world: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            limbeck.run(said(world, tmp_path / "run"), quiet=True)
    same_run(limbeck.run(said(world, tmp_path / "run"), quiet=True), run)


def test_gone_on_with_it_is_trained_unchanged(run: limbeck.Run, world: Path, tmp_path: Path) -> None:
    """What was changed at the end was a copy: a longer run goes on from the weights before."""
    two = {name: SETTINGS[name] for name in ("plain", "after")}
    short = said(world, tmp_path / "run", settings=two, seeds=[0], train={"schedule": "constant"})
    limbeck.run(short, quiet=True)
    longer = limbeck.run(short | {"train": short["train"] | {"steps": short["train"]["steps"] + 2}}, quiet=True)
    losses = {(row["setting"], row["step"]): row["loss"] for row in longer.metrics}
    assert max(step for _, step in losses) == short["train"]["steps"] + 2
    assert all(loss == losses["plain", step] for (name, step), loss in losses.items() if name == "after")


def test_the_best_weights_are_rounded_too(world: Path, tmp_path: Path) -> None:
    table = said(world, tmp_path / "run", settings={"after": SETTINGS["after"]}, seeds=[0], train={"keep": "best"})
    run = limbeck.run(table, quiet=True)
    model = AutoModelForMaskedLM.from_pretrained(run.students["after-seed0"])
    weight = model.bert.encoder.layer[0].output.dense.weight
    grid = compressed.read(run.students["after-seed0"]).quantised["bert.encoder.layer.0.output.dense"]
    torch.testing.assert_close(compressed.from_grid(*compressed.on_grid(weight, grid)), weight.detach())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("models.student.changes=[{quantise: int5}]", "must be 'int8', 'int4', 'int3' or 'int2'"),
        ("models.student.changes=[{quantise: int8, prune: 0.5}]", "a change is one of quantise, prune and factorise"),
        ("models.student.changes=[{}]", "a change is one of quantise, prune and factorise"),
        ("models.student.changes=[{quantise: int8}, {factorise: 0.5}]", "write it first"),
        ("models.student.changes=[{prune: {neurons: 0.5, by: movement}}]", "movement ranks single weights"),
        ("models.student.changes=[{prune: {neurons: 0.5, by: taylor}}]", "taylor needs gradients"),
        ("models.student.changes=[{prune: {}}]", "nothing to prune"),
        ("models.student.changes=[{factorise: {share: 0.5, rank: 3}}]", "share and rank given"),
        ("models.student.changes=[{quantise: {group: 7}}]", "groups of 7 do not divide"),
        ("settings.after.changes_at=never", "changes_at"),
        ("models.teachers={base: embedded}", "base has a meaning of its own"),
    ],
)
def test_what_is_refused_is_told_in_one_line(
    words: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = answer(monkeypatch, capsys, "check", "compression", words)
    assert status == 2 and line in err and len(err.strip().splitlines()) == 1


def test_without_torchao_the_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("limbeck.models.changes.quantise.importlib.util.find_spec", lambda name: None)
    status, _, err = answer(monkeypatch, capsys, "check", "compression")
    assert status == 2 and "pip install 'limbeck[int8]'" in err
