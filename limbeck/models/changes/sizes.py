"""How many units of a model are left: whole numbers that the config of its family can say."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

from transformers import PretrainedConfig

from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models import kept_units
from limbeck.models.kept_units import Sizes

_SLACK = 1e-9  # 0.3 of 10 is 3


@dataclass(frozen=True)
class Shares:
    """The shares of units that go; None: all stay."""

    neurons: float | None = None
    heads: float | None = None
    hidden: float | None = None
    layers: float | None = None


def left_of(config: PretrainedConfig, shares: Shares, progress: float = 1.0) -> Sizes:
    """The sizes of a model of which a part of these shares is cut.

    Of n units int(share n) go, the same number in every layer. Where query heads share key heads, so many go of each key head's;
    otherwise a head goes with its keys and values. Hidden units stay a multiple of the heads. Where the config has no width of a
    head it is hidden / heads: then heads become narrower with the hidden units, and as many stay as these need; where positions
    turn the places of a head the width stays, and hidden units go as whole heads do.

    Args:
        config: of the whole model.
        shares: what goes in the end.
        progress: which part of the shares is cut, 0 to 1.
    """
    whole, row = kept_units.sizes(config), family(config.model_type)
    each = _left(whole.share, shares.heads, progress) if whole.share > 1 else 1
    groups = whole.kv_heads if whole.share > 1 else _left(whole.kv_heads, shares.heads, progress)
    hidden, heads, width = _left(whole.hidden, shares.hidden, progress), groups * each, whole.head_width
    if not _says_width(config):
        heads = max(heads, math.ceil(hidden / width))
        groups = heads
    hidden = math.ceil(hidden / heads) * heads
    if not _says_width(config) and (shares.hidden or shares.heads):
        hidden = heads * width if row.rotary else hidden
        width = hidden // heads
    found = replace(
        whole,
        layers=_left(whole.layers, shares.layers, progress),
        hidden=hidden,
        embedding=whole.embedding if whole.factorised else hidden,
        heads=heads,
        kv_heads=groups,
        head_width=width,
        neurons=_left(whole.neurons, shares.neurons, progress),
    )
    return found if progress == 1 else between(config, max, found, left_of(config, shares))


def between(config: PretrainedConfig, which: Callable[[int, int], int], one: Sizes, other: Sizes) -> Sizes:
    """The larger (`max`) or smaller (`min`) of each size; where heads have hidden / heads, hidden units follow the heads."""
    found = Sizes(*(which(mine, theirs) for mine, theirs in zip(astuple(one), astuple(other), strict=True)))
    if _says_width(config):
        return found
    hidden = found.heads * found.head_width
    return replace(found, hidden=hidden, embedding=found.embedding if one.factorised else hidden)


def require(config: PretrainedConfig, shares: Shares) -> None:
    """Whether a model of this config can lose these shares.

    Raises:
        UserError: it cannot; said before any weight is read.
    """
    whole, mine, kind = kept_units.sizes(config), left_of(config, shares), config.model_type
    where, width = "changes: prune", whole.head_width
    if shares.heads and not _says_width(config):
        wanted = _left(whole.heads, shares.heads, 1.0)
        if mine.heads != wanted:
            raise UserError(
                f"{where}: heads: the config of {kind} models has no width of a head, and {wanted} heads of {width} do not fill "
                f"{mine.hidden} hidden units; give hidden the same share too, or prune neurons"
            )
    if shares.hidden and not _says_width(config) and family(kind).rotary:
        wanted = _left(whole.hidden, shares.hidden, 1.0)
        if mine.hidden != wanted:
            raise UserError(
                f"{where}: hidden: positions turn the places of a head in pairs, so a head of {kind} models keeps its width of {width}, "
                f"and {wanted} hidden units are not {mine.heads} heads; give heads the same share as hidden, so that whole heads go"
            )
    counts = {"neurons": whole.neurons, "heads": whole.share if whole.share > 1 else whole.heads}
    counts |= {"hidden": whole.hidden, "layers": whole.layers}
    gone = {name: _gone(count, getattr(shares, name)) for name, count in counts.items()}
    gone["hidden"] = whole.hidden - mine.hidden
    for name, count in counts.items():
        if getattr(shares, name) is not None and not gone[name]:
            units = "query heads of a key head" if name == "heads" and whole.share > 1 else name
            least = whole.heads / whole.hidden if name == "hidden" else 1 / count
            raise UserError(
                f"{where}: {name}: {getattr(shares, name)} of {count} {units} is none; set it to {math.ceil(least * 100) / 100:g} or "
                "more, or leave it out"
            )
    if whole.factorised and not mine.factorised:
        raise UserError(
            f"{where}: hidden: {mine.hidden} hidden units are as many as the embedding has, and nothing would lead from it to the "
            "layers; choose another share"
        )
    if shares.layers and len(set(getattr(config, "layer_types", None) or ())) > 1:
        raise UserError(
            f"{where}: layers: those of this {kind} model differ in how far they see, and its config says by their numbers which sees "
            "how far; prune neurons, heads or hidden"
        )


def resized(config: PretrainedConfig, sizes: Sizes) -> PretrainedConfig:
    """The config of a model of these sizes."""
    config, row = copy.deepcopy(config), family(config.model_type)
    said = {
        row.n_layers: sizes.layers,
        row.width: sizes.hidden,
        row.n_heads: sizes.heads,
        row.intermediate: sizes.neurons,
    }
    said |= {row.n_kv_heads: sizes.kv_heads} if row.n_kv_heads else {}
    said |= {row.embedding: sizes.embedding} if row.embedding else {}
    for name, value in said.items():
        setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: sizes.layers]
    return config


def _says_width(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "head_dim", None))


def _gone(count: int, share: float | None, progress: float = 1.0) -> int:
    return min(count - 1, int((share or 0.0) * progress * count + _SLACK))


def _left(count: int, share: float | None, progress: float) -> int:
    return count - _gone(count, share, progress)
