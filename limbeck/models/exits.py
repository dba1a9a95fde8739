"""Early exits: heads behind inner layers, so that a model can answer before its last layer.

A head is a copy of the model's own, begins with its weights, and shares what the model itself shares: a decoder tied to the
embedding stays tied. So what lies up to an exit is a plain model of fewer layers (`cut`), and the whole one can stop where it is
sure (`EarlyExit`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from limbeck.errors import UserError
from limbeck.models import pretrained, students
from limbeck.models.taps import Tapped
from limbeck.recipe import models
from limbeck.system.files import path_of

FILE = "exits.safetensors"
_NOT_OF_ITS_SHAPE = ("model_type", "architectures", "dtype", "transformers_version", "_name_or_path")


class Exit(nn.Module):
    """The head of one early exit.

    Args:
        tapped: the model whose head is copied, with the norm before it where there is one.

    Raises:
        UserError: the model takes the mean of its tokens behind that norm; an exit's tokens are pooled before it.
    """

    def __init__(self, tapped: Tapped) -> None:
        super().__init__()
        means = tapped.classifies and getattr(tapped.model.config, "classifier_pooling", "cls") == "mean"
        if means and tapped.final_norm is not None:
            raise UserError("an exit cannot take the mean of normed tokens; set classifier_pooling of the model to cls")
        embedding = tapped.model.get_input_embeddings().weight
        norms = [tapped.final_norm] if tapped.final_norm is not None else []
        self.columns = tapped.columns
        self.parts = [copy.deepcopy(part, {id(embedding): embedding}) for part in (*norms, *tapped.heads)]
        self.held = nn.ModuleList([part for part in self.parts if isinstance(part, nn.Module)])
        for module in self.held.modules():
            for name in [name for name, p in module.named_parameters(recurse=False) if p is embedding]:
                delattr(module, name)
                object.__setattr__(module, name, embedding)  # used here, trained and kept by the model

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states of some tokens or rows `[n, H]` -> logits `[n, V]`."""
        for part in self.parts:
            states = part(states)
        return states if self.columns is None else states[..., : self.columns]


@torch.no_grad()
def cut(model: PreTrainedModel, exit: nn.Module, layer: int) -> PreTrainedModel:
    """The plain model that ends with an exit: layers 1 to `layer`, and the exit's head."""
    assert isinstance(exit, Exit)
    said = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_ITS_SHAPE}
    said[Tapped(model).family.n_layers] = layer
    if said.get("layer_types"):
        said["layer_types"] = said["layer_types"][:layer]
    small = students.build(AutoConfig.for_model(model.config.model_type, **said), seed=0)
    nn.Module.to(small, next(model.parameters()).dtype)
    source = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        parameter.copy_(source[name])
    tapped = Tapped(small)
    norms = [tapped.final_norm] if tapped.final_norm is not None else []
    for part, trained in zip((*norms, *tapped.heads), exit.parts, strict=True):
        if isinstance(part, nn.Module) and isinstance(trained, nn.Module):
            kept = dict(part.named_parameters())
            for name, parameter in trained.named_parameters():
                kept[name].copy_(parameter)
    return small


def save(folder: Path, exits: Mapping[str, nn.Module]) -> None:
    """Writes the heads of a model's exits into its folder; `exits` maps `exit.3` to the head behind layer 3."""
    named = {f"{tap}.{name}": p for tap, exit in exits.items() for name, p in exit.named_parameters()}
    save_file({name: p.detach().cpu().contiguous() for name, p in named.items()}, folder / FILE)


class _Answered(Exception):
    """Nothing more is to be computed."""


class EarlyExit:
    """A model that answers each row at the first exit where it is sure, and computes no layer that no row needs.

    Example:
        >>> model = EarlyExit.load("runs/exits/students/exits-seed0")                  # doctest: +SKIP
        >>> logits, layers = model({"input_ids": ids, "attention_mask": mask}, 0.9)    # doctest: +SKIP

    Args:
        model: the whole model.
        exits: layer -> the head behind it.

    Raises:
        UserError: it predicts a score, of which nothing says how sure it is.
    """

    def __init__(self, model: PreTrainedModel, exits: Mapping[int, Exit]) -> None:
        self.tapped, self.exits = Tapped(model.eval()), {layer: exits[layer] for layer in sorted(exits)}
        if self.tapped.classifies and model.config.num_labels == 1:
            raise UserError("a score has no probability to be sure by; use the models in exit-N, or the whole one")

    @classmethod
    def load(cls, folder: str | Path) -> EarlyExit:
        """Reads a student that was trained with exits.

        Raises:
            UserError: there are no exits, they do not fit the model, or it predicts a score.
        """
        source, path = models.Source(source=str(folder)), path_of(folder) / FILE
        if not path.is_file():
            raise UserError(f"{folder}: no {FILE} there; name a student that was trained with exits")
        model, tensors = pretrained.model_of(source, torch.float32), load_file(path)
        tapped = Tapped(model)
        exits = {layer: Exit(tapped) for layer in {int(name.split(".")[1]) for name in tensors}}
        held = {f"exit.{layer}.{name}": p for layer, exit in exits.items() for name, p in exit.named_parameters()}
        shapes = [{name: tensor.shape for name, tensor in named.items()} for named in (held, tensors)]
        if shapes[0] != shapes[1] or max(exits) >= tapped.depth:
            raise UserError(f"{path}: of another model than the one beside it; put the two of one training together")
        with torch.no_grad():
            for name, parameter in held.items():
                parameter.copy_(tensors[name])
        return cls(model, exits)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], confidence: float) -> tuple[Tensor, Tensor]:
        """Answers a batch.

        Args:
            batch: `input_ids [B, T]`, and `attention_mask` where there is padding.
            confidence: the probability of the likeliest answer from which on an exit is sure; above 1 none ever is. A
                language model is sure of a row where it is sure of each of its tokens.

        Returns:
            Logits `[B, C]` (of a language model `[B, T, V]`), and the layer behind which each row was answered `[B]`.
        """
        rows, depth = batch["input_ids"], self.tapped.depth
        attended = batch.get("attention_mask", torch.ones_like(rows)).bool()
        given: list[Tensor] = []
        layers = torch.full((len(rows),), depth, device=rows.device)

        def ask(layer: int) -> Callable[..., None]:
            def returned(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                states = output if isinstance(output, Tensor) else output[0]
                logits = self.exits[layer](self.tapped.pool(states, attended))
                sure = logits.softmax(-1).amax(-1) >= confidence
                sure = sure if self.tapped.classifies else (sure | ~attended).all(1)
                fresh = sure & (layers == depth)
                answers = given.pop() if given else torch.zeros_like(logits)
                answers[fresh], layers[fresh] = logits[fresh], layer
                given.append(answers)
                if bool((layers < depth).all()):
                    raise _Answered

            return returned

        with ExitStack() as stack:
            for layer in self.exits:
                stack.enter_context(self.tapped.layers[layer - 1].register_forward_hook(ask(layer)))
            try:
                logits = self.tapped(batch)["logits"]
            except _Answered:
                return given[0], layers
        late = layers == depth
        return torch.where(late.reshape(-1, *[1] * (logits.dim() - 1)), logits, given[0]) if given else logits, layers
