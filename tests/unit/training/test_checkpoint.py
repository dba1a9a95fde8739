"""Checkpoints: the same bits back, and nothing that does not verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernel import INSIDE, LOGIT, MULTI, batch, frozen, learner, parameters_of, share, still_of
from torch import Tensor

from limbeck.distil.learner import Learner
from limbeck.distil.lessons import Term
from limbeck.distil.still import Still
from limbeck.errors import UserError
from limbeck.system import files
from limbeck.training import checkpoint

TERMS: dict[str, tuple[Term, ...]] = {"logit-seed0": (LOGIT,), "inside-seed0": INSIDE, "multi-seed0": MULTI}


def cast(seed: int = 0) -> tuple[list[Learner], Still]:
    learners = [learner(name, terms, seed=seed, dropout=0.1) for name, terms in TERMS.items()]
    return learners, still_of(frozen(), [(one, TERMS[one.name]) for one in learners], chunk=16)


def train(still: Still, start: int, end: int) -> None:
    for step in range(start, end):
        still.step(share([batch(step)]), step)


def moments(one: Learner) -> dict[str, Tensor]:
    state = one.optimizer.state_dict()["state"]
    return {f"{number}.{slot}": tensor for number, slots in state.items() for slot, tensor in slots.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Learner]]:
    """Two checkpoints, after steps 2 and 3, and the learners after step 3."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    learners, still = cast()
    train(still, 0, 2)
    checkpoint.save(folder, 2, learners, {"tokens": {"logit-seed0": 20}})
    train(still, 2, 3)
    checkpoint.save(folder, 3, learners, {"tokens": {"logit-seed0": 30}})
    return folder, learners


@pytest.fixture
def folder(saved: tuple[Path, list[Learner]], tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved[0], tmp_path / "checkpoints")


def quiet(line: str) -> None:
    raise AssertionError(f"nothing was to be said: {line}")


def test_a_round_trip_is_bit_for_bit(saved: tuple[Path, list[Learner]]) -> None:
    folder, learners = saved
    found = checkpoint.newest(folder, quiet)
    assert found is not None
    assert found[0].name == "step-000003" and found[1]["step"] == 3 and found[1]["tokens"] == {"logit-seed0": 30}
    others, _ = cast(seed=5)
    checkpoint.restore(found[0], others)
    for one, other in zip(learners, others, strict=True):
        equal(parameters_of(one), parameters_of(other))
        equal(dict(one.model.named_buffers()), dict(other.model.named_buffers()))
        equal(moments(one), moments(other))
        assert moments(one), "AdamW has moments"
        decay = [group["weight_decay"] for group in other.optimizer.param_groups]
        assert decay == [group["weight_decay"] for group in one.optimizer.param_groups]


def test_going_on_from_it_is_not_having_stopped(saved: tuple[Path, list[Learner]]) -> None:
    """Restored after step 2 into fresh learners of the recipe, step 3 gives the bits of the undisturbed run."""
    folder, learners = saved
    others, still = cast()
    checkpoint.restore(folder / "step-000002", others)
    train(still, 2, 3)
    for one, other in zip(learners, others, strict=True):
        equal(parameters_of(one), parameters_of(other))
        equal(moments(one), moments(other))


def test_the_optimizer_trains_the_restored_parameters(saved: tuple[Path, list[Learner]]) -> None:
    others, still = cast(seed=5)
    pointers = [p.data_ptr() for one in others for p in one.parameters]
    checkpoint.restore(saved[0] / "step-000003", others)
    assert [p.data_ptr() for one in others for p in one.parameters] == pointers
    before = [parameters_of(one) for one in others]
    train(still, 3, 4)
    for one, old in zip(others, before, strict=True):
        assert any(not torch.equal(tensor, old[name]) for name, tensor in parameters_of(one).items())


def test_it_is_safetensors_and_json_and_says_what_it_holds(saved: tuple[Path, list[Learner]]) -> None:
    place = saved[0] / "step-000003"
    assert sorted(path.name for path in place.iterdir()) == sorted(
        [checkpoint.MANIFEST, *(f"{name}.safetensors" for name in TERMS)]
    )
    files = json.loads((place / checkpoint.MANIFEST).read_text())["files"]
    assert set(files) == {f"{name}.safetensors" for name in TERMS}
    assert all(told["bytes"] == (place / name).stat().st_size for name, told in files.items())
    state = saved[1][2].state()
    kinds = {name.split(".")[0] for name in state}
    assert (
        {"model", "bridges", "balance", "optimizer"} <= kinds <= {"model", "buffer", "bridges", "balance", "optimizer"}
    )
    assert "model.cls.predictions.decoder.weight" not in state, "tied parameters once"


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


WEIGHTS = "multi-seed0.safetensors"
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a flipped bit in the middle": (WEIGHTS, lambda place: flip(place / WEIGHTS)),
    "a flipped bit in the header": (WEIGHTS, lambda place: flip(place / WEIGHTS, 0.001)),
    "a flipped bit at the end": (WEIGHTS, lambda place: flip(place / WEIGHTS, 1.0)),
    "a truncated file": (WEIGHTS, lambda place: (place / WEIGHTS).write_bytes((place / WEIGHTS).read_bytes()[:-1])),
    "an empty file": (WEIGHTS, lambda place: (place / WEIGHTS).write_bytes(b"")),
    "a missing file": (WEIGHTS, lambda place: (place / WEIGHTS).unlink()),
    "no manifest": (checkpoint.MANIFEST, lambda place: (place / checkpoint.MANIFEST).unlink()),
    "a truncated manifest": (
        checkpoint.MANIFEST,
        lambda place: (place / checkpoint.MANIFEST).write_text('{"step": 3, "files"'),
    ),
    "a manifest of something else": (checkpoint.MANIFEST, lambda place: (place / checkpoint.MANIFEST).write_text("[]")),
    "a manifest that is not text": (
        checkpoint.MANIFEST,
        lambda place: (place / checkpoint.MANIFEST).write_bytes(b"\xff\xfe\x00"),
    ),
    "a manifest without its last byte": (
        checkpoint.MANIFEST,
        lambda place: (place / checkpoint.MANIFEST).write_text((place / checkpoint.MANIFEST).read_text()[:-1]),
    ),
    "a manifest of another step": (
        checkpoint.MANIFEST,
        lambda place: (place / checkpoint.MANIFEST).write_text(
            (place / checkpoint.MANIFEST).read_text().replace('"step": 3', '"step": 2')
        ),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_verify_is_named_and_the_older_one_is_taken(folder: Path, damage: str) -> None:
    name, harm = DAMAGES[damage]
    harm(folder / "step-000003")
    said: list[str] = []
    found = checkpoint.newest(folder, said.append)
    assert found is not None and found[0].name == "step-000002" and found[1]["step"] == 2
    assert len(said) == 1 and "step-000003" in said[0] and name in said[0]


def test_with_no_sound_one_there_is_none(folder: Path) -> None:
    for place in folder.iterdir():
        flip(place / WEIGHTS)
    said: list[str] = []
    assert checkpoint.newest(folder, said.append) is None
    assert len(said) == 2
    assert checkpoint.newest(folder / "nowhere", quiet) is None


def test_only_the_newest_two_stay(folder: Path) -> None:
    learners, _ = cast()
    for step in (4, 10, 100):
        checkpoint.save(folder, step, learners, {})
        assert len(checkpoint.list_all(folder)) == checkpoint.KEPT == 2
    assert sorted(path.name for path in folder.iterdir()) == ["step-000010", "step-000100"]


def test_the_newest_two_that_verify_stay(folder: Path) -> None:
    """A damaged one does not count; it goes when two newer ones are sound."""
    flip(folder / "step-000003" / WEIGHTS)
    learners, _ = cast()
    checkpoint.save(folder, 4, learners, {})
    assert [place.name for place in checkpoint.list_all(folder)] == ["step-000004", "step-000003", "step-000002"]
    checkpoint.save(folder, 5, learners, {})
    assert [place.name for place in checkpoint.list_all(folder)] == ["step-000005", "step-000004"]


def test_the_manifest_carries_its_own_hash_and_that_of_the_recipe(folder: Path) -> None:
    learners, _ = cast()
    path = checkpoint.save(folder, 4, learners, {"recipe_sha256": "mine", "tokens": {"a": 1}}) / checkpoint.MANIFEST
    assert checkpoint.damage(path.parent) is None
    said: list[str] = []
    found = checkpoint.newest(folder, said.append, ["mine"])
    assert found is not None and found[1]["step"] == 4 and not said
    assert checkpoint.newest(folder, said.append, ["yours"]) is None and "is of another recipe" in said[0]
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    assert checkpoint.damage(path.parent) == f"{checkpoint.MANIFEST}: sha256 differs"


def test_another_shape_is_not_restored(saved: tuple[Path, list[Learner]]) -> None:
    other = learner("logit-seed0", MULTI)
    with pytest.raises(UserError, match="holds no logit-seed0 of this shape"):
        checkpoint.restore(saved[0] / "step-000003", [other])
    with pytest.raises(UserError, match="holds no stranger of this shape"):
        checkpoint.restore(saved[0] / "step-000003", [learner("stranger", (LOGIT,))])


def test_its_size_is_known_before(saved: tuple[Path, list[Learner]]) -> None:
    for one in saved[1]:
        written = (saved[0] / "step-000003" / f"{one.name}.safetensors").stat().st_size
        assert 0 <= written - one.size() < 0.2 * written, "header and step counts apart"


def test_later_ones_can_be_dropped(folder: Path) -> None:
    """After a resume from step 2 a damaged step 3 must not stand where a sound one should."""
    flip(folder / "step-000003" / WEIGHTS)
    checkpoint.drop_after(folder, 2)
    checkpoint.save(folder, 4, cast()[0], {})
    assert [place.name for place in checkpoint.list_all(folder)] == ["step-000004", "step-000002"]
    checkpoint.drop_after(folder, 0)
    assert checkpoint.list_all(folder) == []
    checkpoint.drop_after(folder / "nowhere", 0)


def test_a_million_steps_are_newer_than_less(folder: Path) -> None:
    learners, _ = cast()
    for step in (999_999, 1_000_000, 1_000_001):
        assert checkpoint.save(folder, step, learners, {}).is_dir()
    found = checkpoint.newest(folder, quiet)
    assert found is not None and found[1]["step"] == 1_000_001
    assert {path.name for path in folder.iterdir()} == {"step-1000000", "step-1000001"}


def test_saving_a_step_again_replaces_it(folder: Path) -> None:
    learners, _ = cast(seed=7)
    checkpoint.save(folder, 3, learners, {"tokens": {}})
    others, _ = cast()
    found = checkpoint.newest(folder, quiet)
    assert found is not None and found[1]["tokens"] == {}
    checkpoint.restore(found[0], others)
    equal(parameters_of(learners[0]), parameters_of(others[0]))


def test_what_a_killed_process_left_is_no_checkpoint(folder: Path) -> None:
    shutil.copytree(folder / "step-000003", folder / ".step-000009.4711.tmp")
    found = checkpoint.newest(folder, quiet)
    assert found is not None and found[1]["step"] == 3
    checkpoint.save(folder, 4, cast()[0], {})
    assert {path.name for path in folder.glob("step-*")} == {"step-000003", "step-000004"}


def test_a_failure_while_writing_leaves_the_old_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(folder, 4, cast()[0], {})
    found = checkpoint.newest(folder, quiet)
    assert found is not None and found[1]["step"] == 3
