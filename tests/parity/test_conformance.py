"""Every fast path against the plain fp64 one: values of the terms and gradients of every parameter of one step.

Two processes are held against one in tests/runs/test_processes.py, whole runs from the cache in tests/runs/test_teacher_cache.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel import LABEL, MULTI, VOCABULARY, batch, frozen, gradients_of, learner, still_of, views
from plain import Gradients, plain, same
from torch import Tensor

from limbeck.batch import Batch
from limbeck.distil import lessons
from limbeck.distil.learner import Learner
from limbeck.distil.teachers import Frozen
from limbeck.losses import blockwise
from limbeck.models import readouts
from limbeck.system.processes import World
from limbeck.teacher_cache.cached import Cached
from limbeck.teacher_cache.shelf import AnswerShelf, KeptStates

TERMS = (*MULTI, LABEL)
Found = tuple[dict[str, Tensor], Gradients]
Path_ = Callable[..., Found]


def step(
    teacher: Any, one: Learner, batches: Sequence[Batch], chunk: int = 10**6, others: Any = (), **how: Any
) -> Found:
    """One step by limbeck; `others` learn beside."""
    still = still_of(teacher, [(one, TERMS), *others], chunk=chunk, **how)
    tallies = still.gradients(*views(batches), 0)
    return tallies[one.name].terms, gradients_of(one)


def whole(teacher: Frozen, one: Learner, batches: Sequence[Batch], **_: Any) -> Found:
    return step(teacher, one, batches)


def chunked(teacher: Frozen, one: Learner, batches: Sequence[Batch], **_: Any) -> Found:
    return step(teacher, one, batches, chunk=3)


def in_company(teacher: Frozen, one: Learner, batches: Sequence[Batch], **_: Any) -> Found:
    return step(teacher, one, batches, others=[(learner("other", MULTI, seed=5), MULTI)])


def blocks_of_logits(teacher: Frozen, one: Learner, batches: Sequence[Batch], patch: Any, **_: Any) -> Found:
    patch.setattr(blockwise, "BLOCK", 2 * VOCABULARY)
    return step(teacher, one, batches)


def blocks_of_queries(teacher: Frozen, one: Learner, batches: Sequence[Batch], patch: Any, **_: Any) -> Found:
    patch.setattr(lessons, "LARGE", 4 * 9 * 2)
    return step(teacher, one, batches)


def row_by_row_without_padding(teacher: Frozen, one: Learner, batches: Sequence[Batch], **_: Any) -> Found:
    rows = []
    for each in batches:
        for row, length in enumerate(each["attention_mask"].sum(1).tolist()):
            rows.append({k: v[row : row + 1, :length] if v.dim() > 1 else v[row : row + 1] for k, v in each.items()})
    return step(teacher, one, rows)


class Given:
    """The batches as a feed whose blocks are their rows."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.rows = [{k: v[i] for k, v in b.items()} for b in batches for i in range(len(b["blocks"]))]
        self.masks = ["given"]

    def __len__(self) -> int:
        return len(self.rows)

    def again(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {k: torch.stack([self.rows[i][k] for i in indices]) for k in self.rows[0]}


def cached(teacher: Frozen, one: Learner, batches: Sequence[Batch], folder: Path, **_: Any) -> Found:
    numbered, count = [], 0
    for each in batches:
        numbered.append(dict(each) | {"blocks": torch.arange(count, count + len(each["blocks"]))})
        count += len(each["blocks"])
    kept = KeptStates(VOCABULARY, VOCABULARY, readouts.kept(teacher.tapped.taps, teacher.tapped.depth), "fp32")
    feed: Any = Given(numbered)
    shelf = AnswerShelf(folder, teacher, feed, kept, "text")
    shelf.write(0, 1, lambda: False, lambda line: None)
    length = batches[0]["input_ids"].shape[1]
    return step(Cached(teacher, shelf, length), one, numbered)


def in_bf16(teacher: Frozen, one: Learner, batches: Sequence[Batch], **_: Any) -> Found:
    one.model.float(), one.modules.float(), teacher.model.bfloat16()
    return step(teacher, one, batches, autocast=torch.bfloat16, world=World())


EXACT = [whole, chunked, in_company, blocks_of_logits, blocks_of_queries, row_by_row_without_padding]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("path", [*EXACT, cached, in_bf16], ids=lambda path: path.__name__)
def test_fast_is_plain(path: Path_, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp64 to 1e-10; the cache, which keeps fp32, to 1e-6; bf16 within 6 % of each gradient's norm and 2 % of each term."""
    teacher, one, batches = frozen(), learner("one", TERMS), [batch(seed) for seed in range(count)]
    values, gradients = plain(teacher, one, TERMS, batches)
    found, mine = path(teacher, one, batches, patch=monkeypatch, folder=tmp_path)
    bound = {"cached": 1e-6, "in_bf16": 2e-2}.get(path.__name__, 1e-10)
    for name, value in values.items():
        torch.testing.assert_close(found[name].double(), value, rtol=bound, atol=bound)
    if path is not in_bf16:
        same(mine, gradients, bound)
        return
    for name, gradient in gradients.items():
        theirs = mine[name]
        assert (gradient is None) == (theirs is None), name
        if gradient is not None and theirs is not None and gradient.norm() > 1e-6:
            assert (theirs.double() - gradient).norm() < 0.06 * gradient.norm(), name
