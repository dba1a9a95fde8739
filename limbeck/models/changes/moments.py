"""What layers are given: the sums of x x' over their inputs x, by which data-aware changes weigh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.models.taps import Tapped

ROWS = 256  # tokens of which a head answers at a time


@torch.no_grad()
def moments(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], text: Iterable[Batch], head: bool = False
) -> dict[str, Tensor]:
    """G = sum x x' of the inputs of some linear layers, over all tokens that are no padding.

    The model answers without dropout; it is left as it was.

    Args:
        model: it is asked.
        layers: of this model, by their names.
        text: batches, where the model is.
        head: whether the layers behind the last state are among them.

    Returns:
        name -> `[inputs, inputs]` in fp64; nothing of a layer that was not reached.
    """
    found: dict[str, Tensor] = {}
    here: dict[str, Any] = {}  # of the batch: what is attended `[B, T]`, and how many positions each layer has seen

    def hook(name: str) -> Callable[..., None]:
        def given(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            states = args[0]
            if states.dim() == 3:  # else rows of a classifier, or tokens of the head
                begin = here["seen"].get(name, 0)  # chunk_size_feed_forward: piece by piece
                here["seen"][name] = begin + states.shape[1]
                states = states[here["attended"][:, begin : begin + states.shape[1]]]
            states = states.double()
            found[name] = found.get(name, 0) + states.mT @ states

        return given

    modes = {module: module.training for module in model.modules()}
    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    tapped = Tapped(model.eval())
    try:
        for batch in text:
            here["attended"], here["seen"] = batch["attention_mask"].bool(), {}
            features = tapped(batch).features
            if head:
                rows = features if features.dim() == 2 else features[here["attended"]]
                for some in rows.split(ROWS):
                    tapped.head(some)
    finally:
        for each in hooks:
            each.remove()
        for module, training in modes.items():
            module.training = training
    return found
