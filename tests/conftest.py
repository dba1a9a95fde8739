"""What all tests share."""

from __future__ import annotations

import pytest
import torch

from limbeck import progress


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The bits of a test must not depend on the machine's cores, and two test processes share them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def told_alone() -> None:
    """What a test reads on standard error must not depend on how long a machine takes."""
    progress.EVERY = 1e6
