"""Whole runs whose students are changed while they train: the family of tests over changes.

`CHANGES` has a row for every kind of change and for pairs of them. In company, and killed: one of each kind belongs to `make test`; of what
takes longer the first (tests/budget.py); all rows to `make test-all`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pair
import pytest
import torch
from kernel import WORDS, lay_out, recipe, with_dropout
from runfiles import same_run, same_state, stopped, tensors, untimed, weights
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

import limbeck
from limbeck.errors import UserError
from limbeck.lab.page import report
from limbeck.system import files

SOON = {"begin": 0.2, "end": 0.7}  # of six updates: from the first to the fourth
CHANGES: dict[str, list[dict[str, Any]]] = {
    "units": [{"prune": {"hidden": 0.5, "neurons": 0.5, "layers": 0.5, "by": "taylor", **SOON}}],
    "magnitude": [{"prune": {"weights": 0.6, **SOON}}],
    "movement": [{"prune": {"weights": 0.6, "by": "movement", **SOON}}],
    "fours": [{"prune": {"weights": "2:4", "begin": 0.4}}],
    "neurons": [{"prune": {"neurons": 0.5, **SOON}}],
    "heads": [{"prune": {"hidden": 0.5, "heads": 0.5, "by": "activations", **SOON}}],
    "layers": [{"prune": {"layers": 0.5, "by": "activations", "begin": 0.4}}],
    "quantise": [{"quantise": "int8"}],
    "quantise-neurons": [{"quantise": "int4"}, {"prune": {"neurons": 0.5, **SOON}}],
    "movement-quantise": [{"prune": {"weights": 0.5, "by": "movement", **SOON}}, {"quantise": "int8"}],
    "factorise": [{"factorise": {"share": 0.7}}],
    "factorise-neurons-quantise": [{"factorise": 0.7}, {"prune": {"neurons": 0.5, **SOON}}, {"quantise": "int8"}],
    "magnitude-layers": [{"prune": {"weights": 0.5, **SOON}}, {"prune": {"layers": 0.5}}],
}
ALWAYS = ["units", "magnitude", "movement", "quantise", "factorise"]  # one of each kind; the others and pairs are slow
NAMES = [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES]
UNITS = ["units", "neurons", "heads", "layers", "quantise-neurons", "magnitude-layers"]
SMALLER = [*UNITS, "factorise", "factorise-neurons-quantise"]
SINGLE = ["magnitude", "movement", "fours", "movement-quantise", "magnitude-layers"]


def require(name: str) -> None:
    if "quantise" in name:
        pytest.importorskip("torchao")


def table(world: Path, out: str, name: str, **how: Any) -> dict[str, Any]:
    """A recipe of a student that is changed, and of one that is not."""
    plain = recipe(world, world / out, train=how)
    multi = plain["settings"]["multi"]
    student = plain["models"]["student"] | {"changes": CHANGES[name]}
    plain["models"] = plain["models"] | {"student": student}
    return with_dropout(plain | {"settings": {"changed": multi, "plain": multi | {"changes": []}}}, 0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus."""
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ran(world: Path) -> Callable[[str], limbeck.Run]:
    """The run of a change beside a student without changes, made once."""
    made: dict[str, limbeck.Run] = {}

    def run(name: str) -> limbeck.Run:
        require(name)
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(report, "write", lambda folder: folder)
                made[name] = limbeck.run(table(world, name, name), quiet=True)
        return made[name]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_in_company_and_alone(world: Path, ran: Callable[[str], limbeck.Run], fast: None, name: str) -> None:
    both = ran(name)
    alone = limbeck.run(table(world, f"{name}-alone", name) | {"only": "changed"}, quiet=True)
    assert weights(alone, "changed-seed0") == weights(both, "changed-seed0")
    for mine, theirs in ((alone.metrics, both.metrics), (alone.evals, both.evals)):
        assert untimed(mine) == [row for row in untimed(theirs) if row["setting"] == "changed"]
    told = both.manifest["students"]
    assert len(told["changed-seed0"]["changes"]) == len(CHANGES[name]) and "changes" not in told["plain-seed0"]
    size = sum(tensor.numel() for tensor in tensors(both, "plain-seed0").values())
    assert (told["changed-seed0"]["parameters"] < told["plain-seed0"]["parameters"]) == (name in SMALLER) and size


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_gone_on(
    world: Path, ran: Callable[[str], limbeck.Run], fast: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    through, said = ran(name), table(world, f"{name}-stopped", name)
    stopped(said, monkeypatch, 3)
    again = limbeck.run(said, quiet=True)
    same_run(again, through, checkpoints=False)
    same_state(again, through)


@pytest.mark.parametrize("name", CHANGES)
def test_micro_batches_and_processes(world: Path, fast: None, name: str) -> None:
    """A batch in two parts, and in two processes, is the batch whole, to rounding in fp64."""
    require(name)
    how: dict[str, Any] = {"precision": "fp64", "batch_size": 8, "eval_every": 6, "checkpoint_every": 6}

    def students(out: str, run: Callable[[dict[str, Any]], Any], **more: Any) -> dict[str, torch.Tensor]:
        said = table(world, f"{name}-{out}", name, **how, **more) | {"only": ["changed"]}
        said["models"]["student"]["dropout"] = 0.0
        run(said)
        return load_file(limbeck.Run(world / f"{name}-{out}").students["changed-seed0"] / "model.safetensors")

    whole = students("whole", lambda said: limbeck.run(said, quiet=True))
    parts = students("parts", lambda said: limbeck.run(said, quiet=True), accumulate=2)
    both = students("both", lambda said: pair.launch(said, world), accumulate=1)
    assert whole.keys() == parts.keys() == both.keys()
    for key, tensor in whole.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(parts[key], tensor, rtol=0, atol=1e-12)
        torch.testing.assert_close(both[key], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CHANGES)
def test_a_student_that_was_pruned_is_trained_on(
    world: Path, ran: Callable[[str], limbeck.Run], fast: None, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As a folder: units are gone, and single weights that are 0 stay 0, as a line says."""
    first = ran(name)
    folder = first.students["changed-seed0"]
    said = recipe(world, world / f"{name}-on", settings={"plain": {"terms": [{"loss": "forward_kl"}]}})
    said["models"] = {"teacher": said["models"]["teacher"], "student": {"init": str(folder)}}
    capsys.readouterr()
    on = limbeck.run(said)
    before, after = tensors(first, "changed-seed0"), tensors(on, "plain-seed0")
    assert {key: it.shape for key, it in after.items()} == {key: it.shape for key, it in before.items()}
    assert any(not torch.equal(after[key], it) for key, it in before.items())
    words = capsys.readouterr().err
    assert ("that are 0 stay 0" in words) == (name in SINGLE)
    model = AutoModelForMaskedLM.from_pretrained(on.students["plain-seed0"])
    ids = torch.arange(5, len(WORDS)).view(1, -1)[:, :20]
    assert bool(model(ids).logits.isfinite().all())
    if name in SINGLE:
        pruned = files.read_json(folder / "compression.json")["pruned"]
        for module in pruned:
            zeros = before[f"{module}.weight"] == 0
            assert zeros.float().mean() >= 0.49 and bool((after[f"{module}.weight"][zeros] == 0).all())
        assert files.read_json(on.students["plain-seed0"] / "compression.json")["pruned"] == pruned


@pytest.mark.parametrize("name", ["units", "heads"])
def test_a_stage_goes_on_from_students_whose_units_are_gone(world: Path, fast: None, name: str) -> None:
    """As `$stage`, as what a student begins as and as a teacher: its shape is the one that is left."""
    first = table(world, f"{name}-staged", name) | {"only": None}
    shared = {key: first.pop(key) for key in ("name", "out", "data", "train")}
    first.pop("only")
    first["settings"] = {"changed": first["settings"]["changed"]}
    second = {
        "stage": "on",
        "models": {"teacher": "$prune", "student": {"init": "$prune"}},
        "settings": {"changed": {"terms": [{"loss": "forward_kl"}]}},
    }
    run = limbeck.run(shared | {"stages": [{"stage": "prune", **first}, second]}, quiet=True)
    small = files.read_json(run.students["changed-seed0"] / "config.json")
    assert (small["hidden_size"], small["num_attention_heads"], small["num_hidden_layers"]) == {
        "units": (8, 4, 1),
        "heads": (8, 2, 2),
    }[name]


def test_stages_of_different_shapes_are_told_apart(world: Path) -> None:
    said = table(world, "apart", "neurons")
    shared = {key: said.pop(key) for key in ("name", "out", "data", "train")}
    second = {
        "stage": "on",
        "models": {"teacher": said["models"]["teacher"], "student": {"init": "$prune"}},
        "settings": {name: {"terms": [{"loss": "forward_kl"}]} for name in ("changed", "plain")},
    }
    with pytest.raises(UserError, match=r"changed and plain leave students of other shapes.* such as \$prune/changed"):
        limbeck.run(shared | {"stages": [{"stage": "prune", **said}, second]}, quiet=True)


REFUSED = [
    ({"layers": 0.1}, {}, "layers: 0.1 of 2 layers is none; set it to 0.5 or more"),
    (
        {"heads": 0.5},
        {},
        "no width of a head, and 2 heads of 4 do not fill 16 hidden units; give hidden the same share",
    ),
    (
        {"neurons": 0.5, "by": "taylor", "begin": 0.1},
        {"changes_at": "end"},
        "by: taylor needs training, and changes_at",
    ),
    ({"neurons": 0.5, "end": 0.5}, {"changes_at": "end"}, "changes_at is end; leave one out"),
    ({"hidden": 0.5}, {"exits": [1]}, "hidden: heads of early exits stand behind layers of this width"),
]


@pytest.mark.parametrize(("said", "more", "message"), REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    world: Path, said: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    plain = recipe(world, world / "refused")
    terms = [{"loss": "forward_kl"}, *([{"loss": "forward_kl", "tap": "exit"}] if "exits" in more else [])]
    plain["settings"] = {"one": {"terms": terms, "changes": [{"prune": said}], **more}}
    with pytest.raises(UserError) as caught:
        limbeck.run(plain, quiet=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (world / "refused").exists()


def test_widths_that_four_does_not_divide(world: Path) -> None:
    plain = recipe(world, world / "odd")
    plain["models"]["student"] |= {"intermediate": 30, "changes": [{"prune": "2:4"}]}
    with pytest.raises(UserError, match="four does not divide the 30 neuron inputs of a layer; give weights a share"):
        limbeck.run(plain, quiet=True)


@pytest.mark.parametrize("said", [{"neurons": 0.5}, {"weights": 0.5}, {"hidden": 0.5, "by": "activations"}])
def test_at_the_end_of_the_training(world: Path, fast: None, said: dict[str, Any]) -> None:
    """The student that was trained without changes, cut then: its last evaluation is of what is exported."""
    plain = recipe(world, world / f"end-{'-'.join(said)}")
    terms = plain["settings"]["logit"]
    plain["settings"] = {"after": terms | {"changes": [{"prune": said}], "changes_at": "end"}, "none": terms}
    run = limbeck.run(plain, quiet=True)
    rows = [row for row in untimed(run.evals) if row["split"] == "test" and row["step"] == 6]
    found = {row["setting"]: row["logit_loss"] for row in rows}
    assert found["after"] != found["none"]
    first = [row for row in untimed(run.evals) if row["split"] == "test" and row["step"] == 3]
    assert first[0]["logit_loss"] == first[1]["logit_loss"]


def test_check_tells_what_is_left(world: Path) -> None:
    said = table(world, "checked", "units")
    settings = said["settings"] | {"zeros": said["settings"]["plain"] | {"changes": CHANGES["magnitude"]}}
    if importlib.util.find_spec("torchao"):
        settings["bits"] = said["settings"]["plain"] | {"changes": CHANGES["quantise"]}
    lines = limbeck.check(said | {"settings": settings})
    begin = next(number for number, line in enumerate(lines) if line.startswith("changes"))
    rows = {line.split()[0]: line for line in lines[begin + 1 : begin + 6] if line.strip()}
    assert "smaller or gone" in rows["changed"] and "taylor" in rows["changed"]
    assert "12 pruned" in rows["zeros"] and "plain" not in rows
