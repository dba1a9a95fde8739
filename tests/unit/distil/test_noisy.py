"""A teacher with dropout as an actor: what it says is a function of seed and moment, and others find it as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel import LOGIT, MULTI, TEACHER_DEPTH, TEACHER_WIDTH, batch, bert, learner, views
from torch import Tensor

from limbeck.batch import TEXT
from limbeck.distil import schemes
from limbeck.distil.actors import START, Moment
from limbeck.distil.reduce import Counts
from limbeck.distil.still import Micro
from limbeck.distil.teachers import Ensemble, Frozen, Noisy
from limbeck.models.changes import Dropout
from limbeck.system.seeds import derive_seed

TAPS = ["embedding", "hidden.2", "hidden.4", "scores.2", "scores.4", "logits"]


def dropping(share: float = 0.3, taps: list[str] = TAPS) -> Frozen:
    model = bert(TEACHER_WIDTH, TEACHER_DEPTH, seed=99, dropout=share)
    return Frozen("teacher", model, taps, changes=[Dropout(share)] if share else [])


def said(one: Noisy, *moment: int, whole: bool = True) -> dict[str, Tensor]:
    readout = one.forward(batch(), Moment(*moment), whole)
    return {tap: readout[tap] for tap in TAPS if whole or tap != "logits"}


def differ(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[bool]:
    return [not torch.equal(mine[tap], theirs[tap]) for tap in mine.keys() & theirs.keys()]


def test_what_it_says_is_a_function_of_seed_and_moment() -> None:
    teacher = dropping()
    one = Noisy(teacher, 0)
    first = said(one, 3, 1, 0)
    assert not any(differ(first, said(one, 3, 1, 0))) and not any(differ(first, said(Noisy(dropping(), 0), 3, 1, 0)))
    for other in (said(one, 4, 1, 0), said(one, 3, 0, 0), said(one, 3, 1, 1), said(Noisy(teacher, 1), 3, 1, 0)):
        assert all(differ(first, other))
    another = dropping()
    another.name = "another"
    assert all(differ(first, said(Noisy(another, 0), 3, 1, 0))), "two teachers, two streams"


def test_how_deep_it_is_read_changes_nothing() -> None:
    """So that company, which asks for more, does not disturb."""
    first, low = said(Noisy(dropping(), 0), 1, 0, 0), dropping(taps=["hidden.2"])
    assert not any(differ(first, said(Noisy(dropping(), 0), 1, 0, 0, whole=False)))
    assert torch.equal(Noisy(low, 0).forward(batch(), Moment(1), whole=False)["hidden.2"], first["hidden.2"])


def test_it_is_as_it_was_when_others_ask() -> None:
    teacher, calm = dropping(), dropping(0.0)
    one, before = Noisy(teacher, 0), torch.get_rng_state()
    said(one, 0, 0, 0)
    assert torch.equal(torch.get_rng_state(), before) and not teacher.model.training
    assert torch.equal(teacher.forward(batch())["logits"], calm.forward(batch())["logits"])
    with pytest.raises(IndexError):
        one.forward(batch() | {"input_ids": torch.full((3, 9), 10**6)})
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not any(tensor.requires_grad for tensor in said(one, 0, 0, 0).values())


def test_without_dropout_nothing_is_drawn() -> None:
    teachers = {"teacher": dropping(0.0)}
    assert schemes.teaching(teachers, 0)["teacher"] is teachers["teacher"]


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_step_is_that_of_a_teacher_in_training_mode(share: float) -> None:
    """The gradient of a student of what the teacher says then, held on to."""
    found = []
    for teaching in (Noisy(dropping(share), 7), Held(dropping(share), 7)):
        one = learner("s", MULTI, seed=7)
        still = schemes.together([schemes.offline(one, {"teacher": teaching}, MULTI)], chunk=5)
        parts = [batch(0), batch(1)]
        still.gradients(*views(parts), 2)
        found.append([p.grad for p in one.parameters if p.grad is not None])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


class Held(Noisy):
    """The same teacher, always in training mode, as published; only the generator is set."""

    def forward(self, batch: Any, moment: Moment = START, whole: bool = True) -> Any:
        self.model.train()
        torch.manual_seed(derive_seed(self.seed, "teacher dropout", self.name, *moment))
        return self._teacher.forward(batch, whole=whole)


def test_an_ensemble_has_members_with_dropout_and_without() -> None:
    noisy, calm = dropping(), Frozen("calm", bert(16, 2, seed=2), ["logits"])
    taught = schemes.teaching({"teacher": Ensemble("teacher", [noisy, calm], "logits")}, 0)["teacher"]
    assert isinstance(taught, Ensemble)
    (first, same), (second, again) = (
        taught.forward(batch(), Moment(step)).features.split([24, 16], -1) for step in (0, 1)
    )
    assert not torch.equal(first, second) and torch.equal(same, again)


def test_learners_draw_as_before() -> None:
    """The stream of a learner is its own."""
    found = []
    for teacher in (dropping(), dropping(0.0)):
        one = learner("s", (LOGIT,), dropout=0.2)
        made = schemes.teaching({"teacher": teacher}, one.seed)
        still = schemes.together([schemes.offline(one, made, (LOGIT,))], chunk=5)
        micro = Micro({TEXT: batch()}, 0, 1, {TEXT: Counts.of([batch()])}, {})
        found.append(still.forward(micro)["s", TEXT]["logits"])
    assert torch.equal(*found)
