"""Random inputs for every loss: which axes its tensors have, and which hyper-parameters to try.

An axis is a letter: B rows, T tokens, S keys, V and W vocabularies, H and J widths, h and g heads, 1 an axis of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Given = dict[str, Any]
Layout = str | tuple[str, ...]
SIZES = {"1": 1, "B": 3, "T": 4, "S": 5, "V": 9, "W": 12, "H": 6, "J": 8, "h": 2, "g": 4, "u": 1, "w": 2}
SIZES |= {"d": 4, "e": 3, "k": 4, "m": 3, "n": 2, "C": 5, "D": 4}
TINY = {"B": 2, "T": 3, "S": 4, "V": 5, "W": 6, "H": 4, "J": 4, "k": 3, "C": 3, "D": 3}
SINGLE = {"B": 1, "T": 1, "S": 1, "V": 2, "W": 3, "k": 1, "C": 2, "D": 2}
WIDE = {"B": 2, "T": 7, "S": 3, "V": 33, "W": 21, "H": 12, "J": 20, "k": 8, "C": 9, "D": 16}


@dataclass(frozen=True)
class Case:
    """One way of calling a loss. `output` holds the axes of its value, `zero` says whether it vanishes at equality."""

    loss: str
    output: str
    layout: dict[str, Layout]
    settings: tuple[dict[str, Any], ...] = ({},)
    zero: bool = True
    kinked: bool = False
    padding: bool = False  # padding counts, as it does in a published code
    chunks: str = "B"
    scale: float = 2.0
    prepare: Callable[[Given, dict[str, int]], Given] = lambda given, _: given

    @property
    def kind(self) -> Literal["token", "row", "batch"]:
        return {"BT": "token", "B": "row", "": "batch"}[self.output]

    @property
    def logits(self) -> bool:
        return self.layout["student"] == "BTV"


def each(function: Callable[[Tensor, str], Tensor], given: Given, layout: dict[str, Layout]) -> Given:
    """The inputs after a function of every tensor and its axes."""
    return {
        key: tuple(map(function, value, layout[key])) if isinstance(value, tuple) else function(value, layout[key])
        for key, value in given.items()
    }


def fresh(given: Given, case: Case, dtype: torch.dtype | None = None) -> Given:
    """A copy whose students (and the contrastive teacher's vector) ask for gradients."""

    def copy(x: Tensor, _: str) -> Tensor:
        return x.detach().clone().to(dtype if dtype is not None and x.is_floating_point() else x.dtype)

    copied = each(copy, given, case.layout)
    for leaf in leaves(copied, case):
        leaf.requires_grad_()
    return copied


def leaves(given: Given, case: Case) -> list[Tensor]:
    """The tensors that are trained."""
    if case.loss == "contrastive":
        return [given["student"][0], given["teacher"][0]]
    return list(given["student"]) if isinstance(given["student"], tuple) else [given["student"]]


def inputs(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float64, masked: bool = True, scale: float = 1.0, **sizes: int
) -> Given:
    """Random keyword arguments of a case, about two thirds of the tokens kept, the first of every row among them."""
    case, sizes = CASES[name], SIZES | sizes
    draw = torch.Generator().manual_seed(seed)

    def random(key: str, axes: str) -> Tensor:
        shape = [sizes[axis] for axis in axes]
        if key == "mask":
            mask = torch.rand(shape, generator=draw) < 0.65
            mask[..., 0] = True
            mask[-1] |= axes == "B"
            return mask
        if key == "labels" and case.layout["student"] == "BT1":  # scores
            scores = torch.randn(shape, generator=draw, dtype=torch.float64) * case.scale * scale
            return scores.masked_fill(torch.rand(shape, generator=draw) < 0.2, -100)
        if key == "labels":
            labels = torch.randint(0, sizes["V"], shape, generator=draw)
            return labels.masked_fill(torch.rand(shape, generator=draw) < 0.2, -100)
        return torch.randn(shape, generator=draw, dtype=torch.float64) * case.scale * scale

    keys = [key for key in case.layout if masked or key != "mask"]
    dense = {"teacher": "BTV"} if case.prepare is sparse else {}
    layout = case.layout | dense
    given = {
        key: tuple(random(key, axes) for axes in layout[key])
        if isinstance(layout[key], tuple)
        else random(key, str(layout[key]))
        for key in keys
    }
    return fresh(case.prepare(given, sizes), case, dtype)


def equal(name: str, seed: int = 0, **sizes: int) -> Given:
    """Inputs on which both models agree."""
    case, given = CASES[name], inputs(name, seed, **sizes)
    student = given["student"]
    given["teacher"] = tuple(x.detach() for x in student) if isinstance(student, tuple) else student.detach()
    return fresh(case.prepare(given, SIZES | sizes) if case.prepare is sparse else given, case)


def sparse(given: Given, sizes: dict[str, int]) -> Given:
    """The teacher's largest few log-probabilities instead of its logits."""
    logs, ids = F.log_softmax(given["teacher"], dim=-1).topk(min(sizes["k"], sizes["V"]), dim=-1)
    return given | {"teacher": (ids, logs)}


def probabilities(given: Given, _: dict[str, int]) -> Given:
    return given | {side: given[side].softmax(-1) for side in ("student", "teacher")}


def unit_length(given: Given, _: dict[str, int]) -> Given:
    return given | {side: tuple(F.normalize(x, dim=-1) for x in given[side]) for side in ("student", "teacher")}


def sides(student: Layout, teacher: Layout | None = None, mask: str = "BT") -> dict[str, Layout]:
    return {"student": student, "teacher": teacher or student, "mask": mask}


def logits(loss: str, *settings: dict[str, Any], **more: Any) -> Case:
    more = {"layout": sides("BTV"), "chunks": "T"} | more
    return Case(loss, "BT", settings=settings or ({},), **more)


def topk(loss: str, dense: bool = False, **given: Any) -> Case:
    if dense:
        return logits(loss, {"k": 3}, {"k": 8, "temperature": 2.0}, {"k": 4, "tail": False, "temperature": 2.0})
    settings = ({}, {"temperature": 2.0}, {"temperature": 0.5, **given}, {"tail": False}, {"tail": False, **given})
    layout = sides("BTV", ("BTk", "BTk"))
    return logits(loss, *settings, {"tail": False, "temperature": 3.0}, layout=layout, prepare=sparse)


def hidden(loss: str, output: str, *settings: dict[str, Any], teacher: str = "BTH", **more: Any) -> Case:
    return Case(loss, output, settings=settings or ({},), **({"layout": sides("BTH", teacher)} | more))


def attention(loss: str, axes: tuple[str, str] = ("BhTT", "BhTT"), mask: str = "BT") -> Case:
    prepare = {"prepare": probabilities} if loss == "attention_mse" else {}
    return Case(loss, "BT", sides(*axes, mask=mask), **prepare)


def relation(student: Layout, teacher: Layout, *settings: dict[str, Any]) -> Case:
    return Case("relation_kl", "BT", sides(student, teacher), settings or ({},), scale=1.0)


SOFT = ({}, {"temperature": 0.5}, {"temperature": 4.0})
LABELLED: dict[str, Layout] = {"student": "BTV", "teacher": "BTV", "labels": "BT", "mask": "BT"}
MARGINS = ({}, {"margin": 0.5})
FIRST_LAST = ({"position": "first"}, {"position": "last"})
PEARSON = ({}, {"inter": 2.0, "intra": 0.5, "temperature": 4.0}, {"intra": 0.0}, {"inter": 0.0})
JENSEN = tuple({"beta": beta, "temperature": t} for beta, t in ((0.5, 1.0), (0.1, 2.0), (0, 2.0), (1, 0.5), (0.9, 1.0)))
SKEWS = ({}, {"alpha": 0.5}, {"alpha": 0.0}, {"alpha": 0.9})
TARGET = ({}, {"alpha": 0.5, "beta": 2.0, "temperature": 4.0}, {"beta": 0.0})
CONTRAST = ({}, {"temperature": 0.5}, {"log_partition": 2.0, "temperature": 0.2})

CASES: dict[str, Case] = {
    "cross_entropy": logits(
        "cross_entropy", layout={"student": "BTV", "labels": "BT", "mask": "BT"}, zero=False, chunks="T"
    ),
    "squared_error": logits(
        "squared_error", layout={"student": "BT1", "labels": "BT", "mask": "BT"}, zero=False, chunks="T"
    ),
    "soft_cross_entropy": logits("soft_cross_entropy", *SOFT, zero=False),
    "forward_kl": logits("forward_kl", *SOFT),
    "reverse_kl": logits("reverse_kl", *SOFT),
    "symmetric_kl": logits("symmetric_kl", *SOFT),
    "jensen_shannon": logits("jensen_shannon", {}, *JENSEN),
    "skew_forward_kl": logits("skew_forward_kl", *SKEWS),
    "skew_reverse_kl": logits("skew_reverse_kl", *SKEWS),
    "total_variation": logits("total_variation", *SOFT, kinked=True),
    "logit_mse": logits("logit_mse"),
    "decoupled_kl": logits("decoupled_kl", *TARGET, layout=LABELLED),
    "pearson": Case("pearson", "", sides("BTV"), PEARSON, scale=1.0),
    "universal_logit": logits("universal_logit", layout=sides("BTV", "BTW"), kinked=True),
    "universal_logit/smaller": logits("universal_logit", layout=sides("BTV", "BTk"), kinked=True),
    "topk_kl": topk("topk_kl"),
    "topk_kl/dense": topk("topk_kl", dense=True),
    "topk_reverse_kl": topk("topk_reverse_kl"),
    "topk_reverse_kl/dense": topk("topk_reverse_kl", dense=True),
    "topk_jensen_shannon": topk("topk_jensen_shannon", beta=0.2),
    "topk_jensen_shannon/dense": topk("topk_jensen_shannon", dense=True),
    "mse": hidden("mse", "BT", chunks="T"),
    "cosine": hidden("cosine", "BT", chunks="T"),
    "patient": hidden("patient", "B", *FIRST_LAST),
    "patient/vector": hidden("patient", "B", *FIRST_LAST, layout=sides("BH", mask="B")),
    "attention_transfer": hidden("attention_transfer", "BT", teacher="BTJ"),
    "neuron_selectivity": hidden("neuron_selectivity", "B", teacher="BTJ"),
    "activation_boundary": hidden("activation_boundary", "BT", *MARGINS, zero=False, chunks="T"),
    "factor_transfer": hidden("factor_transfer", "B", kinked=True),
    "cka": hidden("cka", "", teacher="BTJ"),
    "attention_scores_mse": attention("attention_scores_mse"),
    "attention_scores_mse/pairs": attention("attention_scores_mse", ("BhTS", "BgTS"), mask="B1TS"),
    "attention_mse": attention("attention_mse", ("BgTT", "BhTT")),
    "attention_mse/pairs": attention("attention_mse", mask="B1TT"),
    "attention_kl": attention("attention_kl"),
    "attention_kl/grouped": attention("attention_kl", ("BhTT", "BgTT"), mask="B1TT"),
    "attention_kl/cross": attention("attention_kl", ("BgTS", "BhTS"), mask="BS"),
    "relation_kl": relation("BhTd", "BgTe", {}, {"relation_heads": 2}, {"relation_heads": 1}),
    "relation_kl/flat": relation("BTH", "BTJ", {"relation_heads": 2}),
    "relation_kl/tuple": relation(("BhTd", "BuTd", "BuTd"), ("BgTe", "BwTe", "BwTe"), {}, {"relation_heads": 2}),
    "flow": Case("flow", "B", sides(("BTm", "BTn"))),
    "rkd_distance": hidden("rkd_distance", "", teacher="BTJ"),
    "rkd_distance/rows": hidden("rkd_distance", "", layout=sides("BH", "BJ", mask="B")),
    "rkd_angle": hidden("rkd_angle", "", teacher="BTJ"),
    "rkd_angle/rows": hidden("rkd_angle", "", layout=sides("BH", "BJ", mask="B")),
    "similarity": hidden("similarity", "", teacher="BTJ"),
    "similarity/rows": hidden("similarity", "", layout=sides("BTH", "BJ", mask="B")),
    "tinybert_scores_mse": Case("tinybert_scores_mse", "B", sides("BhTT"), padding=True),
    "tinybert_scores_mse/pairs": Case("tinybert_scores_mse", "B", sides("BhTS", "BgTS", mask="B1TS"), padding=True),
    "tinybert_hidden_mse": Case("tinybert_hidden_mse", "B", sides("BTH"), padding=True),
    "tinybert_soft_cross_entropy": logits("tinybert_soft_cross_entropy", *SOFT, zero=False),
    "contrastive": Case("contrastive", "B", sides(("BD", "BCD"), mask="B"), CONTRAST, zero=False, prepare=unit_length),
}
NAMES = sorted({case.loss for case in CASES.values()})
RUNS = [(name, setting) for name, case in CASES.items() for setting in case.settings]


def loss_and_gradients(
    function: Callable[..., Tensor], given: Given, case: Case, setting: dict[str, Any], weight: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The value, and the gradients of its weighted sum."""
    value = function(**given, **setting)
    total = value.sum() if weight is None else (value * weight).sum()
    return value, list(torch.autograd.grad(total, leaves(given, case)))


def differences(
    naive: Callable[..., Tensor], given: Given, case: Case, setting: dict[str, Any], weight: Tensor, step: float = 2e-4
) -> list[Tensor]:
    """The same gradients by central differences of sixth order: exact to about step^6, and 1e-16 / step of rounding."""
    given = fresh(given, case)
    gradients = []
    for leaf in leaves(given, case):
        flat, slopes = leaf.detach().view(-1), []
        for i in range(flat.numel()):
            kept = flat[i].item()
            slope = 0.0
            for far, share in ((1, 45), (2, -9), (3, 1)):
                for sign in (1, -1):
                    flat[i] = kept + sign * far * step
                    slope += sign * share * (naive(**given, **setting) * weight).sum().item() / (60 * step)
            flat[i] = kept
            slopes.append(slope)
        gradients.append(torch.tensor(slopes, dtype=torch.float64).reshape(leaf.shape))
    return gradients


def weights(value: Tensor, seed: int = 99) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts(x: Tensor, axes: str, mask: Tensor, mask_axes: str) -> Tensor:
    """True at the entries of a tensor that the mask keeps, in a shape that broadcasts to it."""
    if "1" in mask_axes and "T" in axes[2:]:
        return mask
    if "1" in mask_axes:
        return mask.any(-1)[:, 0]
    kept = mask if mask_axes == "B" else mask.any(-1)
    kept = kept.reshape(-1, *[1] * (x.dim() - 1))
    for place, axis in enumerate(axes):
        if axis in mask_axes[1:]:
            kept = kept & mask.reshape([n if at in (0, place) else 1 for at, n in enumerate(x.shape)])
    return kept


def padded(given: Given, case: Case, row: int = 1, tokens: int = 2) -> Given:
    """A longer batch: one row and two tokens more, NaN and infinite there and wherever the mask says no."""
    mask_axes = str(case.layout["mask"])
    more = {axis: {"B": row}.get(axis, tokens) for axis in mask_axes if axis in "BTS"}

    def longer(x: Tensor, axes: str) -> Tensor:
        new = x.new_zeros([n + more.get(axis, 0) for n, axis in zip(x.shape, axes, strict=True)])
        new[tuple(slice(n) for n in x.shape)] = x.detach()
        return new

    given = each(longer, given, case.layout)

    def spoilt(x: Tensor, axes: str) -> Tensor:
        if not x.is_floating_point():
            return x
        kept = counts(x, axes, given["mask"], mask_axes).expand(x.shape)
        garbage = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=x.dtype).repeat(x.numel() // 3 + 1)
        return torch.where(kept, x, garbage[: x.numel()].reshape(x.shape))

    return fresh(each(spoilt, given, case.layout), case)
