"""Limbeck distils large transformer language models into small ones, compares the ways of doing so, and shows why one wins.

`limbeck.run(recipe)` does what `limbeck run` does; `limbeck.Tapped` and `limbeck.losses` serve in anyone's own loop.
Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck import losses
    from limbeck.api import Run, check, run
    from limbeck.errors import Failed, Interrupted, UserError
    from limbeck.models.taps import Tapped

_LAZY = {
    "run": "limbeck.api",
    "check": "limbeck.api",
    "Run": "limbeck.api",
    "Tapped": "limbeck.models.taps",
    "UserError": "limbeck.errors",
    "Interrupted": "limbeck.errors",
    "Failed": "limbeck.errors",
}
__all__ = ["Failed", "Interrupted", "Run", "Tapped", "UserError", "check", "losses", "run"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name == "losses":
        return import_module("limbeck.losses")
    raise AttributeError(f"module 'limbeck' has no attribute '{name}'")
