"""A loss of one's own, named in a recipe by its import path: `{loss: my_package.losses:my_loss, tap: hidden}`.

It is a function like those of `limbeck.losses`: keyword arguments `student`, and of `teacher`, `labels`, `mask` what it
needs, then hyper-parameters with defaults; it returns one value per token `[B, T]` (of logits: `[n]`), per row `[B]`, or
per batch `[]`. What it takes is read from its signature, and what it gives is tried out before anything is trained.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from limbeck.assemble import own
from limbeck.errors import UserError, nearest
from limbeck.losses import Loss
from limbeck.recipe import settings
from limbeck.recipe.keys import LossKeys

TENSORS = ("teacher", "labels", "mask")
B, T, D, h, V = 2, 3, 4, 5, 11  # the shapes on which a loss is tried out
GIVEN = {
    "logits": (B * T, V),
    "exit": (B * T, V),
    "pooled": (B, D),
    "scores": (B, h, T, T),
    "probs": (B, h, T, T),
    "query": (B, h, T, D),
    "key": (B, h, T, D),
    "value": (B, h, T, D),
}
Given = Tensor | tuple[Tensor, ...]
PER = {1: "row", 0: "batch", 2: "token"}
ON_LOGITS = (("logits",), ("exit",))  # the taps of which a loss gets selected tokens, without a mask


def load(path: str, where: str) -> Loss:
    """The function at `package.module:name`; modules of the working directory are found as well.

    Raises:
        UserError: there is none.
    """
    loss, (module, _, name) = own.found(path, f"{where}.loss"), path.partition(":")
    if not inspect.isfunction(loss):
        raise UserError(f"{where}.loss: {path}: {module} has no function {name}; write package.module:function")
    return loss  # pyright: ignore[reportReturnType] (tried out in `keys`)


def keys(term: settings.TermKeys, where: str, widths: tuple[int, int] = (D, D)) -> LossKeys:
    """What the signature of a term's loss says of it, and the shape that it gives.

    Args:
        term: the term of a recipe.
        where: its place there.
        widths: of the student's and of the teacher's tensor, as the loss will get them.

    Raises:
        UserError: it is no loss, it lacks a hyper-parameter, or it does not take one that the recipe states.
    """
    loss, where = load(term.loss, where), f"{where}.loss: {term.loss}"
    parameters = inspect.signature(loss).parameters
    if "student" not in parameters:
        raise UserError(f"{where}: it takes no `student`; see limbeck.losses for the form of a loss")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    hyper = [name for name in parameters if name not in ("student", *TENSORS) and parameters[name].kind not in variadic]
    for name in hyper:
        if name in type(term).model_fields:
            raise UserError(f"{where}: its argument '{name}' is a key of every term; give it another name")
    for name in term.parameters:
        if name not in hyper:
            raise UserError(f"{where}: takes no '{name}'; {nearest(name, (*type(term).model_fields, *hyper))}")
    missing = [name for name in hyper if parameters[name].default is inspect.Parameter.empty]
    for name in missing:
        if name not in term.parameters:
            raise UserError(f"{where}: needs the hyper-parameter '{name}'; state it in the term, or give it a default")
    needs = tuple(name for name in TENSORS if name in parameters)
    per = _tried(loss, term, needs, where, widths)
    return LossKeys(term.taps, dict.fromkeys(hyper, "any"), needs=needs, per=per, same_width=_has_width(term))


def _has_width(term: settings.TermKeys) -> bool:
    """Whether the taps are features that a projection can widen."""
    return not set(term.taps) & set(GIVEN) or term.taps == ("pooled",)


def _tried(loss: Loss, term: settings.TermKeys, needs: tuple[str, ...], where: str, widths: tuple[int, int]) -> str:
    """What a loss gives one value for, from a trial on random tensors."""
    mine, theirs = (_shape(term, width) for width in widths)
    several = len(term.taps) if len(term.taps) > 1 else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = _tensors(mine, several, True), _tensors(theirs, several, False)
        labels = torch.randint(min(V, D), (B * T,) if term.taps in ON_LOGITS else (B, T))
    given = {"teacher": teacher, "labels": labels, "mask": None, "needs": needs}
    try:
        values = loss(student=student, **{name: given[name] for name in needs}, **term.parameters)
    except Exception as error:  # whatever somebody else's function does
        line = str(error).splitlines()[0] if str(error) else ""
        apart = f"of widths {widths[0]} and {widths[1]} (projection: none) " if widths[0] != widths[1] else ""
        raise UserError(
            f"{where}: a trial on random tensors {apart}fails ({type(error).__name__}: {line}); mend it"
        ) from None
    expected = (B * T,) if term.taps in ON_LOGITS else (B, T)
    if not isinstance(values, Tensor) or tuple(values.shape) not in (expected, expected[:1], ()):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"{where}: gives {found}; it must give one value for each token, row or batch, unreduced")
    if not values.requires_grad:
        raise UserError(
            f"{where}: its value has no gradient in the student's tensor; compute it with torch's operations"
        )
    if "mask" in needs and term.taps not in (*ON_LOGITS, ("pooled",)):
        _masked(loss, term, given, student, where)
    return "token" if tuple(values.shape) == expected else PER[values.dim()]


def _masked(loss: Loss, term: settings.TermKeys, given: dict[str, Any], student: Given, where: str) -> None:
    """Trials in which the last token of a row is padding: what stands there must not matter to the others.

    Raises:
        UserError: it does, or the loss does not take a mask of this shape.
    """
    kept = torch.ones(B, T, dtype=torch.bool)
    kept[0, -1] = False
    pairs = kept[:, None, None, :] & kept[:, None, :, None]
    given = given | {"mask": pairs if term.taps[0] in ("scores", "probs") else kept}
    found = []
    for garbage in (3.0, -50.0):
        tensors = tuple(_soiled(x, garbage) for x in (student if isinstance(student, tuple) else (student,)))
        try:
            values = loss(
                student=tensors if isinstance(student, tuple) else tensors[0],
                **{name: given[name] for name in given["needs"]},
                **term.parameters,
            )
            counted = torch.where(kept, values, 0) if values.dim() == 2 else values
            slopes = torch.autograd.grad(counted.sum(), tensors)
        except Exception as error:  # whatever somebody else's function does
            line = str(error).splitlines()[0] if str(error) else ""
            raise UserError(f"{where}: a trial with a mask fails ({type(error).__name__}: {line}); mend it") from None
        found.append([counted.detach(), *(_soiled(slope, 0.0) for slope in slopes)])
    if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(*found, strict=True)):
        raise UserError(f"{where}: what stands where the mask is False changes its value or gradient; use the mask")


def _soiled(x: Tensor, garbage: float) -> Tensor:
    """A copy in which the last token of the first row is garbage: of `[B, T, D]`, or of every head, as query and as key."""
    x = x.detach().clone()
    x[(0, -1) if x.dim() == 3 else (0, slice(None), -1)] = garbage
    if x.shape[-1] == x.shape[-2] == T:
        x[0, :, :, -1] = garbage
    return x.requires_grad_()


def _shape(term: settings.TermKeys, width: int) -> tuple[int, ...]:
    *axes, last = GIVEN.get(term.taps[0], (B, T, D))
    return (*axes, width if _has_width(term) else last)


def _tensors(shape: tuple[int, ...], several: int, learns: bool) -> Given:
    made = tuple(torch.randn(shape, requires_grad=learns) for _ in range(max(1, several)))
    return made if several else made[0]
