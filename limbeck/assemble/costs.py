"""What a study costs, known before training: parameters, FLOPs by torch's own counter, estimates of memory, time, disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from limbeck import families
from limbeck.assemble import design
from limbeck.assemble.kinds import kind_of
from limbeck.distil.lessons import Term, each
from limbeck.distil.reduce import Counts
from limbeck.families import width_of
from limbeck.models.flops import count
from limbeck.text.feed import Repeatable

EFFICIENCY = 0.4  # share of the matrix-product rate that training reaches, for the estimate of time
LOGITS = 4  # tensors of a chunk's logits at a time: both sides, the slope, and one in passing
LOOKED_AT = 200  # updates whose rows are looked at for the mean of all
ACTIVATIONS = {"bf16": 3, "fp32": 4, "fp64": 8}  # bytes of a number that a forward pass keeps
OPTIMIZER_BYTES = 16  # of a trained parameter: itself, its gradient, two moments of AdamW, fp32 each


class Load(NamedTuple):
    """What an update multiplies, as sums over its micro-batches of b rows that are filled up to T tokens each."""

    rows: float  # b
    tokens: float  # b T, padding included
    pairs: float  # b T T: positions that attention compares
    selected: float  # tokens, of a task rows, whose logits a logit loss looks at

    @staticmethod
    def of(counts: Counts) -> Load:
        """Of the counts of an update."""
        return Load(counts.rows, counts.padded, counts.pairs, counts.selected)


Price = NDArray[np.float64]  # FLOPs for each part of a Load: [4]


def _price(rows: float = 0.0, tokens: float = 0.0, pairs: float = 0.0, selected: float = 0.0) -> Price:
    return np.array(Load(rows, tokens, pairs, selected))


def full(plan: design.Design) -> Load:
    """The load of an update of full blocks: that of running text, and the most that rows of a task can be."""
    data, rows = plan.recipe.data, plan.recipe.train.batch_size
    tokens = rows * data.max_length
    return Load(rows, tokens, tokens * data.max_length, kind_of(plan.recipe).selected(data, rows))


def mean(plan: design.Design, feed: Repeatable, processes: int = 1) -> Load:
    """The mean load of an update of these batches, by the lengths of the rows of the first ones."""
    if kind_of(plan.recipe).one_length:
        return full(plan)
    steps, parts = min(plan.recipe.train.steps, LOOKED_AT), plan.recipe.train.accumulate * processes
    rows = np.stack([feed.lengths(step) for step in range(steps)]).reshape(steps * parts, -1)
    longest, count = rows.max(1).astype(np.float64), rows.shape[1]
    batch = plan.recipe.train.batch_size
    return Load(batch, count * longest.sum() / steps, count * (longest**2).sum() / steps, batch)


@dataclass(frozen=True)
class ModelCost:
    """One model."""

    parameters: int
    length: int  # of the study's blocks
    token_flops: float  # of a forward pass of the backbone, for each token
    pair_flops: float  # and for each two positions of a row that attention compares
    head_flops: float  # forward, of one token
    activations: float  # numbers that a forward pass keeps for the backward, of one token (an estimate)

    @property
    def backbone_flops(self) -> float:
        """Forward, of one token in a block of the study's length."""
        return self.token_flops + self.pair_flops * self.length

    @property
    def forward(self) -> Price:
        """What a forward pass costs, the head where it is asked."""
        return _price(tokens=self.token_flops, pairs=self.pair_flops, selected=self.head_flops)


def of_model(config: PretrainedConfig, length: int) -> ModelCost:
    """Counts a model."""
    parameters, token, pair, head = count(config, length)
    activations = config.num_hidden_layers * (8 * config.hidden_size + 2 * width_of(config, "ffn"))
    return ModelCost(parameters, length, token, pair, head, activations)


@dataclass(frozen=True)
class StudyCost:
    """A whole study."""

    teachers: dict[str, ModelCost]
    student: ModelCost
    prices: dict[str, Price]  # of each setting alone: the teacher's part and its own
    flops_per_step: dict[str, float]  # likewise, of a mean update
    total_flops: float  # all settings and seeds, the teacher read once a seed
    memory: float  # bytes, an estimate
    least: float  # bytes where micro-batches have one row
    disk: float  # bytes of checkpoints and students

    def flops(self, setting: str, load: Load) -> float:
        """FLOPs of an update of a setting alone."""
        return float(self.prices[setting] @ np.array(load))


def of_study(plan: design.Design, load: Load | None = None) -> StudyCost:
    """The cost of a study whose mean update has this load, or that of full blocks; a backward pass is counted as two forward passes."""
    table, update = plan.recipe, np.array(load or full(plan))
    student = of_model(plan.student, table.data.max_length)
    teachers = {name: of_model(config, table.data.max_length) for name, config in plan.teachers.items()}
    own, read = {}, {}
    for name, terms in plan.terms.items():
        setting, with_logits = table.settings[name], any(term.on_logits for term in terms)
        exits = len({tap for term in terms if term.on_logits for tap in term.taps("student")} - {"logits"})
        forward = _asked(student, with_logits)
        learn = forward + _price(selected=exits * student.head_flops) + _modules(plan, name)
        learn += _maps(plan.student, terms, "student")
        beside = setting.ema is not None or any(term.teacher == "base" for term in terms)
        follow = forward if beside else _price()
        own[name] = setting.peers * (3 * learn + follow)
        # a cached teacher does not run
        read[name] = _price() if table.cache else _read(plan, teachers, terms, with_logits)
    prices = {name: own[name] + read[name] for name in own}
    shared = max((float(each @ update) for each in read.values()), default=0.0)
    learnt = sum(float(each @ update) for each in own.values())
    trained = _trained(plan, student)
    return StudyCost(
        teachers,
        student,
        prices,
        {name: float(price @ update) for name, price in prices.items()},
        total_flops=table.train.steps * len(table.seeds) * (shared + learnt),
        memory=_memory(plan, student, teachers, table.train.batch_size / table.train.accumulate),
        least=_memory(plan, student, teachers, 1),
        disk=trained * (2 * 12 + 4),
    )


def _trained(plan: design.Design, student: ModelCost) -> int:
    """Parameters that are trained: of all students, and of what learns beside them."""
    table = plan.recipe
    each = (s.peers * (student.parameters + _module_parameters(plan, name)) for name, s in table.chosen.items())
    return len(table.seeds) * sum(each)


def _memory(plan: design.Design, student: ModelCost, teachers: dict[str, ModelCost], rows: float) -> float:
    """Bytes that a run takes with micro-batches of so many rows: an estimate."""
    table, load = plan.recipe, full(plan)
    learners = sum(setting.peers for setting in table.chosen.values())
    micro, selected = rows * table.data.max_length, rows * load.selected / load.rows
    whole = any(term.on_logits and term.per == "batch" for terms in plan.terms.values() for term in terms)
    at_once = max(plan.chunk, selected) if whole else min(plan.chunk, selected)  # tokens whose logits exist
    kept = learners * len(table.seeds) * student.parameters * (table.train.keep != "last")  # in fp32
    size = {"bf16": 2, "fp32": 4, "fp64": 8}[table.train.precision]
    return (
        _trained(plan, student) * OPTIMIZER_BYTES
        + kept * 4
        + sum(it.parameters for it in teachers.values()) * size
        + learners * micro * student.activations * ACTIVATIONS[table.train.precision]
        + at_once * families.vocabulary(plan.student) * (24 if whole else LOGITS * size)
    )


def _module_parameters(plan: design.Design, setting: str) -> int:
    """Of the modules of a setting's own: projections, translators, heads of exits; what terms share stands once."""
    made = {name: module for modules in plan.modules[setting] for name, module in modules.items()}
    return sum(p.numel() for module in made.values() for p in module.parameters())


def _read(plan: design.Design, costs: dict[str, ModelCost], terms: Sequence[Term], with_logits: bool) -> Price:
    """The price of a forward pass of the fixed teachers that some terms learn from."""
    total = _price()
    for role in plan.roles:
        taught = [term for term in terms if "teacher" in term.needs and term.teacher == role]
        named = plan.recipe.models.teachers
        members = [role] if role in named else [name for name in costs if name not in named]
        for name in members if taught else ():
            total += _asked(costs[name], with_logits) + _maps(plan.teachers[name], taught, "teacher")
    return total


def _asked(model: ModelCost, with_logits: bool) -> Price:
    """The price of a forward pass, `with_logits` with that of the head."""
    return model.forward * np.array(Load(1, 1, 1, with_logits))


def _modules(plan: design.Design, setting: str) -> Price:
    """The price of a forward pass of the terms' own modules that learn; of pooled states there is one a row."""
    total = _price()
    for term, made in zip(plan.terms[setting], plan.modules[setting], strict=True):
        used = [name for pair in term.pairs for name in (*each(pair.projection or ()), *each(pair.memory or ()))]
        flops = 2 * sum(p.numel() for name in used for p in made[name].parameters() if p.dim() == 2)
        total += _price(rows=flops) if "pooled" in term.taps("student") else _price(tokens=flops)
    return total


def _maps(config: PretrainedConfig, terms: Sequence[Term], side: str) -> Price:
    """The price of the maps that terms compute from queries, keys and values, forward."""
    taps = [tap.split(".")[0] for term in terms for pair in term.pairs for tap in each(getattr(pair, side))]
    kinds = {"scores": "query", "probs": "query", "query": "query", "key": "key", "value": "value"}
    return _price(pairs=sum(2 * width_of(config, kinds[tap]) for tap in taps if tap in kinds))
