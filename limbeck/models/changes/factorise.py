"""Low rank: matrices as products of two thin ones, which have fewer parameters and need fewer operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.errors import UserError
from limbeck.models.changes import factored
from limbeck.models.changes.change import Change
from limbeck.models.changes.layers import outputs_first, part_of
from limbeck.models.changes.moments import moments
from limbeck.models.compressed import Compressed

JITTER = 1e-6  # of the mean eigenvalue of moments, that the least one has at least


def low_rank(weight: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The product of two matrices of a rank that is nearest to a matrix, or to what it makes of some inputs.

    Without moments, by the singular values W = U s V: up = U_r sqrt(s_r), down = sqrt(s_r) V_r. No matrix of this rank is nearer to W
    in the Frobenius norm (Eckart and Young 1936, doi 10.1007/BF02288367), ||W - up down|| = sqrt(sum_{i>r} s_i^2).

    With the moments G = sum x x' of the inputs x of the layer, the columns of X: S S' = G with S lower triangular, U s V = W S,
    up = U_r sqrt(s_r), down = sqrt(s_r) V_r S^-1. Then ||(W - up down) X|| = sqrt(sum_{i>r} s_i^2), and no product of this rank makes
    it less. Where G is not positive definite to working precision (its least eigenvalue e is at most n 2^-52 of the largest), the
    identity times 1e-6 of the mean eigenvalue, less e where that is negative, is added to it first.

    It is computed in fp64; of each pair of singular vectors the largest entry of the left one is positive.

    Args:
        weight: W, `[m, n]`, of any floating dtype.
        rank: 1 to min(m, n).
        moments: G, `[n, n]`.

    Returns:
        up `[m, rank]` and down `[rank, n]`, of the dtype of the weight.

    Raises:
        ValueError: no such rank, or moments of another shape.

    Example:
        >>> import torch
        >>> up, down = low_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), rank=1)
        >>> up @ down
        tensor([[3., 0.],
                [0., 0.]])

    Source: SVD-LLM (Wang et al. 2024, arXiv 2403.07378), whose inverse is a triangular solve here.
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"a matrix of {weight.shape[0]} x {weight.shape[1]} has no rank {rank}")
    up, down = Spectrum.of(weight, moments).cut(rank)
    return up.to(weight.dtype), down.to(weight.dtype)


class Spectrum(NamedTuple):
    """The singular values of a matrix, or of what it makes of some inputs, in fp64.

    Attributes:
        left: `[m, k]`, k = min(m, n).
        values: `[k]`, the largest first.
        right: `[k, n]`.
        root: S, lower triangular, by which the matrix was multiplied; None: by nothing.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    root: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, moments: Tensor | None = None) -> Spectrum:
        """Of a matrix `[m, n]`, seen through the moments of its inputs `[n, n]` where they are given."""
        if moments is not None and moments.shape != (weight.shape[1],) * 2:
            raise ValueError(f"moments of {weight.shape[1]} inputs are square, not {list(moments.shape)}")
        weight = weight.detach().double()
        root = None if moments is None else _root(moments.double())
        left, values, right = torch.linalg.svd(weight if root is None else weight @ root, full_matrices=False)
        signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
        return cls(left * signs, values, right * signs.mT, root)

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """The factors of a rank: up `[m, rank]`, down `[rank, n]`."""
        scale = self.values[:rank].sqrt()
        up, down = self.left[:, :rank] * scale, scale[:, None] * self.right[:rank]
        return up, down if self.root is None else torch.linalg.solve_triangular(
            self.root, down, upper=False, left=False
        )


def _root(moments: Tensor) -> Tensor:
    """S, lower triangular, with S S' = G; of a G that is made positive definite first where it is not."""
    eigenvalues = torch.linalg.eigvalsh(moments)
    least, largest, mean = eigenvalues[0], eigenvalues[-1], eigenvalues.mean()
    if least <= len(moments) * torch.finfo(torch.float64).eps * largest:
        more = JITTER * (mean if mean > 0 else torch.ones_like(mean)) - least.clamp(max=0)
        moments = moments + more * torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    return torch.linalg.cholesky(moments)


def rank_of_share(outputs: int, inputs: int, share: float) -> int:
    """The largest rank whose two factors have at most a share of the parameters: floor(m n share / (m + n)); 0 is none.

    >>> rank_of_share(64, 64, 0.5)
    16
    """
    return int(outputs * inputs * share / (outputs + inputs))


def rank_of_energy(values: Tensor, energy: float) -> int:
    """The least rank r with sum_{i<=r} s_i^2 >= energy sum s_i^2: the singular values are squared.

    >>> rank_of_energy(torch.tensor([2.0, 1.0, 1.0]), 0.8)
    2
    """
    kept = values.double().square().cumsum(0)
    return min(int((kept < energy * kept[-1]).sum()) + 1, len(kept))


@dataclass
class Factorise(Change):
    """Layers of a student become products of two, `NAME.down` and `NAME.up`: plain layers, which what follows may change as others.

    One of `share`, `energy` and `rank` is given. A layer whose factors would not be smaller than it, r (m + n) >= m n, stays as it
    is, and so does one whose share is less than a rank of 1. A head that is tied to the embedding goes with it. Positions and token
    types stay.

    Args:
        share: of the parameters of a matrix, that its factors have at most.
        energy: of the squared singular values, that is kept at least.
        rank: of all.
        embedding: whether the token embedding is factorised.
        layers: whether the linear layers are that lie before the last state.
        head: whether the linear layers behind it are; they are small, or decide directly what is said.
        skip: names of layers that stay as they are; a part of a name is enough.
        text: gives batches; then linear layers are factorised by what they make of these. The embedding is by its weights alone.
    """

    share: float | None = None
    energy: float | None = None
    rank: int | None = None
    embedding: bool = True
    layers: bool = True
    head: bool = False
    skip: tuple[str, ...] = ()
    text: Callable[[], Iterable[Batch]] | None = field(default=None, repr=False, compare=False)
    _sizes: list[tuple[int, int]] = field(default_factory=list, init=False, repr=False, compare=False)

    @torch.no_grad()
    def apply(self, model: PreTrainedModel) -> None:
        """Factorises the layers.

        Raises:
            UserError: none becomes smaller.
        """
        found, self._sizes = self.chosen(model), []
        for name, gram in self._moments(model, found).items():
            layer, users = found[name], _users(model, found[name])
            weight = outputs_first(layer).detach().cpu()
            spectrum = Spectrum.of(weight, None if gram is None else gram.cpu())
            rank = self._rank(weight.shape[0], weight.shape[1], spectrum.values)
            if rank:
                factored.factor(layer, *spectrum.cut(rank))
                for head in users.values():
                    factored.tie(head, layer)
                self._sizes.append((weight.numel(), rank * sum(weight.shape)))
        if not self._sizes:
            raise UserError(
                f"changes: factorise: an energy of {self.energy} makes no matrix smaller; lower it, or give a share or a rank"
            )

    def chosen(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The layers that may become smaller, by their names; weights are not looked at.

        Raises:
            UserError: there are none.
        """
        found: dict[str, nn.Module] = {name: it for name, it in model.named_modules() if self._meant(model, name, it)}
        if not found:
            raise UserError(
                "changes: factorise: no layer is left; set embedding, layers or head to true, or shorten skip"
            )
        sizes = {name: outputs_first(layer).shape for name, layer in found.items()}
        small = {name: found[name] for name, (outputs, inputs) in sizes.items() if self._rank(outputs, inputs)}
        if not small:
            raise UserError(f"changes: factorise: {self._too_much([(m, n) for m, n in sizes.values()])}")
        return small

    def _meant(self, model: PreTrainedModel, name: str, layer: nn.Module) -> bool:
        """Whether a layer is one of those that are factorised, whatever its size."""
        if type(layer) not in factored.KINDS or (name.endswith((".down", ".up")) and _inside(model, name)):
            return False
        part, table = part_of(model, name), isinstance(layer, nn.Embedding)
        if part == "embedding" and not table:  # a tied head goes with its embedding
            return False
        names = [name, *_users(model, layer)]
        wanted = {"embedding": self.embedding, "layer": self.layers, "head": self.head, "": False}[part]
        return wanted and not any(part in each for part in self.skip for each in names)

    def _rank(self, outputs: int, inputs: int, values: Tensor | None = None) -> int | None:
        """The rank of a matrix, None where it stays whole; by energy without singular values the least, 1."""
        if self.energy is not None:
            rank = 1 if values is None else rank_of_energy(values, self.energy)
        else:
            rank = self.rank if self.share is None else rank_of_share(outputs, inputs, self.share)
        assert rank is not None, "one of share, energy and rank"
        return rank if rank >= 1 and rank * (outputs + inputs) < outputs * inputs else None

    def _too_much(self, sizes: Iterable[tuple[int, int]]) -> str:
        """Why none of some matrices becomes smaller, and what to do."""
        most = max(math.ceil(m * n / (m + n)) - 1 for m, n in sizes)
        if most < 1:
            return "no matrix of this model is large enough to become smaller; leave factorise out"
        if self.rank is not None:
            return f"rank {self.rank} makes no matrix smaller; the largest that does is {most}"
        least = min((m + n) / (m * n) for m, n in sizes)
        return f"a share of {self.share} leaves no matrix a rank of 1; raise it to {math.ceil(least * 1e3) / 1e3:g} or more"

    def _moments(self, model: PreTrainedModel, found: Mapping[str, nn.Module]) -> dict[str, Tensor | None]:
        """The moments of the inputs of some layers; None by weights alone, and of a layer that the text does not reach."""
        linear = {name: layer for name, layer in found.items() if not isinstance(layer, nn.Embedding)}
        seen = moments(model, linear, self.text(), self.head) if self.text else {}
        return {name: seen.get(name) for name in found}

    def outline(self, model: PreTrainedModel, small: Compressed) -> None:
        """The shapes of the factors, where they hang on no weight."""
        for name, layer in self.chosen(model).items() if self.energy is None else ():
            outputs, inputs = outputs_first(layer).shape
            rank = self._rank(outputs, inputs) or 0
            table = isinstance(layer, nn.Embedding)
            shapes = ((outputs, rank), (inputs, rank)) if table else ((rank, inputs), (outputs, rank))
            down, up = (torch.empty(shape, device="meta") for shape in shapes)
            small.factors[name] = (down, up)

    def fold(self, model: PreTrainedModel, small: Compressed) -> PreTrainedModel:
        """Whole weights: the products."""
        small.factors.update(factored.merge(model))
        return model

    def facts(self) -> dict[str, Any]:
        """How far, and by what."""
        sizes = {name: getattr(self, name) for name in ("share", "energy", "rank")}
        said = {name: value for name, value in sizes.items() if value is not None}
        parts = {name: getattr(self, name) for name in ("embedding", "layers", "head")}
        by = "activations" if self.text else "weights"
        return {"factorise": {**said, "by": by, **parts, "skip": list(self.skip)}}

    def said(self) -> str:
        """How much smaller it made what."""
        if not self._sizes:
            return ""
        before, after = map(sum, zip(*self._sizes, strict=True))
        return f"holds {len(self._sizes)} matrices as products of two: {after:,} parameters in place of {before:,}"


def _users(model: nn.Module, layer: nn.Module) -> dict[str, nn.Module]:
    """Other layers with the very weight of a layer, by their names."""
    weight = getattr(layer, "weight", None)
    return {name: it for name, it in model.named_modules() if it is not layer and getattr(it, "weight", None) is weight}


def _inside(model: nn.Module, name: str) -> bool:
    """Whether a layer is one of the two of a factored one."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), factored.Factored)
