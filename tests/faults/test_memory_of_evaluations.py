"""Out of memory in an evaluation, or where reasons are looked for: read again in smaller parts, to the same sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel import MULTI, batch, frozen, learner, recipe
from test_memory_faults import SAID

import limbeck
from limbeck.distil.learner import Learner
from limbeck.errors import UserError
from limbeck.lab.page import report
from limbeck.measure.evaluation import Evaluation
from limbeck.measure.reasons import Reasons
from limbeck.running import profile

BATCHES = [batch(seed, rows=rows, length=20) for seed, rows in ((1, 8), (2, 8), (3, 5))]
HOLDS = 2  # rows
ERRORS = [pytest.param(error, id=name) for name, error in SAID.items()]


def holds(one: Learner, rows: int, error: Callable[[], Exception] = MemoryError) -> list[int]:
    """Has a student raise where it reads more rows than that; the sizes that it was given."""
    given: list[int] = []

    def read(module: Any, arguments: Any, words: dict[str, Any]) -> None:
        ids = words.get("input_ids", arguments[0] if arguments else None)
        given.append(len(ids))
        if len(ids) > rows:
            raise error()

    one.model.bert.embeddings.register_forward_pre_hook(read, with_kwargs=True)
    return given


def close(mine: Any, theirs: Any) -> None:
    """The same numbers, all of them, to rounding in fp64."""
    assert type(mine) is type(theirs)
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            close(value, theirs[key])
    elif isinstance(mine, list):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            close(one, other)
    elif isinstance(mine, float | np.ndarray):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)
    else:
        assert mine == theirs


def evaluated(rows: int, **more: Any) -> tuple[Any, list[str], list[int]]:
    told: list[str] = []
    one, other = learner("a", MULTI), learner("b", MULTI, seed=1)
    given = holds(one, rows, **more)
    splits = {"train": BATCHES[:1], "test": BATCHES}
    teacher = frozen()
    asked = Evaluation({"a": teacher, "b": teacher}, splits, chunk=7, tell=told.append)
    found = asked([one, other])
    assert all(p.grad is None for it in (one, other) for p in it.parameters)
    assert one.model.training and other.model.training
    given.append(0)  # and once more: it stays so
    asked([one, other])
    return found, told, given


@pytest.mark.parametrize("error", ERRORS)
def test_an_evaluation_is_the_same(error: Callable[[], Exception]) -> None:
    """Every mean, the sums of every document, and the norms of the gradient by layer."""
    found, told, given = evaluated(HOLDS, error=error)
    whole, silence, _ = evaluated(99)
    close(found, whole)
    assert any(row[0] > 0 for row in found["a", "test"]["documents"].values())
    assert not silence and [line.partition("rows")[0] for line in told] == [
        f"evaluation: out of memory; from now on at most {rows} " for rows in (4, 2)
    ]
    assert max(given[given.index(0) :]) == HOLDS, "the second evaluation did not try again"


def test_reasons_are_the_same() -> None:
    """Layers, calibration, places, frequencies, and the way from one student to the other."""
    ends = []
    for rows in (HOLDS, 99):
        told: list[str] = []
        one, other = learner("a", MULTI), learner("b", MULTI)
        holds(one, rows)
        teacher = frozen()
        asked = Reasons(
            {"a": teacher, "b": teacher}, BATCHES, chunk=7, counts=np.arange(60), tokens=50, tell=told.append
        )
        found = asked([one, other])
        loss = asked.label_loss(one)
        assert len(told) == (2 if rows == HOLDS else 0)
        ends.append([found.learners, found.pairs, loss])
    close(*ends)


def test_a_label_loss_alone_is_the_same() -> None:
    ends = []
    for rows in (HOLDS, 99):
        one = learner("a", MULTI)
        holds(one, rows)
        ends.append(Reasons({"a": None}, BATCHES, chunk=7, tell=lambda line: None).label_loss(one))
    close(*ends)


@pytest.mark.slow
def test_where_one_row_does_not_fit_the_remedy_is_named() -> None:
    for ask in (Evaluation({"a": None}, {"test": BATCHES}, chunk=7), Reasons({"a": None}, BATCHES, chunk=7)):
        one = learner("a", MULTI)
        holds(one, 0)
        with pytest.raises(
            UserError, match=r"^(evaluation|reasons): out of memory with one row at a time; .*train\.chunk"
        ):
            ask([one])
        assert one.model.training


def test_other_errors_are_ours() -> None:
    one = learner("a", MULTI)
    given = holds(one, 1, lambda: RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        Evaluation({"a": None}, {"test": BATCHES}, chunk=7)([one])
    assert len(given) == 1


def test_a_run_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training is the same in bits, its evaluations to rounding."""
    monkeypatch.setattr(report, "write", lambda folder: folder)
    monkeypatch.setattr(profile, "of_study", lambda *_, **__: {"models": []})
    how = {"eval_blocks": 20}
    plain = limbeck.run(recipe(world, tmp_path / "plain", train=how), quiet=True)
    forward = Learner.forward

    def short(self: Learner, given: Any, *moment: Any, **more: Any) -> Any:
        if len(given["input_ids"]) > 4:  # the rows of a training step
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, given, *moment, **more)

    monkeypatch.setattr(Learner, "forward", short)
    capsys.readouterr()
    run = limbeck.run(recipe(world, tmp_path / "short", train=how))
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert [line.split(";")[0] for line in said] == ["evaluation: out of memory"] * 2, "16 rows, 8, 4"
    for name, folder in run.students.items():
        assert (folder / "model.safetensors").read_bytes() == (plain.students[name] / "model.safetensors").read_bytes()
    assert len(run.evals) == len(plain.evals) > 0
    for mine, theirs in zip(run.evals, plain.evals, strict=True):
        for key in ("logit_loss", "label_loss", "agreement"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4), key
