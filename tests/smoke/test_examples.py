"""The examples run as they stand, and their losses fall."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("bare_loop.py", 12), ("own_loop.py", 6)])
def test_example(name: str, steps: int) -> None:
    command = [sys.executable, str(EXAMPLES / name), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    attention = [float(value) for value in re.findall(r"attention ([\d.]+)", done.stdout)]
    assert len(attention) >= 2
    assert attention[-1] < attention[0]
