"""The layers of a model that hold a matrix: which there are, how they lie, what part of the model each one is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.families import family
from limbeck.models.changes.derived import KINDS, Conv1D, Derived


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers, Conv1D and embeddings, derived or not, by their names."""
    return {name: it for name, it in model.named_modules() if isinstance(it, (*KINDS, Derived))}


def layers_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers inside the transformer layers, by their names."""
    row = family(model.config.model_type)
    inside, found = f"{row.base}.{row.layers}.", matrices(model).items()
    return {name: layer for name, layer in found if name.startswith(inside) and not isinstance(layer, nn.Embedding)}


def outputs_first(layer: nn.Module) -> Tensor:
    """The weight of a layer as `[outputs, inputs]`, of an embedding `[V, width]`: to read and to write."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight.mT if isinstance(layer, Conv1D) else layer.weight


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Outputs and inputs; of an embedding V and width."""
    outputs, inputs = outputs_first(layer).shape
    return outputs, inputs


def part_of(model: PreTrainedModel, name: str) -> str:
    """What a layer is: `embedding` (of tokens, and a head that is tied to it), `head`, `layer`, or nothing of these."""
    row, layer = family(model.config.model_type), model.get_submodule(name)
    tables = [f"{row.base}.{path}" for path, axes in row.base_axes.items() if axes.startswith("vocab")]
    if name in tables or name.removesuffix(".down").removesuffix(".up") in tables:
        return "embedding"
    if any(_weight(model, path) is getattr(layer, "weight", None) for path in tables):
        return "embedding"
    if isinstance(layer, nn.Embedding):
        return ""
    heads = (*row.head, *row.classifier)
    return "head" if any(name == path or name.startswith(f"{path}.") for path in heads) else "layer"


def _weight(model: PreTrainedModel, path: str) -> Any:
    return getattr(model.get_submodule(path), "weight", None)
