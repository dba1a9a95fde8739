"""What changes make of the students of each setting, known before training: parameters, multiply-accumulates, bytes, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from limbeck.assemble import changes
from limbeck.assemble.design import Design
from limbeck.models import flops, students
from limbeck.models.changes import Change, facts_of
from limbeck.models.changes.layers import matrices, part_of, shape_of
from limbeck.models.compressed import Compressed, Grid

FULL = 32  # bits of a weight on no grid, and of a scale

Row = Sequence[object]


class Size(NamedTuple):
    """How large a student is."""

    parameters: int
    macs: int  # of a row of full length, zeros included
    bytes: float  # weights and scales, zeros included


def rows(plan: Design) -> list[Row]:
    """A line for what there is before, and one for each setting that has changes; none where no setting has any."""
    made = {name: changes.of_setting(plan.recipe, name, tuple) for name in plan.terms}
    told = {name: [*start, *end] for name, (start, end) in made.items() if start or end}
    if not told:
        return []
    found: list[Row] = [("changes", "what", "parameters", "MMAC a row", "KiB", "layers")]
    found.append(("  before", "", *_numbers(size_of(plan, [])[0]), ""))
    for name, done in told.items():
        size, small = size_of(plan, done)
        when = " at the end" if made[name][1] else ""
        found.append((f"  {name}", _said(done) + when, *_numbers(size), _layers(plan, done, small)))
    return found


def size_of(plan: Design, done: Sequence[Change]) -> tuple[Size, Compressed]:
    """The size of a student that is changed so, and what is said of the weights that it has in the end."""
    said, config, length = Compressed(), plan.student, plan.recipe.data.max_length
    for change in done:
        change.outline(_on_meta(config), said)
        config = change.shrunk(config)
    model = _on_meta(config)
    layers = matrices(model)
    small = Compressed(
        {name: grid for name, grid in said.quantised.items() if name in layers},
        {name: _of_rank(layers[name], up.shape[1]) for name, (_, up) in said.factors.items() if name in layers},
        [name for name in said.pruned if name in layers],
    )
    parameters, macs, stored = 0, flops.macs(config, length), 0.0
    names = {id(layer.weight): name for name, layer in reversed(layers.items())}  # of tied ones the first
    for parameter in model.parameters():
        name = names.get(id(parameter), "")
        whole = torch.Size(shape_of(layers[name])) if name else parameter.shape
        for shape in [it.shape for it in small.factors.get(name, ())] or [whole]:
            parameters += shape.numel()
            stored += _bytes(shape, small.quantised.get(name))
    for name in small.factors:
        macs += _more(model, layers, name, small.factors[name], length)
    return Size(parameters, macs, stored), small


def _of_rank(layer: torch.nn.Module, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of this rank of a layer, without what is in them: `down` and `up`."""
    outputs, inputs = shape_of(layer)
    if isinstance(layer, torch.nn.Embedding):
        table = layer.weight.shape
        return torch.empty(table[0], rank, device="meta"), torch.empty(table[1], rank, device="meta")
    return torch.empty(rank, inputs, device="meta"), torch.empty(outputs, rank, device="meta")


def _more(
    model: PreTrainedModel,
    layers: Mapping[str, torch.nn.Module],
    name: str,
    factors: tuple[torch.Tensor, torch.Tensor],
    length: int,
) -> int:
    """Multiply-accumulates of a row that two factors take more than the whole: below 0 where they save some."""
    weight = layers[name].get_parameter("weight")
    both, whole = sum(factor.numel() for factor in factors), weight.numel()
    if isinstance(layers[name], torch.nn.Embedding):  # is looked up; a tied head multiplies by it
        tied = sum(it.get_parameter("weight") is weight for it in layers.values()) - 1
        return length * (factors[1].numel() + tied * (both - whole))
    once = bool(model.config.problem_type) and part_of(model, name) == "head"  # a classifier's, of a row
    return (1 if once else length) * (both - whole)


def _bytes(shape: torch.Size, grid: Grid | None) -> float:
    if grid is None:
        return shape.numel() * FULL / 8
    scales = shape[0] * (ceil(shape[-1] / grid.group) if grid.group else 1)
    return (shape.numel() * grid.bits + scales * FULL) / 8


def _numbers(size: Size) -> tuple[int, str, int]:
    return size.parameters, f"{size.macs / 1e6:,.4g}", round(size.bytes / 1024)


def _said(done: Sequence[Change]) -> str:
    """What the changes are, by their facts: `prune neurons 0.5`."""
    said = []
    for change in done:
        for word, fact in facts_of([change]).items():
            plain = (
                {} if not isinstance(fact, dict) else {k: v for k, v in fact.items() if v not in (None, False, (), "")}
            )
            first = [f"{k} {v}" for k, v in plain.items() if k not in ("begin", "end", "every", "rate")]
            said.append(" ".join([word, *first]))
    return "; ".join(said) or ", ".join(type(change).__name__ for change in done)


def _layers(plan: Design, done: Sequence[Change], small: Compressed) -> str:
    """How many layers change, and how."""
    counts = {"quantised": len(small.quantised), "pruned": len(small.pruned), "factorised": len(small.factors)}
    smaller = _changed(_on_meta(plan.student), _on_meta(_shrunk(plan, done)))
    said = [f"{count} {word}" for word, count in {**counts, "smaller or gone": smaller}.items() if count]
    return ", ".join(said)


def _shrunk(plan: Design, done: Sequence[Change]) -> PretrainedConfig:
    config = plan.student
    for change in done:
        config = change.shrunk(config)
    return config


def _on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """A model without its weights."""
    with torch.device("meta"):
        return students.build(config, seed=0)


def _changed(before: PreTrainedModel, after: PreTrainedModel) -> int:
    """Linear layers and embeddings of another shape, or gone."""
    one, other = (
        {name: tuple(layer.get_parameter("weight").shape) for name, layer in matrices(model).items()}
        for model in (before, after)
    )
    return sum(other.get(name) != shape for name, shape in one.items())
