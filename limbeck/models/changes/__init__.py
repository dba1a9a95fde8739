"""What is done to a model beside its training, as values: quantised, pruned, factorised. The mathematics is pure and importable."""

from limbeck.models.changes.change import Change, Dropout, OwnRate, facts_of
from limbeck.models.changes.cubic import cubic_sparsity
from limbeck.models.changes.factorise import low_rank
from limbeck.models.changes.importance import taylor_importance
from limbeck.models.changes.prune import movement_mask, two_of_four
from limbeck.models.changes.quantise import fake_quantise

__all__ = [
    "Change",
    "Dropout",
    "OwnRate",
    "cubic_sparsity",
    "facts_of",
    "fake_quantise",
    "low_rank",
    "movement_mask",
    "taylor_importance",
    "two_of_four",
]
