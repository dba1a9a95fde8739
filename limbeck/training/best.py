"""The weights of a student that were best on held-out data, and when a student has waited long enough for better ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from limbeck.distil.learner import Learner, take, weights
from limbeck.recipe.keys import MEASURES
from limbeck.training.loop import RunState


class Best:
    """The weights that a learner had at its best evaluation; in the beginning those that it begins with.

    `trained` says whether the head that it begins with was trained before: if not, its answers at the beginning are luck.
    """

    def __init__(self, learner: Learner, trained: bool = True) -> None:
        self.name, self.learner, self.trained = f"{learner.name}.best", learner, trained
        self.model = copy.deepcopy(learner.model).requires_grad_(False)

    @torch.no_grad()
    def take(self) -> None:
        """Holds the weights that the learner has now."""
        for mine, theirs in zip(_tensors(self.model), _tensors(self.learner.model), strict=True):
            mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """The weights held."""
        return weights(self.model)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Holds these."""
        take(self.state(), tensors)

    def size(self) -> int:
        """Bytes of the weights held."""
        return sum(tensor.nbytes for tensor in self.state().values())

    @torch.no_grad()
    def exchange(self) -> None:
        """The learner has the weights held here, and they are held in its stead; once more, and all is as it was."""
        for mine, theirs in zip(_tensors(self.model), _tensors(self.learner.model), strict=True):
            held = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(held)


def _tensors(model: torch.nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class Keeper:
    """Which evaluation of each learner was the best, and who has stopped since.

    An evaluation is better than those before it where its measure is strictly so; of equal ones the first is kept, and one
    whose measure is not defined is never better. That of the beginning counts only where the head was trained before. What must
    outlast an interruption is in the run's `way`.

    Args:
        bests: of every learner.
        measure: a name of `keys.MEASURES`, in the line of an evaluation or among its metrics.
        patience: evaluations in a row without a better one, after which a learner stops; None: never.
    """

    def __init__(self, bests: Sequence[Best], measure: str, patience: int | None = None) -> None:
        self.bests = {best.learner.name: best for best in bests}
        self.measure, self.patience = measure, patience

    def see(self, step: int, rows: Mapping[str, Mapping[str, Any]], way: RunState) -> None:
        """Takes the weights of the learners whose evaluation on held-out data, after `step` updates, is their best."""
        for name, row in rows.items():
            if step == 0 and not self.bests[name].trained:
                continue
            value = (row.get("metrics") or {}).get(self.measure, row.get(self.measure))
            score, best = None if value is None else MEASURES[self.measure].better * value, way.best.get(name)
            if best is None or (score is not None and (best["score"] is None or score > best["score"])):
                way.best[name] = {"step": step, "score": score}
                self.bests[name].take()
                way.waited[name] = 0
            else:
                way.waited[name] += 1

    def patient(self, name: str, way: RunState) -> bool:
        """Whether a learner still waits for a better evaluation."""
        return self.patience is None or way.waited.get(name, 0) < self.patience

    @contextmanager
    def worn(self, learners: Sequence[Learner]) -> Iterator[None]:
        """The learners have their best weights inside, and those of their last update again outside."""
        bests = [self.bests[learner.name] for learner in learners]
        for best in bests:
            best.exchange()
        try:
            yield
        finally:
            for best in bests:
                best.exchange()
