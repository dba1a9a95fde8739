"""The last evaluation, as everybody who asks for it finds it."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.lab.data.evaluated import last_rows, last_step, loss_of


def line(learner: str, step: int, split: str = "test", loss: float | None = 1.0) -> dict[str, Any]:
    return {"setting": "s", "seed": 0, "learner": learner, "split": split, "step": step, "logit_loss": loss}


def test_the_last_step_is_one_that_all_have() -> None:
    assert last_step([[0, 10, 20], [0, 10], [10, 0, 30]]) == 10
    assert last_step([[0, 10], []]) is None and last_step([[0], [10]]) is None and last_step([]) is None


def test_the_last_lines_are_of_all_learners_in_their_order() -> None:
    begun = [line("b", 0), line("a", 0), line("b", 5), line("a", 5), line("b", 10)]
    assert last_rows(begun) == [line("b", 5), line("a", 5)]
    assert last_rows([*begun, line("b", 5, loss=2.0)]) == [line("b", 5, loss=2.0), line("a", 5)], "the later one"
    assert last_rows([line("a", 0, "test"), line("a", 0, "train")]) == [line("a", 0, "test"), line("a", 0, "train")]
    assert last_rows([line("a", 0), line("b", 5)]) == last_rows([]) == []


@pytest.mark.parametrize(("told", "labels", "loss"), [(1.0, 2.0, 1.0), (None, 2.0, 2.0), (None, None, None)])
def test_the_loss_of_a_line(told: float | None, labels: float | None, loss: float | None) -> None:
    assert loss_of({"logit_loss": told, "label_loss": labels}) == loss
