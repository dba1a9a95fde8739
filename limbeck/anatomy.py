"""Facts about model families: where their parts are. One row a family; nothing else in limbeck knows a model type.

Paths are attribute paths. `base`, `head` and `final_norm` start at the whole model (`final_norm` at the base model),
`attention` at a layer. To teach limbeck a family, add its row here and its config to the family test of the taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limbeck.errors import UserError
from limbeck.words import nearest


@dataclass(frozen=True)
class Family:
    """Where the parts of one model family are, and what its config calls its sizes."""

    base: str  # the backbone
    layers: str  # the list of layers, from the backbone
    attention: str  # the attention module (the one that calls the attention function), from a layer
    ffn: str  # the module whose output is what the feed-forward activation is applied to, from a layer
    head: tuple[str, ...]  # modules from the backbone's output to the logits, in order
    final_norm: str | None = None  # a norm behind the last layer: `hidden.L` is read after it, as transformers does
    ffn_halves: bool = False  # that module also gives the gate, behind the pre-activation
    causal: bool = False
    reserved_positions: int = 0  # position embeddings that no token of a block gets (RoBERTa counts from padding on)
    # what the config calls them
    n_layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    n_heads: str = "num_attention_heads"
    n_kv_heads: str | None = None
    intermediate: str = "intermediate_size"
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")


_LLAMA = Family(
    base="model",
    layers="layers",
    attention="self_attn",
    ffn="mlp.gate_proj",
    head=("lm_head",),
    final_norm="norm",
    causal=True,
    n_kv_heads="num_key_value_heads",
    dropouts=("attention_dropout",),
)

FAMILIES: dict[str, Family] = {
    "bert": Family(
        base="bert", layers="encoder.layer", attention="attention.self", ffn="intermediate.dense", head=("cls",)
    ),
    "roberta": Family(
        base="roberta",
        layers="encoder.layer",
        attention="attention.self",
        ffn="intermediate.dense",
        head=("lm_head",),
        reserved_positions=2,
    ),
    "electra": Family(
        base="electra",
        layers="encoder.layer",
        attention="attention.self",
        ffn="intermediate.dense",
        head=("generator_predictions", "generator_lm_head"),
    ),
    "distilbert": Family(
        base="distilbert",
        layers="transformer.layer",
        attention="attention",
        ffn="ffn.lin1",
        head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        n_layers="n_layers",
        width="dim",
        n_heads="n_heads",
        intermediate="hidden_dim",
        dropouts=("dropout", "attention_dropout"),
    ),
    "modernbert": Family(
        base="model",
        layers="layers",
        attention="attn",
        ffn="mlp.Wi",
        ffn_halves=True,
        head=("head", "decoder"),
        final_norm="final_norm",
        dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout"),
    ),
    "gpt2": Family(
        base="transformer",
        layers="h",
        attention="attn",
        ffn="mlp.c_fc",
        head=("lm_head",),
        final_norm="ln_f",
        causal=True,
        n_layers="n_layer",
        width="n_embd",
        n_heads="n_head",
        intermediate="n_inner",
        dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ),
    "llama": _LLAMA,
    "qwen3": _LLAMA,
}


def family(model_type: str) -> Family:
    """The row of a transformers `model_type`.

    Raises:
        UserError: the family has no row.
    """
    if model_type not in FAMILIES:
        raise UserError(
            f"limbeck knows no model family '{model_type}'; {nearest(model_type, tuple(FAMILIES))} (a family is one row in limbeck/anatomy.py)"
        )
    return FAMILIES[model_type]


def heads_of(config: Any, tap: str) -> int:
    """The number of heads of `query`, `key` or `value`."""
    shared = family(config.model_type).n_kv_heads if tap in ("key", "value") else None
    return getattr(config, shared) if shared else config.num_attention_heads


def width_of(config: Any, tap: str) -> int:
    """The width of a tap: of all its heads together for queries, keys and values."""
    if tap in ("query", "key", "value"):
        each = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return heads_of(config, tap) * each
    if tap == "ffn":
        return getattr(config, family(config.model_type).intermediate, None) or 4 * config.hidden_size
    return config.hidden_size
