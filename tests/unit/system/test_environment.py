"""What the command sets for its process before torch is imported, and what is written down of the machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from limbeck.system import environment


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.WAITING:
        monkeypatch.setenv(name, "gone again afterwards")
        monkeypatch.delenv(name)


def test_threads_that_wait_sleep_soon() -> None:
    environment.wait_briefly()
    assert environment.machine()["waiting"] == {"GOMP_SPINCOUNT": environment.SPINS}


@pytest.mark.parametrize("name", environment.WAITING)
def test_what_the_user_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "user's")
    environment.wait_briefly()
    assert environment.machine()["waiting"] == {name: "user's"}


def test_the_command_sets_it_before_torch_is_there() -> None:
    """Later it would do nothing: the library reads it once, when it is loaded."""
    script = (
        "import os, sys; from limbeck.system import environment as e; real = e.wait_briefly\n"
        "from limbeck import cli\n"
        "def first():\n    assert 'torch' not in sys.modules; real()\n"
        "cli.wait_briefly = first; sys.argv = ['limbeck', 'recipes']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print(os.environ['GOMP_SPINCOUNT'])"
    )
    plain = {name: value for name, value in os.environ.items() if name not in environment.WAITING}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=plain, check=True)
    assert done.stdout.splitlines()[-1] == environment.SPINS


def test_torchao_says_nothing_of_what_it_does_not_load() -> None:
    pytest.importorskip("torchao", reason="needs torchao")
    said = "from limbeck.system import environment; environment.quiet_imports(); import torchao, torchao.quantization"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert not done.stderr and not done.stdout
