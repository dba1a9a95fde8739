"""Students: every family takes the shape that a recipe gives, and is a function of its seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CONFIGS
from torch import Tensor
from transformers import AutoConfig

from limbeck.errors import UserError
from limbeck.families import FAMILIES, family, reserved_positions
from limbeck.models import fingerprint, students
from limbeck.models.taps import Tapped
from limbeck.recipe import models

GROUPED = [name for name in CONFIGS if FAMILIES[name].n_kv_heads]


def shape(teacher: str | None, **said: Any) -> Any:
    return students.shape(models.Student(**said), CONFIGS[teacher]() if teacher else None)


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


def test_the_embedding_has_a_width_of_its_own() -> None:
    assert shape("electra", embedding=8).embedding_size == 8
    assert shape("electra", hidden=64, heads=4).embedding_size == 16, "the teacher's"
    assert shape("bert", family="electra", embedding=8).embedding_size == 8


@pytest.mark.parametrize("name", ["roberta", "electra"])
def test_what_begins_as_a_relative_has_its_sizes(name: str) -> None:
    config, teacher = shape("bert", family=name, init="teacher", layers=2), CONFIGS["bert"]()
    for word in ("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"):
        assert getattr(config, word) == getattr(teacher, word)
    assert config.num_hidden_layers == 2
    assert config.max_position_embeddings == 512 + reserved_positions(config)
    assert shape("bert", family=name).hidden_size == AutoConfig.for_model(name).hidden_size, "random: the family's own"


@pytest.mark.parametrize("name", GROUPED)
def test_what_begins_as_a_model_keeps_the_width_of_its_heads(name: str) -> None:
    assert shape(name, init="teacher", hidden=24, heads=2).head_dim == 8
    assert shape(name, hidden=24, heads=2).head_dim == 12


def test_without_a_teacher_the_tokenizer_decides() -> None:
    said = models.Student(family="bert", layers=1, hidden=8, heads=2, intermediate=8)
    config = students.shape(said, None, vocab_size=33, pad_token_id=4)
    assert (config.vocab_size, config.pad_token_id) == (33, 4)


@pytest.mark.parametrize(
    ("teacher", "said", "message"),
    [
        ("bert", {"hidden": 30}, "models.student.heads: 4 heads do not divide the width 30"),
        ("bert", {"heads": 5}, "models.student.heads: 5 heads do not divide the width 32"),
        ("bert", {"kv_heads": 2}, "models.student.kv_heads: a bert model has none of its own"),
        ("llama", {"kv_heads": 3}, "models.student.kv_heads: 3 do not divide the 4 heads"),
        (
            "bert",
            {"embedding": 16},
            "models.student.embedding: a bert model has no embedding width of its own; set family: electra",
        ),
    ],
)
def test_mistakes(teacher: str, said: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        shape(teacher, **said)
    assert message in str(caught.value)


def bits(model: Any) -> str:
    return fingerprint.digest(model.named_parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_student_is_a_function_of_its_seed(name: str) -> None:
    config = shape(name, layers=1)
    before = torch.get_rng_state()
    one = bits(students.build(config, seed=3))
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers are used up"
    torch.rand(5)
    assert bits(students.build(config, seed=3)) == one
    assert bits(students.build(config, seed=4)) != one


def test_digest_sees_names_shapes_types_and_bits() -> None:
    one = torch.arange(4.0)
    changed: list[tuple[str, Tensor]] = [
        ("b", one),
        ("a", one.view(2, 2)),
        ("a", one.to(torch.bfloat16)),
        ("a", one + torch.tensor([0, 0, 0, 1e-6])),
    ]
    assert len({fingerprint.digest([pair]) for pair in [("a", one), *changed]}) == 5
    assert fingerprint.digest([("a", one)]) == fingerprint.digest([("a", one.clone())])
