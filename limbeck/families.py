"""Facts about model families: where their parts are. One row a family; nothing else in limbeck knows a model type.

Paths are attribute paths. `base`, `head` and `final_norm` start at the whole model (`final_norm` at the base model),
`attention` at a layer. To teach limbeck a family, add its row here and its config to the family test of the taps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from limbeck.errors import UserError, nearest


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
    classifier: tuple[str, ...] = ("score",)  # modules (or functions of torch) from one token's state to a row's logits
    causal: bool = False
    counts_from_padding: bool = False  # positions begin behind the id of padding, as RoBERTa's
    # what the config calls them
    n_layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    n_heads: str = "num_attention_heads"
    n_kv_heads: str | None = None
    intermediate: str = "intermediate_size"
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    # what the axes of the weights stand for: module -> the axes of its matrix, outputs first (a bias has the first one);
    # `a+b`: two lie behind one another. A position, a token and so on is a row; `context` is what attention gives away
    layer_axes: dict[str, str] = field(default_factory=dict)  # modules from a layer
    base_axes: dict[str, str] = field(default_factory=dict)  # from the backbone
    head_axes: dict[str, str] = field(default_factory=dict)  # from the whole model
    transposed: bool = False  # the matrices of layers are stored inputs first (Conv1D)
    rotary: bool = False  # positions turn pairs of units of a head, each pair at a speed of its own
    embedding: str | None = None  # what the config calls a width of the embedding that is not the layers'


_BERT_LAYER = {
    "attention.self.query": "query hidden",
    "attention.self.key": "key hidden",
    "attention.self.value": "value hidden",
    "attention.output.dense": "hidden context",
    "attention.output.LayerNorm": "hidden",
    "intermediate.dense": "neuron hidden",
    "output.dense": "hidden neuron",
    "output.LayerNorm": "hidden",
}
_BERT_BASE = {
    "embeddings.word_embeddings": "vocab embedding",
    "embeddings.position_embeddings": "position embedding",
    "embeddings.token_type_embeddings": "type embedding",
    "embeddings.LayerNorm": "embedding",
    "embeddings_project": "hidden embedding",
    "pooler.dense": "hidden hidden",
}
_TWO_STEPS = {"classifier.dense": "hidden hidden", "classifier.out_proj": "label hidden"}
_LLAMA_LAYER = {
    "input_layernorm": "hidden",
    "self_attn.q_proj": "query hidden",
    "self_attn.k_proj": "key hidden",
    "self_attn.v_proj": "value hidden",
    "self_attn.o_proj": "hidden context",
    "post_attention_layernorm": "hidden",
    "mlp.gate_proj": "neuron hidden",
    "mlp.up_proj": "neuron hidden",
    "mlp.down_proj": "hidden neuron",
}
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
    layer_axes=_LLAMA_LAYER,
    base_axes={"embed_tokens": "vocab embedding", "norm": "hidden"},
    head_axes={"lm_head": "vocab embedding", "score": "label hidden"},
    rotary=True,
)

FAMILIES: dict[str, Family] = {
    "bert": Family(
        base="bert",
        layers="encoder.layer",
        attention="attention.self",
        ffn="intermediate.dense",
        head=("cls",),
        classifier=("bert.pooler.dense", "bert.pooler.activation", "classifier"),
        layer_axes=_BERT_LAYER,
        base_axes=_BERT_BASE,
        head_axes={
            "cls.predictions.transform.dense": "embedding hidden",
            "cls.predictions.transform.LayerNorm": "embedding",
            "cls.predictions.decoder": "vocab embedding",
            "classifier": "label hidden",
        },
    ),
    "roberta": Family(
        base="roberta",
        layers="encoder.layer",
        attention="attention.self",
        ffn="intermediate.dense",
        head=("lm_head",),
        classifier=("classifier.dense", "torch.tanh", "classifier.out_proj"),
        counts_from_padding=True,
        layer_axes=_BERT_LAYER,
        base_axes=_BERT_BASE,
        head_axes={
            "lm_head.dense": "embedding hidden",
            "lm_head.layer_norm": "embedding",
            "lm_head.decoder": "vocab embedding",
            **_TWO_STEPS,
        },
    ),
    "electra": Family(
        base="electra",
        layers="encoder.layer",
        attention="attention.self",
        ffn="intermediate.dense",
        head=("generator_predictions", "generator_lm_head"),
        classifier=("classifier.dense", "classifier.activation", "classifier.out_proj"),
        layer_axes=_BERT_LAYER,
        base_axes=_BERT_BASE,
        head_axes={
            "generator_predictions.dense": "embedding hidden",
            "generator_predictions.LayerNorm": "embedding",
            "generator_lm_head": "vocab embedding",
            **_TWO_STEPS,
        },
        embedding="embedding_size",
    ),
    "distilbert": Family(
        base="distilbert",
        layers="transformer.layer",
        attention="attention",
        ffn="ffn.lin1",
        head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        classifier=("pre_classifier", "torch.relu", "classifier"),
        n_layers="n_layers",
        width="dim",
        n_heads="n_heads",
        intermediate="hidden_dim",
        dropouts=("dropout", "attention_dropout"),
        layer_axes={
            "attention.q_lin": "query hidden",
            "attention.k_lin": "key hidden",
            "attention.v_lin": "value hidden",
            "attention.out_lin": "hidden context",
            "sa_layer_norm": "hidden",
            "ffn.lin1": "neuron hidden",
            "ffn.lin2": "hidden neuron",
            "output_layer_norm": "hidden",
        },
        base_axes=_BERT_BASE,
        head_axes={
            "vocab_transform": "embedding hidden",
            "vocab_layer_norm": "embedding",
            "vocab_projector": "vocab embedding",
            "pre_classifier": "hidden hidden",
            "classifier": "label hidden",
        },
    ),
    "modernbert": Family(
        base="model",
        layers="layers",
        attention="attn",
        ffn="mlp.Wi",
        ffn_halves=True,
        head=("head", "decoder"),
        classifier=("head", "classifier"),
        final_norm="final_norm",
        dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout"),
        layer_axes={
            "attn_norm": "hidden",
            "attn.Wqkv": "query+key+value hidden",
            "attn.Wo": "hidden context",
            "mlp_norm": "hidden",
            "mlp.Wi": "neuron+neuron hidden",
            "mlp.Wo": "hidden neuron",
        },
        base_axes={
            "embeddings.tok_embeddings": "vocab embedding",
            "embeddings.norm": "embedding",
            "final_norm": "hidden",
        },
        head_axes={
            "head.dense": "hidden hidden",
            "head.norm": "hidden",
            "decoder": "vocab embedding",
            "classifier": "label hidden",
        },
        rotary=True,
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
        layer_axes={
            "ln_1": "hidden",
            "attn.c_attn": "query+key+value hidden",
            "attn.c_proj": "hidden context",
            "ln_2": "hidden",
            "mlp.c_fc": "neuron hidden",
            "mlp.c_proj": "hidden neuron",
        },
        base_axes={"wte": "vocab embedding", "wpe": "position embedding", "ln_f": "hidden"},
        head_axes={"lm_head": "vocab embedding", "score": "label hidden"},
        transposed=True,
    ),
    "llama": _LLAMA,
    "qwen3": replace(
        _LLAMA, layer_axes=_LLAMA_LAYER | {"self_attn.q_norm": "head_width", "self_attn.k_norm": "head_width"}
    ),
}


def family(model_type: str) -> Family:
    """The row of a transformers `model_type`.

    Raises:
        UserError: the family has no row.
    """
    if model_type not in FAMILIES:
        raise UserError(
            f"limbeck knows no model family '{model_type}'; {nearest(model_type, tuple(FAMILIES))} (a family is one row in limbeck/families.py)"
        )
    return FAMILIES[model_type]


def reserved_positions(config: Any) -> int:
    """The rows of the position embedding that no token of a block gets."""
    return (config.pad_token_id or 0) + 1 if family(config.model_type).counts_from_padding else 0


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


def vocabulary(config: Any) -> int:
    """The columns of a model's logits."""
    return int((config.num_labels if config.problem_type else config.vocab_size) or 0)
