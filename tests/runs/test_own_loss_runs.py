"""Losses of one's own, named in a recipe by their import path: what they train, and what stops them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe

import limbeck
from limbeck import api
from limbeck.errors import UserError

# losses of one's own


OWN = '''
"""Losses of somebody else."""
import torch
import torch.nn.functional as F

def tokens(*, student, teacher):
    return (student - teacher).square().mean(-1)

def rows(*, student, teacher, power=2.0):
    return (student - teacher).abs().pow(power).mean((1, 2))

def batch(student, teacher):
    return (student - teacher).square().mean()

def lengths(*, student, teacher):
    return (student.norm(dim=-1) - teacher.norm(dim=-1)).square()

def logits(*, student, teacher, temperature):
    p, q = (teacher / temperature).softmax(-1), (student / temperature).log_softmax(-1)
    return (p * (p.log() - q)).sum(-1) * temperature**2

def labels(*, student, labels):
    return F.cross_entropy(student, labels, reduction="none")

def relations(*, student, teacher):
    return sum((s.mean((1, 3)) - t.mean((1, 3))).square() for s, t in zip(student, teacher, strict=True))
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the working directory and gives its name, which no other test has."""
    monkeypatch.chdir(tmp_path)

    def write(source: str) -> str:
        name = f"own_{hashlib.sha256(str((tmp_path, source)).encode()).hexdigest()[:12]}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def test_a_loss_of_ones_own_trains(own: Callable[[str], str], world: Path, tmp_path: Path, fast: None) -> None:
    """By token, row and batch, on features, logits and labels: the same numbers as the built-in twin."""
    name = own(OWN)
    twins: dict[str, list[dict[str, Any]]] = {
        "hidden": [
            {"loss": "mse", "tap": "hidden"},
            {"loss": f"{name}:tokens", "tap": "hidden"},
            {"loss": f"{name}:rows", "tap": "hidden"},
            {"loss": f"{name}:batch", "tap": "hidden"},
        ],
        "shared": [
            {"loss": "mse", "tap": "hidden", "projection": "shared"},
            {"loss": f"{name}:tokens", "tap": "hidden", "projection": "shared"},
        ],
        "pooled": [{"loss": "mse", "tap": "pooled"}, {"loss": f"{name}:tokens", "tap": "pooled"}],
        "logits": [{"loss": "forward_kl", "temperature": 2.0}, {"loss": f"{name}:logits", "temperature": 2.0}],
        "labels": [{"loss": "cross_entropy"}, {"loss": f"{name}:labels"}],
    }
    said = {f"{what}-{i}": {"terms": [term]} for what, some in twins.items() for i, term in enumerate(some)}
    said["unlike"] = {"terms": [{"loss": f"{name}:lengths", "tap": "hidden", "projection": "none"}]}
    said["relations"] = {"terms": [{"loss": f"{name}:relations", "tap": ["query", "value"], "name": "r"}]}
    path = list(sys.path)
    table = recipe(world, tmp_path / "run", settings=said, train={"steps": 3, "eval_every": 3})
    limbeck.check(table)
    run = limbeck.run(table, quiet=True)
    assert sys.path == path
    found = {setting: [row for row in run.metrics if row["setting"] == setting] for setting in said}
    for what, some in twins.items():
        for i in range(1, len(some)):
            for mine, built_in in zip(found[f"{what}-{i}"], found[f"{what}-0"], strict=True):
                assert mine["loss"] == pytest.approx(built_in["loss"], rel=1e-4)
                assert mine["grad_norm_layers"] == pytest.approx(built_in["grad_norm_layers"], rel=1e-3)
    for setting in ("unlike", "relations"):
        assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in found[setting])
    source = hashlib.sha256((tmp_path / f"{name}.py").read_bytes()).hexdigest()
    paths = {term["loss"] for some in said.values() for term in some["terms"] if ":" in term["loss"]}
    assert run.manifest["losses"] == dict.fromkeys(sorted(paths), source)


def test_the_source_of_a_loss_is_part_of_the_run(
    own: Callable[[str], str], world: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = own(OWN)
    table = recipe(world, tmp_path / "run", settings={"a": {"terms": [{"loss": f"{name}:tokens", "tap": "hidden"}]}})
    table["train"] |= {"steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr("limbeck.running.session.Session._finish", lambda self, begin: None)
        limbeck.run(table, quiet=True)
        place = tmp_path / f"{name}.py"
        place.write_text(OWN + "# a second thought\n")
        with pytest.raises(UserError, match=r"the code of a loss changed since this run began; put it back, choose"):
            limbeck.run(table, quiet=True)
        place.write_text(OWN)
    assert limbeck.run(table, quiet=True).manifest["status"] == "done"


BROKEN = """
import torch
number = 3
def no_student(*, teacher): return teacher.sum(-1)
def needs_more(*, student, teacher, strength): return (student - teacher).square().mean(-1) * strength
def raises(*, student, teacher): raise ValueError("two\\nlines")
def reduced(*, student, teacher): return (student - teacher).square().mean(-1).mean(0)
def a_number(*, student, teacher): return 1.0
def constant(*, student, teacher): return (student.detach() - teacher).square().mean(-1)
"""
FAILINGS = [
    ("number", {}, " function number; write package.module:function"),
    ("nothing", {}, " function nothing; write package.module:function"),
    ("no_student", {}, "takes no `student`; see limbeck.losses"),
    ("needs_more", {}, "needs the hyper-parameter 'strength'; state it in the term, or give it a default"),
    ("needs_more", {"strenth": 2}, "takes no 'strenth'; did you mean 'strength'?"),
    ("needs_more", {"strength": "much"}, "a trial on random tensors fails"),
    ("raises", {}, "a trial on random tensors fails (ValueError: two); mend it"),
    ("reduced", {}, "gives (3,); it must give one value for each token, row or batch, unreduced"),
    ("a_number", {}, "gives float; it must give one value for each token, row or batch"),
    ("constant", {}, "its value has no gradient in the student's tensor"),
]


@pytest.mark.parametrize(("function", "more", "message"), FAILINGS, ids=[f"{f} {m}" for f, m, _ in FAILINGS])
def test_a_loss_that_is_none(
    own: Callable[[str], str], world: Path, tmp_path: Path, function: str, more: dict[str, Any], message: str
) -> None:
    said = {"loss": f"{own(BROKEN)}:{function}", "tap": "hidden"} | more
    with pytest.raises(UserError) as caught:
        api.check(recipe(world, tmp_path / "run", settings={"a": {"terms": [said]}}))
    assert message in str(caught.value)
    assert ";" in str(caught.value), "a remedy"
    assert str(caught.value).startswith("settings.a.hidden.loss: ") and "\n" not in str(caught.value)


def test_a_loss_is_tried_out_on_the_widths_that_it_gets(own: Callable[[str], str], world: Path, tmp_path: Path) -> None:
    """Without a projection it is given 16 and 24: what cannot be subtracted must not be found out by the run."""
    said = {"loss": f"{own(OWN)}:tokens", "tap": "hidden", "projection": "none"}
    with pytest.raises(UserError, match="projection"):
        api.check(recipe(world, tmp_path / "run", settings={"a": {"terms": [said]}}))


def test_a_loss_of_ones_own_and_a_teacher_that_is_far(
    own: Callable[[str], str], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    table = recipe(
        world, tmp_path / "run", settings={"a": {"terms": [{"loss": f"{own(OWN)}:tokens", "tap": "hidden"}]}}
    )
    table["models"]["teacher"] = "nobody/has-this-model"
    lines = api.check(table)
    assert any(line.split()[-1:] == ["nobody/has-this-model"] for line in lines)
    assert lines[-1].split()[0] == "ok"
