"""How important units are: neurons, heads, places inside heads, hidden units, layers. By weights, by activations, by Taylor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.families import family
from limbeck.models import inherit, kept_units
from limbeck.models.taps import Tapped

Text = Callable[[], Iterable[Batch]]


class Importance(NamedTuple):
    """Scores of a whole model, in fp64."""

    units: inherit.Scores  # as `inherit.choices` takes them
    layers: Tensor  # [L]


def taylor_importance(weight: Tensor, gradient: Tensor, axis: int = 0) -> Tensor:
    """What cutting each unit changes in the loss, by its first derivative: the sum over the unit's weights of (w g)^2.

    I_u = sum over i in u of (w_i g_i)^2, the squared change of the loss as each weight alone becomes 0. (The change as all of them do
    at once would be (sum w g)^2, where weights that change it in opposite ways hide each other.)

    Source: Molchanov et al. 2019, arXiv 1906.10771, equation 8 in the form of their released code.

    Args:
        weight: w, of any shape.
        gradient: g of the mean loss of a batch, of the same shape.
        axis: along which the units lie.

    Returns:
        One number for each unit, in fp64: `[units]`.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> taylor_importance(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, -1.0], [1.0, 5.0]]))
        tensor([5., 9.], dtype=torch.float64)
    """
    if weight.shape != gradient.shape:
        raise ValueError(f"weights of shape {tuple(weight.shape)} and gradients of shape {tuple(gradient.shape)}")
    product = (weight.detach() * gradient).square().double()
    others = [each for each in range(product.ndim) if each != axis % product.ndim]
    return product.sum(others) if others else product


def magnitude(model: PreTrainedModel) -> Importance:
    """The sum of the squared weights of a unit, and of a layer, in all its matrices."""
    parts, sizes = list(inherit.parts(model)), kept_units.sizes(model.config)
    units = inherit.squares(parts, sizes, range(sizes.layers + 1))
    layers = [
        sum(part.tensor.detach().double().square().sum() for part in parts if part.layer == layer and _is_matrix(part))
        for layer in range(1, sizes.layers + 1)
    ]
    return Importance(units, torch.stack([torch.as_tensor(each) for each in layers]))


def taylor(model: PreTrainedModel) -> Importance:
    """`taylor_importance` of the gradients that the model has now, of all parameters of a unit: matrices, biases, norms."""
    sizes = kept_units.sizes(model.config)
    lengths, once = sizes.axes, {id(part.tensor): part for part in inherit.parts(model) if part.axes}
    device = next(model.parameters()).device
    layers = torch.zeros(sizes.layers, dtype=torch.float64, device=device)
    units: inherit.Scores = {layer: {} for layer in range(sizes.layers + 1)}
    for part in once.values():
        if part.tensor.grad is None:
            continue
        if part.layer:
            layers[part.layer - 1] += taylor_importance(part.tensor.flatten(), part.tensor.grad.flatten()).sum()
        for axis, roles in enumerate(part.axes or ()):
            names = roles.split("+")
            if not set(names) <= lengths.keys():
                continue
            found, mine = taylor_importance(part.tensor, part.tensor.grad, axis), units[part.layer]
            for name, piece in zip(names, found.split([lengths[name] for name in names]), strict=True):
                mine[name] = mine[name] + piece if name in mine else piece
    return Importance(units, layers)


@torch.no_grad()
def activations(model: PreTrainedModel, text: Text) -> Importance:
    """How large activations are on some text, as Minitron has it (Muralidharan et al. 2024, arXiv 2407.14679), forward only.

    Of a channel the root over rows of the squares of the mean over kept tokens of |a|: for a neuron a is what the second matrix of
    the feed-forward layer is given, for a head what the output matrix of the attention is given, together over its channels; for a
    hidden unit it is added up over the norms, of whose outputs a is one. A layer counts as much as 1 - the mean cosine, over kept
    tokens, of what it is given and what it returns. Places inside a head are ranked by what they give away, and those of queries and
    keys by their weights, for no activation shows them. The model answers in evaluation mode.

    Args:
        model: stays as it is.
        text: batches.
    """
    sizes, training = kept_units.sizes(model.config), model.training
    sums = _Sums()
    with _listening(model.eval(), sums):
        for batch in text():
            sums.kept = batch["attention_mask"].bool()
            Tapped(model)(batch)
    model.train(training)
    units = {layer: dict(found) for layer, found in magnitude(model).units.items()}
    for layer, mine in units.items():
        norms = [value.sqrt() for (where, role, _), value in sums.squares.items() if (where, role) == (layer, "hidden")]
        mine.pop("embedding", None)
        mine["hidden"] = torch.stack(norms).sum(0) if norms else torch.zeros_like(mine["hidden"])
        if layer:
            given = next(v for (where, role, _), v in sums.squares.items() if (where, role) == (layer, "context"))
            mine["head"] = given.view(sizes.heads, -1).sum(-1).sqrt()
            mine |= {"context": given, "value": torch.ones_like(mine["value"])}
            mine["neuron"] = next(
                v for (where, role, _), v in sums.squares.items() if (where, role) == (layer, "neuron")
            ).sqrt()
    return Importance(units, 1 - torch.stack([sums.cosines[layer] for layer in sorted(sums.cosines)]) / sums.tokens)


class _Sums:
    """What activations add up to, in fp64."""

    def __init__(self) -> None:
        self.kept = torch.ones(0)
        self.squares: dict[tuple[int, str, str], Tensor] = {}  # layer, axis, module -> of each channel
        self.cosines: dict[int, Tensor] = {}
        self.tokens = 0

    def channels(self, key: tuple[int, str, str], states: Tensor) -> None:
        """Adds the squares of the mean over kept tokens of |a| `[B, T, C]`."""
        kept = self.kept.unsqueeze(-1)
        mean = torch.where(kept, states.double().abs(), 0).sum(1) / kept.sum(1).clamp(min=1)
        self.squares[key] = self.squares.get(key, 0) + mean.square().sum(0)

    def turned(self, layer: int, given: Tensor, returned: Tensor) -> None:
        """Adds the cosines of kept tokens."""
        cosine = torch.cosine_similarity(given.double(), returned.double(), dim=-1)
        self.cosines[layer] = self.cosines.get(layer, 0) + cosine[self.kept].sum()
        self.tokens += int(self.kept.sum()) if layer == 1 else 0


@contextmanager
def _listening(model: PreTrainedModel, sums: _Sums) -> Iterator[None]:
    """Inside, the modules add what passes through them."""
    row, whole = family(model.config.model_type), kept_units.sizes(model.config)
    base = model.get_submodule(row.base)
    with ExitStack() as stack:
        places: list[tuple[int, nn.Module, Mapping[str, str]]] = [(0, base, row.base_axes)]
        places += [(n, it, row.layer_axes) for n, it in enumerate(base.get_submodule(row.layers).children(), 1)]
        for layer, module, axes in places:
            for path, roles in axes.items():
                if roles in ("hidden neuron", "hidden context"):
                    hook = _given(sums, (layer, roles.split()[1], path))
                    stack.enter_context(module.get_submodule(path).register_forward_pre_hook(hook))
                elif roles == "hidden" or (roles == "embedding" and not whole.factorised):
                    hook = _returned(sums, (layer, "hidden", path))
                    stack.enter_context(module.get_submodule(path).register_forward_hook(hook))
            if layer:
                stack.enter_context(module.register_forward_hook(_both(sums, layer), with_kwargs=True))
        yield


def _given(sums: _Sums, key: tuple[int, str, str]) -> Any:
    return lambda module, args: sums.channels(key, args[0])


def _returned(sums: _Sums, key: tuple[int, str, str]) -> Any:
    return lambda module, args, output: sums.channels(key, output)


def _both(sums: _Sums, layer: int) -> Any:
    return lambda module, args, named, output: sums.turned(layer, args[0] if args else named["hidden_states"], output)


def _is_matrix(part: inherit.WeightPart) -> bool:
    return part.axes is not None and part.tensor.ndim == 2
