"""A refactor leaves the number: the losses of a tiny run in fp64, as they were when they were first right.

They change when batches, masks, initial parameters, losses, gradients or the optimizer change. Then say why in the CHANGELOG.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel import lay_out, recipe

import limbeck

GOLDEN = {
    "logit": [0.1317140048716141, 0.11533672223048923, 0.07364079471333489],
    "multi": [4.230182504768263, 3.6742700377060125, 2.8578572787676673],
}


def test_losses_of_three_steps(tmp_path: Path) -> None:
    table = recipe(lay_out(tmp_path / "world"), tmp_path / "run", train={"precision": "fp64", "steps": 3})
    rows = limbeck.run(table, quiet=True).metrics
    losses = {name: [row["loss"] for row in rows if row["setting"] == name and row["seed"] == 0] for name in GOLDEN}
    assert losses == {name: pytest.approx(values, rel=1e-6) for name, values in GOLDEN.items()}
