"""The attention function that limbeck registers with transformers: a fast kernel that can be listened to.

B batch, T queries, S keys, h heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "limbeck"
SHORT = 512  # keys up to which two matrix products beat the fused kernel of a CPU (docs/log.md has the measurement)


@dataclass(frozen=True)
class Attended:
    """What one attention module was given in one call."""

    query_BhTd: Tensor
    key_BhSd: Tensor
    value_BhSd: Tensor
    mask: Tensor | None
    causal: bool
    scaling: float

    def visible(self) -> Tensor | None:
        """Which key each query sees: bool `[B, 1, T, S]`; None where every query sees every key."""
        if self.mask is not None:
            return self.mask if self.mask.dtype == torch.bool else self.mask >= 0
        if not self.causal:
            return None
        shape = (self.query_BhTd.shape[2], self.key_BhSd.shape[2])
        seen = torch.ones(shape, dtype=torch.bool, device=self.query_BhTd.device).tril()
        return seen.expand(self.query_BhTd.shape[0], 1, *shape)

    def queries(self, some: slice) -> Attended:
        """The same of some of the queries."""
        seen = self.visible()
        kept = None if seen is None else seen[:, :, some]
        return replace(self, query_BhTd=self.query_BhTd[:, :, some], mask=kept, causal=False)

    def scores(self) -> Tensor:
        """q.k times the model's scaling, before mask and softmax: `[B, h, T, S]`, fp32 or wider."""
        query = self.query_BhTd
        with torch.autocast(query.device.type, enabled=False):
            wider = torch.float64 if query.dtype == torch.float64 else torch.float32
            keys = _every_head(self.key_BhSd, query).to(wider)
            return (query.to(wider) * self.scaling) @ keys.transpose(-1, -2)

    def probabilities(self) -> Tensor:
        """Softmax over the visible keys: `[B, h, T, S]`; all 0 for a query that sees none."""
        seen = self.visible()
        if seen is None:
            return self.scores().softmax(-1)
        return self.scores().masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0)


class Recorder:
    """Remembers what the attention modules of one model are given during one call.

    Args:
        layers: the modules to listen to, each with its layer number.
        valued: the layers whose values are asked for; of others they are not held.
    """

    def __init__(self, layers: Mapping[nn.Module, int], valued: Collection[int] = ()) -> None:
        self.layers, self.valued = layers, valued
        self.attended: dict[int, Attended] = {}

    def note(self, module: nn.Module, given: Attended) -> None:
        """What a module was given."""
        layer = self.layers.get(module)
        if layer is not None:
            nothing = given.value_BhSd.new_empty(0)
            self.attended[layer] = given if layer in self.valued else replace(given, value_BhSd=nothing)


active: ContextVar[Recorder | None] = ContextVar("limbeck_recorder", default=None)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; the active recorder notes what the modules that it listens to were given."""
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    given = Attended(query, key, value, attention_mask, causal, scaling)
    recorder = active.get()
    if recorder:
        recorder.note(module, given)
    if query.device.type == "cpu" and key.shape[2] <= SHORT and kwargs.get("position_bias") is None:
        return plain(given, kwargs.get("dropout", 0.0)), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def plain(given: Attended, dropout: float) -> Tensor:
    """Attention as two matrix products: `[B, T, h, d]`."""
    query = given.query_BhTd
    scores = (query * given.scaling) @ _every_head(given.key_BhSd, query).transpose(-1, -2)
    seen = given.visible()
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    probabilities = F.dropout(scores.softmax(-1), dropout) if dropout else scores.softmax(-1)
    return (probabilities @ _every_head(given.value_BhSd, query)).transpose(1, 2).contiguous()


def _every_head(keys: Tensor, query: Tensor) -> Tensor:
    """Keys or values with one head for every query head (grouped-query attention shares them)."""
    return repeat_kv(keys, query.shape[1] // keys.shape[1])


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
