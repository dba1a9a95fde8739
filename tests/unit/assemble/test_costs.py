"""Parameters and FLOPs against a count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import CONFIGS
from kernel import lay_out, recipe
from transformers import BertConfig

from limbeck.assemble import costs, design
from limbeck.models import students
from limbeck.recipe.load import load

V, P, H, L, M, T = 60, 32, 16, 2, 40, 10  # vocabulary, positions, width, layers, intermediate, tokens of a block


def bert() -> BertConfig:
    return BertConfig(
        vocab_size=V,
        max_position_embeddings=P,
        hidden_size=H,
        num_hidden_layers=L,
        num_attention_heads=4,
        intermediate_size=M,
    )


def test_parameters_of_a_bert() -> None:
    embeddings = (V + P + 2) * H + 2 * H
    layer = 4 * (H * H + H) + (H * M + M) + (M * H + H) + 2 * 2 * H
    head = (H * H + H) + 2 * H + V  # the decoder is tied to the embedding
    assert costs.of_model(bert(), T).parameters == embeddings + L * layer + head


def test_flops_of_a_bert() -> None:
    cost = costs.of_model(bert(), T)
    products = 4 * H * H + 2 * H * M  # of one token in one layer, multiply-adds
    attention = 2 * T * H  # scores, and their use
    assert cost.backbone_flops == pytest.approx(2 * L * (products + attention), rel=1e-12)
    longer = costs.Load(rows=1, tokens=2 * T, pairs=4 * T * T, selected=1)
    assert cost.forward @ longer == pytest.approx(2 * T * 2 * L * (products + 2 * attention) + cost.head_flops)
    assert cost.head_flops == 2 * (H * H + H * V)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_counted_without_memory(name: str) -> None:
    config = CONFIGS[name]()
    cost = costs.of_model(config, length=12)
    assert cost.parameters == sum(p.numel() for p in students.build(config, seed=0).parameters())
    assert cost.backbone_flops > 2 * 3 * 4 * 32 * 32 * 0.7  # at least the projections of three layers
    assert cost.head_flops >= 2 * 16 * 100


def test_a_study_adds_up(tmp_path: Path) -> None:
    plan = design.design(
        load(recipe(lay_out(tmp_path), tmp_path / "run", train={"steps": 7, "batch_size": 4}) | {"seeds": [0, 1]})
    )
    cost = costs.of_study(plan)
    assert cost.teachers["teacher"] is not None
    tokens, share = 4 * 10, plan.recipe.data.masking.probability
    teacher = tokens * (cost.teachers["teacher"].backbone_flops + share * cost.teachers["teacher"].head_flops)
    student = 3 * tokens * (cost.student.backbone_flops + share * cost.student.head_flops)
    projections = 3 * tokens * 3 * 2 * 16 * 24  # of the embedding and two layers, forward and backward
    scores = tokens * 2 * 2 * 10 * (3 * 16 + 24)  # q.k of two layers: the student's three times, the teacher's once
    assert cost.flops_per_step["logit"] == pytest.approx(teacher + student)
    assert cost.flops_per_step["multi"] == pytest.approx(teacher + student + projections + scores)
    assert cost.total_flops == pytest.approx(7 * 2 * (teacher + 2 * student + projections + scores)), (
        "the teacher reads once a seed"
    )
    assert cost.memory > 4 * cost.student.parameters * costs.OPTIMIZER_BYTES
    widened = 3 * (16 * 24 + 24)  # the projections of two seeds of `multi`
    assert cost.disk == pytest.approx((4 * cost.student.parameters + 2 * widened) * (2 * 12 + 4))


def test_what_trains_beside_a_student_counts(tmp_path: Path) -> None:
    """Heads of early exits are trained, saved and exported; a cached teacher costs no compute."""
    said = recipe(lay_out(tmp_path), tmp_path / "out", seeds=[0], settings={"a": {"terms": [{"loss": "forward_kl"}]}})
    exits = {"a": {"exits": [1], "terms": [{"loss": "forward_kl"}, {"loss": "forward_kl", "tap": "exit", "name": "e"}]}}
    plain, more = (costs.of_study(design.design(load(each))) for each in (said, said | {"settings": exits}))
    head = (16 * 16 + 16) + 2 * 16 + 60  # of a BERT; its table is that of the student
    assert (more.disk - plain.disk) / (2 * 12 + 4) == head
    assert more.memory > plain.memory
    best = costs.of_study(design.design(load(said | {"train": said["train"] | {"keep": "best"}})))
    assert best.memory - plain.memory == 4 * plain.student.parameters
    said["data"] |= {"masking": {"mode": "static"}}
    kept = costs.of_study(design.design(load(said | {"cache": {}})))
    assert kept.flops_per_step["a"] == pytest.approx(
        3 * 40 * (plain.student.backbone_flops + 0.15 * plain.student.head_flops)
    )
