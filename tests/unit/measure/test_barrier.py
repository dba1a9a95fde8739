"""Directions and lines of weights: cosines of gradients, and the barrier between two models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel import bert
from test_quantities import draw
from torch import nn

from limbeck.distil.probe import cosines
from limbeck.measure.barrier import barrier


def test_cosines_of_known_gradients() -> None:
    e = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[0.0, 2.0]])]
    found = cosines(
        {"e": e, "away": [-3 * g for g in e], "across": [e[0] * 0, e[1].flip(1)], "none": [g * 0 for g in e]}
    )
    assert found["e"] == {"e": pytest.approx(1), "away": pytest.approx(-1), "across": 0.0, "none": None}
    assert found["none"] == dict.fromkeys(found, None) and found["away"]["e"] == pytest.approx(-1)
    assert cosines({}) == {} and cosines({"a": e, "b": [e[0] * math.nan, e[1]]})["a"]["b"] is None


def test_cosines_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all parameters together, in pieces, and where fp32 would lose the small ones."""
    monkeypatch.setattr("limbeck.distil.probe.PIECE", 7)
    sums = {name: [draw(5, 4, seed=n), draw(9, seed=n + 10)] for n, name in enumerate("abc")}
    sums["c"] = [(g * 1e-25).float() for g in sums["c"]]
    flat = {name: np.concatenate([g.double().numpy().ravel() for g in parts]) for name, parts in sums.items()}
    for one, row in cosines(sums).items():
        for other, value in row.items():
            expected = flat[one] @ flat[other] / np.linalg.norm(flat[one]) / np.linalg.norm(flat[other])
            assert value == pytest.approx(expected, rel=1e-9)


class Point(nn.Module):
    def __init__(self, *at: float, mean: float = 0.0, seen: int = 0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at, dtype=torch.float64))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(seen))


def test_the_barrier_of_a_quadratic_loss() -> None:
    """L(w) = w'Aw: the rise over the chord is -alpha (1 - alpha) d'Ad, largest in the middle where A is negative."""
    a, b, curved = Point(1.0, 2.0), Point(-1.0, 0.5), torch.diag(torch.tensor([-1.0, 0.25], dtype=torch.float64))
    d = (b.w - a.w).detach()
    found = barrier(a, b, lambda model: (model.w @ curved @ model.w).item())  # type: ignore[operator]
    assert found["alphas"] == pytest.approx([n / 10 for n in range(11)]) and len(found["losses"]) == 11
    assert found["barrier"] == pytest.approx(-float(d @ curved @ d) / 4, rel=1e-12)
    bowl = barrier(a, b, lambda model: (model.w @ model.w).item(), points=5)  # type: ignore[operator]
    assert bowl["barrier"] == 0 and bowl["losses"][0] == 5 and bowl["losses"][-1] == 1.25


def test_on_the_line_stand_parameters_and_buffers() -> None:
    a, b = Point(0.0, mean=4.0, seen=3), Point(1.0, mean=8.0, seen=5)
    seen: list[tuple[float, ...]] = []
    barrier(a, b, lambda model: seen.append((model.w.item(), model.mean.item(), model.seen.item())) or 0.0, points=5)  # type: ignore[union-attr, operator]
    assert seen == [(0, 4, 3), (0.25, 5, 3), (0.5, 6, 5), (0.75, 7, 5), (1, 8, 5)]


def test_after_a_barrier_all_is_as_before_bit_for_bit() -> None:
    """Tied embeddings, -0.0 and NaN included; also where the loss fails. At the ends it is each model's own."""
    a, b = bert(16, 2, seed=1).float(), bert(16, 2, seed=2).float()
    with torch.no_grad():
        a.bert.encoder.layer[0].output.dense.bias[:3] = torch.tensor([-0.0, 1e-42, 1 / 3])
    bits = [{name: t.numpy().tobytes() for name, t in model.state_dict().items()} for model in (a, b)]
    places = [p.data_ptr() for p in a.parameters()]
    ends: list[bool] = []

    def visit(model: nn.Module) -> float:
        now = {name: t.numpy().tobytes() for name, t in model.state_dict().items()}
        ends.append(now in bits)
        return 1.0

    def fail(model: nn.Module) -> float:
        raise RuntimeError("broken")

    assert barrier(a, b, visit, points=4)["barrier"] == 0 and ends == [True, False, False, True]
    with pytest.raises(RuntimeError, match="broken"):
        barrier(a, b, fail)
    assert [{name: t.numpy().tobytes() for name, t in model.state_dict().items()} for model in (a, b)] == bits
    assert [p.data_ptr() for p in a.parameters()] == places and all(p.grad is None for p in a.parameters())


def test_a_barrier_that_is_infinite_is_null() -> None:
    found = barrier(Point(-1.0), Point(1.0), lambda m: 1 / abs(w) if (w := m.w.item()) else math.inf, points=3)  # type: ignore[operator, union-attr]
    assert found == {"alphas": [0.0, 0.5, 1.0], "losses": [1.0, None, 1.0], "barrier": None}
    with pytest.raises(ValueError, match="w"):
        barrier(Point(1.0), Point(1.0, 2.0), lambda model: 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        barrier(Point(1.0), Point(1.0), lambda model: 0.0, points=1)
