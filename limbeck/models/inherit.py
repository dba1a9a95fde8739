"""A student begins with the weights of a larger model of its family: layers are chosen, widths are cut.

Every axis of every weight stands for something (anatomy.py): a unit of the hidden state, of a head, a neuron, a row of a
table. For each of these one choice is made (cuts.py), and every weight is cut along all its axes by the choices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.families import family, reserved_positions
from limbeck.models import kept_units, layer_maps

ROWS = ("vocab", "position", "type")  # axes whose units are taken from the first on
OUTSIDE = 0  # what belongs to no layer

Keep = dict[str, Tensor]  # axis -> its units that are kept, where some are not
Scores = dict[int, dict[str, Tensor]]  # layer -> axis -> how important each of its units is


class WeightPart(NamedTuple):
    """A parameter under one of its names."""

    name: str
    layer: int  # 0 outside of the layers
    path: str  # what it is called in related families too: from the layer, or the backbone (with a dot before it)
    tensor: Tensor
    axes: tuple[str, ...] | None  # what they stand for, None if nobody knows


@torch.no_grad()
def inherit(student: PreTrainedModel, origin: PreTrainedModel, which: layer_maps.LayerMap) -> list[str]:
    """Gives a student the weights of a model of its family that is as large or larger, in place.

    Layers are taken whole by the map. A narrower student keeps the units with the largest weights: one choice of hidden
    units for the whole model, one of heads and one of neurons for each layer. Where heads become narrower, queries are
    scaled so that scores are what they were. Rows of tables (tokens, positions) are taken from the first on. A narrower
    embedding of its own keeps the directions with the largest singular values (factorised as in Lan et al. 2019, arXiv
    1909.11942). What is in one model alone, or has other labels, stays as it is in the student. No random numbers.

    On the meta device nothing is ranked: it tells whether the sizes fit.

    Args:
        student: the model that gets the weights.
        origin: the model that it begins as; stays as it is.
        which: which layer of that model each of its layers is.

    Returns:
        Lines for people: what was cut, and what is left random.

    Raises:
        UserError: the families differ, or the student is larger somewhere, or its heads do not fit.
    """
    _related(student.config.model_type, origin.config.model_type)
    mine, theirs = kept_units.sizes(student.config), kept_units.sizes(origin.config)
    kept_units.fits(mine, theirs, family(student.config.model_type).rotary)
    try:
        pairs = {s: t for s, t in layer_maps.resolve(which, mine.layers, theirs.layers).items() if t}
    except UserError as error:
        raise UserError(f"models.student.from_layers: {error}") from None
    source = {(part.layer, part.path): part for part in parts(origin)}
    keep = choices(squares(list(source.values()), theirs, {OUTSIDE, *pairs.values()}), theirs, mine)
    told, done, first = _cut_lines(mine, theirs, pairs), set[int](), _first_positions(student, origin)
    if mine.factorised and not (theirs.factorised and mine.embedding == theirs.embedding):
        line, done = _embedding(student, source, (mine, theirs), keep[OUTSIDE], first)
        told.append(line)
    done = transfer(student, origin, pairs, keep, done)
    return [*told, *_row_lines(student, source), *_random_lines(student, done)]


@torch.no_grad()
def transfer(
    student: PreTrainedModel,
    origin: PreTrainedModel,
    pairs: Mapping[int, int],
    keep: Mapping[int, Keep],
    done: Collection[int] = (),
) -> set[int]:
    """Writes the units of an origin that are kept into a student of that size, in place.

    Args:
        student: the model that gets the weights.
        origin: the model that has them.
        pairs: layer of the student -> layer of the origin, from 1.
        keep: which units are kept of each of these layers, and outside of them (0).
        done: parameters that are written already, by identity.

    Returns:
        All parameters that are written then, by identity.
    """
    source = {(part.layer, part.path): part for part in parts(origin)}
    lengths, first, written = kept_units.sizes(origin.config).axes, _first_positions(student, origin), {*done}
    for part in parts(student):
        layer = pairs.get(part.layer) if part.layer else OUTSIDE
        given = source.get((layer, part.path)) if layer is not None else None
        if given is None or id(part.tensor) in written:
            continue
        scale = scale_of(student, origin, part.layer, layer) if layer and "query" in str(given.axes) else 1.0
        if _write(part, cut(given, keep[layer or OUTSIDE], lengths, scale), first):
            written.add(id(part.tensor))
    return written


def _related(mine: str, theirs: str) -> None:
    """Whether the layers of two families have the same parts."""
    if family(mine).layer_axes != family(theirs).layer_axes:
        raise UserError(
            f"models.student.family: a {mine} model cannot begin as a {theirs} model, whose layers have other parts; "
            f"set family: {theirs}, or init: random"
        )


def parts(model: PreTrainedModel) -> Iterator[WeightPart]:
    """Every parameter, under each of its names."""
    row = family(model.config.model_type)
    base, stack = f"{row.base}.", f"{row.base}.{row.layers}."
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name.startswith(stack):
            number, path = name.removeprefix(stack).split(".", 1)
            layer, table, key = int(number) + 1, row.layer_axes, path
        elif name.startswith(base):
            key = name.removeprefix(base)
            layer, table, path = OUTSIDE, row.base_axes, f".{key}"
        else:
            layer, table, path, key = OUTSIDE, row.head_axes, name, name
        module, _, leaf = key.rpartition(".")
        roles, factor = table.get(module), _factor(table, module)
        if path == name and roles and "embedding" in roles:  # heads of language models differ in names alone
            path = f"{roles} {leaf}"
        axes = tuple((roles or factor).split())[: tensor.ndim] or None
        if axes and layer and row.transposed and not factor:
            axes = axes[::-1]
        yield WeightPart(name, layer, path, tensor, axes)


def _factor(table: dict[str, str], module: str) -> str:
    """What the axes of a factor of a weight stand for, `down` or `up` (changes/factorise.py); "" of any other module."""
    whole, _, which = module.rpartition(".")
    if which not in ("down", "up") or whole not in table:
        return ""
    outputs, inputs = table[whole].split()
    if outputs == "vocab":
        return "vocab rank" if which == "down" else f"{inputs} rank"
    return f"rank {inputs}" if which == "down" else f"{outputs} rank"


def squares(all_parts: list[WeightPart], theirs: kept_units.Sizes, taken: Iterable[int]) -> Scores:
    """The sum of the squared weights of each unit, of the matrices of some layers and outside of them."""
    return {layer: kept_units.squares(_matrices(all_parts, layer), theirs.axes) for layer in taken}


def choices(found: Scores, theirs: kept_units.Sizes, mine: kept_units.Sizes) -> dict[int, Keep]:
    """The units that are kept, of each layer that has scores and outside of them: those with the largest ones.

    Args:
        found: the scores. Those of hidden units are added up over all that have some; for each layer that is cut there
            are those of its neurons, and what `kept_units.heads` asks for.
        theirs: the sizes that the scores have.
        mine: the sizes that are kept.
    """
    shared: Keep = {}
    if mine.hidden < theirs.hidden:
        names = ("hidden",) if theirs.factorised else ("hidden", "embedding")
        scores = torch.stack([each[name] for each in found.values() for name in names if name in each]).sum(0)
        shared["hidden"] = kept_units.largest(scores, mine.hidden)
        if not mine.factorised:
            shared["embedding"] = shared["hidden"]
    keep = {OUTSIDE: shared}
    for layer in found.keys() - {OUTSIDE}:
        keep[layer] = dict(shared)
        if (mine.heads, mine.kv_heads, mine.head_width) != (theirs.heads, theirs.kv_heads, theirs.head_width):
            keep[layer] |= kept_units.heads(found[layer], theirs, mine)
        if mine.neurons < theirs.neurons:
            keep[layer]["neuron"] = kept_units.largest(found[layer]["neuron"], mine.neurons)
    return keep


def _matrices(all_parts: list[WeightPart], layer: int) -> list[tuple[Tensor, tuple[str, ...]]]:
    """The matrices of a layer, or of none; tied ones once."""
    once = {id(part.tensor): part for part in all_parts if part.layer == layer and part.axes and part.tensor.ndim == 2}
    return [(part.tensor, part.axes) for part in once.values() if part.axes]


def cut(part: WeightPart, keep: Keep, lengths: dict[str, int], scale: float) -> Tensor:
    """A weight along whose axes only the kept units are left, its queries scaled."""
    value = part.tensor
    for axis, roles in enumerate(part.axes or ()):
        names = roles.split("+")
        if not keep.keys() & set(names) and (scale == 1 or "query" not in names):
            continue
        pieces = value.split([lengths[name] for name in names], axis) if len(names) > 1 else (value,)
        kept = [
            piece.index_select(axis, keep[name]) if name in keep else piece
            for name, piece in zip(names, pieces, strict=True)
        ]
        value = torch.cat([k * scale if name == "query" else k for name, k in zip(names, kept, strict=True)], axis)
    return value


def scale_of(student: PreTrainedModel, origin: PreTrainedModel, mine: int, theirs: int) -> float:
    """What queries are multiplied by so that scores stay: attention divides them by the root of the width of a head."""
    here, there = (_attention(model, layer) for model, layer in ((student, mine), (origin, theirs)))
    return there.scaling / here.scaling if hasattr(here, "scaling") else 1.0


def _attention(model: PreTrainedModel, layer: int) -> Any:
    row = family(model.config.model_type)
    return model.get_submodule(f"{row.base}.{row.layers}.{layer - 1}.{row.attention}")


def _first_positions(student: PreTrainedModel, origin: PreTrainedModel) -> tuple[int, int]:
    """The row of the first position in each: families that reserve some meet others behind those."""
    mine, theirs = (reserved_positions(model.config) for model in (student, origin))
    return (mine, theirs) if mine != theirs else (0, 0)


def _write(part: WeightPart, value: Tensor, first: tuple[int, int]) -> bool:
    """Writes a value into a parameter, of tables the rows that both have; whether it fits."""
    target = part.tensor
    for axis, role in enumerate(part.axes or ()):
        if role in ROWS and value.ndim == target.ndim:
            here, there = first if role == "position" else (0, 0)
            count = min(target.shape[axis] - here, value.shape[axis] - there)
            target, value = target.narrow(axis, here, count), value.narrow(axis, there, count)
    if target.shape != value.shape:
        return False
    target.copy_(value)
    return True


def _embedding(
    student: PreTrainedModel,
    source: dict[tuple[int, str], WeightPart],
    sizes: tuple[kept_units.Sizes, kept_units.Sizes],
    keep: Keep,
    first: tuple[int, int],
) -> tuple[str, set[int]]:
    """Gives a student with a projection behind its embedding one that fits, and a narrower embedding where it has one.

    With V the directions that are kept, the tables become E V and the projection P diag(g) V, where P is the origin's own
    projection or the choice of hidden units, and g the gain of its norm; the norm's shift goes into the projection's. The
    student's norm gets one gain for all, sqrt(share kept * e / r), by which what is kept is as large as it was between the
    e others: a norm divides by the mean size of the r that are left. What differs from the best approximation is the mean
    that the norm takes away.

    Returns:
        A line for people, and the parameters that are written, by identity.
    """
    mine, theirs = sizes
    base = {part.path: part for part in parts(student) if part.axes and part.path.startswith(".")}
    there = {part.path: part for part in source.values() if part.path in base}
    project = next(path for path, part in base.items() if part.axes == ("hidden", "embedding"))
    weight, bias = _onto_hidden(there, project, theirs, keep)
    values, line = {}, f"embedding {theirs.embedding} kept, and led onto the {mine.hidden} hidden units"
    if mine.embedding < theirs.embedding:
        tables = {path: part.tensor for path, part in there.items() if part.axes and part.axes[1:] == ("embedding",)}
        words = next(part.tensor for part in there.values() if part.axes == ("vocab", "embedding"))
        kept, share = kept_units.directions(words, mine.embedding)
        values = {path: table.double() @ kept for path, table in tables.items() if path != project}
        norm = next(path for path, part in base.items() if part.axes == ("embedding",)).rpartition(".")[0]
        gain, shift = (there[f"{norm}.{leaf}"].tensor.double() for leaf in ("weight", "bias"))
        bias, weight = bias + weight @ shift, weight * gain @ kept
        size = (share * theirs.embedding / mine.embedding).sqrt()
        values |= {f"{norm}.weight": size.expand(mine.embedding), f"{norm}.bias": torch.zeros_like(kept[0])}
        told = "" if share.is_meta else f" ({share.item():.0%} of the squares kept)".replace("%", " %")
        line = f"embedding {mine.embedding} of {theirs.embedding} by SVD{told}"
    values |= {project: weight, project.replace("weight", "bias"): bias}
    written = {id(base[path].tensor) for path, value in values.items() if _write(base[path], value, first)}
    return line, written


def _onto_hidden(
    there: dict[str, WeightPart], project: str, theirs: kept_units.Sizes, keep: Keep
) -> tuple[Tensor, Tensor]:
    """What leads from the origin's embedding to the hidden units that are kept, and its bias, in fp64 [H, e] and [H]."""
    device = next(iter(there.values())).tensor.device
    if theirs.factorised:
        both = (there[project], there[project.replace("weight", "bias")])
        weight, bias = (cut(part, keep, theirs.axes, 1.0).double() for part in both)
        return weight, bias
    whole = torch.eye(theirs.hidden, dtype=torch.float64, device=device)
    weight = whole.index_select(0, keep["hidden"]) if "hidden" in keep else whole
    return weight, torch.zeros_like(weight[:, 0])


def _cut_lines(mine: kept_units.Sizes, theirs: kept_units.Sizes, pairs: dict[int, int]) -> list[str]:
    """What is smaller in the student."""
    told = []
    if pairs != {layer: layer for layer in range(1, theirs.layers + 1)}:
        told.append(f"layers {theirs.layers} -> {mine.layers}: {layer_maps.describe(pairs)}")
    words = {"hidden": "hidden", "heads": "heads", "width of a head": "head_width", "feed-forward": "neurons"}
    if theirs.share > 1:
        words["key heads"] = "kv_heads"
    for word, name in words.items():
        small, large = getattr(mine, name), getattr(theirs, name)
        if small < large:
            told.append(f"{word} {large} -> {small} by norm")
    return told


def _row_lines(student: PreTrainedModel, source: dict[tuple[int, str], WeightPart]) -> list[str]:
    """Tables that are longer or shorter in the student."""
    told = []
    for part in parts(student):
        given = source.get((OUTSIDE, part.path))
        if given and part.path.startswith(".") and part.axes and part.axes[0] in ROWS:
            mine, theirs = part.tensor.shape[0], given.tensor.shape[0]
            if mine != theirs:
                more = f", the other {mine - theirs} random" if mine > theirs else ""
                told.append(f"rows of {part.axes[0]}: {min(mine, theirs)} of {theirs}{more}")
    return told


def _random_lines(student: PreTrainedModel, done: set[int]) -> list[str]:
    """What the student did not get: layers, modules, and parameters of modules that got something."""
    here = list(parts(student))
    given = {where for part in here if id(part.tensor) in done for where in (part.layer, part.name.rpartition(".")[0])}
    names = []
    for part in {id(part.tensor): part for part in here if id(part.tensor) not in done}.values():
        module = part.name.rpartition(".")[0]
        whole = f"layer {part.layer}" if part.layer and part.layer not in given else module
        names.append(part.name if module in given else whole)
    return [f"random: {', '.join(dict.fromkeys(names))}"] if names else []
