"""The loop: what it hands to the still, what it writes of a step, when it stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from kernel import INSIDE, LABEL, LOGIT, MULTI, batch, frozen, gradients_of, learner, parameters_of, still_of, views

from limbeck.batch import TEXT, Batch
from limbeck.distil.learner import Learner
from limbeck.distil.lessons import Term
from limbeck.distil.schedules import learning_rate
from limbeck.system.processes import World
from limbeck.training.loop import Course, Record, fit, micro_batches

Terms = tuple[Term, ...]


class Rows:
    """A feed of `kernel.batch`es: like `Feed`, a pure function of step and rows."""

    batch_size = 8

    def __init__(self, change: Callable[[int, Batch], Batch] = lambda step, whole: whole) -> None:
        self.change = change

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        whole = self.change(step, batch(100 + step, rows=self.batch_size, length=20))
        return {name: tensor[rows] for name, tensor in whole.items()}


def course(cast: Sequence[tuple[Learner, Terms]], *, steps: int = 4, feed: Any = None, **more: Any) -> Course:
    still = still_of(frozen(), cast, chunk=16)
    said = {"stage": "train", "seed": 0}
    plain = {
        "stills": {0: still},
        "feeds": {0: feed or Rows()},
        "steps": steps,
        "accumulate": 1,
        "describe": lambda name: {**said, "setting": name.partition("-")[0]},
        "measure": lambda step: False,
        "world": World(),
    }
    return Course(**{**plain, **more})


def trained(one: Course, stopped: Callable[[], bool] = lambda: False) -> list[Record]:
    records: list[Record] = []
    fit(one, [records.append], stopped)
    return records


def norm_of(tensors: Sequence[torch.Tensor | None]) -> float:
    return math.sqrt(math.fsum(t.double().square().sum().item() for t in tensors if t is not None))


def by_layer(named: dict[str, torch.Tensor | None]) -> list[list[torch.Tensor | None]]:
    return [[t for n, t in named.items() if f"encoder.layer.{layer}." in n] for layer in (0, 1)]


def test_a_row_says_what_happened() -> None:
    cast = [(learner("logit-seed0", (LOGIT,)), (LOGIT,)), (learner("multi-seed0", MULTI), MULTI)]
    records = trained(course(cast, accumulate=2, price=lambda name, counts: 10.0 * counts.padded))
    assert [record.step for record in records] == [1, 2, 3, 4]
    tokens = 0
    for record in records:
        tokens += int(Rows().batch(record.step - 1)["attention_mask"].sum())
        assert [row["learner"] for row in record.rows] == ["logit-seed0", "multi-seed0"]
        for row, (one, terms) in zip(record.rows, cast, strict=True):
            assert row["step"] == record.step and row["stage"] == "train" and row["seed"] == 0
            assert row["setting"] == one.name.partition("-")[0]
            assert set(row["terms"]) == {term.name for term in terms} == set(row["weights"])
            assert row["weights"] == {term.name: term.weight(0) for term in terms}
            assert row["loss"] == pytest.approx(sum(row["weights"][n] * v for n, v in row["terms"].items()), rel=1e-12)
            assert row["grad_norm_mean"] == pytest.approx(sum(row["grad_norm_layers"]) / 2, rel=1e-12)
            assert row["logit_loss"] == pytest.approx(row["terms"]["logit"], rel=1e-12)  # temperature 1 in both
            assert row["tokens"] == tokens and row["flops"] == 10.0 * 8 * 20 * record.step, "padding costs as well"
            assert row["tokens_per_second"] > 0 and row["seconds"] > 0
    assert records[0].rows[0]["loss"] > records[-1].rows[0]["loss"]


def test_the_learning_rate_of_the_row_is_the_optimizers() -> None:
    rate = learning_rate(1e-2, 4, 2, "linear")
    one = learner("a", (LOGIT,), rate=rate)
    seen = []

    def look(record: Record) -> None:
        seen.append((record.rows[0]["lr"], [group["lr"] for group in one.optimizer.param_groups]))

    fit(course([(one, (LOGIT,))]), [look])
    assert [lr for lr, _ in seen] == [5e-3, 1e-2, 1e-2, 5e-3]
    assert all(groups == [lr, lr] for lr, groups in seen)


@pytest.mark.parametrize("terms", [(LOGIT,), MULTI, INSIDE], ids=["logit", "multi", "inside"])
def test_gradient_norms_are_those_before_clipping(terms: Terms) -> None:
    one, twin = learner("a", terms, clip=1e-3), learner("a", terms)
    row = trained(course([(one, terms)], steps=1, accumulate=4))[0].rows[0]
    whole = [Rows().batch(0)]
    still_of(frozen(), [(twin, terms)], chunk=10**6).gradients(*views(whole), 0)
    gradients = gradients_of(twin)
    model = [g for n, g in gradients.items() if n.startswith("model.")]
    projections = [g for n, g in gradients.items() if n.startswith("bridges.")]
    assert row["grad_norm"] == pytest.approx(norm_of(model), rel=1e-10)
    assert row["grad_norm"] > 1e-2, "it would have been clipped"
    assert row["grad_norm_layers"] == pytest.approx([norm_of(layer) for layer in by_layer(gradients)], rel=1e-10)
    assert row["grad_norm_bridges"] == pytest.approx(norm_of(projections), rel=1e-10)


def test_the_update_is_adamw_on_the_clipped_gradient() -> None:
    """One update by hand: clip at 0.01 (projections apart), AdamW's first step, decay of matrices only."""
    clip, rate, decay = 1e-2, 1e-3, 0.01
    one, twin = learner("a", MULTI, clip=clip), learner("a", MULTI)
    before = parameters_of(one)
    trained(course([(one, MULTI)], steps=1))
    whole = [Rows().batch(0)]
    still_of(frozen(), [(twin, MULTI)], chunk=10**6).gradients(*views(whole), 0)
    gradients, after = gradients_of(twin), parameters_of(one)
    for part in ("model.", "bridges."):
        names = [n for n in gradients if n.startswith(part)]
        scale = min(1.0, clip / (norm_of([gradients[n] for n in names]) + 1e-6))
        assert scale < 1
        for name in names:
            gradient, weight = gradients[name], before[name]
            assert gradient is not None
            clipped = gradient * scale
            kept = 1 - rate * decay if weight.dim() >= 2 else 1.0
            expected = weight * kept - rate * clipped / (clipped.abs() + 1e-8)
            torch.testing.assert_close(after[name], expected, rtol=1e-9, atol=1e-9)


def test_without_clipping_the_gradient_is_taken_as_it_is() -> None:
    free, loose = learner("a", MULTI, clip=None), learner("a", MULTI, clip=1e9)
    for one in (free, loose):
        trained(course([(one, MULTI)]))
    for name, tensor in parameters_of(free).items():
        assert torch.equal(tensor, parameters_of(loose)[name])


def test_update_ratios_are_measured_where_asked() -> None:
    one = learner("a", MULTI)
    found, snapshots = [], [parameters_of(one)]

    def look(record: Record) -> None:
        found.append(record.norms["a"].update_ratios)
        snapshots.append(parameters_of(one))

    fit(course([(one, MULTI)], measure=lambda step: step in (2, 4)), [look])
    assert found[0] is None and found[2] is None
    for step in (2, 4):
        old, new = snapshots[step - 1], snapshots[step]
        moved = by_layer({name: new[name] - old[name] for name in old})
        expected = [norm_of(d) / norm_of(w) for d, w in zip(moved, by_layer(dict(old)), strict=True)]
        assert found[step - 1] == pytest.approx(expected, rel=1e-9)


def test_measuring_and_recording_change_nothing() -> None:
    plain, watched = learner("a", MULTI, dropout=0.1), learner("a", MULTI, dropout=0.1)
    fit(course([(plain, MULTI)]), [])
    trained(course([(watched, MULTI)], measure=lambda step: True))
    assert all(torch.equal(t, parameters_of(watched)[n]) for n, t in parameters_of(plain).items())


@pytest.mark.parametrize(("accumulate", "size"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)])
def test_shares_of_a_batch_are_the_batch(accumulate: int, size: int) -> None:
    """Over processes and micro-batches every row comes once, in its place."""
    worlds = [World(rank, size) for rank in range(size)]
    parts = [micro_batches(course([], accumulate=accumulate, world=world), 0, 3) for world in worlds]
    assert all(len(part) == accumulate for part in parts)
    rows = [parts[rank][micro] for micro in range(accumulate) for rank in range(size)]
    for name, tensor in Rows().batch(3).items():
        assert torch.equal(torch.cat([part[TEXT][name] for part in rows]), tensor)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulating_is_one_large_batch(accumulate: int) -> None:
    terms = (*MULTI, LABEL)
    whole, split = learner("a", terms), learner("a", terms)
    rows = [trained(course([(whole, terms)])), trained(course([(split, terms)], accumulate=accumulate))]
    for name, tensor in parameters_of(whole).items():
        torch.testing.assert_close(parameters_of(split)[name], tensor, rtol=1e-10, atol=1e-10)
    for one, other in zip(*rows, strict=True):
        for key in ("loss", "grad_norm", "logit_loss"):
            assert one.rows[0][key] == pytest.approx(other.rows[0][key], rel=1e-10)
        assert one.rows[0]["tokens"] == other.rows[0]["tokens"]


# stopping


def test_it_stops_after_the_step_that_was_asked_to_be_the_last() -> None:
    one, steps = learner("a", (LOGIT,)), []
    done = fit(course([(one, (LOGIT,))]), [lambda record: steps.append(record.step)], lambda: len(steps) == 2)
    assert done == 2 and steps == [1, 2]
    assert fit(course([(learner("a", (LOGIT,)), (LOGIT,))], start=4), []) == 4


def test_going_on_is_not_having_stopped() -> None:
    through, halved = learner("a", MULTI, dropout=0.1), learner("a", MULTI, dropout=0.1)
    expected = trained(course([(through, MULTI)]))
    first = course([(halved, MULTI)], steps=2)
    trained(first)
    found = trained(course([(halved, MULTI)], start=2, tokens=first.tokens))
    assert all(torch.equal(t, parameters_of(halved)[n]) for n, t in parameters_of(through).items())
    for mine, theirs in zip(found, expected[2:], strict=True):
        dropped = ("seconds", "tokens_per_second")
        assert {k: v for k, v in mine.rows[0].items() if k not in dropped} == {
            k: v for k, v in theirs.rows[0].items() if k not in dropped
        }


def test_a_step_without_selected_tokens_has_all_its_terms() -> None:
    """The processes add up the same list of numbers, whoever has nothing to add."""

    def empty(step: int, whole: Batch) -> Batch:
        gone = {"select": torch.zeros_like(whole["select"]), "labels": torch.full_like(whole["labels"], -100)}
        return whole | gone if step == 1 else whole

    terms = (*MULTI, LABEL)
    cast = [(learner("multi-seed0", terms), terms), (learner("label-seed0", (LABEL,)), (LABEL,))]
    records = trained(course(cast, steps=3, feed=Rows(empty)))
    for record in records:
        for row, (_, wanted) in zip(record.rows, cast, strict=True):
            assert list(row["terms"]) == [term.name for term in wanted]
    assert [record.rows[0]["terms"]["logit"] > 0 for record in records] == [True, False, True]
    assert [record.rows[0]["logit_loss"] is None for record in records] == [False, True, False]
    assert records[1].rows[1]["loss"] == 0 and records[1].rows[1]["grad_norm"] == 0
    assert all(math.isfinite(record.rows[0]["loss"]) for record in records)
