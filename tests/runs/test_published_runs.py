"""The losses of TinyBERT's code in whole runs of a task, in which padding counts: how far rows are padded is then a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kernel import recipe as of_text
from runfiles import tensors
from test_task_runs import distilled, tuned, world  # noqa: F401 (fixtures)

import limbeck
from limbeck import api
from limbeck.errors import UserError

pytestmark = pytest.mark.usefixtures("fast")
INSIDE = [
    {"loss": "tinybert_hidden_mse", "tap": "embedding", "projection": "shared"},
    {"loss": "tinybert_hidden_mse", "tap": "hidden", "layers": "skip", "projection": "shared"},
    {"loss": "tinybert_scores_mse", "tap": "scores", "layers": "skip"},
]
SETTINGS = {"inside": {"terms": INSIDE}, "prediction": {"terms": [{"loss": "tinybert_soft_cross_entropy"}]}}


def gone(world: Path, tuned: limbeck.Run, out: Path, pad_to: str, parts: int) -> limbeck.Run:  # noqa: F811
    how = {"precision": "fp64", "accumulate": parts}
    return limbeck.run(distilled(world, tuned, out, SETTINGS, data={"pad_to": pad_to}, train=how), quiet=True)


@pytest.mark.slow
def test_an_update_in_parts(world: Path, tuned: limbeck.Run, tmp_path: Path) -> None:  # noqa: F811
    """Rows of one length make parts of an update the update; padded to the longest of its part, a row is another one."""
    for pad_to, same in (("max_length", True), ("longest", False)):
        one, two = (gone(world, tuned, tmp_path / f"{pad_to}{parts}", pad_to, parts) for parts in (1, 2))
        for mine, theirs in zip(one.metrics, two.metrics, strict=True):
            equal = mine["terms"] == pytest.approx(theirs["terms"], rel=1e-9)
            assert equal == (same or mine["setting"] == "prediction")
        for name in one.students:
            found = [tensors(run, name) for run in (one, two)]
            near = all((found[0][key] - found[1][key]).abs().max() < 1e-9 for key in found[0])
            assert near == (same or name.startswith("prediction"))


def test_the_prediction_is_a_mean_over_classes(world: Path, tuned: limbeck.Run, tmp_path: Path) -> None:  # noqa: F811
    """Of three classes, a third of the sum."""
    settings = {name: {"terms": [{"loss": name}]} for name in ("tinybert_soft_cross_entropy", "soft_cross_entropy")}
    run = limbeck.run(distilled(world, tuned, tmp_path / "run", settings, train={"lr": 1e-30}), quiet=True)
    for published, plain in zip(run.metrics[::2], run.metrics[1::2], strict=True):
        assert published["terms"]["logit"] == pytest.approx(plain["terms"]["logit"] / 3, rel=1e-5)


def test_running_text_has_no_padding(tmp_path: Path) -> None:
    table: dict[str, Any] = of_text(tmp_path, tmp_path / "run")
    table["data"]["pad_to"] = "max_length"
    with pytest.raises(
        UserError, match=r"data\.pad_to: running text is packed into blocks without padding; leave the key"
    ):
        api.check(table)
