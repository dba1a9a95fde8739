"""The families of which `make test` runs a part are there, and none of them is one that must stay whole."""

from __future__ import annotations

from pathlib import Path

from budget import FIRST

TESTS = Path(__file__).parents[1]
# words of names that are never shortened
WHOLE = ["golden", "test_resume", "gone_on", "goes_on", "test_bad_input", "parity/", "test_recipes", "company", "solo"]


def test_every_family_that_is_shortened_exists() -> None:
    for module, families in FIRST.items():
        text = (TESTS / module).read_text(encoding="utf-8")
        for name, count in families.items():
            assert f"def {name}(" in text and count > 0, (module, name)


def test_what_must_stay_is_whole() -> None:
    shortened = [f"{module}::{name}" for module, families in FIRST.items() for name in families]
    assert not [name for name in shortened if any(word in name for word in WHOLE)]
