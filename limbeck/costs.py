"""What a study costs, known before training: parameters, FLOPs by torch's own counter, estimates of memory, time, disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from limbeck import designs, students, tasks
from limbeck.anatomy import width_of
from limbeck.lessons import Term, each
from limbeck.taps import Tapped

EFFICIENCY = 0.4  # share of the matrix-product rate that training reaches, for the estimate of time
LOGITS = 4  # tensors of a chunk's logits at a time: both sides, the slope, and one in passing
OPTIMIZER_BYTES = 16  # of a trained parameter: itself, its gradient, two moments of AdamW, fp32 each


@dataclass(frozen=True)
class ModelCost:
    """One model."""

    parameters: int
    backbone_flops: float  # forward, of one token in a block of the study's length
    head_flops: float  # forward, of one token
    activations: float  # bytes that a forward pass keeps for the backward, of one token (an estimate)


def of_model(config: PretrainedConfig, length: int) -> ModelCost:
    """Counts a model on the meta device: no memory, no weights; a shape is counted once."""
    return _counted(type(config), config.to_json_string(use_diff=False), length)


@cache
def _counted(kind: type[PretrainedConfig], words: str, length: int) -> ModelCost:
    config = kind.from_dict(json.loads(words))
    with torch.device("meta"):
        model = students.build(config, seed=0)
        tapped = Tapped(model)
        batch = {
            "input_ids": torch.zeros(1, length, dtype=torch.long),
            "attention_mask": torch.ones(
                1, 1, length, length, dtype=torch.bool
            ),  # four axes: taken without a look inside
        }
        with FlopCounterMode(display=False) as backbone:
            tapped(batch)
        with FlopCounterMode(display=False) as head:
            tapped.head(torch.empty(1, config.hidden_size))
    width, heads, depth = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    return ModelCost(
        parameters=sum(p.numel() for p in model.parameters()),
        backbone_flops=backbone.get_total_flops() / length,
        head_flops=head.get_total_flops(),
        activations=depth * (34 * width + 4 * heads * length),
    )


@dataclass(frozen=True)
class StudyCost:
    """A whole study."""

    teachers: dict[str, ModelCost]
    student: ModelCost
    flops_per_step: dict[str, float]  # of each setting alone: the teacher's part and its own
    total_flops: float  # all settings and seeds, the teacher read once a seed
    memory: float  # bytes, an estimate
    disk: float  # bytes of checkpoints and students


def of_study(plan: designs.Design) -> StudyCost:
    """The cost of a study; a backward pass is counted as two forward passes."""
    table, length = plan.recipe, plan.recipe.data.max_length
    student = of_model(plan.student, length)
    teachers = {name: of_model(config, length) for name, config in plan.teachers.items()}
    tokens = table.train.batch_size * length
    positions = table.data.positions
    selected = table.data.masking.probability if positions == "masked" else getattr(positions, "sampled", 1.0)
    selected = 1 / length if table.data.task else selected
    alone, own = {}, {}
    for name, terms in plan.terms.items():
        share = selected * any(term.on_logits for term in terms)
        setting = table.settings[name]
        exits = len({tap for term in terms if term.on_logits for tap in term.taps("student")} - {"logits"})
        learn = (
            _forward(student, share)
            + exits * share * student.head_flops
            + _aids(plan, terms, length)
            + _maps(plan.student, terms, "student", length)
        )
        follow = _forward(student, share) if setting.ema is not None else 0.0
        own[name] = setting.peers * tokens * (3 * learn + follow)
        read = 0.0 if table.cache else _read(plan, teachers, terms, share, length)  # a cached teacher does not run
        alone[name] = own[name] + tokens * read
    shared = max(alone[name] - own[name] for name in own)
    total = table.train.steps * len(table.seeds) * (shared + sum(own.values()))
    learners = sum(setting.peers for setting in table.chosen.values()) * len(table.seeds)
    aids = sum(setting.peers * _aid_parameters(plan, plan.terms[name]) for name, setting in table.chosen.items())
    trained = learners * student.parameters + len(table.seeds) * aids
    micro = tokens / table.train.accumulate
    whole = any(term.on_logits and term.per == "batch" for terms in plan.terms.values() for term in terms)
    at_once = max(plan.chunk, micro * selected) if whole else plan.chunk  # tokens whose logits exist
    kept = learners * student.parameters * (table.train.keep != "last")  # in fp32
    size = {"bf16": 2, "fp32": 4, "fp64": 8}[table.train.precision]
    memory = (
        trained * OPTIMIZER_BYTES
        + kept * 4
        + sum(it.parameters for it in teachers.values()) * size
        + learners / len(table.seeds) * micro * student.activations
        + at_once * tasks.vocabulary(plan.student) * (24 if whole else LOGITS * size)
    )
    return StudyCost(teachers, student, alone, total, memory, disk=trained * (2 * 12 + 4))


def _aid_parameters(plan: designs.Design, terms: Sequence[Term]) -> int:
    """Of the modules of a setting's own: bridges, translators, heads of exits; what terms share stands once."""
    made = {name: module for term in terms for name, module in plan.aids(term).items()}
    return sum(p.numel() for module in made.values() for p in module.parameters())


def _read(plan: designs.Design, costs: dict[str, ModelCost], terms: Sequence[Term], share: float, length: int) -> float:
    """Forward FLOPs, of one token, of the fixed teachers that some terms learn from."""
    total = 0.0
    for role in plan.roles:
        taught = [term for term in terms if "teacher" in term.needs and term.teacher == role]
        named = plan.recipe.models.teachers
        members = [role] if role in named else [name for name in costs if name not in named]
        for name in members if taught else ():
            total += _forward(costs[name], share) + _maps(plan.teachers[name], taught, "teacher", length)
    return total


def _forward(model: ModelCost, selected: float) -> float:
    """Forward FLOPs of one token, of which a share is selected for the head."""
    return model.backbone_flops + selected * model.head_flops


def _aids(plan: designs.Design, terms: Sequence[Term], length: int) -> float:
    """Forward FLOPs, of one token, of the terms' own modules that learn; of pooled states there is one a row."""
    total = 0.0
    for term in terms:
        made = plan.aids(term)
        used = [name for pair in term.pairs for name in (*each(pair.bridge or ()), *each(pair.memory or ()))]
        weights = sum(p.numel() for name in used for p in made[name].parameters() if p.dim() == 2)
        total += 2 * weights / (length if "pooled" in term.taps("student") else 1)
    return total


def _maps(config: PretrainedConfig, terms: Sequence[Term], side: str, length: int) -> float:
    """Forward FLOPs, of one token, of the maps that terms compute from queries, keys and values."""
    taps = [tap.split(".")[0] for term in terms for pair in term.pairs for tap in each(getattr(pair, side))]
    kinds = {"scores": "query", "probs": "query", "query": "query", "key": "key", "value": "value"}
    return sum(2 * length * width_of(config, kinds[tap]) for tap in taps if tap in kinds)
