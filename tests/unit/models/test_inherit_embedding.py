"""An embedding of its own width: the best directions of the origin's, and a projection that leads back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from heirs import heir, model
from torch import Tensor

from limbeck.models import students
from limbeck.models.inherit import inherit
from limbeck.models.kept_units import directions
from limbeck.recipe import models

IDS = torch.tensor([[5, 17, 3, 99, 42, 8, 23]])


def electra(origin: Any, **said: Any) -> Any:
    return heir(origin, family="electra", **said)


def weights(of: Any) -> dict[str, Tensor]:
    """Of the backbone."""
    return {name: p.detach() for name, p in of.base_model.named_parameters()}


def test_directions_give_the_best_table_of_a_rank() -> None:
    """Eckart and Young: what is lost is the sum of the squares of the singular values that are left out."""
    torch.manual_seed(0)
    table = torch.randn(60, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    values = torch.linalg.svdvals(table)
    for rank in (1, 5, 11):
        kept, share = directions(table, rank)
        small = table @ kept
        torch.testing.assert_close(kept.T @ kept, torch.eye(rank, dtype=torch.float64))
        torch.testing.assert_close((table - small @ kept.T).square().sum(), values[rank:].square().sum())
        torch.testing.assert_close(share, values[:rank].square().sum() / values.square().sum())
        torch.testing.assert_close(small.T @ small, values[:rank].square().diag(), rtol=1e-9, atol=1e-9)
    kept, share = directions(table, 12)
    torch.testing.assert_close(table @ kept @ kept.T, table)
    assert share.item() == pytest.approx(1)


def test_directions_are_those_of_the_table() -> None:
    """No sign is left to chance."""
    table = torch.randn(60, 12, dtype=torch.float64)
    kept, _ = directions(table, 4)
    mirrored, _ = directions(-table.flip(0), 4)
    torch.testing.assert_close(kept, mirrored)
    assert bool((kept.gather(0, kept.abs().argmax(0)[None]) > 0).all())


def test_bert_becomes_electra() -> None:
    """Where nothing is cut it is the same function, head and all."""
    origin = model("bert")
    student = electra(origin, embedding=32)
    assert inherit(student, origin, "uniform") == []
    torch.testing.assert_close(student(IDS).logits, origin(IDS).logits, rtol=0, atol=1e-12)


def test_an_embedding_as_wide_as_before_is_kept_where_the_layers_are_narrower() -> None:
    origin = model("bert")
    student = electra(origin, hidden=16, heads=2, embedding=32)
    told = inherit(student, origin, "uniform")
    assert told[-1] == "embedding 32 kept, and led onto the 16 hidden units"
    mine, theirs = student.base_model, origin.base_model
    assert torch.equal(mine.embeddings(IDS), theirs.embeddings(IDS))
    choice = weights(student)["embeddings_project.weight"]
    assert torch.equal(choice.sum(1), torch.ones(16)) and torch.equal(choice.square(), choice)
    kept = choice.argmax(1)
    assert torch.equal(mine.embeddings_project(mine.embeddings(IDS)), theirs.embeddings(IDS)[..., kept])
    norm = "encoder.layer.1.output.LayerNorm.weight"
    assert torch.equal(weights(student)[norm], weights(origin)[norm][kept]), "the layers have the same units"
    head = "generator_predictions.dense.weight"
    assert torch.equal(student.get_parameter(head), origin.cls.predictions.transform.dense.weight[:, kept])


def spanned(origin: Any, rank: int) -> Tensor:
    """The projection onto the first right singular vectors of the tokens' embedding, [e, e]."""
    first = torch.linalg.svd(weights(origin)["embeddings.word_embeddings.weight"]).Vh[:rank]
    return first.T @ first


def test_a_narrower_embedding_is_the_best_of_its_rank() -> None:
    origin = model("bert")
    student = electra(origin, embedding=8)
    told = inherit(student, origin, "uniform")
    w, got = weights(origin), weights(student)
    table, small, onto = (
        w["embeddings.word_embeddings.weight"],
        got["embeddings.word_embeddings.weight"],
        spanned(origin, 8),
    )
    share = (table @ onto).square().sum() / table.square().sum()
    assert told == [
        f"embedding 8 of 32 by SVD ({100 * share:.0f} % of the squares kept)",
        "random: generator_predictions.LayerNorm, generator_predictions.dense",
    ]
    torch.testing.assert_close(small @ small.T, table @ onto @ table.T)
    for name in ("position", "token_type"):
        key = f"embeddings.{name}_embeddings.weight"
        torch.testing.assert_close(got[key] @ small.T, w[key] @ onto @ table.T)
    gain, shift = w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"]
    torch.testing.assert_close(got["embeddings_project.weight"] @ small.T, gain[:, None] * (onto @ table.T))
    torch.testing.assert_close(got["embeddings_project.bias"], shift)
    torch.testing.assert_close(got["embeddings.LayerNorm.weight"], (share * 32 / 8).sqrt().expand(8))
    assert not got["embeddings.LayerNorm.bias"].any()
    assert student.generator_lm_head.weight is student.electra.embeddings.word_embeddings.weight
    assert torch.equal(student.generator_lm_head.bias, origin.cls.predictions.bias)
    same = [name for name in w if name.startswith("encoder.")]
    assert all(torch.equal(got[name], w[name]) for name in same)


def test_a_projection_is_composed_with_the_directions() -> None:
    origin = model("electra")
    student = electra(origin, hidden=24, heads=3, embedding=8)
    told = inherit(student, origin, "uniform")
    assert "embedding 8 of 16 by SVD" in told[2]
    w, got = weights(origin), weights(student)
    norm = "encoder.layer.0.output.LayerNorm.weight"
    kept = [w[norm].tolist().index(value) for value in got[norm].tolist()]
    table, small = (each["embeddings.word_embeddings.weight"] for each in (w, got))
    gain, shift = w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"]
    lead, bias = w["embeddings_project.weight"][kept], w["embeddings_project.bias"][kept]
    torch.testing.assert_close(got["embeddings_project.weight"] @ small.T, (lead * gain) @ spanned(origin, 8) @ table.T)
    torch.testing.assert_close(got["embeddings_project.bias"], lead @ shift + bias)


def test_what_is_kept_is_as_large_as_it_was() -> None:
    """Where the embedding has no more directions than the student's, its norm gives what the origin's gave, but for means."""
    origin = model("bert")
    torch.manual_seed(4)
    plane = torch.randn(24, 32, dtype=torch.float64)
    plane -= plane.mean(1, keepdim=True)
    with torch.no_grad():
        for name, table in origin.base_model.named_parameters():
            if name.endswith("embeddings.weight"):
                table.copy_(torch.randn(len(table), 24, dtype=torch.float64) @ plane)
    student = electra(origin, embedding=24)
    inherit(student, origin, "uniform")
    ids = torch.arange(100)[None]
    mine = student.base_model.embeddings_project(student.base_model.embeddings(ids))
    theirs = origin.base_model.embeddings(ids)
    assert torch.cosine_similarity(mine, theirs, -1).mean() > 0.95
    assert (mine.norm() / theirs.norm()).item() == pytest.approx(1, abs=0.03)


def test_the_meta_device_tells_whether_an_embedding_fits() -> None:
    origin = model("bert").to("meta")
    with torch.device("meta"):
        student = electra(origin, embedding=8)
    assert inherit(student, origin, "uniform")[0] == "embedding 8 of 32 by SVD"


def test_positions_that_a_family_reserves_are_passed_over() -> None:
    origin = model("roberta")
    origin.base_model.embeddings.padding_idx = origin.config.pad_token_id = 1  # as in the real ones: the first is row 2
    config = students.shape(models.Student(init="teacher", family="bert"), origin.config)
    assert config.max_position_embeddings == 510
    student = students.build(config, seed=1)
    assert inherit(student, origin, "uniform")[0] == "rows of position: 510 of 512"
    name = "embeddings.position_embeddings.weight"
    assert torch.equal(weights(student)[name], weights(origin)[name][2:].float())
    student = student.double().eval()
    states = student.base_model(IDS).last_hidden_state, origin.base_model(IDS).last_hidden_state
    torch.testing.assert_close(*states, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "electra"])
def test_a_related_student_of_the_same_size_computes_the_same(family: str) -> None:
    """Positions begin behind the student's own id of padding, and an embedding of its own is as wide as the origin's."""
    origin = model("bert").eval()
    student = students.build(students.shape(models.Student(init="teacher", family=family), origin.config), seed=1)
    inherit(student, origin, "uniform")
    student = student.to(next(origin.parameters()).dtype).eval()
    ids = IDS.clamp(min=1)  # no padding
    states = student.base_model(ids).last_hidden_state, origin.base_model(ids).last_hidden_state
    torch.testing.assert_close(*states, rtol=0, atol=1e-6)
