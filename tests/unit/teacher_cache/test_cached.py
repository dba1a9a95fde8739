"""What a cache holds of a prediction is taken as it is: nothing is spread over the vocabulary to be sorted again."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from kernel import VOCABULARY, batch, frozen, learner
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.batch import TEXT
from limbeck.distil import schemes
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.reduce import Counts
from limbeck.distil.result import StepResult
from limbeck.distil.schedules import constant
from limbeck.distil.still import Micro
from limbeck.losses import LOSSES
from limbeck.losses.sparse import TopK
from limbeck.recipe.keys import LOSS_KEYS
from limbeck.teacher_cache.cached import Answers, Cached


class Sorting(TorchDispatchMode):
    """Counts what is sorted over the whole vocabulary, and what is spread over it."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.sorted, self.spread = vocabulary, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = args and isinstance(args[0], Tensor) and args[0].dim() and args[0].shape[-1] == self.vocabulary
        name = function.overloadpacket.__name__
        self.sorted += bool(wide and name in ("topk", "sort", "argsort", "kthvalue"))
        self.spread += name in ("repeat", "expand") and tuple(args[1])[-1:] == (self.vocabulary,)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", sorted({keys.kept for keys in LOSS_KEYS.values() if keys.kept}))
def test_a_prediction_that_is_kept_is_not_spread_to_be_sorted_again(loss: str) -> None:
    """In a step with a teacher from the cache; the same count sees what the live teacher has to do."""
    term = Term(loss, partial(LOSSES[loss], k=4), (Pair("logits", "logits"),), constant(1.0), needs=("teacher",))
    live, one, given = frozen(), learner("s", (term,)), batch()

    class Kept:
        width = 9

        def answers(self, batch: Any) -> Answers:
            logits = live.logits(live.forward(batch).features.flatten(0, -2))
            said = TopK.of(logits, 4)
            assert said.rest is not None
            flat = torch.cat([said.indices.double(), said.logprobs, said.rest[:, None]], 1)
            return Answers(flat.unflatten(0, batch["input_ids"].shape), {})

        def predictions(self, features: Tensor) -> TopK:
            return TopK(features[:, :4].long(), features[:, 4:8], features[:, 8], VOCABULARY)

    counted = []
    for teacher in (Cached(live, Kept(), 9), live):
        still = schemes.together([schemes.unmeasured(schemes.offline(one, {"teacher": teacher}, (term,)))], chunk=5)
        micro = Micro({TEXT: given}, 0, 0, {TEXT: Counts.of([given])}, {"s": StepResult()})
        readouts = still.forward(micro)
        with Sorting(VOCABULARY) as seen:
            still.logit_losses(micro, readouts)
        counted.append((bool(seen.sorted), seen.spread, float(micro.tallies["s"].terms[loss])))
    assert [count[:2] for count in counted] == [(False, 0), (True, 0)]
    assert counted[0][2] == pytest.approx(counted[1][2], rel=1e-9)
