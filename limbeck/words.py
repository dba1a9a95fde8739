"""What the words of a recipe may be, known without torch.

`LOSSES` says of every loss what a recipe needs before anything is loaded: over what it returns one value (`per`), which
taps it compares, and which hyper-parameters it takes. A test holds this table against the signatures of `limbeck.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class LossWords:
    """What a recipe may say of one loss."""

    per: str  # "token", "row" or "batch": what one returned value stands for
    taps: tuple[str, ...]  # kinds of taps that it compares
    parameters: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("teacher",)  # "teacher", "labels"
    same_width: bool = False  # a bridge must widen the student's tensor when the widths differ


LOSSES: dict[str, LossWords] = {
    "cross_entropy": LossWords("token", ("logits",), needs=("labels",)),
    "forward_kl": LossWords("token", ("logits",), ("temperature",)),
    "mse": LossWords("token", ("embedding", "hidden"), same_width=True),
    "cosine": LossWords("token", ("embedding", "hidden"), same_width=True),
    "attention_scores_mse": LossWords("token", ("scores",)),
}

LAYERED_TAPS = ("hidden", "query", "key", "value", "scores", "probs")
TAPS = ("embedding", *LAYERED_TAPS, "logits")
LAYER_MAPS = ("uniform", "skip", "last", "top")


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """` (did you mean 'temperature'?)`, or the known words when none is near.

    >>> nearest("temprature", ["temperature", "weight"])
    "did you mean 'temperature'?"
    """
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known words: {', '.join(sorted(known))}"
