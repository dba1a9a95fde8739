"""`Learner`: a student, or a model that learns from labels alone, with optimizer, schedule and clipping of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.distil.actors import START, Actor, Moment
from limbeck.distil.balance import Balance
from limbeck.distil.contrastive import ContrastiveMemory
from limbeck.distil.result import Norms
from limbeck.distil.schedules import Schedule
from limbeck.models.changes import Change
from limbeck.models.compressed import Compressed
from limbeck.models.taps import Readout, Tapped
from limbeck.system import seeds
from limbeck.system.processes import World


@dataclass(frozen=True)
class Optimisation:
    """How a learner is optimised."""

    schedule: Schedule
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip: float | None


class Folded(NamedTuple):
    """A model as it is exported, and what tells how few bytes hold its weights."""

    model: PreTrainedModel
    small: Compressed


class Learner(Actor):
    """A model that is trained, with the modules of its terms, the balance, the optimizer, the schedule and the clipping of its own."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        taps: list[str],
        *,
        seed: int,
        modules: nn.ModuleDict,
        optimisation: Optimisation,
        balance: Balance | None = None,
        columns: int | None = None,
        changes: Sequence[Change] = (),
        finishing: Sequence[Change] = (),
    ) -> None:
        self.name, self.seed, self.model, self.modules = name, seed, model.train(), modules
        self.balance, self.changes, self.finishing = balance or Balance(), changes, finishing
        self.rates = [rate for change in changes for rate in change.rates(model)]
        self.apart = {parameter: None for rate in self.rates for parameter in rate.parameters}  # in this order
        self.tapped, self.width = Tapped(model, taps, columns), model.config.hidden_size
        self.optimisation = optimisation
        self.layers = [list(layer.parameters()) for layer in self.tapped.layers]
        self.optimizer = self._adamw()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained: the parameters of the model, of the modules of its terms and of the balance."""
        modules = (self.model, self.modules, self.balance)
        return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]

    @property
    def exits(self) -> dict[str, nn.Module]:
        """The heads of its early exits, which are modules of its terms: `exit.3` -> the head behind layer 3, from the first on."""
        found = {
            name.strip(":").replace(":", "."): module
            for name, module in self.modules.items()
            if name.startswith(":exit:")
        }
        return dict(sorted(found.items(), key=lambda item: int(item[0].partition(".")[2])))

    def forward(self, batch: Batch, moment: Moment = START, whole: bool = True) -> Readout:
        """Answers a batch, not `whole`, without logits; dropout is drawn from the stream of (seed, *moment)."""
        with seeds.seeded(seeds.derive_seed(self.seed, "dropout", *moment), batch["input_ids"].device):
            return self.tapped(batch, whole)

    def logits(self, features: Tensor, tap: str = "logits") -> Tensor:
        """Features of some tokens `[n, H]` -> logits `[n, V]` of the head behind `logits`, or behind `exit.N`."""
        return self.tapped.head(features) if tap == "logits" else self.exits[tap](features)

    def facts(self) -> dict[str, Any]:
        """What is changed of its model beside its training, and when."""
        if not (self.changes or self.finishing):
            return {}
        told = [change.facts() for change in (*self.changes, *self.finishing)]
        return {"changes": told, **({"changes_at": "end"} if self.finishing else {})}

    @torch.no_grad()
    def folded(self) -> Folded:
        """Its model as transformers knows it, itself or a copy in which its changes are folded; and how few bytes hold it."""
        changes = (*self.changes, *self.finishing)
        model, small = copy.deepcopy(self.model) if changes else self.model, Compressed()
        for change in reversed(changes):
            model = change.fold(model, small)
        return Folded(model.eval() if changes else model, small)

    def ready(self, step: int) -> bool:
        """Whether after `step` updates its changes have made of it all that they will."""
        return all(change.ready(step) for change in self.changes)

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Inside, its model is what the changes at the end of its training make of it; what is trained stays as it is."""
        trained, tapped = self.model, self.tapped
        if self.finishing:
            self.model = copy.deepcopy(trained)
            with torch.no_grad():
                for change in self.finishing:
                    change.apply(self.model)
            self.tapped = Tapped(self.model, tapped.taps, tapped.columns)
        try:
            yield
        finally:
            self.model, self.tapped = trained, tapped

    def everywhere(self) -> Tapped:
        """Its model, tapped at every hidden state."""
        return self.tapped.everywhere()

    def update(self, step: int, world: World, measure: bool = False, finite: bool = True) -> Norms:
        """Adds up the processes' gradients, clips, and takes one optimizer step; `measure` asks for the update ratios.

        Where a gradient is not finite, or the loss was not `finite`, nothing is changed.
        """
        world.sum_gradients(self.parameters)
        for parameter, left in self._left():
            if parameter.grad is not None:
                parameter.grad.mul_(left)
        norms = self._clipped(self.optimisation.schedule(step), world)
        if not (finite and norms.finite):
            self.drop()
            return norms
        for memory in self._memories:
            memory.commit(world)
        for change in self.changes:
            change.watch(self.model, step)
        before = [[p.detach().clone() for p in layer] for layer in self.layers] if measure else None
        for group in self.optimizer.param_groups:
            group["lr"] = group["schedule"](step) if "schedule" in group else norms.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow(step)
        return replace(norms, update_ratios=self._ratios(before, world)) if before else norms

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Its changes follow an update; of what they cut away the optimizer forgets what it held."""
        for change in self.changes:
            change.follow(self.model, step)
        for parameter, left in self._left():
            for slot in self.optimizer.state[parameter].values():
                if slot.shape == left.shape:
                    slot.mul_(left)

    def _left(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """What its changes have left of which parameters."""
        for change in self.changes:
            yield from change.left(self.model).items()

    def drop(self) -> None:
        """Forgets a step that is not taken: its gradients, and what its memories have seen."""
        self.optimizer.zero_grad(set_to_none=True)
        for memory in self._memories:
            memory.forget()

    def state(self) -> dict[str, Tensor]:
        """Parameters, buffers, modules of its terms, balance, optimizer: everything that the recipe does not determine."""
        slots = self.optimizer.state_dict()["state"].items()
        return self._own() | {f"optimizer.{n}.{slot}": tensor for n, held in slots for slot, tensor in held.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes a state of the same recipe back, in place."""
        take(self._own(), tensors)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, slot = name.split(".")
                slots.setdefault(int(number), {})[slot] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})

    def size(self) -> int:
        """Bytes of its state, the two moments of its optimizer included."""
        return sum(it.nbytes for it in self._own().values()) + 2 * sum(it.nbytes for it in self.parameters)

    def _own(self) -> dict[str, Tensor]:
        """The state without that of the optimizer, tied tensors once."""
        tensors = weights(self.model) | {f"bridges.{name}": tensor for name, tensor in _kept(self.modules).items()}
        return tensors | {f"balance.{name}": tensor for name, tensor in self.balance.state_dict().items()}

    @property
    def _memories(self) -> list[ContrastiveMemory]:
        return [module for module in self.modules.values() if isinstance(module, ContrastiveMemory)]

    def _clipped(self, rate: float, world: World) -> Norms:
        """Clips model and projections, each for itself; the norms before, read from the device all at once."""
        layers = [world.norm(gradients(layer)) for layer in self.layers]
        clipped = [[p for p in module.parameters() if p not in self.apart] for module in (self.model, self.modules)]
        parts = [self._clip(parameters, world) for parameters in clipped]
        parts += [world.norm(gradients([*self.balance.parameters(), *self.apart]))]
        device = self.parameters[0].device
        read = torch.stack([value.double().to(device) for value in (*layers, *parts)]).tolist()
        whole, modules, balance = read[len(layers) :]
        return Norms(whole, read[: len(layers)], modules, rate, None, balance)

    def _clip(self, parameters: list[nn.Parameter], world: World) -> Tensor:
        total = world.norm(gradients(parameters))
        if self.optimisation.clip is not None and parameters:
            nn.utils.clip_grads_with_norm_(parameters, self.optimisation.clip, total)
        return total

    def _ratios(self, before: list[list[Tensor]], world: World) -> list[float]:
        pairs = zip(self.layers, before, strict=True)
        return [
            (world.norm([p.detach() - b for p, b in zip(layer, old, strict=True)]) / world.norm(old)).item()
            for layer, old in pairs
        ]

    def _adamw(self) -> torch.optim.AdamW:
        """AdamW whose weight decay leaves out biases and norms (everything with fewer than two axes)."""
        how, common = self.optimisation, [p for p in self.parameters if p not in self.apart]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in common if p.dim() >= 2]},
            {"params": [p for p in common if p.dim() < 2], "weight_decay": 0.0},
            *({"params": it.parameters, "schedule": it.schedule, "weight_decay": 0.0} for it in self.rates),
        ]
        return torch.optim.AdamW(
            groups, lr=0.0, betas=how.betas, eps=how.eps, weight_decay=how.weight_decay, fused=True
        )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model as a state names them, tied ones once."""
    tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
    return tensors | {f"buffer.{name}": tensor for name, tensor in model.named_buffers()}


@torch.no_grad()
def take(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copies a state into the tensors of its names, in place."""
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def _kept(modules: nn.ModuleDict) -> dict[str, Tensor]:
    """Parameters and lasting buffers, shared ones once."""
    once = {name for name, _ in (*modules.named_parameters(), *modules.named_buffers())}
    return {name: tensor for name, tensor in modules.state_dict().items() if name in once}


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients that are there."""
    return [p.grad for p in parameters if p.grad is not None]
