"""The table of keys says of every loss what its signature says."""

from __future__ import annotations

import inspect

import pytest

import limbeck
from limbeck.errors import ELSEWHERE, Failed, Interrupted, UserError, nearest
from limbeck.losses import LOSSES
from limbeck.recipe import arms
from limbeck.recipe.keys import LOSS_KEYS, TAPS

TENSORS = {"student", "teacher", "labels", "mask"}


def test_the_same_losses() -> None:
    assert list(LOSS_KEYS) == list(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_keys_are_the_signature(name: str) -> None:
    parameters = inspect.signature(LOSSES[name]).parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert set(LOSS_KEYS[name].parameters) == set(parameters) - TENSORS
    assert set(LOSS_KEYS[name].needs) == {"teacher", "labels"} & set(parameters)
    for hyper in LOSS_KEYS[name].parameters:
        assert parameters[hyper].default is not inspect.Parameter.empty, "a recipe may leave it out"


@pytest.mark.parametrize("name", LOSS_KEYS)
def test_taps_are_known(name: str) -> None:
    assert set(LOSS_KEYS[name].taps) <= set(TAPS)


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("temprature", ("temperature", "weight"), "did you mean 'temperature'?"),
        ("lerning_rate", ("lr", "steps"), "did you mean 'lr'?"),
        ("lerning_rate", ("steps",), "known: steps"),
        ("xyz", ("b", "a"), "known: a, b"),
    ],
)
def test_nearest(word: str, known: tuple[str, ...], said: str) -> None:
    assert nearest(word, known) == said


@pytest.mark.parametrize("foreign", ELSEWHERE)
def test_words_from_elsewhere_lead_here(foreign: str) -> None:
    assert nearest(foreign, (ELSEWHERE[foreign],)) == f"did you mean '{ELSEWHERE[foreign]}'?"


def test_every_key_of_every_table_has_a_meaning() -> None:
    whole = arms.schema()
    tables = {"recipe": whole} | {name: it for name, it in whole["$defs"].items() if "properties" in it}
    bare = [
        f"{name}.{word}"
        for name, it in tables.items()
        for word, said in it["properties"].items()
        if not said.get("description")
    ]
    assert len(tables) > 15 and not bare


def test_the_namespace_has_every_way_to_end() -> None:
    assert (limbeck.UserError, limbeck.Interrupted, limbeck.Failed) == (UserError, Interrupted, Failed)
    assert all(getattr(limbeck, name) for name in limbeck.__all__)
