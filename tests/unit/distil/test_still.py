"""The step against the plain path: a whole model, whole logits, the formulas written out, one backward."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from kernel import (
    HIDDEN,
    INSIDE,
    LABEL,
    LOGIT,
    LOGITS,
    MULTI,
    SCORES,
    STUDENT_DEPTH,
    batch,
    frozen,
    gradients_of,
    learner,
    parameters_of,
    share,
    still_of,
    views,
)
from plain import plain, same
from torch import Tensor

from limbeck.batch import Batch
from limbeck.distil.actors import Moment
from limbeck.distil.learner import Learner
from limbeck.distil.lessons import Lesson, Term
from limbeck.distil.reduce import Counts
from limbeck.distil.schedules import ramp
from limbeck.distil.still import Still
from limbeck.distil.teachers import Frozen
from limbeck.losses import forward_kl


def still(teacher: Frozen | None, students: Sequence[tuple[Learner, tuple[Term, ...]]], chunk: int = 7) -> Still:
    return still_of(teacher, students, chunk=chunk)


def hand(one: Still, batches: Sequence[Batch], step: int = 0) -> dict[str, dict[str, Tensor]]:
    tallies = one.gradients(*views(batches), step)
    return {name: tally.terms for name, tally in tallies.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_chunks_are_the_whole(chunk: int, tied: bool) -> None:
    teacher, terms, batches = frozen(), (*MULTI, LABEL), [batch()]
    one = learner("a", terms, tied=tied)
    values = hand(still(teacher, [(one, terms)], chunk), batches)["a"]
    expected, gradients = plain(teacher, one, terms, batches)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
        assert value > 0
    same(gradients_of(one), gradients)
    unused = {"model.cls.predictions.bias"} - ({"model.cls.predictions.bias"} if tied else set())
    assert {name for name, gradient in gradients_of(one).items() if gradient is None} == unused


@pytest.mark.parametrize("terms", [(LOGIT,), (LABEL,), INSIDE, (SCORES,), (HIDDEN, LABEL)], ids=lambda t: t[-1].name)
def test_every_sort_of_lesson_is_the_plain_one(terms: tuple[Term, ...]) -> None:
    teacher, batches = frozen(), [batch(3)]
    one = learner("a", terms, tied=False)
    hand(still(teacher, [(one, terms)]), batches)
    same(gradients_of(one), plain(teacher, one, terms, batches)[1])


def test_micro_batches_of_unequal_weight_add_up() -> None:
    """Micro-batches with different numbers of tokens, selected tokens and labels: the mean is that of the whole."""
    teacher, terms = frozen(), (*MULTI, LABEL)
    batches = [batch(1, rows=2, padded=False), batch(2, rows=4), batch(3, rows=1)]
    one = learner("a", terms)
    values = hand(still(teacher, [(one, terms)]), batches)["a"]
    expected, gradients = plain(teacher, one, terms, batches)
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
    same(gradients_of(one), gradients)


def test_padding_never_counts() -> None:
    """Longer padding, and other token ids in it, leave every value and every gradient."""
    teacher, terms = frozen(), (*MULTI, LABEL)
    short = batch()
    longer = {
        name: F.pad(tensor, (0, 4), value={"labels": -100, "documents": -1}.get(name, 0))
        for name, tensor in short.items()
    }
    longer["input_ids"] = torch.where(longer["attention_mask"] == 1, longer["input_ids"], 33)
    found = []
    for each in (short, longer):
        one = learner("a", terms)
        found.append((hand(still(teacher, [(one, terms)]), [each])["a"], gradients_of(one)))
    for name, value in found[0][0].items():
        torch.testing.assert_close(value, found[1][0][name], rtol=1e-11, atol=1e-11)
    spare = "model.bert.embeddings.position_embeddings.weight"
    same(found[0][1], found[1][1], 1e-11)
    assert (found[1][1][spare][9:] == 0).all()


def test_a_weight_follows_its_schedule_and_the_tally_stays_unweighted() -> None:
    teacher, batches = frozen(), [batch()]
    ramped = dataclasses.replace(HIDDEN, weight=ramp(0.0, 4.0, steps=8))
    found = []
    for step in (2, 6):
        one = learner("a", (ramped,))
        found.append((hand(still(teacher, [(one, (ramped,))]), batches, step)["a"]["hidden"], gradients_of(one)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    same({n: None if g is None else 3 * g for n, g in found[0][1].items()}, found[1][1], 1e-12)


def test_the_common_logit_loss_is_that_of_temperature_one() -> None:
    teacher, batches = frozen(), [batch()]
    soft = Term("logit", lambda **given: forward_kl(**given, temperature=4.0), LOGITS, LOGIT.weight)
    one = learner("a", (soft,))
    tally = still(teacher, [(one, (soft,))]).gradients(*views(batches), 0)["a"]
    expected = plain(teacher, one, (LOGIT,), batches)[0]["logit"]
    assert tally.logit_loss is not None
    torch.testing.assert_close(tally.logit_loss, expected, rtol=1e-10, atol=1e-10)
    assert (tally.terms["logit"] - expected).abs() > 1e-3


# who learns, who does not


def test_the_teacher_is_left_alone() -> None:
    teacher = frozen()
    before = parameters_of(teacher)
    one = learner("a", MULTI, dropout=0.1)
    cast = still(teacher, [(one, MULTI)])
    for step in range(3):
        cast.step(share([batch(step)]), step)
    for name, parameter in teacher.model.named_parameters():
        assert parameter.grad is None and not parameter.requires_grad, name
        assert torch.equal(parameter, before[f"model.{name}"]), name
    assert not any(module.training for module in teacher.model.modules())
    assert all(module.training for module in one.model.modules())
    readout = teacher.forward(batch())
    assert not any(readout[tap].requires_grad for tap in readout)
    assert not teacher.logits(readout.features.clone().requires_grad_()).requires_grad


def test_peers_are_constants_to_each_other() -> None:
    """Mutual learning: each one's gradient is what a frozen copy of the other would have given."""
    pair = {name: learner(name, (LOGIT,), seed=seed) for name, seed in (("a", 1), ("b", 2))}
    copies = {name: Frozen(name, copy.deepcopy(one.model), ["logits"]) for name, one in pair.items()}
    batches = [batch()]
    lessons = [Lesson("a", "b", (LOGIT,)), Lesson("b", "a", (LOGIT,))]
    tallies = Still(list(pair.values()), lessons, chunk=4).gradients(*views(batches), 0)
    for me, other in (("a", "b"), ("b", "a")):
        alone = learner(me, (LOGIT,), seed=1 if me == "a" else 2)
        found = Still([alone, copies[other]], [Lesson(me, other, (LOGIT,))], chunk=4).gradients(*views(batches), 0)
        same(gradients_of(pair[me]), gradients_of(alone), 0.0)
        assert torch.equal(tallies[me].terms["logit"], found[me].terms["logit"])


def test_peers_hidden_states_are_constants_too() -> None:
    to_peer = dataclasses.replace(
        HIDDEN, pairs=(dataclasses.replace(HIDDEN.pairs[1], teacher="hidden.2", projection=None),)
    )
    pair = {name: learner(name, (to_peer,), seed=seed) for name, seed in (("a", 1), ("b", 2))}
    batches = [batch()]
    Still(list(pair.values()), [Lesson("a", "b", (to_peer,))], chunk=4).gradients(*views(batches), 0)
    assert all(gradient is None for gradient in gradients_of(pair["b"]).values())
    assert any(gradient is not None for gradient in gradients_of(pair["a"]).values())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_company_is_solo(autocast: torch.dtype | None) -> None:
    """Two learners against one, with dropout, in either order: the same bits."""
    teacher, dtype = frozen(), torch.float32
    teacher.model.to(dtype)
    settings = {"logit": (LOGIT,), "multi": (*MULTI, LABEL)}

    def train(names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        cast = [(learner(name, settings[name], dropout=0.1, dtype=dtype), settings[name]) for name in names]
        together = still_of(teacher, cast, chunk=5, autocast=autocast)
        for step in range(2):
            batches = [batch(2 * step), batch(2 * step + 1)]
            together.step(share(batches), step)
        return {one.name: parameters_of(one) for one, _ in cast}

    company, turned = train(["logit", "multi"]), train(["multi", "logit"])
    for name in settings:
        alone = train([name])[name]
        for parameter, bits in alone.items():
            assert torch.equal(bits, company[name][parameter]), (name, parameter)
            assert torch.equal(bits, turned[name][parameter]), (name, parameter)
        assert not torch.equal(
            alone["model.bert.embeddings.word_embeddings.weight"],
            parameters_of(learner(name, settings[name], dtype=dtype))["model.bert.embeddings.word_embeddings.weight"],
        )


def test_dropout_is_drawn_by_step_and_micro_batch_and_leaves_the_generator() -> None:
    one = learner("a", (LOGIT,), dropout=0.3)
    state = torch.random.get_rng_state()
    features = {
        moment: one.forward(batch(), Moment(*moment)).features
        for moment in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1))
    }
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.forward(batch(), Moment(0, 0, 0)).features, features[0, 0, 0])
    distinct = list(features.values())
    assert all(not torch.equal(x, y) for i, x in enumerate(distinct) for y in distinct[:i])


# lessons with and without logits


@pytest.mark.parametrize("tied", [True, False])
def test_without_logit_terms_the_head_gets_no_gradient(tied: bool) -> None:
    """None, not zero: an optimizer would decay a zero gradient's weight."""
    one = learner("a", INSIDE, tied=tied)
    before = parameters_of(one)
    cast = still(frozen(), [(one, INSIDE)])
    tally = cast.gradients(*views([batch()]), 0)["a"]
    head = [name for name in before if ".cls." in name]
    assert head and tally.logit_loss is None and set(tally.terms) == {term.name for term in INSIDE}
    assert all(gradients_of(one)[name] is None for name in head)
    one.optimizer.zero_grad(set_to_none=True)
    cast.step(share([batch()]), 0)
    after = parameters_of(one)
    assert all(torch.equal(after[name], before[name]) for name in head)
    assert not torch.equal(
        after["model.bert.encoder.layer.0.output.dense.weight"],
        before["model.bert.encoder.layer.0.output.dense.weight"],
    )


def test_layers_above_the_last_tap_get_no_gradient() -> None:
    lowest = dataclasses.replace(HIDDEN, pairs=HIDDEN.pairs[:1])
    one = learner("a", (lowest,))
    hand(still(frozen(), [(one, (lowest,))]), [batch()])
    gradients = gradients_of(one)
    assert all(g is None for n, g in gradients.items() if f"layer.{STUDENT_DEPTH - 1}." in n)
    assert all(g is not None for n, g in gradients.items() if "layer.0." in n)


def test_labels_count_only_where_there_are_labels() -> None:
    teacher, batches = frozen(), [batch()]
    both, one = (LOGIT, LABEL), learner("a", (LOGIT, LABEL))
    counts = Counts.of(batches)
    assert 0 < counts.labels < counts.selected
    values = hand(still(teacher, [(one, both)], chunk=3), batches)["a"]
    expected, gradients = plain(teacher, one, both, batches)
    for name in ("logit", "label"):
        torch.testing.assert_close(values[name], expected[name], rtol=1e-10, atol=1e-10)
    same(gradients_of(one), gradients)
    bare = [{**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}]
    other = learner("a", both)
    values = hand(still(teacher, [(other, both)], chunk=3), bare)["a"]
    assert values["label"] == 0
    same(gradients_of(other), plain(teacher, other, (LOGIT,), bare)[1])


def test_without_a_teacher_labels_are_enough() -> None:
    one, batches = learner("a", (LABEL,)), [batch()]
    tally = still(None, [(one, (LABEL,))]).gradients(*views(batches), 0)["a"]
    expected, gradients = plain(frozen(), one, (LABEL,), batches)
    torch.testing.assert_close(tally.terms["label"], expected["label"], rtol=1e-10, atol=1e-10)
    assert tally.logit_loss is None
    same(gradients_of(one), gradients)


def test_a_micro_batch_without_selected_tokens_adds_zero() -> None:
    teacher, terms = frozen(), (*MULTI, LABEL)
    empty = batch(1)
    empty |= {"select": torch.zeros_like(empty["select"]), "labels": torch.full_like(empty["labels"], -100)}
    for batches in ([batch(), empty], [empty, batch()], [empty]):
        one = learner("a", terms)
        values = hand(still(teacher, [(one, terms)]), batches)["a"]
        assert all(value.isfinite() for value in values.values())
        if len(batches) > 1:
            same(gradients_of(one), plain(teacher, one, terms, batches)[1])


def test_bf16_autocast_keeps_fp32_parameters_gradients_and_losses() -> None:
    teacher = frozen()
    teacher.model.float()
    batches, found = [batch()], []
    for autocast in (None, torch.bfloat16):
        one = learner("a", MULTI, dtype=torch.float32)
        cast = still_of(teacher, [(one, MULTI)], chunk=7, autocast=autocast)
        tally = cast.gradients(*views(batches), 0)["a"]
        assert all(value.dtype == torch.float32 for value in tally.terms.values())
        assert all(g is None or g.dtype == torch.float32 for g in gradients_of(one).values())
        found.append((tally, torch.cat([g.flatten() for g in gradients_of(one).values() if g is not None])))
    for name, value in found[0][0].terms.items():
        torch.testing.assert_close(found[1][0].terms[name], value, rtol=0.05, atol=0.02)
    assert torch.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.99
    assert not torch.equal(found[0][1], found[1][1])
