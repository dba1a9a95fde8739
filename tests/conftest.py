"""What several tests share: tiny models of every family, and where the real data is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The bits of a test must not depend on the machine's cores, and two test processes share them."""
    torch.set_num_threads(1)
