"""Checkpoints: committed whole or not at all, of safetensors and JSON alone.

A checkpoint is written to a temporary folder beside its place, with a manifest that holds the size and the sha256 of every
file, the hash of the recipe and its own; synced, renamed, its name synced, and only then are older ones removed. What does
not verify is never loaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck import rundir
from limbeck.distil.actors import Stateful
from limbeck.errors import UserError
from limbeck.system import files
from limbeck.system.files import json_sha256
from limbeck.system.processes import World

MANIFEST = "checkpoint.json"
KEPT = 2  # checkpoints


def save(
    folder: Path,
    step: int,
    actors: Sequence[Stateful],
    facts: dict[str, Any],
    world: World = World(),  # noqa: B008 (a frozen value)
) -> Path:
    """Commits the state of all learners and averages after `step` updates; then older ones go, but for the newest two that verify.

    All processes call it, and the first one writes.
    """
    place = folder / rundir.step_name(step)
    states = ((actor.name, world.gathered(actor.state())) for actor in actors)  # one at a time
    if not world.is_main:
        for _ in states:
            pass
        return place
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, state in states:
            save_file(state, temporary / f"{name}.safetensors")
        written = {path.name: _identity(path) for path in sorted(temporary.iterdir())}
        told = {"step": step, "files": written, **facts}
        files.write_json(temporary / MANIFEST, told | {"sha256": json_sha256(told)})
        for path in [*temporary.iterdir(), temporary]:
            files.sync(path)
        remove(place)
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in (folder, folder.parent):
        files.sync(path)
    rotate(folder, place)
    return place


def rotate(folder: Path, new: Path | None = None) -> None:
    """Removes what is older than the newest two that verify; `new`, which has just been written, is known to."""
    sound = 0
    for place in list_all(folder):
        if sound >= KEPT:
            remove(place)
        elif place == new or damage(place) is None:
            sound += 1


def remove(place: Path) -> None:
    """Takes a checkpoint away: first its name, so that half of one is never met under it."""
    if place.exists():
        left = place.with_name(f".{place.name}.{os.getpid()}.old.tmp")
        shutil.rmtree(left, ignore_errors=True)
        place.rename(left)
        shutil.rmtree(left)


def newest(
    folder: Path, tell: Callable[[str], None], recipes: Collection[str] = ()
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that verifies, and its facts; every one that does not is named.

    Args:
        folder: of the checkpoints.
        tell: receives a line for each that is skipped.
        recipes: the hashes of recipes that one may be of; any when left out.
    """
    for place in list_all(folder):
        why = damage(place)
        facts = {} if why else files.read_json(place / MANIFEST)
        if recipes and not why and facts.get("recipe_sha256") not in recipes:
            why = "is of another recipe"
        if not why:
            return place, facts
        tell(f"skipped {rundir.CHECKPOINTS}/{place.name}: {why}")
    return None


def restore(place: Path, actors: Iterable[Stateful]) -> None:
    """Gives everyone their state of a checkpoint back.

    Raises:
        UserError: it holds the state of other students.
    """
    for actor in actors:
        path = place / f"{actor.name}.safetensors"
        tensors = load_file(path) if path.is_file() else {}
        if _shapes(actor.state()) != _shapes(tensors):
            raise UserError(
                f"{place}: holds no {actor.name} of this shape, so that it cannot be gone on with; choose another folder with "
                "out=DIR"
            )
        actor.load(tensors)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Of all but what the first update brings."""
    return {name: tensor.shape for name, tensor in state.items() if not name.startswith("optimizer.")}


def modules(place: Path, learner: str) -> dict[str, Tensor]:
    """The modules that a learner had learned by at a checkpoint: name of a parameter -> its value.

    Raises:
        UserError: it does not verify.
    """
    if why := damage(place):
        raise UserError(f"{place}: {why}; put it back, or remove {place.parents[1]} to train it again")
    held = load_file(place / f"{learner}.safetensors")
    return {name.removeprefix("bridges."): tensor for name, tensor in held.items() if name.startswith("bridges.")}


def drop_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps: they did not verify, and must not count among the newest two."""
    for place in list_all(folder):
        if int(place.name.removeprefix("step-")) > step:
            remove(place)


def list_all(folder: Path) -> list[Path]:
    """The committed checkpoints, newest first."""
    return sorted(folder.glob("step-[0-9]*"), key=lambda place: (len(place.name), place.name), reverse=True)


def _identity(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": files.file_sha256(path)}


def damage(place: Path) -> str | None:
    """What is wrong with a checkpoint: the file and what it differs in; None if all of it verifies."""
    try:
        text = (place / MANIFEST).read_text(encoding="utf-8")
        told = json.loads(text)
        stated, own = dict(told["files"]), rundir.step_name(told["step"])
        sealed = text == files.as_json(told) and told.pop("sha256") == json_sha256(told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing or damaged"
    if not sealed:
        return f"{MANIFEST}: sha256 differs"
    if own != place.name:
        return f"{MANIFEST} says that it is {own}"
    for name, wanted in stated.items():
        try:
            found = _identity(place / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        for what in ("bytes", "sha256"):
            if found[what] != wanted[what]:
                return f"{name}: {what} differs"
    return None
