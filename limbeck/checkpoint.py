"""Checkpoints: committed whole or not at all, of safetensors and JSON alone.

A checkpoint is written to a temporary folder beside its place, synced, given a manifest with the size and the sha256 of
every file, renamed, and only then are older ones removed. What does not verify is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck import rundir
from limbeck.actors import Ema, Learner
from limbeck.errors import UserError

Kept = Learner | Ema  # what changes while a run goes on

MANIFEST = "checkpoint.json"
KEPT = 2


def save(folder: Path, step: int, actors: Sequence[Kept], facts: dict[str, Any]) -> Path:
    """Commits the state of all learners and averages after `step` updates, and removes all but the newest two checkpoints."""
    place = folder / rundir.step_name(step)
    temporary = folder / f".{place.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for actor in actors:
        save_file(state(actor), temporary / f"{actor.name}.safetensors")
    files = {path.name: _identity(path) for path in sorted(temporary.iterdir())}
    rundir.write_json(temporary / MANIFEST, {"step": step, "files": files, **facts})
    for path in [*temporary.iterdir(), temporary]:
        sync(path)
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)
    sync(folder)
    for old in list_all(folder)[KEPT:]:
        shutil.rmtree(old)
    return place


def newest(folder: Path, tell: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that verifies, and its facts; every one that does not is named."""
    for place in list_all(folder):
        damage = _damage(place)
        if damage is None:
            return place, rundir.read_json(place / MANIFEST)
        tell(f"skipped {rundir.CHECKPOINTS}/{place.name}: {damage}")
    return None


def restore(place: Path, actors: Iterable[Kept]) -> None:
    """Gives everyone their state of a checkpoint back."""
    for actor in actors:
        load_state(actor, load_file(place / f"{actor.name}.safetensors"))


def aids(place: Path, learner: str) -> dict[str, Tensor]:
    """The modules that a learner had learned by at a checkpoint: name of a parameter -> its value.

    Raises:
        UserError: it does not verify.
    """
    if damage := _damage(place):
        raise UserError(f"{place}: {damage}; put it back, or remove {place.parents[1]} to train it again")
    held = load_file(place / f"{learner}.safetensors")
    return {name.removeprefix("bridges."): tensor for name, tensor in held.items() if name.startswith("bridges.")}


def drop_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps: they did not verify, and must not count among the newest two."""
    for place in list_all(folder):
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)


def list_all(folder: Path) -> list[Path]:
    """The committed checkpoints, newest first."""
    return sorted(folder.glob("step-*"), key=lambda place: (len(place.name), place.name), reverse=True)


def state(actor: Kept) -> dict[str, Tensor]:
    """Everything of an actor that its recipe does not determine: parameters, buffers, aids, balance, optimizer."""
    tensors = _own(actor)
    slots = actor.optimizer.state_dict()["state"].items() if isinstance(actor, Learner) else ()
    for number, held in slots:
        tensors |= {f"optimizer.{number}.{slot}": tensor for slot, tensor in held.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def load_state(actor: Kept, tensors: dict[str, Tensor]) -> None:
    """Puts a state back, in place; the actor must be of the same recipe."""
    for name, tensor in _own(actor).items():
        tensor.copy_(tensors[name])
    if not isinstance(actor, Learner):
        return
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, slot = name.split(".")
            slots.setdefault(int(number), {})[slot] = tensor
    actor.optimizer.load_state_dict({**actor.optimizer.state_dict(), "state": slots})


def _own(actor: Kept) -> dict[str, Tensor]:
    """The tensors that an actor holds itself, tied ones once."""
    tensors = {f"model.{name}": tensor for name, tensor in actor.model.named_parameters()}
    tensors |= {f"buffer.{name}": tensor for name, tensor in actor.model.named_buffers()}
    if not isinstance(actor, Learner):
        return tensors
    tensors |= {f"bridges.{name}": tensor for name, tensor in _kept(actor.bridges).items()}
    return tensors | {f"balance.{name}": tensor for name, tensor in actor.balance.state_dict().items()}


def _kept(aids: nn.ModuleDict) -> dict[str, Tensor]:
    """Parameters and lasting buffers, shared ones once."""
    once = {name for name, _ in (*aids.named_parameters(), *aids.named_buffers())}
    return {name: tensor for name, tensor in aids.state_dict().items() if name in once}


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _damage(place: Path) -> str | None:
    try:
        told = rundir.read_json(place / MANIFEST)
        files, own = told["files"], rundir.step_name(told["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or damaged"
    if own != place.name:
        return f"{MANIFEST} says that it is {own}"
    for name, stated in files.items():
        path = place / name
        if not path.is_file():
            return f"{name} is missing"
        found = _identity(path)
        for what in ("bytes", "sha256"):
            if found[what] != stated[what]:
                return f"{name}: {what} differs"
    return None


def sync(path: Path) -> None:
    """Has a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
