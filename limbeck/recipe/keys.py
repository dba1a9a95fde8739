"""What the keys of a recipe may be, known without torch.

`LOSSES` says of every loss what a recipe needs before anything is loaded: which taps it compares, and which
hyper-parameters it takes. A test holds this table against the signatures of `limbeck.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LossKeys:
    """What a recipe may say of one loss."""

    taps: tuple[str, ...]  # kinds of taps that it compares
    parameters: dict[str, str] = field(default_factory=dict)  # hyper-parameter -> one of KINDS
    needs: tuple[str, ...] = ("teacher",)  # "teacher", "labels"
    per: str = "token"  # what it gives one value for: token, row, batch
    same_width: bool = False  # a projection must widen the student's tensor when the widths differ
    made: dict[str, str] = field(
        default_factory=dict
    )  # keys of the modules that the recipe makes for it, as parameters
    padding: bool = False  # padding counts, as it does in the code that it repeats
    bundle: bool = False  # it takes several taps at once: `tap: [query, key, value]`
    kept: str | None = (
        None  # the loss that stands for it where a cache keeps only the most probable tokens of a teacher
    )


_LOGITS = ("logits",)
_STATES = ("embedding", "hidden", "ffn")
_WARM = {"temperature": "positive"}
_TOPK = {"k": "count", "tail": "flag", **_WARM}

LOSS_KEYS: dict[str, LossKeys] = {
    "cross_entropy": LossKeys(_LOGITS, needs=("labels",)),
    "squared_error": LossKeys(_LOGITS, needs=("labels",)),
    "soft_cross_entropy": LossKeys(_LOGITS, _WARM),
    "forward_kl": LossKeys(_LOGITS, _WARM, kept="topk_kl"),
    "reverse_kl": LossKeys(_LOGITS, _WARM, kept="topk_reverse_kl"),
    "symmetric_kl": LossKeys(_LOGITS, _WARM),
    "jensen_shannon": LossKeys(_LOGITS, {"beta": "share", **_WARM}, kept="topk_jensen_shannon"),
    "skew_forward_kl": LossKeys(_LOGITS, {"alpha": "fraction"}),
    "skew_reverse_kl": LossKeys(_LOGITS, {"alpha": "fraction"}),
    "total_variation": LossKeys(_LOGITS, _WARM),
    "logit_mse": LossKeys(_LOGITS),
    "decoupled_kl": LossKeys(_LOGITS, {"alpha": "weight", "beta": "weight", **_WARM}, needs=("teacher", "labels")),
    "pearson": LossKeys(_LOGITS, {"inter": "weight", "intra": "weight", **_WARM}, per="batch"),
    "universal_logit": LossKeys(_LOGITS),
    "topk_kl": LossKeys(_LOGITS, _TOPK, kept="topk_kl"),
    "topk_reverse_kl": LossKeys(_LOGITS, _TOPK, kept="topk_reverse_kl"),
    "topk_jensen_shannon": LossKeys(_LOGITS, {"beta": "share", **_TOPK}, kept="topk_jensen_shannon"),
    "mse": LossKeys((*_STATES, "pooled"), same_width=True),
    "cosine": LossKeys((*_STATES, "pooled"), same_width=True),
    "patient": LossKeys(("hidden", "embedding", "pooled"), {"position": "position"}, per="row", same_width=True),
    "attention_transfer": LossKeys(_STATES),
    "neuron_selectivity": LossKeys(_STATES, per="row"),
    "activation_boundary": LossKeys(("ffn",), {"margin": "positive"}, same_width=True),
    "factor_transfer": LossKeys(("hidden",), per="row", made={"rate": "positive", "paraphraser_steps": "count"}),
    "cka": LossKeys((*_STATES, "pooled"), per="batch"),
    "attention_scores_mse": LossKeys(("scores",)),
    "attention_mse": LossKeys(("probs",)),
    "attention_kl": LossKeys(("scores",)),
    "relation_kl": LossKeys(("query", "key", "value"), {"relation_heads": "count"}, bundle=True),
    "flow": LossKeys(("hidden",), per="row", same_width=True),
    "rkd_distance": LossKeys(("pooled", "hidden", "embedding"), per="batch"),
    "rkd_angle": LossKeys(("pooled",), per="batch"),
    "similarity": LossKeys(("pooled", *_STATES), per="batch"),
    "contrastive": LossKeys(
        ("pooled",),
        {"temperature": "positive", "log_partition": "number"},
        per="row",
        made={"negatives": "count", "width": "count", "momentum": "fraction"},
    ),
    "tinybert_scores_mse": LossKeys(("scores",), per="row", padding=True),
    "tinybert_hidden_mse": LossKeys(("embedding", "hidden"), per="row", same_width=True, padding=True),
    "tinybert_soft_cross_entropy": LossKeys(_LOGITS, _WARM),
}

MEASURED_BY_TEACHER = ("logit_loss", "agreement")  # measures of an evaluation that need a teacher and no label
METRICS = {"classification": ("accuracy", "f1", "matthews"), "regression": ("pearson", "spearman")}  # the first leads


@dataclass(frozen=True)
class Measure:
    """One number of an evaluation."""

    name: str  # its key in evals.jsonl, where metrics of tasks stand under `metrics`
    better: int  # -1: less is better, +1: more

    @property
    def lower_is_better(self) -> bool:
        """Whether less of it is better."""
        return self.better < 0


_LESS = ("logit_loss", "label_loss")
_MORE = ("agreement", "label_accuracy", "accuracy", "f1", "matthews", "pearson", "spearman")
MEASURES = {name: Measure(name, -1 if name in _LESS else +1) for name in (*_LESS, *_MORE)}
KEPT_BY = (
    *METRICS["classification"],
    *METRICS["regression"],
    "agreement",
    "label_loss",
    "logit_loss",
)  # of the weights that are kept

LAYERED_TAPS = ("hidden", "query", "key", "value", "scores", "probs", "ffn")
TAPS = ("embedding", *LAYERED_TAPS, "pooled", "logits", "exit")
LAYER_MAPS = ("uniform", "skip", "last", "top", "all-to-one")
