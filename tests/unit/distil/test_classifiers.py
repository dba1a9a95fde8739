"""Classifiers under the kernel, against plain transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel import LABEL, LOGIT, LOGITS, still_of, views
from rows import FAMILIES, batch, classifier, parts
from torch import Tensor, nn

from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.schedules import constant
from limbeck.distil.teachers import Frozen
from limbeck.losses import LOSSES, cross_entropy, logit_mse, mse, squared_error
from limbeck.recipe.keys import LOSS_KEYS

PLAINLY = Optimisation(constant(1e-3), weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8, clip=None)
LEARNED = Term("label", cross_entropy, LOGITS, constant(1.0), needs=("labels",))
SCORED = Term("score", squared_error, LOGITS, constant(1.0), needs=("labels",))
LENGTHS = (7, 3, 9, 5, 2, 6)

Gradients = dict[str, Tensor]


def student(model: Any, *terms: Term) -> Learner:
    taps = sorted({tap for term in terms for tap in term.taps("student")})
    return Learner("a", model, taps, seed=0, modules=nn.ModuleDict(), optimisation=PLAINLY)


def learned(
    model: Any, terms: Sequence[Term], batches: Sequence[Mapping[str, Tensor]], teacher: Any = None, chunk: int = 4
) -> tuple[dict[str, float], Gradients]:
    """Values of the terms and all gradients, by the still."""
    one = student(copy.deepcopy(model), *terms)
    taps = sorted({tap for term in terms for tap in term.taps("teacher")})
    still = still_of(Frozen("teacher", teacher, taps) if teacher else None, [(one, terms)], chunk=chunk)
    tally = still.gradients(*views(batches), 0)["a"]
    found = {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in tally.terms.items()}, found


def plain(model: Any, rows: Mapping[str, Tensor], labels: Tensor | None = None) -> Any:
    """What transformers answers."""
    words = ("input_ids", "attention_mask", *(["token_type_ids"] if "token_type_ids" in rows else []))
    return model(**{word: rows[word] for word in words}, labels=labels)


def by_autograd(model: Any, loss: Callable[[Any], Tensor]) -> tuple[float, Gradients]:
    """The value and the gradients of a loss of a copy of a model."""
    own = copy.deepcopy(model)
    value = loss(own)
    value.backward()
    return value.item(), {name: p.grad for name, p in own.named_parameters() if p.grad is not None}


def same(mine: Gradients, theirs: Gradients) -> None:
    """To 1e-10; a parameter without a gradient has the gradient 0."""
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in theirs.values())
    for name in mine.keys() | theirs.keys():
        a, b = mine.get(name), theirs.get(name)
        a, b = (torch.zeros_like(b if a is None else a) if x is None else x for x in (a, b))  # type: ignore[arg-type]
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_learned_as_by_transformers(name: str) -> None:
    """Padded rows, rows without a label: `model(**batch, labels=...).loss` and its gradients."""
    model, rows = classifier(name), batch(LENGTHS, bare=(1, 4))
    value, gradients = learned(model, (LEARNED,), [rows])
    expected, theirs = by_autograd(model, lambda own: plain(own, rows, rows["labels"]).loss)
    assert value["label"] == pytest.approx(expected, rel=1e-12)
    same(gradients, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_is_learned_as_by_transformers(name: str) -> None:
    model, rows = classifier(name, 1), batch(LENGTHS, classes=1, bare=(2,))
    value, gradients = learned(model, (SCORED,), [rows])
    labelled = {key: tensor[rows["labels"] != -100] for key, tensor in rows.items()}
    expected, theirs = by_autograd(model, lambda own: plain(own, labelled, labelled["labels"].double()).loss)
    assert value["score"] == pytest.approx(expected, rel=1e-12)
    same(gradients, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_is_learned_from_as_by_hand(name: str) -> None:
    """KL of all rows at a temperature, times its square, beside the labels of those that have one."""
    soft = Term("logit", lambda **given: LOSSES["forward_kl"](**given, temperature=2.0), LOGITS, constant(0.7))
    terms = (soft, Term("label", cross_entropy, LOGITS, constant(0.3), needs=("labels",)))
    model, teacher = classifier(name, seed=1), classifier(name, seed=2)
    rows = batch(LENGTHS, bare=(0, 3), types=name == "bert")
    values, gradients = learned(model, terms, [rows], teacher)
    with torch.no_grad():
        target = plain(teacher, rows).logits

    def loss(own: Any) -> Tensor:
        out = plain(own, rows, rows["labels"])
        kl = F.kl_div((out.logits / 2).log_softmax(-1), (target / 2).softmax(-1), reduction="batchmean") * 4
        return 0.7 * kl + 0.3 * out.loss

    expected, theirs = by_autograd(model, loss)
    assert 0.7 * values["logit"] + 0.3 * values["label"] == pytest.approx(expected, rel=1e-12)
    same(gradients, theirs)


def test_two_scores_are_compared_as_by_hand() -> None:
    near = Term("logit", logit_mse, LOGITS, constant(1.0))
    model, teacher, rows = classifier("bert", 1), classifier("bert", 1, seed=2), batch(LENGTHS, classes=1)
    values, gradients = learned(model, (near,), [rows], teacher)
    with torch.no_grad():
        target = plain(teacher, rows).logits
    expected, theirs = by_autograd(model, lambda own: (plain(own, rows).logits - target).square().mean())
    assert values["logit"] == pytest.approx(expected, rel=1e-12)
    same(gradients, theirs)


def test_a_mean_over_tokens_is_pooled_as_by_transformers() -> None:
    model, rows = classifier("modernbert", classifier_pooling="mean"), batch(LENGTHS)
    value, gradients = learned(model, (LEARNED,), [rows])
    expected, theirs = by_autograd(model, lambda own: plain(own, rows, rows["labels"]).loss)
    assert value["label"] == pytest.approx(expected, rel=1e-12)
    same(gradients, theirs)


def test_segments_reach_the_model() -> None:
    model, rows = classifier("bert"), batch(LENGTHS, types=True)
    with_them = learned(model, (LEARNED,), [rows])[0]
    without = learned(model, (LEARNED,), [{k: v for k, v in rows.items() if k != "token_type_ids"}])[0]
    assert with_them["label"] == pytest.approx(plain(model, rows, rows["labels"]).loss.item(), rel=1e-12)
    assert with_them["label"] != pytest.approx(without["label"], rel=1e-3)


def test_another_family_learns_from_what_it_does_not_read_itself() -> None:
    """A distilbert student of a bert teacher: segments are the teacher's alone."""
    model, teacher, rows = classifier("distilbert"), classifier("bert", seed=3), batch(LENGTHS, types=True)
    terms = (LOGIT, Term("hidden", mse, (Pair("hidden.1", "hidden.3"), Pair("hidden.3", "hidden.2")), constant(0.5)))
    values, gradients = learned(model, terms, [rows], teacher)
    with torch.no_grad():
        told = teacher(
            **{k: rows[k] for k in ("input_ids", "attention_mask", "token_type_ids")}, output_hidden_states=True
        )
    kept = rows["attention_mask"].bool()

    def loss(own: Any) -> Tensor:
        out = own(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], output_hidden_states=True)
        kl = F.kl_div(out.logits.log_softmax(-1), told.logits.softmax(-1), reduction="batchmean")
        pairs = [(out.hidden_states[s], told.hidden_states[t]) for s, t in ((1, 3), (3, 2))]
        return kl + 0.5 * sum(((s - t).square().mean(-1)[kept].mean() for s, t in pairs), start=torch.zeros(()))

    expected, theirs = by_autograd(model, loss)
    assert values["logit"] + 0.5 * values["hidden"] == pytest.approx(expected, rel=1e-12)
    same(gradients, theirs)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_parts_of_a_batch_add_up(name: str, chunk: int) -> None:
    """Micro-batches with other padding, other numbers of labelled rows, one without any: the same bits of mathematics."""
    rows, model, teacher = batch(LENGTHS, bare=(2, 3, 5)), classifier(name), classifier(name, seed=5)
    terms = (LOGIT, LABEL, Term("hidden", mse, (Pair("hidden.2", "hidden.3"),), constant(1.0)))
    values, gradients = learned(model, terms, [rows], teacher, chunk=1000)
    split = parts(rows, slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 6))
    assert len({part["input_ids"].shape[1] for part in split}) > 1
    assert [int((part["labels"] != -100).sum()) for part in split] == [1, 1, 0, 1]
    found, mine = learned(model, terms, split, teacher, chunk=chunk)
    assert found == pytest.approx(values, rel=1e-12)
    same(mine, gradients)


def test_rows_without_a_label_teach_nothing_to_a_loss_of_labels() -> None:
    """Only what the teacher says of them counts: other tokens there change the KL and not the cross-entropy."""
    model, teacher, rows = classifier("bert"), classifier("bert", seed=5), batch(LENGTHS, bare=(1, 4))
    other = rows | {"input_ids": torch.where((rows["labels"] == -100)[:, None], 91, rows["input_ids"])}
    before, after = (learned(model, (LOGIT, LEARNED), [each], teacher)[0] for each in (rows, other))
    assert before["label"] == pytest.approx(after["label"], rel=1e-13)
    assert before["logit"] != pytest.approx(after["logit"], rel=1e-3)
    same(*(learned(model, (LEARNED,), [each])[1] for each in (rows, other)))
    values, gradients = learned(model, (LEARNED,), [rows | {"labels": torch.full_like(rows["labels"], -100)}])
    assert values["label"] == 0 and all(not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("loss", [name for name, keys in LOSS_KEYS.items() if keys.taps == ("logits",)])
@pytest.mark.parametrize("classes", [2, 3])
def test_every_loss_on_logits_takes_classes(loss: str, classes: int) -> None:
    """What it says of tokens it says of rows: the same logits as tokens of one row, and a gradient for the model."""
    if loss == "squared_error":
        return
    term = Term("it", LOSSES[loss], LOGITS, constant(1.0), LOSS_KEYS[loss].needs, LOSS_KEYS[loss].per)
    model, teacher, rows = classifier("bert", classes), classifier("bert", classes, seed=5), batch(LENGTHS, classes)
    values, gradients = learned(model, (term,), [rows], teacher if "teacher" in term.needs else None)
    with torch.no_grad():
        given = {"student": plain(model, rows).logits, "teacher": plain(teacher, rows).logits, "labels": rows["labels"]}
        expected = LOSSES[loss](**{side: given[side] for side in ("student", *term.needs)}).mean().item()
    assert values["it"] == pytest.approx(expected, rel=1e-9) and expected > 0
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-6
