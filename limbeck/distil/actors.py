"""Actors: whoever answers a batch. One protocol, so that the step, the checkpoint and the manifest ask nobody what he is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.distil.balance import Balance
from limbeck.distil.result import Norms
from limbeck.losses.sparse import TopK
from limbeck.models.taps import Readout, Tapped
from limbeck.system.processes import World


class Moment(NamedTuple):
    """When a batch is read. Whoever draws random numbers draws them from a stream of it; the others do not look."""

    step: int = 0
    micro_batch: int = 0
    rank: int = 0


START = Moment()


class Stateful(Protocol):
    """What changes while a run goes on, and has to be as it was when the run goes on again."""

    name: str

    def state(self) -> dict[str, Tensor]:
        """Everything that the recipe does not determine, by name: the tensors themselves, no copies."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes a state back, in place."""
        ...

    def size(self) -> int:
        """Bytes of its state, with what the first update brings."""
        ...


class Actor(Protocol):
    """Whoever answers a batch: a fixed model, a cache, an ensemble, an average, a student.

    An actor defines `forward` and `logits`, and of the rest what it does otherwise than here: one that never changes, is one model and
    draws nothing is complete with `name`, `width`, `forward` and `logits`.

    Example:
        class Uniform(Actor):
            '''Knows nothing: every token is as probable as any other.'''

            def __init__(self, name, vocabulary, width):
                self.name, self.vocabulary, self.width = name, vocabulary, width

            def forward(self, batch, moment=Moment(), whole=True):
                states = torch.zeros(*batch["input_ids"].shape, self.width)
                return Readout((), 0, states, batch["attention_mask"], self.logits, Recording({}))

            def logits(self, features, tap="logits"):
                return torch.zeros(len(features), self.vocabulary)
    """

    name: str
    width: int  # F of the features that its head reads

    def forward(self, batch: Batch, moment: Moment = START, whole: bool = True) -> Readout:
        """Answers a batch; not `whole`, without logits."""
        ...

    def logits(self, features: Tensor, tap: str = "logits") -> Tensor | TopK:
        """Features of some tokens `[n, F]` -> the prediction of the head behind a tap: logits `[n, V]`, or its k most probable tokens."""
        ...

    def advance(self, updated: Collection[str]) -> None:
        """After an update of the cast, of which these learners moved."""

    def state(self) -> dict[str, Tensor]:
        """What of it changes while a run goes on: nothing of a fixed one."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes a state back, in place."""

    def size(self) -> int:
        """Bytes of its state, with what the first update brings."""
        return sum(tensor.nbytes for tensor in self.state().values())

    def members(self) -> Sequence[Actor]:
        """The single ones of whom it is made: itself, or those of an ensemble."""
        return (self,)

    def over(self, make: Callable[[Any], Actor]) -> Actor:
        """What `make` makes of it; an ensemble of what it makes of each member."""
        return make(self)

    def teaching(self, seed: int) -> Actor:
        """Who answers in its place while it teaches the learners of a seed."""
        return self

    def everywhere(self) -> Tapped | None:
        """Its model, tapped at every hidden state; None where it is not one model, or not here."""
        return None

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"revision": None, "sha256": "", "parameters": 0}


class Student(Actor, Protocol):
    """An actor that is trained: lessons name it as their student."""

    model: PreTrainedModel
    modules: nn.ModuleDict  # the modules that its terms bring
    balance: Balance

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        ...

    def update(self, step: int, world: World, measure: bool = False, finite: bool = True) -> Norms:
        """Takes one step with the gradients that are there, unless one is not finite or the loss was not `finite`."""
        ...

    def drop(self) -> None:
        """Forgets a step that is not taken."""
        ...
