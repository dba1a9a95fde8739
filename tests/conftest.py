"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The bits of a test must not depend on the machine's cores, and two test processes share them."""
    torch.set_num_threads(1)
