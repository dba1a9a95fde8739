"""A fixed teacher that teaches in training mode: its dropout is on, drawn from a stream of its own."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.distil.learner import Frozen
from limbeck.models.taps import Readout
from limbeck.system import seeds


class Noisy:
    """A fixed teacher whose dropout is on while it teaches, as TinyBERT's code has it, which never calls `eval` on its teacher.

    Its weights never change. What it says is a function of the text and of (seed, step, micro-batch, process), so that a run that is
    gone on with, or trained alone, hears the same. Whoever measures asks the teacher itself, which has no dropout.

    Args:
        teacher: who answers in evaluation mode.
        seed: of the learners that it teaches.
    """

    def __init__(self, teacher: Frozen, seed: int) -> None:
        self.name, self.seed, self._teacher = teacher.name, seed, teacher

    @property
    def model(self) -> PreTrainedModel:
        """The teacher's model."""
        return self._teacher.model

    @property
    def width(self) -> int:
        """H of the features that its head takes."""
        return self._teacher.width

    def read(self, batch: Batch, *moment: int, whole: bool = True) -> Readout:
        """Answers a batch, not `whole`, without logits; dropout is drawn from the stream of (seed, name, *moment)."""
        seed = seeds.derive_seed(self.seed, "teacher dropout", self.name, *moment)
        self.model.train()
        try:
            with seeds.seeded(seed, batch["input_ids"].device):
                return self._teacher.read(batch, whole)
        finally:
            self.model.eval()

    def speak(self, features: Tensor) -> Tensor:
        """Features of some tokens `[n, H]` -> logits `[n, V]`."""
        return self._teacher.speak(features)

    def advance(self) -> None:
        """After an update of the cast: nothing."""
