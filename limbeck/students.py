"""Students: from a shape in a recipe to a model, random or with weights of the teacher's layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)

from limbeck import layers, recipe
from limbeck.anatomy import family
from limbeck.errors import UserError
from limbeck.seeds import seeded

_DEPEND_ON_DEPTH = ("layer_types",)  # lists with one entry a layer, which the config derives again
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def shape(student: recipe.Student, teacher: PretrainedConfig | None, **facts: int | None) -> PretrainedConfig:
    """The student's config: the teacher's (or its family's defaults) with what the recipe says.

    Args:
        student: the shape in the recipe.
        teacher: the teacher's config, None without a teacher.
        facts: what the tokenizer decides where there is no teacher: `vocab_size`, `pad_token_id`, ...

    Raises:
        UserError: the heads do not divide the width, or nothing says how large the student is.
    """
    kind = student.family or (teacher.model_type if teacher else "bert")
    row = family(kind)
    if teacher is not None and teacher.model_type == kind:
        base = {k: v for k, v in teacher.to_dict().items() if k not in _DEPEND_ON_DEPTH}
    else:
        base = dict(facts)
        if teacher is not None:
            base |= {"vocab_size": teacher.vocab_size} | {k: getattr(teacher, k, None) for k in _SPECIAL_TOKENS}
    said = {
        row.n_layers: student.layers,
        row.width: student.hidden,
        row.n_heads: student.heads,
        row.intermediate: student.intermediate,
        **({row.n_kv_heads: student.kv_heads} if row.n_kv_heads else {}),
    }
    if student.kv_heads and not row.n_kv_heads:
        raise UserError(f"models.student.kv_heads: a {kind} model has none of its own; leave the word out")
    base |= {name: value for name, value in said.items() if value is not None}
    base |= dict.fromkeys(row.dropouts, student.dropout)
    width, heads = base.get(row.width), base.get(row.n_heads)
    if width and heads and width % heads:
        raise UserError(f"models.student.heads: {heads} heads do not divide the width {width}; choose heads that do")
    if (student.hidden or student.heads) and base.get("head_dim") and width and heads:
        base["head_dim"] = width // heads
    if row.n_kv_heads and heads and heads % (base.get(row.n_kv_heads) or heads):
        raise UserError(
            f"models.student.kv_heads: {base[row.n_kv_heads]} do not divide the {heads} heads; choose kv_heads that do"
        )
    drop = ("model_type", "architectures", "dtype", "transformers_version", "_name_or_path")
    return AutoConfig.for_model(kind, **{k: v for k, v in base.items() if k not in drop})


def build(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A random model of this config, in fp32; a function of config and seed alone."""
    kind = AutoModelForCausalLM if family(config.model_type).causal else AutoModelForMaskedLM
    with seeded(seed, torch.device("cpu")):
        return kind.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


@torch.no_grad()
def copy_layers(student: PreTrainedModel, teacher: PreTrainedModel, which: layers.LayerMap) -> None:
    """Copies teacher layers, embeddings and head into a student of the same width.

    Raises:
        UserError: widths or families differ.
    """
    row = family(student.config.model_type)
    if student.config.model_type != teacher.config.model_type:
        raise UserError("models.student.init: teacher needs the teacher's family; leave models.student.family out")
    path = f"{row.base}.{row.layers}."
    pairs = layers.resolve(which, student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    source = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        if name.startswith(path):
            number, rest = name.removeprefix(path).split(".", 1)
            if int(number) + 1 not in pairs:
                continue
            name = f"{path}{pairs[int(number) + 1] - 1}.{rest}"
        if name not in source:  # a part that the copied layer lacks, as the first layer of ModernBERT lacks a norm
            continue
        if source[name].shape != parameter.shape:
            raise UserError(
                f"models.student.init: teacher copies weights and needs the teacher's width; {name} is "
                f"{tuple(source[name].shape)} there and {tuple(parameter.shape)} in the student; use init: random"
            )
        parameter.copy_(source[name])


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bits of named tensors."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()
