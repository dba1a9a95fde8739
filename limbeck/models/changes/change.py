"""Changes: what is done to a model beside its training, as values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from limbeck.families import family
from limbeck.models.compressed import Compressed


class OwnRate(NamedTuple):
    """Parameters that a change trains at a learning rate of their own, without weight decay and without clipping."""

    parameters: list[nn.Parameter]
    schedule: Callable[[int], float]  # update (from 0) -> learning rate


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

    def rates(self, model: PreTrainedModel) -> list[OwnRate]:
        """The parameters that it brought and that have a learning rate of their own."""
        return []

    def watch(self, model: PreTrainedModel, step: int) -> None:
        """Before update `step` (from 0) of a student, when its gradients are those of the whole batch; without gradients of its own."""

    def follow(self, model: PreTrainedModel, step: int) -> None:
        """In place, after update `step` (from 0) of a student, without gradients."""

    def ready(self, step: int) -> bool:
        """Whether after `step` updates it has done all that it will; before, no evaluation counts as the best one."""
        return True

    def left(self, model: PreTrainedModel) -> Mapping[nn.Parameter, Tensor]:
        """What is not cut away of which parameters: bool, of their shape. The rest has no gradient, and the optimizer forgets it."""
        return {}

    def shrunk(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config of what is exported, at the end of the training."""
        return config

    def outline(self, model: PreTrainedModel, small: Compressed) -> None:
        """What `fold` will say in `small`, as far as shapes tell: of a plain model, on the meta device, of the shape that it finds."""

    def fold(self, model: PreTrainedModel, small: Compressed) -> PreTrainedModel:
        """A copy that is exported, in place or anew: a model as transformers knows it.

        The last change folds first. `small` is for what tells how few bytes hold its weights; a change that cuts cuts that too.
        """
        return model

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
