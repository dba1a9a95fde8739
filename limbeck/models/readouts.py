"""A readout taken apart into tensors that can be kept, and put together again.

B batch, T tokens, D width of a state, h heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from limbeck.families import heads_of
from limbeck.models.attention import Attended
from limbeck.models.taps import Readout, Recording, Tapped, parse

PARTS = {"scores": ("query", "key"), "probs": ("query", "key"), "pooled": ("hidden",)}  # what a tap is computed from
HEADED = ("query", "key", "value")


def kept(taps: Iterable[str], depth: int) -> tuple[str, ...]:
    """The states from which some taps of a model are computed, the logits apart: `hidden.3`, `query.2`, ..."""
    places = [parse(tap, depth) for tap in taps]
    found = {f"{part}.{layer}" for kind, layer in places for part in PARTS.get(kind, (kind,))}
    return tuple(sorted(state for state in found if not state.startswith(("logits", "exit"))))


def states(readout: Readout, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Some states of a readout, one vector a token: `[B, T, D]`."""
    found = {name: readout.states if name == readout.last else readout[name] for name in names}
    return {name: it.transpose(1, 2).flatten(2) if it.dim() == 4 else it for name, it in found.items()}


class Recall:
    """Puts readouts together from what was kept of them.

    What is no tensor of the text, which positions see each other and the scaling of their products, is asked of the model once.

    Args:
        tapped: the model whose readouts they are.
        length: T, the most tokens of a row.
    """

    def __init__(self, tapped: Tapped, length: int) -> None:
        self.tapped, self.names = tapped, kept(tapped.taps, tapped.depth)
        self._seen: dict[int, tuple[Tensor | None, float]] = {}
        layers = {parse(name, tapped.depth)[1] for name in self.names if name.startswith(HEADED)}
        if layers:
            ids = torch.zeros((1, length), dtype=torch.long, device=tapped.model.device)
            with torch.no_grad():
                recording = tapped({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, whole=False).recording
            for layer in layers:
                attended = recording.attended[layer]
                self._seen[layer] = (attended.visible(), attended.scaling)

    def readout(
        self,
        states: Mapping[str, Tensor],
        attended: Tensor,
        features: Tensor,
        head: Callable[[Tensor], Tensor],
    ) -> Readout:
        """The readout of a batch.

        Args:
            states: name -> `[B, T, D]`.
            attended: which tokens are no padding `[B, T]`.
            features: what the head takes.
            head: from features to logits.
        """
        recording, depth = Recording({}), self.tapped.depth
        for name, state in states.items():
            kind, layer = parse(name, depth)
            if kind not in HEADED:
                getattr(recording, kind)[layer] = state
        for layer in self._seen:
            recording.attended[layer] = self._attended(layer, states, attended)
        last = recording.hidden.get(depth, features)
        return Readout(self.tapped.taps, depth, last, attended, head, recording, lambda states, attended: features)

    def _attended(self, layer: int, states: Mapping[str, Tensor], attended: Tensor) -> Attended:
        seen, scaling = self._seen[layer]
        length = attended.shape[1]
        mask = None if seen is None else seen[:, :, :length, :length].to(attended.device)
        if not attended.bool().all():
            keys = attended.bool()[:, None, None, :]
            mask = keys.expand(-1, 1, length, -1) if mask is None else mask & keys
        query, key, value = (self._split(states.get(f"{kind}.{layer}"), kind) for kind in HEADED)
        return Attended(query, key, value, mask, False, scaling)

    def _split(self, state: Tensor | None, kind: str) -> Tensor:
        if state is None:
            return torch.empty(0)  # no term asks for it
        return state.unflatten(2, (heads_of(self.tapped.model.config, kind), -1)).transpose(1, 2)
