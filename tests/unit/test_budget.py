"""The families of which `make test` runs a part are there, and a part of them is a part."""

from __future__ import annotations

from pathlib import Path

from budget import FIRST

TESTS = Path(__file__).parents[1]


def test_every_family_that_is_shortened_exists() -> None:
    for module, families in FIRST.items():
        text = (TESTS / module).read_text(encoding="utf-8")
        for name, count in families.items():
            assert f"def {name}(" in text and count > 0, (module, name)
