"""Which units a narrower model keeps of a wider one: those with the largest weights.

A unit is a place of the hidden state, a head, a place inside a head, or a feed-forward neuron. What carries nothing has
no weights and goes first; what is kept stays in its order. k key heads, r query heads that share one, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from limbeck.errors import UserError
from limbeck.families import family, heads_of, width_of

_REMEDY = "or set init: random"


@dataclass(frozen=True)
class Sizes:
    """How large a model is."""

    layers: int
    hidden: int
    embedding: int
    heads: int
    kv_heads: int
    head_width: int
    neurons: int

    @property
    def factorised(self) -> bool:
        """Whether a projection leads from the embedding to the layers."""
        return self.embedding != self.hidden

    @property
    def share(self) -> int:
        """Query heads to a key head."""
        return self.heads // self.kv_heads

    @property
    def axes(self) -> dict[str, int]:
        """How long each axis of a weight is that can be cut."""
        query, key = self.heads * self.head_width, self.kv_heads * self.head_width
        names = {"hidden": self.hidden, "embedding": self.embedding, "neuron": self.neurons}
        return names | {"query": query, "key": key, "value": key, "context": query}


def sizes(config: PretrainedConfig) -> Sizes:
    """The sizes that a config gives its model."""
    row, heads = family(config.model_type), heads_of(config, "query")
    return Sizes(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        embedding=getattr(config, row.embedding) if row.embedding else config.hidden_size,
        heads=heads,
        kv_heads=heads_of(config, "key"),
        head_width=width_of(config, "query") // heads,
        neurons=width_of(config, "ffn"),
    )


def fits(mine: Sizes, theirs: Sizes, rotary: bool) -> None:
    """Whether a student of these sizes can be cut out of a model of those.

    Args:
        mine: the student's sizes.
        theirs: those of the model that it begins as.
        rotary: whether positions turn pairs of units of a head, so that a head cannot be cut.

    Raises:
        UserError: something is larger in the student, or its heads are not parts of the other's.
    """
    words = {"hidden": "hidden", "heads": "heads", "kv_heads": "kv_heads", "intermediate": "neurons"}
    for word, name in (words | ({"embedding": "embedding"} if mine.factorised else {})).items():
        small, large = getattr(mine, name), getattr(theirs, name)
        if small > large:
            raise UserError(
                f"models.student.{word}: {small} is more than the {large} of the model that the student begins as; "
                f"lower it, {_REMEDY}"
            )
    if mine.head_width != theirs.head_width and (rotary or mine.head_width > theirs.head_width):
        why = "positions turn its units in pairs" if rotary else "a head can only be cut"
        raise UserError(
            f"models.student.heads: a head of width {theirs.head_width} cannot become one of width {mine.head_width}, for {why}; "
            f"keep the width of a head (hidden / heads = {theirs.head_width}), {_REMEDY}"
        )
    if mine.share > theirs.share:
        raise UserError(
            f"models.student.kv_heads: {mine.share} query heads share a key head, and {theirs.share} in the model that the "
            f"student begins as; set heads to {theirs.share * mine.kv_heads} or raise kv_heads, {_REMEDY}"
        )
    if theirs.factorised and not mine.factorised:
        raise UserError(
            f"models.student.embedding: {mine.embedding} is the hidden width, so nothing leads from the embedding to the layers, "
            f"as it does in the model that the student begins as; set another width, {_REMEDY}"
        )


def squares(matrices: Iterable[tuple[Tensor, tuple[str, ...]]], lengths: dict[str, int]) -> dict[str, Tensor]:
    """The sum of the squared weights of every unit.

    Args:
        matrices: two-dimensional weights, and what their axes stand for (`query+key+value`: one behind the other).
        lengths: how long each of the axes is that are asked for.

    Returns:
        For each axis that occurs a vector in fp64, over all matrices that have it.
    """
    found: dict[str, Tensor] = {}
    for matrix, axes in matrices:
        for axis, roles in enumerate(axes):
            names = [name for name in roles.split("+") if name in lengths]
            if not names:
                continue
            norms = torch.linalg.vector_norm(matrix.detach(), dim=1 - axis, dtype=torch.float64).square()
            for name, piece in zip(names, norms.split([lengths[name] for name in names]), strict=True):
                found[name] = found[name] + piece if name in found else piece
    return found


def largest(scores: Tensor, count: int) -> Tensor:
    """The places of the largest scores `[..., n]`, in their own order `[..., count]`; the first ones of equals.

    >>> largest(torch.tensor([1.0, 5.0, 0.0, 2.0]), 2)
    tensor([1, 3])
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count].sort(dim=-1).values


def heads(found: dict[str, Tensor], theirs: Sizes, mine: Sizes) -> dict[str, Tensor]:
    """The units of an attention that are kept: whole heads first, then places inside those.

    A group is a key head with its query heads (without grouping, one). Groups are ranked by the squared weights of their
    queries, keys, values and outputs, then the query heads inside a kept group; that heads can be ranked at all is from
    Michel et al. 2019 (arXiv 1905.10650), who rank by the gradient of a mask instead. Where heads are narrower, the
    places of queries and keys are ranked by the product of their squared weights, which their product of activations
    goes with, and so are those of values and outputs.

    Args:
        found: squared weights of `query` [k r d], `key` [k d], `value` [k d] and `context` [k r d]; with `head` [k r] heads
            are ranked by that alone.
        theirs: the sizes of the model that is cut.
        mine: those of the student.

    Returns:
        For each of the four the units that are kept.
    """
    d, shape = theirs.head_width, (theirs.kv_heads, -1, theirs.head_width)
    query, key, value, context = (found[name].view(shape) for name in ("query", "key", "value", "context"))
    if "head" in found:
        each = found["head"].view(theirs.kv_heads, -1)
        shared = each.sum(-1)
    else:
        each = (query + context).sum(-1)
        shared = each.sum(-1) + (key + value).sum((-1, -2))
    groups = largest(shared, mine.kv_heads)
    inside = largest(each[groups], mine.share)
    queried = query[groups].gather(1, inside[..., None].expand(-1, -1, d)).sum(1)
    written = context[groups].gather(1, inside[..., None].expand(-1, -1, d)).sum(1)
    turned = largest(queried * key[groups].squeeze(1), mine.head_width)
    carried = largest(written * value[groups].squeeze(1), mine.head_width)
    first = (groups[:, None] * theirs.share + inside)[..., None] * d
    return {
        "query": (first + turned[:, None]).flatten(),
        "key": (groups[:, None] * d + turned).flatten(),
        "value": (groups[:, None] * d + carried).flatten(),
        "context": (first + carried[:, None]).flatten(),
    }


def directions(table: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The directions of an embedding that keep most of it: the truncated singular value decomposition E = U S V'.

    `table @ V` is U S of the largest singular values and `table @ V @ V'` the best table of this rank (Eckart and Young
    1936). V comes from the eigenvectors of E'E in fp64; the largest entry of each is positive.

    Args:
        table: the embedding E [V, e].
        rank: how many directions.

    Returns:
        The directions [e, rank], the largest singular value first, and the share of the squares of E that they keep.
    """
    exact = table.double()
    values, vectors = torch.linalg.eigh(exact.mT @ exact)
    kept = vectors.flip(-1)[:, :rank]
    signs = kept.gather(0, kept.abs().argmax(0, keepdim=True)).sign()
    return kept * signs, values.flip(-1)[:rank].sum() / values.sum()
