"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from limbeck import progress

BLANK = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 547 288" width="547pt" height="288pt"></svg>',
    "png": b"\x89PNG\r\n\x1a\n",
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The bits of a test must not depend on the machine's cores, and two test processes share them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures are drawn where a module says `DRAWN = True`: a page takes seconds to draw, and most tests look at none of it."""
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "DRAWN", False):
            patch.setattr(Figure, "savefig", _blank)
            patch.setattr(Figure, "draw_without_rendering", lambda figure: None)
        yield


def _blank(figure: Figure, place: Path, *, format: str, **_: Any) -> None:
    place.write_bytes(BLANK[format])


@pytest.fixture(autouse=True, scope="session")
def told_alone() -> None:
    """What a test reads on standard error must not depend on how long a machine takes."""
    progress.EVERY = 1e6
