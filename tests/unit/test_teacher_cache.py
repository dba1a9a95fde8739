"""The teacher cache: a run from it is the run of the live teacher; what is stale, foreign or damaged is not used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import limbeck

STATIC = {"mode": "static", "probability": 0.3}


def test_same_run(train: Callable[..., limbeck.Run], world: Any, tmp_path: Any) -> None:
    from kernel import recipe

    data = recipe(world, tmp_path)["data"] | {"masking": STATIC}
    live = train("live", data=data)
    kept = train("kept", data=data, cache={"top_k": 60, "states": "fp32"})
    for a, b in zip(live.metrics, kept.metrics, strict=True):
        print(a["loss"], b["loss"], a["terms"], b["terms"])
    assert 0
