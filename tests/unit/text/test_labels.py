from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from test_rows import message

from limbeck.recipe.data import Task
from limbeck.text.labels import choose, class_name, numbers, score


def chosen(given: Sequence[str] | None, found: str, task: Sequence[str] | None = None) -> tuple[str, ...]:
    words = Task.model_validate({"kind": "classification", "classes": task})
    return choose(words, given, dict.fromkeys(found.split(), "a.tsv:1"))


def test_who_names_the_classes() -> None:
    assert chosen(None, "10 9 -1") == ("-1", "9", "10")
    assert chosen(None, "10 9 b") == ("10", "9", "b")
    assert chosen(("pos", "neg"), "neg pos") == ("pos", "neg")
    assert chosen(("pos", "neg"), "neg pos", ["neg", "pos", "other"]) == ("neg", "pos", "other")
    assert chosen(("LABEL_0", "LABEL_1"), "pos neg") == ("neg", "pos")
    assert chosen(("LABEL_0", "LABEL_1"), "1 0") == ("0", "1")
    assert chosen(("LABEL_1", "LABEL_0"), "LABEL_0 LABEL_1") == ("LABEL_1", "LABEL_0")
    eleven = tuple(f"LABEL_{i}" for i in range(11))
    assert chosen(eleven, "LABEL_10 LABEL_2") == eleven
    assert chosen(eleven, "") == eleven  # nothing is labelled


def test_classes_that_do_not_fit() -> None:
    said = message(lambda: chosen(("LABEL_0", "LABEL_1"), "c b a"))
    assert said == (
        "the teacher has 2 classes, the training rows have 3 (a, b, c); "
        "name them in data.task.classes in the order of its logits"
    )
    expected = "the training rows have one class only (a); name the classes in data.task.classes"
    assert message(lambda: chosen(None, "a")) == expected
    assert message(lambda: chosen(None, "")) == "no row is labelled; name the classes in data.task.classes"
    said = message(lambda: numbers({"a": "x.tsv:2", "c": "x.tsv:9"}, ("a", "b")))
    assert said == (
        "x.tsv:9: the label 'c' is not among the classes a, b; "
        "name the labels of the rows in data.task.classes, in the order of the teacher's logits"
    )
    assert numbers({"b": "", "a": ""}, ("a", "b")) == [1, 0]


def test_a_label_is_the_name_of_a_class() -> None:
    values = (1, 1.0, "1", True, False, "yes", 0.5)
    assert [class_name(label, "") for label in values] == ["1", "1", "1", "true", "false", "yes", "0.5"]
    for label in ([1], {"a": 1}, float("nan"), b"x"):
        said = message(lambda label=label: class_name(label, "a.jsonl:3"))
        assert said == f"a.jsonl:3: the label {label!r} names no class; set data.task.label to another column"


@pytest.mark.parametrize("label", ["x", "nan", "inf", "1e39", float("-inf"), True, [1], "", 10**400])
def test_a_score_is_a_finite_number(label: Any) -> None:
    said = message(lambda: score(label, "a.tsv:3"))
    assert said.startswith("a.tsv:3: the label ") and "is no finite number; set data.task.label" in said
    assert len(said) < 200


def test_the_score_that_means_no_label_is_refused() -> None:
    assert [score(label, "") for label in ("5.000", 3, -99.5, "1e3")] == [5, 3, -99.5, 1000]
    for label in (-100, "-100.0", -100.0000000001):
        expected = "a.tsv:3: the score -100 stands for no label; leave the label empty, or shift the scores"
        assert message(lambda label=label: score(label, "a.tsv:3")) == expected
