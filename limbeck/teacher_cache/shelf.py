"""The teacher cache: what fixed teachers answer to the training text, written once and read by block.

`CACHE/teacher/KEY/00000/` holds the answers to the first `SHARD` blocks, and so on: each shard is written whole or not at all,
so that a writer that was killed goes on where it stopped, and processes write side by side. The key is a hash of all that
the answers are a function of; a row whose tokens are not those that the teacher read is refused when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from limbeck.batch import Batch
from limbeck.distil.teachers import Frozen
from limbeck.errors import Interrupted, UserError
from limbeck.families import width_of
from limbeck.losses.sparse import TopK
from limbeck.models import fingerprint, readouts
from limbeck.system.files import json_sha256
from limbeck.system.progress import Done, doing, uncounted
from limbeck.system.store import Facts, Tell, open_or_make
from limbeck.teacher_cache import shards
from limbeck.teacher_cache.cached import Answers
from limbeck.teacher_cache.packing import Packing, grow, shrink
from limbeck.teacher_cache.shards import LOGITS, Answered, Shard
from limbeck.text.feed import Repeatable

LAYOUT = 1  # of the files; a new number leaves older entries unread
SHARD, ROWS = 256, 16  # blocks of a shard; blocks that a teacher reads at a time


@dataclass(frozen=True)
class KeptStates:
    """What is kept of a teacher's answers.

    Args:
        columns: of its logits; 0 where no logits are kept.
        top_k: the most probable tokens of a prediction; no more columns than that are kept as they are, fp32.
        states: the tensors from which its taps are computed, as `recall.kept` names them.
        how: `bf16` or `int8`, of the states.
    """

    columns: int
    top_k: int
    states: tuple[str, ...]
    how: str

    @property
    def packing(self) -> Packing | None:
        """How predictions are packed; None where they are kept as they are, or not at all."""
        return Packing(self.columns, self.top_k) if self.columns > self.top_k else None

    @property
    def width(self) -> int:
        """Numbers of a prediction that was read: k indices, k log-probabilities and that of the rest; or its logits."""
        return 2 * self.top_k + 1 if self.packing else self.columns

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Of the numbers in the files of a shard."""
        states = {name: shards.DTYPES[self.how] for name in self.states}  # noqa: C420 (its type is kept)
        scales = {f"{name}.scale": np.dtype(np.float32) for name in self.states if self.how == "int8"}
        said: np.dtype = np.dtype("u1") if self.packing else np.dtype("f4")
        return {LOGITS: said, **states, **scales}

    def bytes(self, teacher: PretrainedConfig) -> tuple[int, int]:
        """Bytes of a prediction, and of the states of a token."""
        scale = 4 if self.how == "int8" else 0
        widths = [width_of(teacher, name.split(".")[0]) for name in self.states]
        states = sum(width * shards.DTYPES[self.how].itemsize + scale for width in widths)
        return self.packing.size if self.packing else 4 * self.columns, states

    @property
    def said(self) -> list[Any]:
        """All that the files are a function of, as JSON."""
        return [
            [self.columns, self.top_k if self.packing else None] if self.columns else [],
            [self.how, *self.states] if self.states else [],
        ]


class AnswerShelf:
    """The answers of one teacher to the text of one feed.

    Args:
        folder: `CACHE/teacher`.
        teacher: whose answers they are.
        feed: the training text as every epoch reads it.
        kept: what is kept of an answer.
        text: what the rows of the feed are a function of, as JSON.
        autocast: dtype of the teacher's matrix products, None for its parameters' own.
    """

    def __init__(
        self,
        folder: Path,
        teacher: Frozen,
        feed: Repeatable,
        kept: KeptStates,
        text: Any,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.teacher, self.feed, self.kept, self.autocast = teacher, feed, kept, autocast
        how = [str(teacher.model.dtype), str(autocast), LAYOUT, SHARD, ROWS]
        self.of = json_sha256([_identity(teacher), how, text, feed.masks, kept.said])
        self.folder = folder / self.of
        self.count = -(-len(feed) // SHARD)
        self._open: dict[int, Shard] = {}

    @property
    def width(self) -> int:
        """Numbers of a prediction."""
        return self.kept.width

    def write(self, rank: int, size: int, stopped: Callable[[], bool], tell: Tell) -> int:
        """Has the shards of one of `size` processes on disk, made where they are missing or damaged. Returns their bytes.

        Raises:
            Interrupted: `stopped` said so; finished shards stay.
            UserError: the disk cannot hold them, or a shard holds something else.
        """
        with doing(f"answers of {self.teacher.name}", "blocks") as done:
            return sum(self._opened(number, stopped, tell, done).bytes for number in range(rank, self.count, size))

    def answers(self, batch: Batch) -> Answers:
        """What the teacher said to the rows of a batch.

        Raises:
            UserError: a row is not what the teacher read.
        """
        rows = [(self._opened(block // SHARD), block % SHARD) for block in batch["blocks"].tolist()]
        for (shard, row), check in zip(rows, shards.checks(batch), strict=True):
            if shard.checks[row] != check:
                raise UserError(f"{shard.folder}: row {row} is another text than the teacher read; remove the folder")
        device, select = batch["input_ids"].device, batch["select"].cpu()
        features = torch.zeros((*select.shape, self.width))
        if self.kept.columns:
            features[select] = self._said(np.concatenate([shard.row(row, LOGITS) for shard, row in rows]))
        attended = batch["attention_mask"].bool().cpu()
        dtype = self.teacher.model.dtype  # as it would answer itself
        states = {name: self._states(name, rows, attended).to(device).to(dtype) for name in self.kept.states}
        return Answers(features.to(device), states)

    def predictions(self, features: Tensor) -> Tensor | TopK:
        """What `answers` gives of a prediction `[n, width]`, as it is kept: logits `[n, V]`, or the k most probable tokens."""
        if not self.kept.packing:
            return features
        k = self.kept.top_k
        return TopK(features[:, :k].long(), features[:, k : 2 * k], features[:, 2 * k], self.kept.columns)

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:05}"

    def _said(self, codes: np.ndarray) -> Tensor:
        if not self.kept.packing:
            return torch.from_numpy(codes)
        said = self.kept.packing.unpack(codes)
        assert said.rest is not None
        return torch.cat([said.indices.float(), said.logprobs, said.rest[:, None]], dim=1)  # exact up to 2^24

    def _states(self, name: str, rows: list[tuple[Shard, int]], attended: Tensor) -> Tensor:
        """States of some rows, zero where there is padding: `[B, T, D]`."""
        lines = np.concatenate([shard.row(row, name) for shard, row in rows])
        scale = (
            np.concatenate([shard.row(row, f"{name}.scale") for shard, row in rows])
            if self.kept.how == "int8"
            else None
        )
        found = grow(lines, scale)
        if bool(attended.all()):
            return found.view(*attended.shape, -1)
        whole = found.new_zeros((*attended.shape, found.shape[-1]))
        whole[attended] = found
        return whole

    # what is written

    def _opened(
        self,
        number: int,
        stopped: Callable[[], bool] = lambda: False,
        tell: Tell = lambda line: None,
        done: Done = uncounted,
    ) -> Shard:
        """A shard, whole: checked when it is opened, made when it is missing or damaged."""
        if number not in self._open:
            place = self._place(number)
            facts = open_or_make(place, partial(self._write, number, stopped, done), tell)
            if [facts.get("of"), facts.get("shard")] != [self.of, number]:
                raise UserError(f"{place}: holds other answers than its name says; remove the folder")
            self._open[number] = Shard(place, self.kept.dtypes, facts["widths"])
        return self._open[number]

    def _write(self, number: int, stopped: Callable[[], bool], done: Done, folder: Path) -> Facts:
        try:
            widths = shards.write(folder, self._read(number, stopped, done))
        except OSError as error:
            raise UserError(
                f"{folder.parent}: {error.strerror}; make room, or name another disk with data.cache"
            ) from None
        return {"of": self.of, "shard": number, "widths": widths}

    @torch.no_grad()
    def _read(self, number: int, stopped: Callable[[], bool], done: Done) -> Iterator[Answered]:
        """The teacher reads the rows of a shard, some at a time."""
        blocks = np.arange(number * SHARD, min((number + 1) * SHARD, len(self.feed)))
        for start in range(0, len(blocks), ROWS):
            done(int(blocks[start]), len(self.feed))
            if stopped():
                raise Interrupted("stopped while answers of the teacher were written; run it again to go on")
            batch = self.feed.again(blocks[start : start + ROWS])
            selected = batch["select"].reshape(len(batch["select"]), -1).sum(1).tolist()
            yield Answered(batch["attention_mask"].sum(1).tolist(), selected, shards.checks(batch), self._arrays(batch))

    def _arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        device, found = self.teacher.model.device, {}
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            readout = self.teacher.forward(here, whole=bool(self.kept.columns))
            if self.kept.columns:
                logits, packing = self.teacher.logits(readout.features[here["select"]]), self.kept.packing
                found[LOGITS] = packing.pack(TopK.of(logits, packing.k)) if packing else logits.float().cpu().numpy()
            for name, state in readouts.states(readout, self.kept.states).items():
                found[name], scale = shrink(state[here["attention_mask"].bool()], self.kept.how)
                found |= {} if scale is None else {f"{name}.scale": scale}
        return found


def _identity(teacher: Frozen) -> list[Any]:
    """Weights and configuration of a teacher, wherever it was read from."""
    places = ("_name_or_path", "transformers_version", "architectures", "dtype")
    config = {name: value for name, value in teacher.model.config.to_dict().items() if name not in places}
    return [fingerprint.digest(teacher.model.named_parameters()), config]
