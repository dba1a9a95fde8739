"""Facts of losses beside their values: which are made query by query or by hand, and which one all settings share.

They are facts of a function, so that a term made by hand has them too. A loss of one's own has none: it is taken the plain way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from limbeck.losses import Loss, attention_kl, attention_mse, attention_scores_mse, by_hand, forward_kl, logit_mse


@dataclass(frozen=True)
class Facts:
    """What is known of one loss."""

    by_query: bool = False  # it looks at each query of an attention map for itself: large maps may be made in parts
    by_hand: Callable[..., Tensor] | None = (
        None  # (student, teacher, out, ...): gives the values, puts slopes into `out`
    )


NOTHING = Facts()
FACTS: dict[Loss, Facts] = {
    forward_kl: Facts(by_hand=by_hand.forward_kl),
    attention_scores_mse: Facts(by_query=True),
    attention_mse: Facts(by_query=True),
    attention_kl: Facts(by_query=True),
}


def facts_of(loss: Loss) -> Facts:
    """What is known of a loss, with hyper-parameters (a `partial`) or without.

    >>> facts_of(partial(forward_kl, temperature=2.0)).by_hand is by_hand.forward_kl
    True
    """
    return FACTS.get(loss.func if isinstance(loss, partial) else loss, NOTHING)


def common_loss_of(columns: int) -> Loss:
    """The logit loss that all settings share: forward KL at temperature 1; of a score, which is no distribution, the square."""
    return forward_kl if columns > 1 else logit_mse
