"""Recipes: the keys they know, what they refuse, and that what a run writes down reads back as the same."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from kernel import GIVEN

from limbeck.errors import UserError
from limbeck.families import FAMILIES
from limbeck.recipe.arms import asked
from limbeck.recipe.keys import LOSS_KEYS
from limbeck.recipe.load import built_in, load
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.stages import dump, of_table

PLAIN: dict[str, Any] = {
    "name": "plain",
    "models": {"teacher": "embedded", "student": {"hidden": 128, "heads": 8}},
    "settings": {"logit": {"terms": [{"loss": "forward_kl", "temperature": 2, "weight": 0.5}]}},
}


def test_defaults() -> None:
    recipe = load(PLAIN)
    assert recipe.train.warmup_steps == 50  # 5 % of 1000
    assert recipe.run_dir == "runs/plain"
    assert recipe.models.teacher is not None
    assert recipe.models.teacher.source == "embedded"
    term = recipe.settings["logit"].terms[0]
    assert (term.label, term.parameters, term.weight) == ("logit", {"temperature": 2}, 0.5)


def test_a_revision_may_stand_in_the_id() -> None:
    teacher = load({**PLAIN, "models": {"teacher": "org/name@v1"}}).models.teacher
    assert teacher is not None
    assert (teacher.source, teacher.revision) == ("org/name", "v1")


def test_only_chooses_and_may_be_one_word() -> None:
    recipe = load("quickstart", ["only=logit"])
    assert list(recipe.chosen) == ["logit"]
    assert list(load("quickstart").chosen) == ["labels", "logit", "multi"]


@pytest.mark.parametrize("name", built_in())
def test_what_a_run_writes_down_reads_back_the_same(name: str) -> None:
    for arm in asked(name, GIVEN.get(name, ())).arms():
        assert of_table("recipe", yaml.safe_load(yaml.safe_dump(dump(arm.tables)))) == list(arm.tables)


def test_an_explicit_map_reads_back_the_same() -> None:
    recipe = load("quickstart", ["settings.multi.terms.2.layers={1: 2, last: -1}"])
    assert load(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


@pytest.mark.parametrize("word", ["lr", "weight_decay", "warmup", "eps", "clip"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(word: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"train\.{word}: must be a finite number"):
        load({**PLAIN, "train": {word: value}})


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "2", None, [1]])
def test_a_temperature_is_a_number_above_0(value: Any) -> None:
    settings = {"logit": {"terms": [{"loss": "forward_kl", "temperature": value}]}}
    with pytest.raises(UserError, match=r"settings\.logit\.terms\[0\]\.temperature: must be a number above 0"):
        load({**PLAIN, "settings": settings})


@pytest.mark.parametrize("name", ["../x", "a/b", "<script>", "", ".", ".hidden", "a b", "x" * 65, "con\n"])
def test_names_are_safe_as_folders(name: str) -> None:
    for table in ({**PLAIN, "name": name}, {**PLAIN, "settings": {name: PLAIN["settings"]["logit"]}}):
        with pytest.raises(UserError, match="is no name") as caught:
            load(table)
        assert str(caught.value).isprintable()


def test_without_a_teacher() -> None:
    labels = {"labels": {"terms": [{"loss": "cross_entropy"}]}}
    with pytest.raises(UserError, match=r"models\.teacher: missing; settings\.logit\.terms\.0 \(forward_kl\)"):
        load({**PLAIN, "models": {"teacher": None}})
    with pytest.raises(UserError, match=r"models\.student\.family: missing"):
        load({"name": "a", "settings": labels})
    alone = {"family": "bert", "tokenizer": "embedded"}
    assert load({"name": "a", "models": {"student": alone}, "settings": labels}).models.teacher is None
    with pytest.raises(UserError, match=r"models\.student\.init: there is no teacher"):
        load({"name": "a", "models": {"student": alone | {"init": "teacher"}}, "settings": labels})


def test_the_schema_offers_the_keys() -> None:
    schema = Recipe.model_json_schema()
    term, student = (schema["$defs"][name]["properties"] for name in ("TermKeys", "Student"))
    assert term["loss"]["anyOf"][0]["enum"] == list(LOSS_KEYS)
    assert student["family"]["anyOf"][0]["enum"] == list(FAMILIES)
    assert schema["additionalProperties"] is False
    assert "uniform" in term["layers"]["anyOf"][0]["enum"]
