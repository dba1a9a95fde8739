"""An actor and a change of one's own, named in a recipe by their import paths: they train, resume and are in the manifest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe
from runfiles import same_run, stop_after
from transformers import AutoModelForMaskedLM

import limbeck
from limbeck.errors import Interrupted, UserError

MINE = '''
from limbeck.assemble.kinds import RunningText
from limbeck.distil.actors import START, Actor
from limbeck.models.changes import Change


class Sharp(Actor):
    """The model's prediction at half the temperature, and colder by a number that follows the updates."""

    def __init__(self, inner):
        self.name, self.inner, self.width = inner.name, inner, inner.width
        self.heat = inner.model.get_input_embeddings().weight.new_ones(1)

    def forward(self, batch, moment=START, whole=True):
        return self.inner.forward(batch, moment, whole)

    def logits(self, features, tap="logits"):
        return self.inner.logits(features, tap) * 2 * self.heat

    def advance(self, updated):
        self.heat *= 1.5

    def state(self):
        return {"heat": self.heat}

    def load(self, tensors):
        self.heat.copy_(tensors["heat"])

    def facts(self):
        return self.inner.facts() | {"sharp": True}


class Clip(Change):
    """Weights stay between -0.1 and 0.1; what is exported is half of them."""

    def follow(self, model, step):
        for parameter in model.parameters():
            parameter.clamp_(-0.1, 0.1)

    def fold(self, model, small):
        for parameter in model.parameters():
            parameter.mul_(0.5)
        return model

    def facts(self):
        return {"clip": 0.1}

    def said(self):
        return "is clipped"


def no_class():
    ...


class Turned:
    """A feed whose rows stand the other way round."""

    def __init__(self, feed):
        self.feed, self.batch_size, self.masks = feed, feed.batch_size, [feed.masks, "turned"]

    def __len__(self):
        return len(self.feed)

    def lengths(self, step):
        return self.feed.lengths(step)

    def batch(self, step, rows=slice(None)):
        return turned(self.feed.batch(step, rows))

    def again(self, indices):
        return turned(self.feed.again(indices))

    def fixed(self, count, batch_size=None):
        return map(turned, self.feed.fixed(count, batch_size))


def turned(batch):
    sides = ("input_ids", "labels", "select", "documents")
    return batch | {name: batch[name].flip(1) for name in sides}


class Backwards(RunningText):
    def feed(self, plan, blocks, seed, part):
        return Turned(super().feed(plan, blocks, seed, part))


class Fails(Change):
    def __init__(self):
        raise RuntimeError("no")
'''


@pytest.fixture(autouse=True)
def mine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("code")
    (folder / "things_of_mine.py").write_text(MINE)
    (folder / "no_kind.py").write_text("class Text:\n    pass\n")
    monkeypatch.syspath_prepend(str(folder))
    yield str(folder / "things_of_mine.py")
    sys.modules.pop("things_of_mine", None)


def said(world: Path, out: Path, actor: str | None = None, *changes: str, **more: Any) -> dict[str, Any]:
    table = recipe(world, out, only=["multi"], **more)
    teacher = {"source": table["models"]["teacher"]} | ({"actor": actor} if actor else {})
    student = table["models"]["student"] | ({"changes": list(changes)} if changes else {})
    return table | {"models": {"teacher": teacher, "student": student}}


@pytest.mark.usefixtures("fast")
def test_they_train_resume_and_are_in_the_manifest(
    world: Path, tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("things_of_mine:Sharp", "things_of_mine:Clip")
    whole = limbeck.run(said(world, tmp_path / "whole", *words), quiet=True)
    assert whole.manifest["teacher"]["sharp"] is True and whole.manifest["students"]["multi-seed0"]["changes"] == [
        {"clip": 0.1}
    ]
    assert whole.manifest["own"].keys() == set(words)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            limbeck.run(said(world, tmp_path / "run", *words), quiet=True)
    Path(mine).write_text(MINE + "\n")
    sys.modules.pop("things_of_mine", None)
    with pytest.raises(
        UserError, match="the code of a change, an actor, a kind or a writer of text changed since this run began"
    ):
        limbeck.run(said(world, tmp_path / "run", *words), quiet=True)
    Path(mine).write_text(MINE)
    sys.modules.pop("things_of_mine", None)
    again = limbeck.run(said(world, tmp_path / "run", *words), quiet=True)
    same_run(again, whole, checkpoints=False)
    model = AutoModelForMaskedLM.from_pretrained(whole.students["multi-seed0"])
    assert max(float(p.detach().abs().max()) for p in model.parameters()) <= 0.0501
    plain = limbeck.run(said(world, tmp_path / "plain"), quiet=True)
    assert "own" not in plain.manifest and plain.metrics[-1]["loss"] != whole.metrics[-1]["loss"]


@pytest.mark.parametrize(
    ("actor", "change", "line"),
    [
        ("nowhere:Sharp", None, "models.teacher.actor: nowhere:Sharp: there is no module nowhere"),
        (None, "things_of_mine:Clap", "models.student.changes: things_of_mine:Clap: there is no class Clap of limbeck's Change"),
        (None, "things_of_mine:no_class", r"no class no_class of limbeck's Change there; write class no_class\(Change\)"),
        (None, "things_of_mine:Fails", r"things_of_mine:Fails: making it fails \(RuntimeError: no\); mend it"),
    ],
)  # fmt: skip
def test_what_is_none_of_them(world: Path, tmp_path: Path, actor: str | None, change: str | None, line: str) -> None:
    table = said(world, tmp_path / "run", actor, *([change] if change else []))
    with pytest.raises(UserError, match=line):
        limbeck.check(table)
    with pytest.raises(UserError, match=line):
        limbeck.run(table, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_cache_holds_the_answers_of_models_alone(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cache: things_of_mine:Sharp answers for itself; leave cache or the actor out"):
        limbeck.check(said(world, tmp_path / "run", "things_of_mine:Sharp", cache={}))


def test_a_recipe_without_them_is_what_it_was(world: Path, tmp_path: Path) -> None:
    """Its hash is that of before there were such keys."""
    from limbeck.recipe.identity import dump
    from limbeck.recipe.load import load

    assert "changes" not in dump(load(recipe(world, tmp_path))) and "actor" not in dump(load(recipe(world, tmp_path)))


def of_kind(world: Path, out: Path, kind: str | None, **more: Any) -> dict[str, Any]:
    table = recipe(world, out, **more)
    return table | {"data": table["data"] | ({"kind": kind} if kind else {})}


@pytest.mark.usefixtures("fast")
def test_a_kind_of_text_trains_resumes_and_is_in_the_manifest(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "things_of_mine:Backwards"
    whole = limbeck.run(of_kind(world, tmp_path / "whole", kind), quiet=True)
    assert (
        whole.manifest["own"].keys() == {kind}
        and "kind: things_of_mine:Backwards" in (whole.folder / "recipe.yaml").read_text()
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            limbeck.run(of_kind(world, tmp_path / "run", kind), quiet=True)
    same_run(limbeck.run(of_kind(world, tmp_path / "run", kind), quiet=True), whole, checkpoints=False)
    plain = limbeck.run(of_kind(world, tmp_path / "plain", None), quiet=True)
    first, other = (run.evals[0]["label_loss"] for run in (whole, plain))
    assert first != other, "the same text, read the other way round"
    cached = limbeck.run(
        of_kind(world, tmp_path / "cached", kind, cache={}, only=["multi"], data=static(world)), quiet=True
    )
    assert cached.manifest["status"] == "done"


def static(world: Path) -> dict[str, Any]:
    return recipe(world, world)["data"] | {"masking": {"mode": "static"}}


def test_what_is_no_kind(world: Path, tmp_path: Path) -> None:
    for kind, line in {
        "no_kind:Text": r"data\.kind: no_kind:Text: there is no class Text of limbeck's TextKind",
        "nowhere:Text": r"data\.kind: nowhere:Text: there is no module nowhere",
    }.items():
        with pytest.raises(UserError, match=line):
            limbeck.check(of_kind(world, tmp_path / "run", kind))
