"""The plain path of one training step, written out: whole models, whole logits, one backward."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from kernel import HEADS
from torch import Tensor

from limbeck.batch import Batch
from limbeck.distil.learner import Learner
from limbeck.distil.lessons import Term
from limbeck.distil.teachers import Frozen

Gradients = dict[str, Tensor | None]


def same(mine: Gradients, theirs: Gradients, bound: float = 1e-10) -> None:
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        expected = theirs[name]
        assert (gradient is None) == (expected is None), name
        if gradient is not None and expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


def scores(model: torch.nn.Module, states: Sequence[Tensor], layer: int) -> Tensor:
    """q.k / sqrt(d) of layer 1..L of a BERT, from the state below it."""
    attention = model.bert.encoder.layer[layer - 1].attention.self
    below = states[layer - 1]
    query, key = (part(below).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (attention.query, attention.key))
    return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])


def plain_terms(
    student: torch.nn.Module, teacher: torch.nn.Module, projections: torch.nn.ModuleDict, one: Batch
) -> dict:
    """Every term of `kernel` of one batch, as sums over what it counts."""
    inputs = {"input_ids": one["input_ids"], "attention_mask": one["attention_mask"]}
    mine = student(**inputs, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(**inputs, output_hidden_states=True)
    kept, select, labels = one["attention_mask"].bool(), one["select"], one["labels"]
    s, t = mine.hidden_states, theirs.hidden_states

    def hidden(projection: str, i: int, j: int) -> Tensor:
        return ((projections[projection](s[i]) - t[j])[kept] ** 2).mean(-1).sum()

    def attention(i: int, j: int) -> Tensor:
        difference = (scores(student, s, i) - scores(teacher, t, j)).square().mean(1)  # [B, T, S]
        rows = [difference[b][kept[b]][:, kept[b]].mean(-1).sum() for b in range(len(kept))]
        return torch.stack(rows).sum()

    p, q = theirs.logits[select].softmax(-1), mine.logits[select].softmax(-1)
    return {
        "logit": (p * (p.log() - q.log())).sum(),
        "label": F.cross_entropy(mine.logits[labels != -100], labels[labels != -100], reduction="sum"),
        "embedding": hidden("embedding", 0, 0) if "embedding" in projections else None,
        "hidden": hidden("hidden-1", 1, 2) + hidden("hidden-2", 2, 4) if "hidden-1" in projections else None,
        "attention": attention(1, 2) + attention(2, 4),
    }


def plain(
    teacher: Frozen, one: Learner, terms: Sequence[Term], batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], Gradients]:
    """Values of the terms and the gradients of their weighted sum, on copies with transformers' own attention."""
    student, guide = copy.deepcopy(one.model), copy.deepcopy(teacher.model)
    projections = copy.deepcopy(one.modules)
    for model in (student, guide):
        model.set_attn_implementation("sdpa")
    for parameter in [*student.parameters(), *projections.parameters()]:
        parameter.grad = None
    found = [plain_terms(student, guide, projections, each) for each in batches]
    counts = {
        "logit": sum(int(b["select"].sum()) for b in batches),
        "label": sum(int((b["labels"] != -100).sum()) for b in batches),
        **dict.fromkeys(("embedding", "hidden", "attention"), sum(int(b["attention_mask"].sum()) for b in batches)),
    }
    values = {t.name: sum(each[t.name] for each in found) / counts[t.name] for t in terms}
    sum(t.weight(0) * values[t.name] for t in terms).backward()
    named = [(f"model.{n}", p) for n, p in student.named_parameters()]
    named += [(f"bridges.{n}", p) for n, p in projections.named_parameters()]
    return {n: v.detach() for n, v in values.items()}, {n: p.grad for n, p in named}
