"""What one step measured of one student, and whether it may change its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from limbeck.distil.lessons import COMMON, Term


@dataclass(frozen=True)
class Norms:
    """Gradient norms of one update, before clipping."""

    whole: float  # of the model, projections left out
    layers: list[float]  # of transformer layers 1..L
    modules: float
    learning_rate: float
    update_ratios: list[float] | None  # |dw| / |w| of transformer layers 1..L, where asked for and updated
    balance: float = 0.0  # of the log-variances

    @property
    def broken(self) -> list[str]:
        """Where the gradient is not finite: layers from the first, then the other parts; whole is over all layers."""
        found = [f"layer {number}" for number, value in enumerate(self.layers, 1) if not math.isfinite(value)]
        found += [] if found or math.isfinite(self.whole) else ["outside the layers"]
        parts = {"modules of the terms": self.modules, "balance": self.balance}
        return found + [name for name, value in parts.items() if not math.isfinite(value)]

    @property
    def finite(self) -> bool:
        """Whether every gradient is."""
        return not self.broken


@dataclass
class StepResult:
    """What one step measured of one learner."""

    terms: dict[str, Tensor] = field(default_factory=dict)  # unweighted, of this process
    weights: dict[str, float] = field(default_factory=dict)  # the recipe's, balanced
    noted: dict[str, Tensor] = field(default_factory=dict)  # terms that are not learnt, of this process
    norms: Norms | None = None
    regulariser: float = 0.0  # what the balance adds to the loss
    totals: Mapping[str, float] = field(default_factory=dict)  # the terms, over all processes
    common: float = 0.0  # the logit loss, over all processes
    micro_batches: int = 0  # of this process, in the end

    def add(self, term: str, value: Tensor) -> None:
        """Adds a micro-batch's or a chunk's part to a term."""
        value = value.detach()
        self.terms[term] = self.terms[term] + value if term in self.terms else value

    def note(self, term: str, value: Tensor) -> None:
        """Adds a chunk's part to a term that is noted and not learnt."""
        value = value.detach()
        self.noted[term] = self.noted[term] + value if term in self.noted else value

    @property
    def logit_loss(self) -> Tensor | None:
        """The logit loss that all settings share, of this process, where the step has both logits."""
        return self.noted.get(COMMON.name)

    def local(self, names: Sequence[str], nothing: Tensor) -> list[Tensor]:
        """This process's part of each term and of the logit loss; `nothing` where its rows have no such token."""
        found = [self.terms.get(name, nothing) for name in names]
        return [value.double() for value in (*found, nothing if self.logit_loss is None else self.logit_loss)]

    @property
    def loss(self) -> float:
        """The weighted sum of the terms, over all processes."""
        return sum(self.weights[name] * value for name, value in self.totals.items()) + self.regulariser

    @property
    def broken(self) -> list[str]:
        """What of the loss is not finite: terms, or weights of terms. Where any is, no weight may be changed."""
        found = [f"term {name}" for name, value in self.totals.items() if not math.isfinite(value)]
        found += [f"weight of {name}" for name, value in self.weights.items() if not math.isfinite(value)]
        return found or ([] if math.isfinite(self.loss) else ["loss"])

    @property
    def skipped(self) -> str | None:
        """Why the update was skipped: what is not finite, such as `term hidden, layer 1`; None where it was taken.

        The layer is the first one of the student whose gradient is not finite.
        """
        assert self.norms is not None
        if not self.broken and self.norms.finite:
            return None
        return ", ".join([*(self.broken[:1] or ["gradient"]), *self.norms.broken[:1]])


def names_of(terms: Sequence[Term]) -> list[str]:
    """The names of some terms, each once."""
    return list(dict.fromkeys(term.name for term in terms))
