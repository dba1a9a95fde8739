"""Recipes with early exits: what they may not say, what a check tells of them, losses of one's own."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
from test_exit_runs import AT_EXIT, LABEL, OWN, STATES, table

import limbeck
from limbeck.assemble import costs, design
from limbeck.errors import UserError
from limbeck.recipe.load import load

# what a recipe may not say


def terms(*said: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"terms": list(said), **more}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (terms(LABEL, exits=[1]), "settings.one.terms: no term learns at the exits; give one tap: exit"),
        (terms(LABEL, STATES, exits=[1]), "settings.one.terms: no term learns at the exits; give one tap: exit"),
        (terms(AT_EXIT), "settings.one.exits: missing; a term learns at early exits; set their layers, such as [2, 4]"),
        (terms(AT_EXIT, exits=[1, 2, 1]), "settings.one.exits: one layer stands twice: [1, 2, 1]; name each once"),
        (terms(AT_EXIT, exits=[0]), "settings.one.exits[0]: must be above 0, not 0"),
        (terms(AT_EXIT, exits=2), "settings.one.exits: must be a list such as [1, 2], not 2"),
        (
            terms({"loss": "forward_kl", "teacher": "self"}),
            "settings.one.terms[0].tap: a model has one logits and cannot teach it to itself; compare exit or a layer",
        ),
        (
            terms({"loss": "mse", "tap": "pooled", "teacher": "self"}),
            "settings.one.terms[0].tap: a model has one pooled and cannot teach it to itself; compare exit or a layer",
        ),
        (
            terms(AT_EXIT | {"layers": {1: 2}}, exits=[1]),
            "settings.one.terms[0].layers: the tap exit has no layers; leave the key out",
        ),
        (
            terms(AT_EXIT | {"teacher": "self"}, exits=[1]),
            "settings.one.terms[0].teacher: the loss cross_entropy learns from no teacher; leave the key out",
        ),
        (
            terms({"loss": "mse", "tap": "exit"}, exits=[1]),
            "settings.one.terms[0].tap: the loss mse compares embedding or hidden or ffn or pooled, not exit; change tap or loss",
        ),
        (
            terms({"loss": "contrastive", "tap": "exit", "teacher": "self"}, exits=[1]),
            "settings.one.terms[0].tap: the loss contrastive compares pooled, not exit; change tap or loss",
        ),
        (
            terms(OWN | {"projection": "each"}, exits=[1]),
            "settings.one.terms[0].projection: the loss forward_kl needs no projection; leave the key out",
        ),
        (
            terms({"loss": "forward_kl", "tap": ["exit", "hidden"]}, exits=[1]),
            "settings.one.terms[0].tap: several taps at once must all have layers; name one",
        ),
        (
            terms(AT_EXIT, OWN | {"name": "exit-label"}, exits=[1]),
            "settings.one.terms: two terms are named 'exit-label'; give one of them another name",
        ),
    ],
)
def test_what_cannot_be(world: Path, tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        load(table(world, tmp_path / "run", {"one": setting}))
    assert str(refused.value) == f"recipe: {message}"


ONCE = "settings.one.hidden-self: a layer learns from a deeper one; map so, such as layers: {1: last}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            terms(AT_EXIT, exits=[1, 3]),
            "settings.one.exits: 3, but an exit lies before the last of the student's 3 layers; lower it",
        ),
        (terms(STATES | {"layers": {2: 2}}), ONCE),
        (terms(STATES | {"layers": {"last": 1}}), ONCE),
        (terms(STATES | {"layers": "last"}), ONCE),
        (terms(STATES | {"layers": "all-to-one"}), ONCE),
        (
            terms(STATES | {"layers": {1: 4}}),
            "settings.one.hidden-self: layers: the teacher has no layer 4; name one from 1 to 3 (0 is the embedding, -1 the last)",
        ),
    ],
)
def test_what_does_not_fit_the_student(world: Path, tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        limbeck.check(table(world, tmp_path / "run", {"one": setting}))
    assert str(refused.value) == message


def test_one_layer_has_nobody_to_learn_from(world: Path, tmp_path: Path) -> None:
    said = table(world, tmp_path / "run", {"one": terms(STATES)})
    said["models"]["student"]["layers"] = 1
    with pytest.raises(UserError, match=r"a layer learns from a deeper one"):
        limbeck.check(said)


# losses of one's own at an exit


def test_a_loss_of_ones_own_gets_tokens_at_an_exit(
    world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the last layer: selected tokens without a mask, and nothing through which a gradient would flow upwards."""
    source = """
import torch.nn.functional as F

def entropy(*, student, labels, mask=None):
    assert student.dim() == 2 and labels.dim() == 1 and mask is None
    return F.cross_entropy(student, labels, reduction="none")

def squares(student, teacher):
    return (student - teacher).square().mean(-1)

def whole(student, teacher):
    return (student - teacher).square().mean()
"""
    name = f"own_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    at = {"tap": "exit", "teacher": "self"}
    twins = {
        "labels": (AT_EXIT, {"loss": f"{name}:entropy", "tap": "exit", "name": "exit-label"}),
        "squares": ({"loss": "logit_mse", **at}, {"loss": f"{name}:squares", **at}),
        "whole": ({"loss": "logit_mse", **at}, {"loss": f"{name}:whole", **at}),
    }
    said = {f"{what}-{i}": terms(LABEL, one, exits=[1]) for what, some in twins.items() for i, one in enumerate(some)}
    run = limbeck.run(table(world, tmp_path / "run", said, steps=3, chunk=1000), quiet=True)
    for what in twins:
        mine, theirs = ([row for row in run.metrics if row["setting"] == f"{what}-{i}"] for i in (1, 0))
        for one, other in zip(mine, theirs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert one["grad_norm_layers"] == pytest.approx(other["grad_norm_layers"], rel=1e-3)


# what a check says


def test_a_check_tells_of_exits(world: Path, tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in limbeck.check(table(world, tmp_path / "run"))]
    assert "exit-label cross_entropy 1 2 of exit" in lines
    assert "exit-self forward_kl, temperature 2.0 0 to 1 in 4 2 of exit" in lines
    assert "exits behind layers 1, 2" in lines
    assert "hidden-self mse 0.1 1<-2 2<-3" in lines
    assert "2 peers, together" in lines and "average of decay 0.5" in lines and lines[-1] == "ok"


def test_exits_cost_their_heads(world: Path, tmp_path: Path) -> None:
    said = {
        "none": terms(LABEL),
        "one": terms(LABEL, AT_EXIT, exits=[1]),
        "two": terms(LABEL, AT_EXIT, exits=[1, 2]),
        "again": terms(LABEL, AT_EXIT, OWN, STATES, exits=[1, 2]),
    }
    found = costs.of_study(design.design(load(table(world, tmp_path / "run", said))))
    step = found.flops_per_step
    tokens = 4 * 10 * 0.15  # of which the logits are looked at
    head = 3 * tokens * found.student.head_flops
    assert step["one"] - step["none"] == pytest.approx(head, rel=1e-9)
    assert step["two"] - step["none"] == pytest.approx(2 * head, rel=1e-9)
    assert step["again"] == step["two"], "terms share the heads"
