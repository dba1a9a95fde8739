"""Factor transfer's modules (Kim et al. 2018, arXiv 1802.04977), for tokens in place of pixels.

The paraphraser is an autoencoder of the teacher's features; what its encoder gives is the teacher's factor. It is trained
alone, before the student's first update, and then fixed. The translator makes the student's factor and learns with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from limbeck.distil.projections import Make
from limbeck.errors import Interrupted

RATE = 1e-3  # learning rate of the paraphraser's own stage


def _leaky(*widths: int) -> nn.Sequential:
    """Linear layers, each followed by a leaky ReLU of slope 0.1, the last one too, as the authors have it."""
    layers = [part for inside, outside in pairwise(widths) for part in (nn.Linear(inside, outside), nn.LeakyReLU(0.1))]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """Teacher features `[..., H]` -> factors `[..., K]`, and back while it is trained.

    Args:
        width: H.
        factors: K, the authors' round(rate H) at rate 0.5.
        steps: updates of its own stage.
    """

    def __init__(self, width: int, factors: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.encoder = _leaky(width, width, factors, factors)
        self.decoder = _leaky(factors, factors, width, width)
        self.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """The factors."""
        return self.encoder(features)

    def fit(self, features: Iterable[tuple[Tensor, Tensor]], stopped: Callable[[], bool]) -> tuple[float, float]:
        """The paraphraser's own stage: one AdamW update on each batch of features `[B, T, H]` with its mask `[B, T]`.

        The loss is the mean absolute error of the reconstruction over kept tokens and H.

        Returns:
            The first and the last loss.

        Raises:
            Interrupted: `stopped` said so; nothing is kept.
        """
        self.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=0.0)
        losses = []
        for states, mask in features:
            if stopped():
                raise Interrupted("stopped while the paraphraser was trained; run it again to begin anew")
            kept = states.to(next(self.parameters()).dtype)[mask]
            loss = (self.decoder(self.encoder(kept)) - kept).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        optimizer.zero_grad(set_to_none=True)
        self.requires_grad_(False)
        return losses[0], losses[-1]


def paraphraser(width: int, factors: int, steps: int) -> Make:
    """What makes a `Paraphraser`."""
    return lambda making: Paraphraser(width, factors, steps)


def translator(width: int, factors: int) -> Make:
    """What makes the student's side: three layers from its features to factors, trained with it."""
    return lambda making: _leaky(width, width, factors, factors)
