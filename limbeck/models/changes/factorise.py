"""Low rank: a matrix as a product of two thin ones, from its singular values or from what it makes of training text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from limbeck.batch import Batch
from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models.changes import derived
from limbeck.models.changes.change import Change
from limbeck.models.changes.quantise import part_of, shape_of
from limbeck.models.compressed import Compressed
from limbeck.models.taps import Tapped

RIDGE = 1e-6  # of the mean of the diagonal: what moments that are not positive definite get beyond their smallest eigenvalue


def low_rank(weight: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best product of two matrices of a rank, W ~ A B.

    From the singular value decomposition W = U s V': A = U_r s_r^1/2, B = s_r^1/2 V_r', so that |W - A B|_F^2 = sum_(i>r) s_i^2 is the least of
    all of this rank (Eckart and Young 1936). With the second moments G = sum x x' of the inputs x and S S' = G (Cholesky), the
    decomposition is that of W S, and B = s_r^1/2 V_r' S^-1: then |(W - A B) X|_F^2 = sum_(i>r) s_i^2 is the least
    (SVD-LLM, Wang et al. 2024, arXiv 2403.07378). G that is not positive definite gets (1e-6 mean(diag G) - smallest eigenvalue) I more.
    In fp64; the largest entry of each column of U is positive.

    Args:
        weight: W `[outputs, inputs]`.
        rank: 1 to the smaller side.
        moments: G `[inputs, inputs]`; None: of the weights alone.

    Returns:
        A `[outputs, rank]` and B `[rank, inputs]`, of the dtype of the weight.

    Raises:
        ValueError: the rank is not between 1 and the smaller side.

    Example:
        >>> import torch
        >>> up, down = low_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), rank=1)
        >>> up @ down
        tensor([[3., 0.],
                [0., 0.]])
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank {rank} of a matrix {tuple(weight.shape)}; give 1 to {min(weight.shape)}")
    root = None if moments is None else _root(moments.double())
    whole = weight.double() if root is None else weight.double() @ root
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank].sqrt(), right[:rank]
    signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    up, down = left * signs * values, right * signs.mT * values[:, None]
    if root is not None:
        down = torch.linalg.solve_triangular(root, down, upper=False, left=False)
    return up.to(weight.dtype), down.to(weight.dtype)


def _root(moments: Tensor) -> Tensor:
    """S, lower triangular, with S S' = G."""
    root, failed = torch.linalg.cholesky_ex(moments)
    if failed:
        more = RIDGE * moments.diagonal().mean().clamp(min=RIDGE) - torch.linalg.eigvalsh(moments)[0]
        root = torch.linalg.cholesky(
            moments + more * torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
        )
    return root


class _Factorised(nn.Module):
    """What the kinds share: two parts in place of one weight."""

    down: nn.Module
    up: nn.Module


class FactorisedLinear(_Factorised):
    """A linear layer in two: y = up(down(x))."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., inputs] -> [..., outputs]`."""
        return self.up(self.down(input))


class FactorisedEmbedding(FactorisedLinear):
    """A table of short rows and what widens them."""


class TiedHead(nn.Module):
    """A head that is tied to a factorised embedding: z = (h up) down' + b, with the parts of the embedding."""

    of: tuple[FactorisedEmbedding]  # a tuple: its parameters are those of the embedding, and are not named again
    bias: nn.Parameter | None

    def forward(self, input: Tensor) -> Tensor:
        """`[..., H] -> [..., V]`."""
        parts = self.of[0]
        scores = input @ used(parts.up) @ used(parts.down).mT
        return scores if self.bias is None else scores + self.bias


def used(layer: nn.Module) -> Tensor:
    """The weight that a layer uses, outputs first."""
    weight = layer.derived() if isinstance(layer, derived._Derived) else layer.weight
    assert isinstance(weight, Tensor)
    return weight.mT if isinstance(layer, Conv1D) else weight


@dataclass(frozen=True)
class Factorise(Change):
    """Linear layers of a student, and its token embedding, as products of two of a low rank; what would not become smaller stays.

    A head that is tied to the embedding uses its factors; other layers behind the last state stay as they are. Applied when the
    student is made: the factors are trained. One of share, energy and rank is given.

    Args:
        share: of a matrix's parameters, that its factors have: rank = int(share m n / (m + n)).
        energy: of the squared singular values, that is kept: the least such rank.
        rank: itself.
        text: training text whose second moments the linear layers keep best; None: the weights alone. The embedding's are its rows.
        embedding: whether it is factorised.
        layers: whether linear layers are.
        skip: names of layers that stay as they are; a part of a name is enough.
    """

    share: float | None = None
    energy: float | None = None
    rank: int | None = None
    text: Callable[[], Iterable[Batch]] | None = None
    embedding: bool = True
    layers: bool = True
    skip: tuple[str, ...] = ()
    ranks: dict[str, int] = field(default_factory=dict, compare=False)  # what was found when it was applied

    def chosen(self, model: PreTrainedModel) -> list[str]:
        """The layers that may be factorised; a tied head is not among them."""
        row, wanted = family(model.config.model_type), {"layer": self.layers, "embedding": self.embedding}
        tables = [f"{row.base}.{path}" for path, axes in row.base_axes.items() if axes.startswith("vocab")]
        return [
            name
            for name in derived.matrices(model)
            if wanted.get(part := part_of(model, name)) and (part == "layer" or name in tables)
            if not any(word in name for word in self.skip)
        ]

    def require(self, model: PreTrainedModel) -> None:
        """Whether something becomes smaller in a model of this shape, which may be on the meta device.

        Raises:
            UserError: nothing does.
        """
        if self.energy is not None:  # shows with the weights
            return
        shapes = {name: shape_of(model.get_submodule(name)) for name in self.chosen(model)}
        if not any(_saves(shape, self._wanted(shape)) for shape in shapes.values()):
            said = f"rank: {self.rank}" if self.rank else f"share: {self.share}"
            raise UserError(f"changes: factorise: {said}: no layer becomes smaller; give less, or leave factorise out")

    def _wanted(self, shape: tuple[int, int], values: Tensor | None = None) -> int:
        """The rank that is asked for."""
        rows, columns = shape
        if self.rank is not None:
            return self.rank
        if self.share is not None:
            return int(self.share * rows * columns / (rows + columns))
        assert self.energy is not None and values is not None
        kept = values.square().cumsum(0) / values.square().sum()
        return int((kept < self.energy - 1e-12).sum()) + 1

    @torch.no_grad()
    def apply(self, model: PreTrainedModel) -> None:
        """Puts factors in the place of weights."""
        moments = self._moments(model)
        for name in self.chosen(model):
            layer, tied = model.get_submodule(name), _tied(model, name)
            weight, given = used(layer), moments.get(name)
            whole = weight.double() @ _root(given) if given is not None else weight.double()
            values = torch.linalg.svdvals(whole) if self.energy is not None else None
            rank = self._wanted(shape_of(layer), values)
            if _saves(shape_of(layer), rank):
                _split(layer, *low_rank(weight, rank, given))
                self.ranks[name] = rank
                for head in tied:
                    _tie(head, layer)

    def _moments(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The second moments of the inputs of linear layers, over the tokens that are no padding, in fp64."""
        if self.text is None:
            return {}
        found: dict[str, Tensor] = {}
        names = [it for it in self.chosen(model) if not isinstance(model.get_submodule(it), nn.Embedding)]
        with _evaluated(model), ExitStack() as stack:
            mask: list[Tensor] = []
            for name in names:

                def note(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                    states = args[0][mask[0]].double()
                    found[name] = found.get(name, 0) + states.mT @ states

                stack.enter_context(model.get_submodule(name).register_forward_pre_hook(note))
            tapped = Tapped(model)
            for batch in self.text():
                mask[:] = [batch["attention_mask"].bool()]
                tapped(batch)
        return found

    def outline(self, model: PreTrainedModel, small: Compressed) -> None:
        """The shapes of the factors, where they hang on no weight."""
        for name in self.chosen(model) if self.energy is None else ():
            rows, columns = shape_of(model.get_submodule(name))
            rank = self._wanted((rows, columns))
            if _saves((rows, columns), rank):
                table = isinstance(model.get_submodule(name), nn.Embedding)
                down, up = ((rows, rank), (columns, rank)) if table else ((rank, columns), (rows, rank))
                small.factors[name] = (torch.empty(down, device="meta"), torch.empty(up, device="meta"))

    def shrunk(self, config: PretrainedConfig) -> PretrainedConfig:
        """The same: what is exported holds whole matrices."""
        return config

    def fold(self, model: PreTrainedModel, small: Compressed) -> PreTrainedModel:
        """Whole matrices again; the factors go to `small`."""
        multiply_out(model, small)
        return model

    def facts(self) -> dict[str, Any]:
        """How much of what."""
        said = {"share": self.share, "energy": self.energy, "rank": self.rank}
        said = {name: value for name, value in said.items() if value is not None}
        by = "weights" if self.text is None else "activations"
        return {"factorise": {**said, "by": by, "embedding": self.embedding, "layers": self.layers, "skip": self.skip}}

    def said(self) -> str:
        """How many layers, and their ranks."""
        found = self.ranks.values()
        return (
            f"factorised: {len(found)} layers, ranks {min(found)} to {max(found)}" if found else "factorised: no layer"
        )


def multiply_out(model: PreTrainedModel, small: Compressed) -> None:
    """Whole matrices in the place of factors, in place; the factors go to `small`. Nothing where nothing is factorised."""
    derived.settle(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, _Factorised):
            small.factors[name] = (used(layer.down).detach().clone(), used(layer.up).detach().clone())
            _merge(layer)
    for layer in list(model.modules()):
        if isinstance(layer, TiedHead):
            _untie(layer)


def _saves(shape: tuple[int, int], rank: int) -> bool:
    """Whether factors of this rank have fewer parameters than the matrix."""
    rows, columns = shape
    return 1 <= rank <= min(shape) and rank * (rows + columns) < rows * columns


def _tied(model: PreTrainedModel, name: str) -> list[nn.Module]:
    """The heads that share the weight of a layer, which is then an embedding."""
    layer = model.get_submodule(name)
    return [it for it in model.modules() if isinstance(it, nn.Linear) and it is not layer and it.weight is layer.weight]


def _split(layer: Any, up: Tensor, down: Tensor) -> None:
    """Two layers in the place of one, in place; its bias goes to the second."""
    how: dict[str, Any] = {"device": up.device, "dtype": up.dtype}
    rank, table, bias = up.shape[1], isinstance(layer, nn.Embedding), getattr(layer, "bias", None)
    if table:  # the rows of the table are outputs of the product: E = up down, of which `down` is looked up
        first = nn.Embedding(len(up), rank, padding_idx=layer.padding_idx, **how)
        second, weights = nn.Linear(rank, down.shape[1], bias=False, **how), (up, down.mT)
    else:
        first = nn.Linear(down.shape[1], rank, bias=False, **how)
        second, weights = nn.Linear(rank, len(up), bias=bias is not None, **how), (down, up)
    for part, weight in zip((first, second), weights, strict=True):
        part.weight.copy_(weight)
    if bias is not None:
        second.bias = bias
        del layer.bias
    del layer.weight
    layer.plain = type(layer)
    layer.__class__ = FactorisedEmbedding if table else FactorisedLinear
    layer.down, layer.up = first.train(layer.training), second.train(layer.training)


def _tie(head: Any, embedding: nn.Module) -> None:
    """The head uses the factors of the embedding."""
    del head.weight
    head.__class__, head.of = TiedHead, (embedding,)


def _untie(head: Any) -> None:
    """The head shares the whole table again."""
    head.weight = head.of[0].weight
    del head.of
    head.__class__ = nn.Linear


@torch.no_grad()
def _merge(layer: Any) -> None:
    """One layer again, in place."""
    down, up = used(layer.down), used(layer.up)
    table, dtype = isinstance(layer, FactorisedEmbedding), down.dtype
    whole = (down.double() @ up.double().mT if table else up.double() @ down.double()).to(dtype)
    bias, plain = getattr(layer.up, "bias", None), layer.plain
    del layer.down, layer.up, layer.plain
    layer.__class__ = plain
    layer.weight = nn.Parameter(whole.mT.contiguous() if issubclass(plain, Conv1D) else whole)
    if not table:
        layer.bias = bias


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
