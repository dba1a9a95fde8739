"""Students: from a shape in a recipe to a random model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from limbeck.errors import UserError
from limbeck.families import family, reserved_positions
from limbeck.models import pretrained
from limbeck.recipe import models
from limbeck.system.seeds import seeded

_DEPEND_ON_DEPTH = ("layer_types",)  # lists with one entry a layer, which the config derives again
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def shape(student: models.Student, teacher: PretrainedConfig | None, **facts: int | None) -> PretrainedConfig:
    """The student's config: the teacher's (or its family's defaults) with what the recipe says.

    A student with other sizes gets heads of width hidden / heads; one that begins as a model keeps the width of that model's
    heads where the family's config has a key for it (`head_dim`), whatever number of them is left.

    Args:
        student: the shape in the recipe.
        teacher: the teacher's config, None without a teacher.
        facts: what the tokenizer decides where there is no teacher: `vocab_size`, `pad_token_id`, ...

    Raises:
        UserError: the heads do not divide the width, or a key is none of this family's.
    """
    kind = student.family or (teacher.model_type if teacher else "bert")
    row = family(kind)
    if teacher is not None and teacher.model_type == kind:
        base = {k: v for k, v in teacher.to_dict().items() if k not in _DEPEND_ON_DEPTH}
    else:
        base = dict(facts)
        if teacher is not None:
            base |= {"vocab_size": teacher.vocab_size} | {k: getattr(teacher, k, None) for k in _SPECIAL_TOKENS}
            base |= _likeness(teacher, kind) if student.init != "random" else {}
    said = {
        row.n_layers: student.layers,
        row.width: student.hidden,
        row.n_heads: student.heads,
        row.intermediate: student.intermediate,
        **({row.n_kv_heads: student.kv_heads} if row.n_kv_heads else {}),
        **({row.embedding: student.embedding} if row.embedding else {}),
    }
    if student.kv_heads and not row.n_kv_heads:
        raise UserError(f"models.student.kv_heads: a {kind} model has none of its own; leave the key out")
    if student.embedding and not row.embedding:
        raise UserError(
            f"models.student.embedding: a {kind} model has no embedding width of its own; set family: electra"
        )
    base |= {name: value for name, value in said.items() if value is not None}
    base |= dict.fromkeys(row.dropouts, student.dropout)
    width, heads = base.get(row.width), base.get(row.n_heads)
    if width and heads and width % heads:
        raise UserError(f"models.student.heads: {heads} heads do not divide the width {width}; choose heads that do")
    if student.init == "random" and (student.hidden or student.heads) and base.get("head_dim") and width and heads:
        base["head_dim"] = width // heads
    if row.n_kv_heads and heads and heads % (base.get(row.n_kv_heads) or heads):
        raise UserError(
            f"models.student.kv_heads: {base[row.n_kv_heads]} do not divide the {heads} heads; choose kv_heads that do"
        )
    drop = ("model_type", "architectures", "dtype", "transformers_version", "_name_or_path")
    return AutoConfig.for_model(kind, **{k: v for k, v in base.items() if k not in drop})


def _likeness(teacher: PretrainedConfig, kind: str) -> dict[str, Any]:
    """What a config of another family of the same layers takes from the model that its student begins as."""
    mine, theirs = family(kind), family(teacher.model_type)
    if mine.layer_axes != theirs.layer_axes:
        return {}
    sizes = ("n_layers", "width", "n_heads", "intermediate")
    same = {getattr(mine, name): getattr(teacher, getattr(theirs, name)) for name in sizes}
    before = (teacher.pad_token_id or 0) + 1 if mine.counts_from_padding else 0
    room = teacher.max_position_embeddings - reserved_positions(teacher) + before
    told = {name: getattr(teacher, name) for name in ("hidden_act", "layer_norm_eps", "type_vocab_size")}
    width = getattr(teacher, theirs.embedding) if theirs.embedding else teacher.hidden_size
    return same | told | {"max_position_embeddings": room} | ({mine.embedding: width} if mine.embedding else {})


def build(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A random model of this config, in fp32; a function of config and seed alone. It has a copy, for a model writes into its config."""
    with seeded(seed, torch.device("cpu")):
        return pretrained.kind_of(config).from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation="sdpa"
        )
