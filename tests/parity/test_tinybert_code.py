"""TinyBERT's code, written down once more on models of transformers with eager attention: what a term `tinybert_...` must give.

From `task_distill.py` of huawei-noah/Pretrained-Language-Model: the loss of a micro-batch, with its mask of -10000, its zeroing,
its mean over padding, its one `fit_dense`, and its cross-entropy over classes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import tiny
from kernel import views
from rows import batch, config, moved
from torch import Tensor, nn

from limbeck.assemble import terms
from limbeck.distil import projections, schemes
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.schedules import constant
from limbeck.distil.teachers import Frozen
from limbeck.losses import LOSSES
from limbeck.recipe.settings import Setting

LENGTHS = (9, 4, 7, 1, 6)
INSIDE: list[dict[str, Any]] = [
    {"loss": "tinybert_hidden_mse", "tap": "embedding", "projection": "shared"},
    {"loss": "tinybert_hidden_mse", "tap": "hidden", "layers": "skip", "projection": "shared"},
    {"loss": "tinybert_scores_mse", "tap": "scores", "layers": "skip"},
]


# the code


def zeroed(scores: Tensor) -> Tensor:
    return torch.where(scores <= -1e2, torch.zeros_like(scores), scores)


def attention_loss(students: list[Tensor], teachers: list[Tensor]) -> Tensor:
    every = len(teachers) // len(students)
    chosen = [teachers[i * every + every - 1] for i in range(len(students))]
    return sum((F.mse_loss(zeroed(s), zeroed(t)) for s, t in zip(students, chosen, strict=True)), torch.zeros(()))


def hidden_loss(students: list[Tensor], teachers: list[Tensor], fit_dense: nn.Module) -> Tensor:
    """Of the embeddings and all layers."""
    every = (len(teachers) - 1) // (len(students) - 1)
    chosen = [teachers[i * every] for i in range(len(students))]
    return sum((F.mse_loss(fit_dense(s), t) for s, t in zip(students, chosen, strict=True)), torch.zeros(()))


def soft_cross_entropy(predicts: Tensor, targets: Tensor) -> Tensor:
    return (-F.softmax(targets, dim=-1) * F.log_softmax(predicts, dim=-1)).mean()


# models of transformers


def answers(model: Any, rows: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Masked scores of every layer, all hidden states, logits: of eager attention, whose probabilities the scores must give."""
    model.set_attn_implementation("eager")
    words = ("input_ids", "attention_mask", "token_type_ids")
    given = {word: rows[word] for word in words if word in rows}
    said = model(**given, output_hidden_states=True, output_attentions=True)
    extended = (1.0 - rows["attention_mask"][:, None, None, :].double()) * -10000.0
    scores = []
    for layer, below, probabilities in zip(
        model.base_model.encoder.layer, said.hidden_states[:-1], said.attentions, strict=True
    ):
        own = layer.attention.self
        query, key = (
            part(below).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2) for part in (own.query, own.key)
        )
        scores.append(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + extended)
        torch.testing.assert_close(scores[-1].softmax(-1), probabilities, rtol=1e-10, atol=1e-12)
    return scores, list(said.hidden_states), said.logits


def by_code(student: Any, teacher: Any, fit: nn.Module | None, rows: dict[str, Tensor], what: str) -> Any:
    """The loss of one kind and its gradients, on copies."""
    student, teacher, fit = copy.deepcopy(student), copy.deepcopy(teacher), copy.deepcopy(fit)
    mine = answers(student, rows)
    with torch.no_grad():
        theirs = answers(teacher, rows)
    if what == "logits":
        value = soft_cross_entropy(mine[2] / 2.0, theirs[2] / 2.0)
    elif what == "scores":
        value = attention_loss(mine[0], theirs[0])
    else:
        value = attention_loss(mine[0], theirs[0]) + hidden_loss(mine[1], theirs[1], fit or nn.Identity())
    value.backward()
    named = dict(student.named_parameters()) | {f"fit.{n}": p for n, p in (fit.named_parameters() if fit else ())}
    return value.detach(), {name: p.grad for name, p in named.items() if p.grad is not None}


def by_limbeck(student: Any, teacher: Any, said: list[dict[str, Any]], rows: dict[str, Tensor]) -> Any:
    """The same by a learner's lesson; also its projection."""
    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    made = terms.of_setting(Setting.model_validate({"terms": said}), student.config, {"teacher": teacher.config}, "a")
    modules = projections.build(
        {n: m for term in made for n, m in term.modules.items()}, projections.Making(0, 100)
    ).double()
    taps = {side: sorted({tap for term in made for tap in term.taps(side)}) for side in ("student", "teacher")}
    how = Optimisation(constant(1e-3), weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, clip=None)
    one = Learner("a", student, taps["student"], seed=0, modules=modules, optimisation=how)
    fixed = Frozen("teacher", teacher, taps["teacher"])
    still = schemes.together([schemes.offline(one, {"teacher": fixed}, made)], chunk=100)
    tally = still.gradients(*views([rows]), 0)["a"]
    named = dict(one.model.named_parameters())
    named |= {f"fit.{n.partition('.')[2]}": p for n, p in modules.named_parameters()}
    found = {name: p.grad for name, p in named.items() if p.grad is not None}
    return torch.stack(list(tally.terms.values())).sum(), found, next(iter(modules.values()), None)


def agree(mine: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-10, atol=1e-12)
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in theirs[1].values())
    for name in mine[1].keys() | theirs[1].keys():
        pair = [side.get(name) for side in (mine[1], theirs[1])]
        like = next(x for x in pair if x is not None)
        a, b = (torch.zeros_like(like) if x is None else x for x in pair)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def pair(classes: int = 3, sharp: float = 0.0) -> tuple[Any, Any]:
    """A student of 2 layers and a teacher of 4, classifiers of other widths; `sharp` makes scores below -100."""
    shapes = {"num_hidden_layers": 2, "hidden_size": 16}, {"num_hidden_layers": 4, "hidden_size": 24}
    models = [moved(config("bert", classes, **shape), seed) for seed, shape in enumerate(shapes)]
    for model in models:
        for layer in model.base_model.encoder.layer:
            layer.attention.self.query.weight.data *= 1 + sharp
    return models[0], models[1]


@pytest.mark.parametrize("sharp", [0.0, 100.0])
@pytest.mark.parametrize("lengths", [LENGTHS, (6, 6, 6)], ids=["padded", "whole"])
def test_the_intermediate_layers(lengths: tuple[int, ...], sharp: float) -> None:
    """Of a batch of rows with [CLS], segments and padding: embeddings and layers through one dense layer, and scores."""
    (student, teacher), rows = pair(sharp=sharp), batch(lengths, types=True)
    scores = torch.stack(answers(copy.deepcopy(student), rows)[0])
    assert bool(((scores < -100) & (scores > -5000)).any()) == bool(sharp), "genuine scores under -100"
    value, gradients, fit = by_limbeck(student, teacher, INSIDE, rows)
    agree((value, gradients), by_code(student, teacher, fit, rows, "inside"))
    plain = [
        term | {"loss": {"hidden": "mse", "scores": "attention_scores_mse"}.get(term["tap"], "mse")} for term in INSIDE
    ]
    other = by_limbeck(student, teacher, plain, rows)[0]
    assert bool((other - value).abs() < 1e-9) == (len(set(lengths)) == 1 and not sharp), "what limbeck does otherwise"


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_scores_of_every_family(name: str) -> None:
    """Language models of equal depth on padded text."""
    student, teacher = tiny(name, seed=1), tiny(name, seed=2)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    rows = batch(LENGTHS)
    rows |= {"labels": rows["input_ids"], "select": rows["attention_mask"].bool()}
    value, gradients, _ = by_limbeck(student, teacher, INSIDE[2:], rows)
    agree((value, gradients), by_code(student, teacher, None, rows, "scores"))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_prediction(classes: int) -> None:
    """A mean over rows and classes, without T^2."""
    (student, teacher), rows = pair(classes), batch(LENGTHS, classes, types=True)
    said = [{"loss": "tinybert_soft_cross_entropy", "temperature": 2.0}]
    value, gradients, _ = by_limbeck(student, teacher, said, rows)
    agree((value, gradients), by_code(student, teacher, None, rows, "logits"))


@pytest.mark.parametrize("bias", [-10000.0, -1e9, torch.finfo(torch.float64).min, -torch.inf])
def test_scores_that_carry_their_mask(bias: float) -> None:
    """Whatever large number the mask is made of, given as scores or as a mask: the code's number."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 6, 6, generator=draw, dtype=torch.float64) * 60
    kept = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    masked = [torch.where(kept[:, None, None], x, x + bias) for x in (student, teacher)]
    assert ((student <= -100) & kept[:, None, None]).any()
    expected = F.mse_loss(zeroed(masked[0]), zeroed(masked[1]))
    for sides, mask in (
        (masked, None),
        ((student, teacher), kept),
        (masked, kept[:, None, None, :].expand(-1, 1, 6, -1)),
    ):
        value = LOSSES["tinybert_scores_mse"](student=sides[0], teacher=sides[1], mask=mask)
        torch.testing.assert_close(value.mean(), expected, rtol=1e-12, atol=0)


def test_a_score_that_is_no_number_is_not_hidden() -> None:
    scores = torch.tensor([[[[torch.nan, 1.0], [0.0, 1.0]]]])
    assert LOSSES["tinybert_scores_mse"](student=scores, teacher=torch.zeros(1, 1, 2, 2)).isnan().all()
