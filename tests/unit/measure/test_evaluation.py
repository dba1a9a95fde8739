"""Evaluation against transformers alone, and that nobody notices it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel import LABEL, LOGIT, MULTI, batch, frozen, gradients_of, learner, parameters_of, share, still_of, views

from limbeck.batch import Batch
from limbeck.distil.learner import Learner
from limbeck.distil.teachers import Frozen
from limbeck.measure.evaluation import SUMS, Evaluation, evaluating

SPLITS: dict[str, list[Batch]] = {
    "train": [batch(10), batch(11, rows=4)],
    "test": [batch(20), batch(21, rows=2), batch(22, rows=1)],
}
COLUMN = {name: number for number, name in enumerate(SUMS)}


def evaluate(learners: list[Learner], teacher: Frozen | None, chunk: int = 5) -> dict[tuple[str, str], dict[str, Any]]:
    return Evaluation({one.name: teacher for one in learners}, SPLITS, chunk=chunk)(learners)


def logits(model: torch.nn.Module, one: Batch) -> torch.Tensor:
    """Transformers' own, in evaluation mode."""
    plain = copy.deepcopy(model).eval()
    plain.set_attn_implementation("sdpa")
    with torch.no_grad():
        return plain(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits


@pytest.fixture(scope="module")
def teacher() -> Frozen:
    """Read by all, changed by none."""
    return frozen()


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_equals_plain_transformers(teacher: Frozen, chunk: int) -> None:
    one = learner("a", (LOGIT,), dropout=0.3)
    found = evaluate([one], teacher, chunk)
    for split, batches in SPLITS.items():
        student, target, labels = [], [], []
        for each in batches:
            where = each["select"] & (each["documents"] >= 0)
            student.append(logits(one.model, each)[where])
            target.append(logits(teacher.model, each)[where])
            labels.append(each["labels"][where])
        s, t, y = torch.cat(student), torch.cat(target), torch.cat(labels)
        labelled, mine = y != -100, found["a", split]
        p, q = t.softmax(-1), s.softmax(-1)
        assert mine["tokens"] == len(s)
        assert mine["logit_loss"] == pytest.approx((p * (p.log() - q.log())).sum(-1).mean().item(), rel=1e-10)
        assert mine["agreement"] == pytest.approx((s.argmax(-1) == t.argmax(-1)).double().mean().item(), rel=1e-12)
        assert mine["label_loss"] == pytest.approx(F.cross_entropy(s[labelled], y[labelled]).item(), rel=1e-10)
        right = (s.argmax(-1) == y)[labelled].double().mean().item()
        assert mine["label_accuracy"] == pytest.approx(right, abs=1e-12)
        assert mine["teacher_label_loss"] == pytest.approx(F.cross_entropy(t[labelled], y[labelled]).item(), rel=1e-10)
        right = (t.argmax(-1) == y)[labelled].double().mean().item()
        assert mine["teacher_label_accuracy"] == pytest.approx(right, abs=1e-12)


def test_the_teacher_agrees_with_itself(teacher: Frozen) -> None:
    twin = learner("twin", (LOGIT,))
    twin.model.__dict__.update(copy.deepcopy(teacher.model).requires_grad_(True).__dict__)
    twin = Learner("twin", twin.model, ["logits"], seed=0, modules=twin.modules, optimisation=twin.optimisation)
    for found in evaluate([twin], teacher).values():
        assert found["agreement"] == 1.0 and abs(found["logit_loss"]) < 1e-12
        assert found["teacher_label_loss"] == pytest.approx(found["label_loss"], rel=1e-12)
        assert found["teacher_label_accuracy"] == found["label_accuracy"]
        assert max(found["logit_grad_norm_layers"]) < 1e-10


def test_documents_add_up_to_the_means(teacher: Frozen) -> None:
    found = evaluate([learner("a", (LOGIT,))], teacher)
    for (_, split), mine in found.items():
        total = sum(mine["documents"].values())
        assert total[COLUMN["tokens"]] == mine["tokens"]
        for name in ("logit_loss", "agreement"):
            assert total[COLUMN[name]] / total[COLUMN["tokens"]] == pytest.approx(mine[name], rel=1e-12)
        for name in ("label_loss", "label_accuracy"):
            assert total[COLUMN[name]] / total[COLUMN["labels"]] == pytest.approx(mine[name], rel=1e-12)
        numbers = torch.cat([b["documents"][b["select"] & (b["documents"] >= 0)] for b in SPLITS[split]])
        assert set(mine["documents"]) == set(numbers.tolist()) and -1 not in mine["documents"]
        for document, sums in mine["documents"].items():
            assert sums[COLUMN["tokens"]] == (numbers == document).sum()


def test_one_documents_sum_by_hand(teacher: Frozen) -> None:
    one = learner("a", (LOGIT,))
    sums = evaluate([one], teacher)["a", "test"]["documents"]
    for document in (0, 1, 2):
        expected = 0.0
        for each in SPLITS["test"]:
            where = each["select"] & (each["documents"] == document)
            p, q = (logits(m, each)[where].log_softmax(-1) for m in (teacher.model, one.model))
            expected += (p.exp() * (p - q)).sum().item()
        assert sums[document][COLUMN["logit_loss"]] == pytest.approx(expected, rel=1e-10)


def test_tokens_that_packing_added_belong_to_none(teacher: Frozen) -> None:
    """Selected, but of no document (-1): left out of every sum."""
    added = batch(20)
    added["select"][:, 0], added["documents"][:, 0] = True, -1
    found = Evaluation({"a": teacher}, {"test": [added]}, chunk=5)([learner("a", (LOGIT,))])["a", "test"]
    assert found["tokens"] == int((added["select"] & (added["documents"] >= 0)).sum()) < int(added["select"].sum())


@pytest.mark.parametrize("chunk", [2, 1000])
def test_gradient_norms_of_the_common_loss_are_autograds(teacher: Frozen, chunk: int) -> None:
    """For every setting alike, whatever it trains on: the norm of d KL / d layer on the first batch of the split."""
    learners = [learner("a", (LOGIT,)), learner("b", (LABEL,), seed=1), learner("c", MULTI, seed=2)]
    found = evaluate(learners, teacher, chunk)
    for one in learners:
        for split, batches in SPLITS.items():
            each, plain = batches[0], copy.deepcopy(one.model).eval()
            plain.set_attn_implementation("sdpa")
            out = plain(input_ids=each["input_ids"], attention_mask=each["attention_mask"]).logits[each["select"]]
            log_p, log_q = logits(teacher.model, each)[each["select"]].log_softmax(-1), out.log_softmax(-1)
            loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            layers = [list(layer.parameters()) for layer in plain.bert.encoder.layer]
            grads = torch.autograd.grad(loss, [p for layer in layers for p in layer])
            size = len(layers[0])
            expected = [
                math.sqrt(sum(g.square().sum().item() for g in grads[i * size : (i + 1) * size])) for i in range(2)
            ]
            assert found[one.name, split]["logit_grad_norm_layers"] == pytest.approx(expected, rel=1e-9)


def test_without_a_teacher_there_are_labels_only() -> None:
    for found in evaluate([learner("a", (LABEL,))], None).values():
        assert found["logit_loss"] is None and found["agreement"] is None and found["logit_grad_norm_layers"] is None
        assert found["label_loss"] > 0 and 0 <= found["label_accuracy"] <= 1
        assert found["teacher_label_loss"] is None and found["teacher_label_accuracy"] is None


def test_without_labels_there_is_a_logit_loss_only(teacher: Frozen) -> None:
    bare = batch(20) | {"labels": torch.full_like(batch(20)["labels"], -100)}
    found = Evaluation({"a": teacher}, {"test": [bare]}, chunk=5)([learner("a", (LOGIT,))])["a", "test"]
    assert found["label_loss"] is None and found["label_accuracy"] is None and found["logit_loss"] > 0
    assert found["teacher_label_loss"] is None and found["teacher_label_accuracy"] is None


def test_company_changes_no_number(teacher: Frozen) -> None:
    learners = [learner("a", (LOGIT,)), learner("b", MULTI, seed=1)]
    together = evaluate(learners, teacher)
    for one in learners:
        alone = evaluate([one], teacher)
        for key, mine in alone.items():
            theirs = together[key]
            assert {k: v for k, v in mine.items() if k != "documents"} == {
                k: v for k, v in theirs.items() if k != "documents"
            }
            assert all((sums == theirs["documents"][d]).all() for d, sums in mine["documents"].items())


def test_nobody_notices(teacher: Frozen) -> None:
    """Weights, gradients, modes, generator: as before; and training goes on with the same bits."""
    watched, plain = learner("a", MULTI, dropout=0.2), learner("a", MULTI, dropout=0.2)
    still = {one: still_of(teacher, [(one, MULTI)], chunk=9) for one in (watched, plain)}
    before = parameters_of(teacher)
    for step in range(3):
        for one in (watched, plain):
            still[one].step(share([batch(step)]), step)
        weights, state = parameters_of(watched), torch.random.get_rng_state()
        evaluate([watched], teacher)
        assert all(torch.equal(t, weights[n]) for n, t in parameters_of(watched).items())
        assert all(gradient is None for gradient in gradients_of(watched).values())
        assert torch.equal(torch.random.get_rng_state(), state)
        assert watched.model.training and not teacher.model.training
    assert all(torch.equal(t, parameters_of(plain)[n]) for n, t in parameters_of(watched).items())
    assert all(torch.equal(t, before[n]) for n, t in parameters_of(teacher).items())


def test_gradients_that_were_there_stay(teacher: Frozen) -> None:
    """Asked between the micro-batches of a loop of one's own, it neither counts what is there nor takes it away."""
    one, fresh = learner("a", MULTI), learner("a", MULTI)
    still_of(teacher, [(one, MULTI)], chunk=9).gradients(*views([batch()]), 0)
    held = gradients_of(one)
    found = evaluate([one], teacher)["a", "test"]["logit_grad_norm_layers"]
    assert found == evaluate([fresh], teacher)["a", "test"]["logit_grad_norm_layers"]
    for name, gradient in gradients_of(one).items():
        expected = held[name]
        assert gradient is not None and expected is not None and torch.equal(gradient, expected)


def test_training_mode_comes_back_after_a_failure() -> None:
    one = learner("a", (LOGIT,))
    modes = []

    def fail() -> None:
        with evaluating([one]):
            modes.append(one.model.training)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert modes == [False] and one.model.training


def test_a_student_that_is_lost_is_null(teacher: Frozen) -> None:
    one = learner("a", (LOGIT,))
    with torch.no_grad():
        one.model.bert.encoder.layer[0].output.dense.weight.fill_(math.nan)
    found = evaluate([one], teacher)["a", "test"]
    assert found["logit_loss"] is None and found["label_loss"] is None and found["tokens"] > 0
