"""The losses: pure functions that do not reduce, in one dict that you can read.

Every loss is called by keyword with what it needs of `student, teacher, labels, mask` and its hyper-parameters, and
returns one value per token `[B, T]`, per row `[B]` or per batch `[]`. Averaging happens outside, once, in `limbeck.distil.reduce`.

A NaN that counts is NaN in the value; no token at all is 0. Shapes that do not belong together, a mask that is not bool, and
hyper-parameters that a recipe refuses raise a `ValueError` of one line.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from limbeck.losses.attention import attention_kl, attention_mse, attention_scores_mse, relation_kl
from limbeck.losses.divergences import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    total_variation,
)
from limbeck.losses.hidden import (
    activation_boundary,
    attention_transfer,
    cka,
    cosine,
    factor_transfer,
    mse,
    neuron_selectivity,
    patient,
)
from limbeck.losses.logits import (
    cross_entropy,
    decoupled_kl,
    logit_mse,
    pearson,
    soft_cross_entropy,
    squared_error,
    universal_logit,
)
from limbeck.losses.published import tinybert_hidden_mse, tinybert_scores_mse, tinybert_soft_cross_entropy
from limbeck.losses.relation import contrastive, flow, rkd_angle, rkd_distance, similarity
from limbeck.losses.sparse import topk_jensen_shannon, topk_kl, topk_reverse_kl

Loss = Callable[..., Tensor]

LOSSES: dict[str, Loss] = {
    # logits
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "soft_cross_entropy": soft_cross_entropy,
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "jensen_shannon": jensen_shannon,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
    "logit_mse": logit_mse,
    "decoupled_kl": decoupled_kl,
    "pearson": pearson,
    "universal_logit": universal_logit,
    # sparse
    "topk_kl": topk_kl,
    "topk_reverse_kl": topk_reverse_kl,
    "topk_jensen_shannon": topk_jensen_shannon,
    # hidden
    "mse": mse,
    "cosine": cosine,
    "patient": patient,
    "attention_transfer": attention_transfer,
    "neuron_selectivity": neuron_selectivity,
    "activation_boundary": activation_boundary,
    "factor_transfer": factor_transfer,
    "cka": cka,
    # attention
    "attention_scores_mse": attention_scores_mse,
    "attention_mse": attention_mse,
    "attention_kl": attention_kl,
    "relation_kl": relation_kl,
    # relation
    "flow": flow,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "similarity": similarity,
    "contrastive": contrastive,
    # published
    "tinybert_scores_mse": tinybert_scores_mse,
    "tinybert_hidden_mse": tinybert_hidden_mse,
    "tinybert_soft_cross_entropy": tinybert_soft_cross_entropy,
}
