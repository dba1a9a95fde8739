"""Changes: what is done to a model beside its training, as values."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Protocol

from transformers import PretrainedConfig, PreTrainedModel

from limbeck.families import family


class Change(Protocol):
    """What is done to a model beside its training: to a teacher when it is read, to a student also while it trains.

    A change says what it does otherwise than here, where it does nothing. It has no state but what lies in the model: parameters
    and buffers are in the checkpoint.

    Example:
        class Clip(Change):
            '''Weights stay between -1 and 1.'''

            def follow(self, model, step):
                for parameter in model.parameters():
                    parameter.clamp_(-1, 1)
    """

    training: bool = (
        False  # whether a teacher answers in training mode while it teaches; whoever measures asks it without
    )

    def shaped(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config by which a teacher is made; the shape of a student is the recipe's."""
        return config

    def apply(self, model: PreTrainedModel) -> None:
        """Once, in place, when the model is made and where it will run."""

    def follow(self, model: PreTrainedModel, step: int) -> None:
        """In place, after update `step` (from 0) of a student, without gradients."""

    def fold(self, model: PreTrainedModel) -> None:
        """In place, in a copy that is exported: afterwards it is a model as transformers knows it."""

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {}

    def said(self) -> str:
        """What is told when the model is made; nothing where it is empty."""
        return ""


def facts_of(changes: Iterable[Change]) -> dict[str, Any]:
    """What the manifest says of some changes."""
    return {name: fact for change in changes for name, fact in change.facts().items()}


class Dropout(Change):
    """A teacher's dropout while it teaches; none between the last state and the classes.

    Args:
        share: 0 to below 1.
    """

    training = True

    def __init__(self, share: float) -> None:
        self.share = share

    def shaped(self, config: PretrainedConfig) -> PretrainedConfig:
        """A copy with this dropout."""
        config = copy.deepcopy(config)
        for word in family(config.model_type).dropouts:
            setattr(config, word, self.share)
        return config

    def facts(self) -> dict[str, Any]:
        """Its share."""
        return {"dropout": self.share}
