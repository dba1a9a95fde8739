"""What the words of a recipe may be, known without torch.

`LOSSES` says of every loss what a recipe needs before anything is loaded: which taps it compares, and which
hyper-parameters it takes. A test holds this table against the signatures of `limbeck.losses`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class LossWords:
    """What a recipe may say of one loss."""

    taps: tuple[str, ...]  # kinds of taps that it compares
    parameters: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("teacher",)  # "teacher", "labels"
    same_width: bool = False  # a bridge must widen the student's tensor when the widths differ


LOSSES: dict[str, LossWords] = {
    "cross_entropy": LossWords(("logits",), needs=("labels",)),
    "forward_kl": LossWords(("logits",), ("temperature",)),
    "mse": LossWords(("embedding", "hidden"), same_width=True),
    "cosine": LossWords(("embedding", "hidden"), same_width=True),
    "attention_scores_mse": LossWords(("scores",)),
}

LAYERED_TAPS = ("hidden", "query", "key", "value", "scores", "probs")
TAPS = ("embedding", *LAYERED_TAPS, "logits")
LAYER_MAPS = ("uniform", "skip", "last", "top")


# What newcomers from elsewhere write, and what it is called here.
ELSEWHERE = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "epochs": "steps",
    "num_train_epochs": "steps",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "clip",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "intermediate",
    "max_seq_length": "max_length",
    "model_type": "family",
    "dataset": "corpus",
    "alpha": "weight",
    "output_dir": "out",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a question, or the known words when none is near.

    >>> nearest("temprature", ["temperature", "weight"])
    "did you mean 'temperature'?"
    >>> nearest("lerning_rate", ["lr", "steps"])
    "did you mean 'lr'?"
    """
    here = sorted(known)
    names = dict.fromkeys(here) | {name: here_called for name, here_called in ELSEWHERE.items() if here_called in here}
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{names[close[0]] or close[0]}'?" if close else f"known words: {', '.join(here)}"
