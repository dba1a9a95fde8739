"""Layer maps against tables written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import integers

from limbeck.errors import UserError
from limbeck.models.layer_maps import describe, resolve

CASES = [
    ("uniform", 3, 6, {1: 2, 2: 4, 3: 6}),
    ("uniform", 4, 6, {1: 2, 2: 3, 3: 4, 4: 6}),  # 1.5 and 4.5 go to the even layer
    ("uniform", 4, 12, {1: 3, 2: 6, 3: 9, 4: 12}),
    ("uniform", 6, 3, {1: 0, 2: 1, 3: 2, 4: 2, 5: 2, 6: 3}),
    ("skip", 4, 12, {1: 3, 2: 6, 3: 9, 4: 12}),
    ("last", 4, 12, {4: 12}),
    ("top", 2, 6, {1: 5, 2: 6}),
    ({1: 2, "last": "last"}, 3, 6, {1: 2, 3: 6}),
    ({-1: -1, 0: 0}, 3, 6, {3: 6, 0: 0}),
    ({"2": "4"}, 3, 6, {2: 4}),  # as YAML dumps the keys of a recipe
]


@pytest.mark.parametrize(("spec", "student", "teacher", "pairs"), CASES)
def test_maps(spec: Any, student: int, teacher: int, pairs: dict[int, int]) -> None:
    assert resolve(spec, student, teacher) == pairs


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "message"),
    [
        ("skip", 4, 6, "layers: skip (TinyBERT) needs a teacher depth divisible by the student's: 6 layers over 4"),
        ("top", 7, 6, "at least as deep as the student (6 < 7)"),
        ("unifrom", 3, 6, "did you mean 'uniform'?"),
        ({4: 1}, 3, 6, "the student has no layer 4; name one from 1 to 3"),
        ({1: 7}, 3, 6, "the teacher has no layer 7; name one from 1 to 6"),
        ({1: -8}, 3, 6, "the teacher has no layer -8"),
        ({1: 2, -3: 4}, 3, 6, "one layer of the student stands twice"),
    ],
)
def test_mistakes(spec: Any, student: int, teacher: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(spec, student, teacher)
    assert message in str(caught.value)


@given(integers(1, 60), integers(1, 60))
def test_uniform_ends_at_the_last_layer_and_never_goes_back(student: int, teacher: int) -> None:
    pairs = resolve("uniform", student, teacher)
    assert list(pairs) == list(range(1, student + 1))
    assert pairs[student] == teacher
    assert list(pairs.values()) == sorted(pairs.values())


def test_describe() -> None:
    assert describe({1: 2, 2: 4}) == "1<-2 2<-4"
