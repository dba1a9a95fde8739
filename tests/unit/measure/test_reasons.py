"""Reasons against definitions by hand: numpy in fp64, Gram matrices, loops; and that nobody notices them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import rows as tasks
import torch
import torch.nn.functional as F
from kernel import (
    LABEL,
    LOGIT,
    MULTI,
    VOCABULARY,
    batch,
    bert,
    frozen,
    gradients_of,
    learner,
    parameters_of,
    share,
    still_of,
    views,
)
from test_quantities import ece_by_loop, gram_cka, rank_by_svd
from torch import Tensor, nn

from limbeck.batch import Batch
from limbeck.distil.learner import Learner
from limbeck.distil.teachers import Ensemble, Frozen
from limbeck.measure.barrier import barrier
from limbeck.measure.evaluation import Evaluation
from limbeck.measure.fixed import PLACES
from limbeck.measure.reasons import Found, Reasons

BATCHES = [batch(20), batch(21, rows=2), batch(22, rows=4)]
COUNTS = np.array([0] * 10 + [1, 9, 10, 99, 100] * 10, np.int64)  # of 60 tokens
ALL = 10**6


def measure(learners: Sequence[Learner], teacher: Any, batches: Sequence[Batch] = BATCHES, **how: Any) -> Found:
    how = {"chunk": 5, "counts": COUNTS, "tokens": ALL, **how}
    return Reasons({one.name: teacher for one in learners}, batches, **how)(learners)


def said(model: nn.Module, one: Batch) -> Any:
    """What plain transformers answers in evaluation mode, with all hidden states."""
    plain: Any = copy.deepcopy(model).eval()
    plain.set_attn_implementation("sdpa")
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in one]
    with torch.no_grad():
        return plain(**{name: one[name] for name in names}, output_hidden_states=True)


def asked(one: Batch) -> Tensor:
    return one["select"] & (one["documents"] >= 0)


def logits(model: nn.Module, batches: Sequence[Batch] = BATCHES) -> Tensor:
    return torch.cat([said(model, one).logits[asked(one)] for one in batches])


def first(one: Learner | Frozen) -> Any:
    """The first layer of a BERT."""
    return one.tapped.model.get_submodule("bert.encoder.layer.0")


def hidden(model: nn.Module, batches: Sequence[Batch] = BATCHES) -> list[np.ndarray]:
    """Every layer's states at attended tokens."""
    parts = [[h[one["attention_mask"].bool()] for h in said(model, one).hidden_states] for one in batches]
    return [torch.cat(pieces).numpy() for pieces in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def teacher() -> Frozen:
    """Read by all, changed by none."""
    return frozen()


@pytest.fixture(scope="module")
def found(teacher: Frozen) -> Found:
    return measure([learner("a", (LOGIT,)), learner("b", MULTI, seed=0)], teacher)


# all of it


def test_layers_against_transformers(teacher: Frozen, found: Found) -> None:
    """Every attended token of all batches, padding left out."""
    mine, theirs = (hidden(model) for model in (learner("a", (LOGIT,)).model, teacher.model))
    told = found.learners["a"]
    assert told["states"] == len(mine[0]) == sum(int(one["attention_mask"].sum()) for one in BATCHES)
    assert np.shape(told["cka"]) == (3, 5)
    np.testing.assert_allclose(told["cka"], [[gram_cka(x, y) for y in theirs] for x in mine], rtol=1e-9)
    assert told["effective_rank"] == pytest.approx([rank_by_svd(x) for x in mine], rel=1e-9)
    assert told["teacher_effective_rank"] == pytest.approx([rank_by_svd(y) for y in theirs], rel=1e-9)


def test_trust_against_transformers(teacher: Frozen, found: Found) -> None:
    labels = torch.cat([one["labels"][asked(one)] for one in BATCHES])
    kept = labels != -100
    for key, model in (("calibration", learner("a", (LOGIT,)).model), ("teacher_calibration", teacher.model)):
        top, best = logits(model)[kept].softmax(-1).max(-1)
        told = found.learners["a"][key]
        assert told["ece"] == pytest.approx(ece_by_loop(top.tolist(), (best == labels[kept]).tolist()), rel=1e-9)
        assert sum(told["count"]) == int(kept.sum()) < len(kept)


@pytest.mark.parametrize("how", ["masked", "causal"])
def test_bins_by_loops(teacher: Frozen, how: str) -> None:
    """What is predicted: the label (of a causal row the next token), and where there is none the token itself."""
    batches = BATCHES
    if how == "causal":
        batches = [one | {"labels": torch.where(one["select"], one["input_ids"].roll(-1, 1), -100)} for one in BATCHES]
    one = learner("a", (LOGIT,))
    told = measure([one], teacher, batches).learners["a"]
    s, t = (iter(logits(model, batches).log_softmax(-1)) for model in (one.model, teacher.model))
    edges = [0, 1, 10, 100]
    rare: list[list[tuple[float, float]]] = [[] for _ in edges]
    place: list[list[tuple[float, float]]] = [[] for _ in range(PLACES)]
    for each in batches:
        rows, length = each["input_ids"].shape
        for row in range(rows):
            for at in range(length):
                if asked(each)[row, at]:
                    q, p = next(s), next(t)
                    pair = (float(q.argmax() == p.argmax()), float((p.exp() * (p - q)).sum()))
                    label = int(each["labels"][row, at])
                    count = COUNTS[label if label != -100 else int(each["input_ids"][row, at])]
                    rare[max(b for b, edge in enumerate(edges) if count >= edge)].append(pair)
                    place[math.floor(8 * at / length)].append(pair)
    assert told["by_frequency"]["from"] == edges
    for key, bins in (("by_frequency", rare), ("by_place", place)):
        assert told[key]["count"] == [len(pairs) for pairs in bins] and all(bins)
        assert told[key]["agreement"] == pytest.approx([np.mean([a for a, _ in pairs]) for pairs in bins], rel=1e-9)
        assert told[key]["logit_loss"] == pytest.approx([np.mean([k for _, k in pairs]) for pairs in bins], rel=1e-9)


def test_bins_add_up_to_the_evaluation(teacher: Frozen, found: Found) -> None:
    one = learner("a", (LOGIT,))
    whole = Evaluation({"a": teacher}, {"test": BATCHES}, chunk=5)([one])["a", "test"]
    told = found.learners["a"]
    assert told["tokens"] == whole["tokens"]
    for key in ("by_frequency", "by_place"):
        for name in ("agreement", "logit_loss"):
            total = sum(n * mean for n, mean in zip(told[key]["count"], told[key][name], strict=True))
            assert total / told["tokens"] == pytest.approx(whole[name], rel=1e-9)
    reasons = Reasons({"a": teacher}, BATCHES, chunk=4)
    assert reasons.label_loss(one) == pytest.approx(whole["label_loss"], rel=1e-12) and one.model.training


def test_pairs_of_one_seed(teacher: Frozen) -> None:
    """Of seed 0 two, of seed 1 one: a single pair."""
    a, b, other = learner("a", (LOGIT,)), learner("b", (LOGIT,)), learner("c", (LOGIT,), seed=1)
    b.model.load_state_dict(bert(16, 2, seed=7).state_dict())
    told = measure([a, other, b], teacher).pairs
    assert [(pair["seed"], pair["learners"]) for pair in told] == [(0, ["a", "b"])]
    p, q = (logits(one.model).log_softmax(-1) for one in (a, b))
    assert told[0]["agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item(), rel=1e-12)
    both = F.kl_div(q, p, log_target=True, reduction="batchmean") + F.kl_div(
        p, q, log_target=True, reduction="batchmean"
    )
    assert told[0]["symmetric_kl"] == pytest.approx(both.item() / 2, rel=1e-9)
    x, y = hidden(a.model), hidden(b.model)
    np.testing.assert_allclose(told[0]["cka"], [[gram_cka(i, j) for j in y] for i in x], rtol=1e-9)
    assert Reasons({"a": teacher, "b": teacher}, BATCHES, chunk=5)([a, b], pairs=False).pairs == []


def test_twins_differ_in_nothing(found: Found) -> None:
    """Settings a and b begin from the same weights."""
    assert found.learners["a"] == found.learners["b"]
    (pair,) = found.pairs
    assert pair["agreement"] == 1 and abs(pair["symmetric_kl"]) < 1e-12
    assert [pair["cka"][i][i] for i in range(3)] == pytest.approx([1.0] * 3)


def close(mine: Any, theirs: Any) -> None:
    """Equal in form, and in every number to rounding."""
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        mine, theirs = list(mine.values()), list(theirs.values())
    if isinstance(mine, list):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            close(one, other)
    else:
        assert mine == (pytest.approx(theirs, rel=1e-9, abs=1e-12) if isinstance(theirs, float) else theirs)


@pytest.mark.parametrize("chunk", [1, 1000])
def test_batches_and_chunks_change_no_number(teacher: Frozen, chunk: int) -> None:
    """One batch, or its rows one by one; company, or alone."""
    whole = batch(30, rows=4)
    parts = [{name: tensor[row : row + 1] for name, tensor in whole.items()} for row in range(4)]
    learners = [learner("a", (LOGIT,)), learner("c", (LABEL,), seed=1)]
    one, several = measure(learners, teacher, [whole]), measure(learners, teacher, parts, chunk=chunk)
    close(one.learners, several.learners)
    for each in learners:
        close(measure([each], teacher, [whole]).learners[each.name], one.learners[each.name])


def test_what_does_not_count_changes_nothing(teacher: Frozen) -> None:
    """Ids behind the mask, labels of tokens that are not selected; tokens that packing added have no states either."""
    changed = []
    for one in BATCHES:
        padding = ~one["attention_mask"].bool()
        other = one | {"input_ids": torch.where(padding, 7, one["input_ids"])}
        changed.append(other | {"labels": torch.where(one["select"], one["labels"], 3)})
    close(
        measure([learner("a", (LOGIT,))], teacher, changed).learners,
        measure([learner("a", (LOGIT,))], teacher).learners,
    )
    added = batch(20)
    added["select"][:, 0], added["documents"][:, 0] = True, -1
    told = measure([learner("a", (LOGIT,))], teacher, [added]).learners["a"]
    assert told["tokens"] == int(asked(added).sum()) < int(added["select"].sum())
    assert told["states"] == int((added["attention_mask"].bool() & (added["documents"] >= 0)).sum())


def test_few_tokens_are_the_same_for_all_and_spread_evenly(teacher: Frozen) -> None:
    one = learner("a", (LOGIT,))
    reasons = Reasons({"a": teacher}, BATCHES, chunk=5, tokens=10)
    kept = [one["attention_mask"].bool() for one in BATCHES]
    total = sum(int(mask.sum()) for mask in kept)
    chosen = [k * total // 10 for k in range(10)]
    x, y = (states[chosen] for states in (hidden(one.model)[2], hidden(teacher.model)[4]))
    told = reasons([one]).learners["a"]
    assert told["states"] == 10 and told["cka"][2][4] == pytest.approx(gram_cka(x, y), rel=1e-9)
    assert all(len(fixed.states) for fixed in reasons.fixed)
    assert reasons([one]) == reasons([one])


# everyone


def test_without_a_teacher_there_are_layers_and_labels() -> None:
    told = measure([learner("a", (LABEL,)), learner("b", (LABEL,))], None)
    mine = told.learners["a"]
    for key in ("cka", "teacher_effective_rank", "teacher_calibration", "by_frequency", "by_place"):
        assert mine[key] is None
    assert mine["calibration"]["ece"] > 0 and len(mine["effective_rank"]) == 3 and len(told.pairs) == 1


def test_an_ensemble_has_no_layers(teacher: Frozen) -> None:
    """Its predictions are compared all the same; one teacher twice predicts as that teacher."""
    both = Ensemble("both", [teacher, teacher], "probabilities")
    mine, alone = (measure([learner("a", (LOGIT,))], one).learners["a"] for one in (both, teacher))
    assert mine["cka"] is None and mine["teacher_effective_rank"] is None
    for key in ("by_frequency", "by_place", "calibration", "teacher_calibration", "effective_rank"):
        close(mine[key], alone[key])


def test_two_teachers_at_once(teacher: Frozen) -> None:
    learners = [learner("a", (LOGIT,)), learner("b", (LOGIT,)), learner("c", (LABEL,))]
    other = frozen("other", seed=5)
    told = Reasons({"a": teacher, "b": other, "c": None}, BATCHES, chunk=5, counts=COUNTS, tokens=ALL)(learners)
    for one, taught in zip(learners, (teacher, other, None), strict=True):
        close(told.learners[one.name], measure([one], taught).learners[one.name])
    assert len(told.pairs) == 3


def student(name: str, model: Any) -> Learner:
    plain = learner(name, (LOGIT,))
    return Learner(name, model, ["logits"], seed=0, modules=nn.ModuleDict(), optimisation=plain.optimisation)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2"])
def test_classifiers(name: str) -> None:
    """Rows have no frequency and no place; states are those of their tokens."""
    a, b, taught = (tasks.classifier(name, seed=seed) for seed in (1, 2, 3))
    teacher = Frozen("teacher", taught, ["logits"])
    batches: list[Batch] = [tasks.batch((7, 3, 9, 5), bare=(1,)), tasks.batch((2, 6), seed=1)]
    found = measure([student("a", a), student("b", b)], teacher, batches, counts=np.ones(100, np.int64))
    told, s = found.learners["a"], torch.cat([said(a, one).logits for one in batches])
    labels = torch.cat([one["labels"] for one in batches])
    top, best = s[labels != -100].softmax(-1).max(-1)
    expected = ece_by_loop(top.tolist(), (best == labels[labels != -100]).tolist())
    assert told["calibration"]["ece"] == pytest.approx(expected, rel=1e-9) and sum(told["calibration"]["count"]) == 5
    assert told["by_frequency"] is None and told["by_place"] is None and told["tokens"] == 6 and told["states"] == 32
    other = torch.cat([said(b, one).logits for one in batches])
    assert found.pairs[0]["agreement"] == pytest.approx((s.argmax(-1) == other.argmax(-1)).double().mean().item())
    if name != "gpt2":  # whose last state transformers gives behind the norm as well, by another way
        x, y = hidden(a, batches), hidden(taught, batches)
        np.testing.assert_allclose(told["cka"], [[gram_cka(i, j) for j in y] for i in x], rtol=1e-9)


def test_scores_have_no_confidence() -> None:
    a, b, taught = (tasks.classifier("bert", 1, seed=seed) for seed in (1, 2, 3))
    rows = tasks.batch((7, 3, 9), classes=1)
    found = measure([student("a", a), student("b", b)], Frozen("teacher", taught, ["logits"]), [rows], counts=None)
    told, (pair,) = found.learners["a"], found.pairs
    assert told["calibration"] is None and told["teacher_calibration"] is None and pair["agreement"] is None
    apart = (said(a, rows).logits - said(b, rows).logits).square().mean().item()
    assert pair["symmetric_kl"] == pytest.approx(apart, rel=1e-9) and told["cka"] is not None
    plainly = (said(a, rows).logits[:, 0] - rows["labels"]).square().mean().item()
    reasons = Reasons({"a": None}, [rows], chunk=2)
    assert reasons.label_loss(student("a", a)) == pytest.approx(plainly, rel=1e-6)


@pytest.mark.parametrize("broken", ["still", "lost", "bare"])
def test_what_is_not_defined_is_null(teacher: Frozen, broken: str) -> None:
    """States that do not vary, weights that are NaN, batches without a selected token: JSON, and no error."""
    one, batches = learner("a", (LOGIT,)), BATCHES
    with torch.no_grad():
        if broken == "still":
            for parameter in one.model.parameters():
                parameter.zero_()
        elif broken == "lost":
            first(one).output.dense.weight.fill_(math.nan)
        else:
            batches = [each | {"select": torch.zeros_like(each["select"])} for each in BATCHES]
    found = measure([one, learner("b", (LOGIT,))], teacher, batches)
    json.dumps([found.learners, found.pairs], allow_nan=False)
    told = found.learners["a"]
    if broken == "still":
        assert told["effective_rank"] == [0.0] * 3 and told["cka"] == [[0.0] * 5] * 3
        assert told["calibration"]["count"][0] == sum(told["calibration"]["count"])
    if broken == "lost":
        assert (
            told["calibration"] is None and told["effective_rank"][1:] == [None, None] and told["cka"][1] == [None] * 5
        )
        assert found.pairs[0]["symmetric_kl"] is None
    if broken == "bare":
        assert told["tokens"] == 0 and told["calibration"] is None and told["by_place"]["count"] == [0] * 8
        assert (
            math.isnan(Reasons({"a": None}, batches, chunk=5).label_loss(one)) and found.pairs[0]["agreement"] is None
        )


# that nobody notices


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_training_goes_on_with_the_same_bits(teacher: Frozen, autocast: torch.dtype | None) -> None:
    """With dropout, an optimizer that has its state, and gradients that were there; a barrier between peers included."""
    ends = []
    for watched in (False, True):
        a, b = (learner(name, MULTI, dropout=0.2, dtype=torch.float32) for name in "ab")
        taught = Frozen("teacher", copy.deepcopy(teacher.model).float(), list(teacher.tapped.taps))
        still = still_of(taught, [(a, MULTI), (b, MULTI)], chunk=9, autocast=autocast)
        reasons = Reasons({"a": taught, "b": taught}, BATCHES, chunk=5, autocast=autocast)
        for step in range(3):
            still.step(share([batch(step)]), step)
            still.gradients(*views([batch(9)]), step)
            if watched:
                before, held, state = parameters_of(a), gradients_of(a), torch.random.get_rng_state()
                reasons([a, b])
                barrier(a.model, b.model, lambda model, a=a, reasons=reasons: reasons.label_loss(a), points=3)
                assert torch.equal(torch.random.get_rng_state(), state)
                assert a.model.training and b.model.training and not taught.model.training
                assert all(torch.equal(t, before[n]) for n, t in parameters_of(a).items())
                for name, gradient in gradients_of(a).items():
                    expected = held[name]
                    assert (gradient is None) == (expected is None)
                    assert gradient is None or expected is None or torch.equal(gradient, expected)
            for one in (a, b):
                one.optimizer.zero_grad(set_to_none=True)
        ends.append([one.state() for one in (a, b)])
    for plain, seen in zip(*ends, strict=True):
        assert plain.keys() == seen.keys() and all(torch.equal(t, seen[n]) for n, t in plain.items())


def test_every_model_reads_every_batch_once(teacher: Frozen) -> None:
    """And is wrapped once, however often it is asked."""
    learners = [learner("a", (LOGIT,)), learner("b", (LOGIT,)), learner("c", (LOGIT,), seed=1)]
    reasons = Reasons({one.name: teacher for one in learners}, BATCHES, chunk=5)
    reads: dict[str, int] = {}
    count: Callable[[str], Any] = lambda name: lambda *_: reads.update({name: reads.get(name, 0) + 1})  # noqa: E731
    hooks = [first(one).register_forward_hook(count(one.name)) for one in (*learners, teacher)]
    reasons(learners)
    wrapped = list(reasons._wrapped.values())
    reasons(learners)
    assert all(mine is theirs for mine, theirs in zip(wrapped, reasons._wrapped.values(), strict=True))
    assert reads == dict.fromkeys(("a", "b", "c", "teacher"), 2 * len(BATCHES)) and len(reasons._wrapped) == 4
    for hook in hooks:
        hook.remove()
    assert not any(module._forward_hooks for one in (*learners, teacher) for module in one.model.modules())


def test_tokens_beyond_the_counts_are_an_error(teacher: Frozen) -> None:
    with pytest.raises(IndexError):
        Reasons({"a": teacher}, BATCHES, chunk=5, counts=COUNTS[: VOCABULARY // 2])
