"""What is said of a student's weights, after units of it are cut: grids, factors and zeros of what is left."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from limbeck.families import family
from limbeck.models import inherit, kept_units
from limbeck.models.compressed import Compressed


@torch.no_grad()
def cut_small(
    small: Compressed,
    student: PreTrainedModel,
    origin: PreTrainedModel,
    pairs: Mapping[int, int],
    keep: Mapping[int, inherit.Keep],
) -> None:
    """Has `small` say of a student what it said of the model that it was cut out of, in place.

    Modules of layers that are gone are gone; those of others get the numbers of theirs. Of factors the rows of `up` and the columns of
    `down` are cut, and where queries are scaled `up` is.

    Args:
        small: what was said.
        student: what is left.
        origin: the model of which it is a part.
        pairs: layer of the student -> layer of the origin.
        keep: the units that are kept, of each of these layers and outside (0).
    """
    row, lengths = family(student.config.model_type), kept_units.sizes(origin.config).axes
    stack, back = f"{row.base}.{row.layers}.", {there: here for here, there in pairs.items()}

    def renamed(name: str) -> str | None:
        if not name.startswith(stack):
            return name
        number, _, path = name.removeprefix(stack).partition(".")
        here = back.get(int(number) + 1)
        return f"{stack}{here - 1}.{path}" if here else None

    weights = {
        part.name.removesuffix(".weight"): part for part in inherit.parts(origin) if part.name.endswith(".weight")
    }
    factors = {}
    for name, (down, up) in small.factors.items():
        part, mine = weights[name], renamed(name)
        if mine is None or part.axes is None:
            continue
        outputs, inputs = part.axes[::-1] if row.transposed and part.layer else part.axes
        if outputs == "vocab":  # a table: down [V, r], up [H, r]
            outputs, inputs = inputs, ""
        scale = 1.0
        if part.layer and "query" in outputs:
            scale = inherit.scale_of(student, origin, back[part.layer], part.layer)
        units = keep[part.layer]
        up = inherit.cut(part._replace(tensor=up, axes=(outputs, "rank")), units, lengths, scale)
        down = inherit.cut(part._replace(tensor=down, axes=("rank", inputs)), units, lengths, 1.0) if inputs else down
        factors[mine] = (down, up)
    grids = {mine: grid for name, grid in small.quantised.items() if (mine := renamed(name))}
    pruned = [mine for name in small.pruned if (mine := renamed(name))]
    small.factors.clear()
    small.factors.update(factors)
    small.quantised.clear()
    small.quantised.update(grids)
    small.pruned[:] = pruned
