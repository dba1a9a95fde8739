"""Balance: how the terms of one student are weighed against each other, beside the weights that the recipe states.

With raw losses one term can be 10,000 times another and silence it. A balance multiplies the weight of term i by

- `none`: 1;
- `initial`: 1 / L_i, its value at the first probe, so that all terms begin at 1;
- `gradient`: mean_j |g_j| / |g_i|, so that all terms pull with equal strength: |g_i| is the norm of the term's gradient in
  the student's parameters, measured by a probe every few updates and held until the next;
- `uncertainty`: exp(-s_i), s_i a learned log-variance; the loss is sum_i w_i (exp(-s_i) L_i + s_i) (Kendall et al. 2018,
  arXiv 1705.07115, without the constant halves), which draws exp(-s_i) L_i towards 1. s_i begins at log L_i, where it is
  right: from 0 it would take thousands of updates to get there.

A term whose gradient is below a millionth of the largest at a probe (rounding, in fp32), or whose value is 0, keeps the factor
1: there is nothing to balance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ROUNDING = 1e-6  # share of the largest gradient norm below which a gradient is none


@dataclass(frozen=True)
class Probed:
    """What a probe found of one term, over a whole optimizer step."""

    value: float
    gradient_norm: float  # of all the student's parameters, unweighted
    cosines: Mapping[str, float | None] = field(default_factory=dict, compare=False)  # with the gradients of all terms


class Balance(nn.Module):
    """The factors of a learner's terms; its state is in the learner's checkpoint.

    Args:
        how: none, initial, gradient or uncertainty.
        terms: the names of the terms.
    """

    factors: Tensor  # [terms], of `initial` and `gradient`
    probes: Tensor  # [], how many there were

    def __init__(self, how: str = "none", terms: Sequence[str] = ()) -> None:
        super().__init__()
        self.how, self.terms = how, list(terms)
        self.register_buffer("factors", torch.ones(len(self.terms)))
        self.register_buffer("probes", torch.zeros((), dtype=torch.long))
        if how == "uncertainty":
            self.log_variances = nn.Parameter(torch.zeros(len(self.terms)))

    @property
    def waits(self) -> bool:
        """Whether it weighs terms and no probe has told it how."""
        return self.how != "none" and bool(self.terms) and not self.probes

    def factor(self, term: str) -> float | Tensor:
        """What the weight of a term is multiplied by."""
        if self.how == "none":
            return 1.0
        factors = torch.exp(-self.log_variances.detach()) if self.how == "uncertainty" else self.factors
        return factors[self.terms.index(term)]

    def regulariser(self, weights: Mapping[str, float]) -> float:
        """What is added to the loss: the weighted sum of the log-variances."""
        if self.how != "uncertainty":
            return 0.0
        return sum(weights[term] * s for term, s in zip(self.terms, self.log_variances.tolist(), strict=True))

    def learn(self, found: Mapping[str, Probed]) -> None:
        """Sets the factors from a probe; from none in which a number is not finite: the next one counts."""
        if not self.terms:
            return
        values, norms = zip(*((found[term].value, found[term].gradient_norm) for term in self.terms), strict=True)
        if not all(map(math.isfinite, (*values, *norms))):
            return
        alive = [norm > ROUNDING * max(norms) for norm in norms]
        if self.how == "initial" and not self.probes:
            self._set(
                self.factors, [_inverse(value) if here else 1.0 for value, here in zip(values, alive, strict=True)]
            )
        if self.how == "uncertainty" and not self.probes:
            begin = [-math.log(_inverse(value)) if here else 0.0 for value, here in zip(values, alive, strict=True)]
            self._set(self.log_variances, begin)
        if self.how == "gradient":
            mean = sum(norms) / len(norms)
            self._set(
                self.factors, [mean * _inverse(norm) if here else 1.0 for norm, here in zip(norms, alive, strict=True)]
            )
        self.probes += 1

    def differentiate(self, values: Mapping[str, Tensor], weights: Mapping[str, float], processes: int) -> None:
        """The gradient of the log-variances, from this process's part of each term: w_i (1 - exp(-s_i) L_i)."""
        if self.how == "uncertainty":
            s = self.log_variances.detach()
            parts = torch.stack([values.get(term, s[0] * 0).to(s) for term in self.terms])
            scale = torch.tensor([weights[term] for term in self.terms], dtype=torch.float64).to(s)
            self.log_variances.grad = scale * (1 / processes - torch.exp(-s) * parts)

    @staticmethod
    @torch.no_grad()
    def _set(tensor: Tensor, numbers: list[float]) -> None:
        tensor.copy_(torch.tensor(numbers, dtype=torch.float64))


def _inverse(value: float) -> float:
    return 1 / value if 0 < value < math.inf else 1.0


def gradient_shares(found: Mapping[str, Probed], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each weighted term in the sum of the gradient norms.

    >>> gradient_shares({"a": Probed(1.0, 3.0), "b": Probed(9.0, 1.0)}, {"a": 1.0, "b": 1.0})
    {'a': 0.75, 'b': 0.25}
    """
    parts = {term: weights[term] * probed.gradient_norm for term, probed in found.items()}
    total = sum(parts.values())
    return {term: part / total if total else 0.0 for term, part in parts.items()}
