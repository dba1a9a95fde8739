"""The pages of the recipes that come with limbeck have their figures, drawn from runs (the fast tests of runs draw none)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.image import imread
from test_recipes import PLAIN, corpus, go

DRAWN = True
pytestmark = pytest.mark.slow
__all__ = ["corpus"]


@pytest.mark.parametrize("name", PLAIN)
def test_the_page_of_a_recipe(name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = go(name, corpus, tmp_path, reasons=2)
    told = re.findall(r'<figure id="([^"]+)"', run.report.read_text(encoding="utf-8"))
    folder = run.folder / "figures"
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in told for kind in ("svg", "png")}
    assert {"gradient-norm", "update-ratio"} <= set(told) and {"logit-loss-test", "label-loss-test"} & set(told)
    for name in told:
        assert "<path" in (folder / f"{name}.svg").read_text(encoding="utf-8")
        assert imread(folder / f"{name}.png")[..., :3].std() > 0.01
