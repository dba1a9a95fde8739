"""Every loss of the library once more: loops over plain Python numbers, written from the formulas and from nothing else."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from parity import naive_attention, naive_hidden, naive_logits, naive_published, naive_relation

NAMES = {
    naive_logits: (
        "cross_entropy squared_error soft_cross_entropy forward_kl reverse_kl symmetric_kl jensen_shannon"
        " skew_forward_kl skew_reverse_kl total_variation logit_mse decoupled_kl pearson universal_logit"
        " topk_kl topk_reverse_kl topk_jensen_shannon"
    ),
    naive_hidden: ("mse cosine patient attention_transfer neuron_selectivity activation_boundary factor_transfer cka"),
    naive_attention: "attention_scores_mse attention_mse attention_kl relation_kl",
    naive_published: "tinybert_scores_mse tinybert_hidden_mse tinybert_soft_cross_entropy",
    naive_relation: "flow rkd_distance rkd_angle similarity contrastive",
}

NAIVE: dict[str, Callable[..., Tensor]] = {
    name: getattr(module, name) for module, names in NAMES.items() for name in names.split()
}
