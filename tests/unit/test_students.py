"""Students: every family takes the shape that a recipe gives, copies layers, and is a function of its seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CONFIGS, tiny
from torch import Tensor
from transformers import AutoConfig

from limbeck import recipe, students
from limbeck.anatomy import FAMILIES, family
from limbeck.errors import UserError
from limbeck.taps import Tapped

GROUPED = [name for name in CONFIGS if FAMILIES[name].n_kv_heads]


def shape(teacher: str | None, **said: Any) -> Any:
    return students.shape(recipe.Student(**said), CONFIGS[teacher]() if teacher else None)


def test_every_family_is_tested() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_takes_the_shape(name: str) -> None:
    grouped = {"kv_heads": 1} if name in GROUPED else {}
    config = shape(name, layers=2, hidden=16, heads=2, intermediate=24, dropout=0.25, **grouped)
    row = family(config.model_type)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 16, 2)
    assert (getattr(config, row.intermediate), config.vocab_size) == (24, 100)
    assert {getattr(config, word) for word in row.dropouts} == {0.25}
    readout = Tapped(students.build(config, seed=0), ["hidden.2", "query.1", "key.1", "logits"])(
        {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    )
    assert readout["hidden.2"].shape == (1, 4, 16)
    assert readout["query.1"].shape == (1, 2, 4, 8)
    assert readout["key.1"].shape == (1, 1 if grouped else 2, 4, 8)
    assert readout["logits"].shape == (1, 4, 100)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_left_out_is_the_teachers(name: str) -> None:
    config, teacher = shape(name), CONFIGS[name]()
    row = family(name)
    for word in (row.n_layers, row.width, row.n_heads, row.intermediate, "vocab_size", "pad_token_id"):
        assert getattr(config, word) == getattr(teacher, word)
    assert {getattr(config, word) for word in row.dropouts} == {0.0}


def test_another_family_keeps_the_vocabulary() -> None:
    config = shape("bert", family="roberta", layers=2, hidden=16, heads=2, intermediate=24)
    assert (config.model_type, config.vocab_size, config.pad_token_id) == ("roberta", 100, 0)


def test_without_a_teacher_the_tokenizer_decides() -> None:
    said = recipe.Student(family="bert", layers=1, hidden=8, heads=2, intermediate=8)
    config = students.shape(said, None, vocab_size=33, pad_token_id=4)
    assert (config.vocab_size, config.pad_token_id) == (33, 4)


@pytest.mark.parametrize(
    ("teacher", "said", "message"),
    [
        ("bert", {"hidden": 30}, "models.student.heads: 4 heads do not divide the width 30"),
        ("bert", {"heads": 5}, "models.student.heads: 5 heads do not divide the width 32"),
        ("bert", {"kv_heads": 2}, "models.student.kv_heads: a bert model has none of its own"),
        ("llama", {"kv_heads": 3}, "models.student.kv_heads: 3 do not divide the 4 heads"),
    ],
)
def test_mistakes(teacher: str, said: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        shape(teacher, **said)
    assert message in str(caught.value)


def bits(model: Any) -> str:
    return students.digest(model.named_parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_student_is_a_function_of_its_seed(name: str) -> None:
    config = shape(name, layers=1)
    before = torch.get_rng_state()
    one = bits(students.build(config, seed=3))
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers are used up"
    torch.rand(5)
    assert bits(students.build(config, seed=3)) == one
    assert bits(students.build(config, seed=4)) != one


@pytest.mark.parametrize("name", CONFIGS)
def test_copied_layers_are_the_teachers(name: str) -> None:
    teacher = tiny(name, dtype=torch.float32)
    student = students.build(shape(name, layers=2), seed=0)
    students.copy_layers(student, teacher, {1: 3, 2: 1})
    mine, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    path = f"{family(name).base}.{family(name).layers}."
    layered = {"0.": "2.", "1.": "0."}
    for key, value in mine.items():
        if key.startswith(path):
            number, rest = key.removeprefix(path)[:2], key.removeprefix(path)[2:]
            key = path + layered[number] + rest
        if (name, key) == ("modernbert", f"{path}0.attn_norm.weight"):
            continue  # its first layer has none
        assert torch.equal(value, theirs[key]), key


def test_copying_every_layer_gives_the_teachers_answers() -> None:
    teacher = tiny("bert", dtype=torch.float32)
    student = students.build(shape("bert"), seed=0).eval()
    students.copy_layers(student, teacher, "uniform")
    ids = torch.arange(5)[None]
    assert torch.equal(student(ids).logits, teacher(ids).logits)


def test_copying_needs_the_same_family_and_width() -> None:
    teacher = tiny("bert", dtype=torch.float32)
    with pytest.raises(UserError, match="needs the teacher's width"):
        students.copy_layers(students.build(shape("bert", hidden=16), seed=0), teacher, "uniform")
    other = AutoConfig.for_model("distilbert", dim=32, n_layers=1, n_heads=4, hidden_dim=48, vocab_size=100)
    with pytest.raises(UserError, match="needs the teacher's family"):
        students.copy_layers(students.build(other, seed=0), teacher, "uniform")


def test_digest_sees_names_shapes_types_and_bits() -> None:
    one = torch.arange(4.0)
    changed: list[tuple[str, Tensor]] = [
        ("b", one),
        ("a", one.view(2, 2)),
        ("a", one.to(torch.bfloat16)),
        ("a", one + torch.tensor([0, 0, 0, 1e-6])),
    ]
    assert len({students.digest([pair]) for pair in [("a", one), *changed]}) == 5
    assert students.digest([("a", one)]) == students.digest([("a", one.clone())])
