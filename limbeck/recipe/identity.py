"""Of what in a recipe a result is a function: its hash, and its text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import yaml

from limbeck.recipe import stages
from limbeck.recipe.recipe import Recipe

# keys of a recipe that no bit of a student depends on, but for `eval_every` where the best weights are kept
FREE: dict[str, Any] = {
    "out": True,
    "question": True,
    "report_to": True,
    "data": {"cache"},
    "train": {"eval_every", "checkpoint_every"},
}
_KNOWN: dict[str, str] = {}  # recipe -> its identity


def identity(table: Recipe) -> str:
    """sha256 of everything in the recipe that a result is a function of."""
    plain = hashed(table)
    key = repr(plain)
    if key not in _KNOWN:  # YAML takes its time, and a run asks often
        _KNOWN[key] = hashlib.sha256(_yaml(plain).encode()).hexdigest()
    return _KNOWN[key]


def hashed(table: Recipe) -> dict[str, Any]:
    """What a recipe's hash is taken of."""
    return table.model_dump(mode="json", exclude=FREE, by_alias=True)  # keys by the names that they had in older runs


def dump(table: Recipe, exclude: Any = None) -> str:
    """The resolved recipe as YAML."""
    return _yaml(table.model_dump(mode="json", exclude=exclude))


def text(tables: Sequence[Recipe]) -> str:
    """What stands in the recipe.yaml of a run: its recipe, or the last of some stages with those before it."""
    return _yaml(stages.dump(tables))


def _yaml(plain: Any) -> str:
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
