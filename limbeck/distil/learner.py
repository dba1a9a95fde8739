"""Actors: what answers a batch with a readout. `Frozen`, `Cached` and `Ema` teach; a `Learner` is trained."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.distil.balance import Balance
from limbeck.distil.contrastive import ContrastiveMemory
from limbeck.distil.schedules import Schedule
from limbeck.models.int8 import Effect
from limbeck.models.readouts import Recall
from limbeck.models.taps import Readout, Tapped
from limbeck.system import seeds
from limbeck.system.processes import World


class Frozen:
    """A model that only answers: in evaluation mode, without gradients, never changed."""

    def __init__(self, name: str, model: PreTrainedModel, taps: list[str], columns: int | None = None) -> None:
        self.name, self.model = name, model.eval().requires_grad_(False)
        self.tapped = Tapped(self.model, taps, columns)
        self.effect: Effect | None = None  # of its quantisation
        self.dropout = 0.0  # that it has while it teaches, as a `Noisy`

    @property
    def width(self) -> int:
        """H of the features that its head takes."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def read(self, batch: Batch, whole: bool = True) -> Readout:
        """Answers a batch; not `whole`, without logits."""
        return self.tapped(batch, whole)

    @torch.no_grad()
    def speak(self, features: Tensor) -> Tensor:
        """Features of some tokens `[n, H]` -> logits `[n, V]`."""
        return self.tapped.head(features)

    def advance(self) -> None:
        """After an update of the cast: nothing."""


class Answers(NamedTuple):
    """What is known of a teacher's answers to a batch without asking it."""

    features: Tensor  # of selected tokens or rows, zeros elsewhere: `[B, T, F]`, of a task `[B, F]`
    states: dict[str, Tensor]  # as `recall.kept` names them, `[B, T, D]`


class Kept(Protocol):
    """Where answers are kept."""

    @property
    def width(self) -> int:
        """F of the features."""
        ...

    def answers(self, batch: Batch) -> Answers:
        """What was said to the rows of a batch."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """Features `[n, F]` -> logits `[n, V]`."""
        ...


class Cached:
    """A fixed teacher whose answers are read from where they are kept; it does not run.

    Args:
        teacher: whose answers they are, asked once which positions see each other.
        kept: its answers.
        length: the most tokens of a row.
    """

    def __init__(self, teacher: Frozen, kept: Kept, length: int) -> None:
        self.name, self.model, self._kept = teacher.name, teacher.model, kept
        self._recall = Recall(teacher.tapped, length)

    @property
    def width(self) -> int:
        """F of the features that it speaks from."""
        return self._kept.width

    def read(self, batch: Batch, whole: bool = True) -> Readout:
        """Recalls the answers to a batch; raises UserError for text that the teacher has not read."""
        found = self._kept.answers(batch)
        return self._recall.readout(found.states, batch["attention_mask"], found.features, self.speak)

    def speak(self, features: Tensor) -> Tensor:
        """Features of some tokens `[n, F]` -> logits `[n, V]`."""
        return self._kept.logits(features)

    def advance(self) -> None:
        """After an update of the cast: nothing."""


@dataclass(frozen=True)
class Optimisation:
    """How a learner is optimised."""

    schedule: Schedule
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip: float | None


@dataclass(frozen=True)
class Norms:
    """Gradient norms of one update, before clipping."""

    whole: float  # of the model, bridges left out
    layers: list[float]  # of transformer layers 1..L
    bridges: float
    learning_rate: float
    update_ratios: list[float] | None  # |dw| / |w| of transformer layers 1..L, where asked for and updated
    balance: float = 0.0  # of the log-variances

    @property
    def broken(self) -> list[str]:
        """Where the gradient is not finite: layers from the first, then the other parts; whole is over all layers."""
        found = [f"layer {number}" for number, value in enumerate(self.layers, 1) if not math.isfinite(value)]
        found += [] if found or math.isfinite(self.whole) else ["outside the layers"]
        parts = {"bridges": self.bridges, "balance": self.balance}
        return found + [name for name, value in parts.items() if not math.isfinite(value)]

    @property
    def finite(self) -> bool:
        """Whether every gradient is."""
        return not self.broken


class Learner:
    """A model that is trained, with the aids, the balance, the optimizer, the schedule and the clipping of its own."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        taps: list[str],
        *,
        seed: int,
        bridges: nn.ModuleDict,
        optimisation: Optimisation,
        balance: Balance | None = None,
        columns: int | None = None,
    ) -> None:
        self.name, self.seed, self.model, self.bridges = name, seed, model.train(), bridges
        self.balance = balance or Balance()
        self.tapped = Tapped(model, taps, columns)
        self.optimisation = optimisation
        self.layers = [list(layer.parameters()) for layer in self.tapped.layers]
        self.optimizer = self._adamw()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained: the parameters of the model, of the aids and of the balance."""
        modules = (self.model, self.bridges, self.balance)
        return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]

    @property
    def exits(self) -> dict[str, nn.Module]:
        """The heads of its early exits, which are aids: `exit.3` -> the head behind layer 3, from the first on."""
        found = {
            name.strip(":").replace(":", "."): aid for name, aid in self.bridges.items() if name.startswith(":exit:")
        }
        return dict(sorted(found.items(), key=lambda item: int(item[0].partition(".")[2])))

    def read(self, batch: Batch, *moment: int, whole: bool = True) -> Readout:
        """Answers a batch, not `whole`, without logits; dropout is drawn from the stream of (seed, *moment)."""
        with seeds.seeded(seeds.derive_seed(self.seed, "dropout", *moment), batch["input_ids"].device):
            return self.tapped(batch, whole)

    def speak(self, features: Tensor, tap: str = "logits") -> Tensor:
        """Features of some tokens `[n, H]` -> logits `[n, V]` of the head behind `logits`, or behind `exit.N`."""
        return self.tapped.head(features) if tap == "logits" else self.exits[tap](features)

    def update(self, step: int, world: World, measure: bool = False, finite: bool = True) -> Norms:
        """Adds up the processes' gradients, clips, and takes one optimizer step; `measure` asks for the update ratios.

        Where a gradient is not finite, or the loss was not `finite`, nothing is changed.
        """
        world.sum_gradients(self.parameters)
        norms = self._clipped(self.optimisation.schedule(step))
        if not (finite and norms.finite):
            self.drop()
            return norms
        for memory in self._memories:
            memory.commit(world)
        before = [[p.detach().clone() for p in layer] for layer in self.layers] if measure else None
        for group in self.optimizer.param_groups:
            group["lr"] = norms.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return replace(norms, update_ratios=self._ratios(before)) if before else norms

    def drop(self) -> None:
        """Forgets a step that is not taken: its gradients, and what its aids have seen."""
        self.optimizer.zero_grad(set_to_none=True)
        for memory in self._memories:
            memory.forget()

    def advance(self) -> None:
        """After an update of the cast: nothing; `update` has done it."""

    @property
    def _memories(self) -> list[ContrastiveMemory]:
        return [aid for aid in self.bridges.values() if isinstance(aid, ContrastiveMemory)]

    def _clipped(self, rate: float) -> Norms:
        """Clips model and bridges, each for itself; the norms before, read from the device all at once."""
        layers = [norm(gradients(layer)) for layer in self.layers]
        parts = [self._clip(list(module.parameters())) for module in (self.model, self.bridges)]
        parts.append(norm(gradients(list(self.balance.parameters()))))
        device = self.parameters[0].device
        read = torch.stack([value.double().to(device) for value in (*layers, *parts)]).tolist()
        whole, bridges, balance = read[len(layers) :]
        return Norms(whole, read[: len(layers)], bridges, rate, None, balance)

    def _clip(self, parameters: list[nn.Parameter]) -> Tensor:
        total = norm(gradients(parameters))
        if self.optimisation.clip is not None and parameters:
            nn.utils.clip_grads_with_norm_(parameters, self.optimisation.clip, total)
        return total

    def _ratios(self, before: list[list[Tensor]]) -> list[float]:
        pairs = zip(self.layers, before, strict=True)
        return [
            (norm([p.detach() - b for p, b in zip(layer, old, strict=True)]) / norm(old)).item() for layer, old in pairs
        ]

    def _adamw(self) -> torch.optim.AdamW:
        """AdamW whose weight decay leaves out biases and norms (everything with fewer than two axes)."""
        matrices = [p for p in self.parameters if p.dim() >= 2]
        vectors = [p for p in self.parameters if p.dim() < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        how = self.optimisation
        return torch.optim.AdamW(
            groups, lr=0.0, betas=how.betas, eps=how.eps, weight_decay=how.weight_decay, fused=True
        )


class Ema:
    """The exponential moving average of a learner's weights: a teacher that follows its pupil.

    After each update a <- decay a + (1 - decay) w, from a = w at the beginning; buffers are copied. It answers in evaluation
    mode, without gradients.

    Args:
        name: what lessons call it.
        learner: whose weights are averaged.
        taps: what it is asked for.
        decay: 0 to below 1.
    """

    def __init__(self, name: str, learner: Learner, taps: list[str], decay: float) -> None:
        self.name, self.learner, self.decay = name, learner, decay
        self._answers = Frozen(name, copy.deepcopy(learner.model), taps, learner.tapped.columns)
        self.model = self._answers.model

    def read(self, batch: Batch, whole: bool = True) -> Readout:
        """Answers a batch; not `whole`, without logits."""
        return self._answers.read(batch, whole)

    def speak(self, features: Tensor) -> Tensor:
        """Features of some tokens `[n, H]` -> logits `[n, V]`."""
        return self._answers.speak(features)

    @torch.no_grad()
    def advance(self) -> None:
        """After an update of the cast: follows its learner."""
        for mine, theirs in zip(self.model.parameters(), self.learner.model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)
        for mine, theirs in zip(self.model.buffers(), self.learner.model.buffers(), strict=True):
            mine.copy_(theirs)


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients that are there."""
    return [p.grad for p in parameters if p.grad is not None]


def norm(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, 0 for none."""
    return nn.utils.get_total_norm(tensors) if tensors else torch.zeros(())
