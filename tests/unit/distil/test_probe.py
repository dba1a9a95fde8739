"""Probes against the plain path: whole logits, the formulas written out, one backward for each term alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from kernel import (
    EMBEDDING,
    HIDDEN,
    LABEL,
    LOGIT,
    LOGITS,
    SCORES,
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    batch,
    frozen,
    learner,
    share,
    still_of,
    views,
)
from plain import plain_terms
from torch import Tensor, nn

from limbeck.batch import Batch
from limbeck.distil.balance import Balance, Probed
from limbeck.distil.contrastive import contrastive_memory
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.lessons import Lesson, Pair, Term
from limbeck.distil.probe import probe
from limbeck.distil.reduce import Counts
from limbeck.distil.schedules import constant, ramp
from limbeck.distil.still import Still
from limbeck.distil.teachers import Frozen
from limbeck.losses import contrastive, pearson, rkd_angle, rkd_distance
from limbeck.system.processes import World

PEARSON = Term("pearson", pearson, LOGITS, constant(0.7), per="batch")
POOLED = Term("pooled", rkd_distance, (Pair("pooled", "pooled"),), constant(25.0), per="batch")
ANGLE = Term("angle", rkd_angle, (Pair("pooled", "pooled"),), constant(50.0), per="batch")
CONTRAST = Term(
    "contrast",
    contrastive,
    (Pair("pooled", "pooled", memory="contrast"),),
    constant(0.1),
    per="row",
    modules={"contrast": contrastive_memory(STUDENT_WIDTH, TEACHER_WIDTH, width=8, negatives=5, momentum=0.5)},
)
TERMS = (LOGIT, LABEL, PEARSON, EMBEDDING, HIDDEN, SCORES, POOLED)


def still(teacher: Frozen, *cast: tuple[Learner, tuple[Term, ...]], chunk: int = 4, **how: object) -> Still:
    return still_of(teacher, cast, chunk=chunk, **how)


def find(
    one: Learner,
    batches: Sequence[Batch],
    terms: tuple[Term, ...] = TERMS,
    step: int = 0,
    teacher: Frozen | None = None,
) -> dict[str, Probed]:
    return probe(still(teacher or frozen(), (one, terms)), one, *views(batches), step)


# the plain path


def pearson_gap(mine: Tensor, theirs: Tensor) -> Tensor:
    """2 minus the mean correlation of rows and that of columns."""
    rows = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mine, theirs, strict=True)])
    columns = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mine.T, theirs.T, strict=True)])
    return 2 - rows.mean() - columns.mean()


def pooled_gap(mine: Tensor, theirs: Tensor, attended: Tensor) -> Tensor:
    """RKD's distances of the mean states, each side in units of its own mean distance."""
    sides = []
    for last in (mine, theirs):
        x = [state[kept].mean(0) for state, kept in zip(last, attended, strict=True)]
        apart = torch.stack([torch.stack([(a - b).norm() if a is not b else a.sum() * 0 for b in x]) for a in x])
        sides.append(apart / apart[apart > 0].mean())
    return F.smooth_l1_loss(*sides)


def of_one(
    name: str, student: nn.Module, guide: nn.Module, projections: nn.ModuleDict, each: Batch
) -> tuple[Tensor, int]:
    """What a micro-batch adds to a term, and how much of what the term is averaged over it holds."""
    attended, labels = each["attention_mask"], each["labels"]
    if name in ("embedding", "hidden", "attention"):
        return plain_terms(student, guide, projections, each)[name], int(attended.sum())
    inputs = {"input_ids": each["input_ids"], "attention_mask": attended}
    mine, theirs = (model(**inputs, output_hidden_states=True) for model in (student, guide))
    if name == "pooled":
        return pooled_gap(mine.hidden_states[-1], theirs.hidden_states[-1], attended.bool()), 1
    if name == "label":
        flat = mine.logits.flatten(0, 1), labels.flatten()
        return F.cross_entropy(*flat, reduction="sum"), int((labels != -100).sum())
    p_s, p_t = (out.logits[each["select"]].softmax(-1) for out in (mine, theirs))
    if name == "pearson":
        return pearson_gap(p_s, p_t), 1
    return (p_t * (p_t.log() - p_s.log())).sum(), len(p_s)


def plain(teacher: Frozen, one: Learner, name: str, batches: Sequence[Batch]) -> Probed:
    """A term alone: its mean, and the norm of its gradient in the student's parameters."""
    student, guide, projections = (copy.deepcopy(part) for part in (one.model, teacher.model, one.modules))
    for model in (student, guide):
        model.set_attn_implementation("sdpa")
        model.zero_grad(set_to_none=True)
    found = [of_one(name, student, guide, projections, each) for each in batches]
    value = torch.stack([part for part, _ in found]).sum() / sum(count for _, count in found)
    value.backward()
    squares = [parameter.grad.square().sum() for parameter in student.parameters() if parameter.grad is not None]
    return Probed(value.item(), torch.stack(squares).sum().sqrt().item())


def close(found: Probed, expected: Probed, bound: float = 1e-9) -> None:
    assert found.value == pytest.approx(expected.value, rel=bound)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=bound)
    assert expected.value > 1e-3 and expected.gradient_norm > 1e-3


def rows(whole: dict[str, Tensor], *cuts: int) -> list[dict[str, Tensor]]:
    edges = (0, *cuts, len(whole["input_ids"]))
    return [{k: v[a:b] for k, v in whole.items()} for a, b in pairwise(edges)]


WHOLE = batch(1, rows=9)
MICRO = {
    "whole": [WHOLE],
    "two": rows(WHOLE, 4),
    "three": rows(WHOLE, 2, 5),
    "others": [batch(2), batch(3, rows=2), batch(4, rows=4, padded=False)],
}


@pytest.mark.parametrize("micro", MICRO)
def test_each_term_alone(micro: str) -> None:
    """Value and gradient norm of each term, out of a probe of all of them."""
    one, teacher, batches = learner("a", TERMS), frozen(), MICRO[micro]
    found = find(one, batches, teacher=teacher)
    assert list(found) == [term.name for term in TERMS]
    for name, probed in found.items():
        close(probed, plain(teacher, one, name, batches))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_neither_chunk_nor_tied_heads_matter(chunk: int, tied: bool) -> None:
    one, teacher, batches = learner("a", TERMS, tied=tied), frozen(), [batch(1)]
    found = probe(still(teacher, (one, TERMS), chunk=chunk), one, *views(batches), 0)
    for name in ("logit", "pearson"):
        close(found[name], plain(teacher, one, name, batches))


def test_micro_batches_give_the_norm_of_the_whole() -> None:
    """Not the sum of their norms, which would be more."""
    terms, whole = (LOGIT, LABEL, HIDDEN, SCORES), WHOLE
    once = find(learner("a", terms), [whole], terms)
    for cuts in ((4,), (1, 2)):
        parts = find(learner("a", terms), rows(whole, *cuts), terms)
        for name, expected in once.items():
            close(parts[name], expected)
    alone = [find(learner("a", terms), [part], terms)["logit"].gradient_norm for part in rows(whole, 4)]
    assert once["logit"].gradient_norm < 0.95 * sum(alone)


def test_a_probe_is_unweighted() -> None:
    """Whatever the recipe weighs, at whatever step, and whatever the balance has learned."""
    batches, teacher = [batch(1)], frozen()
    plainly = find(learner("a", TERMS), batches, teacher=teacher)
    silent = tuple(dataclasses.replace(term, weight=ramp(0.0, 9.0, 10)) for term in TERMS)
    balanced = with_balance("gradient", TERMS)
    balanced.balance.learn({name: Probed(1.0, float(i + 1)) for i, name in enumerate(plainly)})
    for found in (
        find(learner("a", silent), batches, silent, teacher=teacher),
        find(learner("a", silent), batches, silent, step=7, teacher=teacher),
        find(balanced, batches, teacher=teacher),
    ):
        assert found == plainly


def test_projections_do_not_count() -> None:
    """Of a term whose gradient is in the projection as well, only the student's part is measured."""
    one, teacher, batches = learner("a", (HIDDEN,), clip=None), frozen(), [batch(1)]
    found = find(one, batches, (HIDDEN,), teacher=teacher)["hidden"]
    norms = still(teacher, (one, (HIDDEN,))).step(share(batches), 0)["a"].norms
    assert norms is not None and norms.modules > 1e-3
    assert HIDDEN.weight(0) * found.gradient_norm == pytest.approx(norms.whole, rel=1e-9)


def test_a_micro_batch_without_selected_tokens() -> None:
    terms, full, empty = (LOGIT, LABEL, HIDDEN), batch(1), batch(2)
    empty |= {"select": torch.zeros_like(empty["select"]), "labels": torch.full_like(empty["labels"], -100)}
    one, teacher = learner("a", terms), frozen()
    for batches in ([full, empty], [empty, full]):
        found = find(one, batches, terms, teacher=teacher)
        for name in ("logit", "label", "hidden"):
            close(found[name], plain(teacher, one, name, batches))
    nothing = find(one, [empty], terms, teacher=teacher)
    assert nothing["logit"] == nothing["label"] == Probed(0.0, 0.0)
    assert nothing["hidden"].gradient_norm > 1e-3


def test_what_is_computed_again_in_the_backward_may_be_probed() -> None:
    """Every term goes backwards through the same graph, checkpointed by the student and by a loss."""
    terms, batches, teacher = (*TERMS, ANGLE), [batch(2), batch(3)], frozen()
    one, checkpointed = (learner("a", terms, dropout=0.1) for _ in range(2))
    checkpointed.model.activation_checkpointing_enable({"use_reentrant": False})
    expected, found = (find(each, batches, terms, teacher=teacher) for each in (one, checkpointed))
    for name, probed in expected.items():
        close(found[name], probed)


# several learners


def test_each_learner_has_a_probe_of_its_own() -> None:
    teacher, batches = frozen(), [batch(1), batch(2, rows=4)]
    settings = {"logit": (LOGIT, PEARSON), "multi": (LOGIT, HIDDEN, SCORES)}
    cast = [(learner(name, terms, seed=i), terms) for i, (name, terms) in enumerate(settings.items())]
    together = still(teacher, *cast)
    for one, terms in cast:
        found = probe(together, one, *views(batches), 0)
        assert list(found) == [term.name for term in terms]
        for name, probed in found.items():
            close(probed, plain(teacher, one, name, batches))
        assert found == find(one, batches, terms, teacher=teacher), "the others change no bit"
    for one, _ in cast:
        assert all(parameter.grad is None for parameter in one.model.parameters())


def test_a_peer_that_teaches_is_left_alone() -> None:
    """Mutual learning: only the lessons in which the learner is the student."""
    pair = {name: learner(name, (LOGIT,), seed=seed) for name, seed in (("a", 1), ("b", 2))}
    mutual = Still(list(pair.values()), [Lesson("a", "b", (LOGIT,)), Lesson("b", "a", (LOGIT,))], chunk=4)
    batches = [batch(1)]
    before = {name: bits(one) for name, one in pair.items()}
    for me, other in (("a", "b"), ("b", "a")):
        found = probe(mutual, pair[me], *views(batches), 0)
        assert list(found) == ["logit"]
        peer = Frozen(other, copy.deepcopy(pair[other].model), ["logits"])
        close(found["logit"], plain(peer, pair[me], "logit", batches))
    for name, one in pair.items():
        same(before[name], bits(one))
        assert one.model.training and all(parameter.grad is None for parameter in one.parameters)


def test_labels_alone_need_no_teacher() -> None:
    one, batches = learner("a", (LABEL,)), [batch(1)]
    found = probe(still_of(None, [(one, (LABEL,))], chunk=4), one, *views(batches), 0)
    close(found["label"], plain(frozen(), one, "label", batches))


# two processes


@dataclasses.dataclass(frozen=True)
class Half(World):
    """One of two processes: `other` is what the other one has said, in the order in which it is asked for."""

    other: list = dataclasses.field(default_factory=list)
    said: list = dataclasses.field(default_factory=list)

    def total(self, numbers: Sequence[float]) -> list[float]:
        self.said.append(list(numbers))
        return [a + b for a, b in zip(numbers, self.other.pop(0), strict=True)] if self.other else list(numbers)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        self.said.append([parameter.grad.clone() for parameter in parameters])
        for parameter, more in zip(parameters, self.other.pop(0), strict=True) if self.other else ():
            parameter.grad = parameter.grad + more


def test_two_processes_measure_what_one_does() -> None:
    """Values are added up, and gradients before their norm is taken; also where one has no token for a term."""
    whole, teacher = batch(1, rows=4), frozen()
    parts = rows(whole, 2)
    parts[1]["labels"] = torch.full_like(parts[1]["labels"], -100)
    parts[1]["select"] = torch.zeros_like(parts[1]["select"])
    terms, counts = (LOGIT, LABEL, HIDDEN, SCORES), Counts.of(parts)
    expected = find(learner("a", terms), parts, terms, teacher=teacher)
    found: dict[str, Probed] = {}
    said: list = []
    for rank in (1, 0):
        world = Half(rank, 2, other=said)
        one = learner("a", terms)
        found = probe(still(teacher, (one, terms), world=world), one, *views([parts[rank]], counts), 0)
        said = world.said
    for name, probed in found.items():
        close(probed, expected[name])


# what is left


def with_balance(
    how: str, terms: tuple[Term, ...], dropout: float = 0.0, dtype: torch.dtype = torch.float64
) -> Learner:
    one = learner("a", terms, dropout=dropout, dtype=dtype)
    return Learner(
        "a",
        one.model,
        list(one.tapped.taps),
        seed=one.seed,
        modules=one.modules,
        optimisation=Optimisation(constant(1e-3), 0.01, (0.9, 0.999), 1e-8, 1.0),
        balance=Balance(how, [term.name for term in terms]).to(dtype),
    )


def bits(one: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in one.state().items()}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("how", ["none", "uncertainty"])
def test_a_step_after_a_probe_is_the_step(how: str, autocast: torch.dtype | None) -> None:
    """With dropout, two micro-batches, a memory bank and an optimizer that has its state: the same bits."""
    terms, teacher = (*TERMS, CONTRAST), frozen()
    teacher.model.float()
    ends, tallies = [], []
    for probes in (False, True):
        one = with_balance(how, terms, dropout=0.1, dtype=torch.float32)
        cast = still(teacher, (one, terms), autocast=autocast)
        for step in range(3):
            batches = [batch(2 * step), batch(2 * step + 1)]
            if probes:
                before, state = bits(one), torch.random.get_rng_state()
                found = probe(cast, one, *views(batches), step)
                assert all(probed.gradient_norm > 0 for probed in found.values())
                same(before, bits(one))
                assert torch.equal(torch.random.get_rng_state(), state)
                assert all(p.grad is None for part in (one.model, one.modules, one.balance) for p in part.parameters())
            tally = cast.step(share(batches), step)["a"]
        tallies.append(tally)
        ends.append(bits(one))
    same(*ends)
    same(tallies[0].terms, tallies[1].terms)
    assert tallies[0].norms == tallies[1].norms and tallies[0].weights == tallies[1].weights


def test_a_probe_draws_the_dropout_of_its_step() -> None:
    """Its values are those that the step then has, and another step has others."""
    terms, batches, teacher = (LOGIT, HIDDEN), [batch(1), batch(2)], frozen()
    one = learner("a", terms, dropout=0.3)
    cast = still(teacher, (one, terms))
    found = {step: probe(cast, one, *views(batches), step) for step in (3, 4)}
    tally = cast.step(share(batches), 3)["a"]
    for name, value in tally.terms.items():
        assert found[3][name].value == pytest.approx(value.item(), rel=1e-12)
        assert found[4][name].value != pytest.approx(value.item(), rel=1e-6)
    assert find(learner("a", terms, dropout=0.3), batches, terms, 3, teacher) == found[3]


def test_a_probe_keeps_the_tally_and_the_lessons_of_the_still() -> None:
    terms, batches = (LOGIT, HIDDEN), [batch(1)]
    one = learner("a", terms)
    cast = still(frozen(), (one, terms))
    lessons = list(cast.lessons)
    probe(cast, one, *views(batches), 0)
    assert cast.lessons == lessons and cast.balanced
    tally = cast.gradients(*views(batches), 0)["a"]
    assert tally.logit_loss is not None and set(tally.terms) == {"logit", "hidden"}
