"""A teacher whose linear layers hold int8 weights, through torchao, and what that does to its predictions."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.errors import UserError
from limbeck.losses import forward_kl
from limbeck.models.changes import Change
from limbeck.models.taps import Tapped


@dataclass(frozen=True)
class Effect:
    """How far a quantised model's predictions are from its own before, over the selected tokens of some text."""

    kl: float  # nats a token, KL(before || after)
    agreement: float  # share of the tokens of which both say the same first

    def facts(self) -> dict[str, float]:
        """For the manifest."""
        return asdict(self)


class Int8(Change):
    """A teacher's linear layers hold int8 weights.

    Args:
        sample: a batch on which the effect is measured.
        autocast: dtype of matrix products in the run.
    """

    def __init__(self, sample: Batch, autocast: torch.dtype | None = None) -> None:
        self.sample, self.autocast = sample, autocast
        self.effect: Effect | None = None

    def apply(self, model: PreTrainedModel) -> None:
        """Quantises, and measures what it changed; raises UserError where torchao is not installed."""
        self.effect = int8(model, self.sample, self.autocast)

    def facts(self) -> dict[str, Any]:
        """Its effect."""
        return {"int8": self.effect.facts()} if self.effect else {}

    def said(self) -> str:
        """Its effect, in words."""
        effect = self.effect
        return (
            f"in int8: {effect.kl:.2g} nats a token from its own predictions, {effect.agreement:.1%} the same first"
            if effect
            else ""
        )


def require() -> None:
    """Raises UserError where torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            "train.teacher_precision: int8 needs torchao; pip install 'limbeck[int8]', or leave the key out"
        )


@torch.no_grad()
def int8(model: PreTrainedModel, sample: Batch, autocast: torch.dtype | None = None) -> Effect:
    """Turns the weights of a model's linear layers into int8, one scale for each output, and measures what it changed.

    Activations stay as they are, and so do embeddings, norms and biases: w ~ s q, q in -127..127, s = max |w| / 127. It halves
    the memory of a bf16 teacher; matrix products are no faster for it on a CPU.

    Args:
        model: changed in place; for reading only.
        sample: a batch on which the effect is measured.
        autocast: dtype of matrix products in the run.

    Raises:
        UserError: torchao is not installed.
    """
    require()
    torchao = importlib.import_module("torchao.quantization")  # an extra
    before = _predictions(model, sample, autocast)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    after = _predictions(model, sample, autocast)
    agreed = (before.argmax(-1) == after.argmax(-1)).double().mean().item()
    return Effect(forward_kl(student=after, teacher=before).double().mean().item(), agreed)


def _predictions(model: PreTrainedModel, sample: Batch, autocast: torch.dtype | None) -> Tensor:
    tapped = Tapped(model.eval())
    with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
        return tapped.head(tapped(sample).features[sample["select"]])
