"""The keys that make a recipe a study of several arms. No torch."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_serializer

from limbeck.recipe.fields import Positive, Strict
from limbeck.recipe.settings import BEFORE

NO_TEACHER = "no-teacher"


class Sample(Strict):
    """Some combinations of `vary`, drawn without repetition."""

    count: Positive = Field(description="how many")
    seed: int = Field(default=0, description="which ones are drawn")


class Grid(Strict):
    """Values of keys of the recipe: every combination, or a sample of them."""

    vary: dict[str, tuple[Any, ...]] = Field(default={}, description="key of the recipe -> its values")
    sample: Sample | None = Field(default=None, description="of the combinations, when there are too many")

    @field_serializer("vary")
    def _as_hashed(self, vary: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        """Only what is hashed is made of it, where a term's `projection` has its older name."""
        return {re.sub(r"(terms[.\[]\d+\]?\.)projection$", rf"\1{BEFORE}", key): it for key, it in vary.items()}


class Tune(Grid):
    """What is tried for every setting before it is compared; the best by the held-out loss of a validation part stays."""

    seeds: tuple[int, ...] | None = Field(
        default=None, description="of the trials; the first of the study when left out"
    )
    steps: Positive | None = Field(default=None, description="updates of a trial; those of the study when left out")


class StudyKeys(Grid):
    """What makes a recipe a study of several arms."""

    baselines: tuple[Literal["no-teacher", "initial", "teacher"], ...] = Field(
        default=(), description="no-teacher: labels alone, at equal steps; initial, teacher: shown beside, not trained"
    )
    ablate: Literal["terms"] | None = Field(
        default=None, description="terms: every setting also without each of its terms, and with each alone"
    )
    equal: Literal["flops", "seconds"] | None = Field(
        default=None, description="every setting gets the updates that cost what train.steps of the first one cost"
    )
    together: Positive | None = Field(
        default=None, description="settings that share memory; what the machine holds when left out"
    )
    tune: Tune | None = Field(default=None, description="settings are tuned first, each with the same trials")

    @property
    def shown(self) -> tuple[str, ...]:
        """The baselines that are shown beside the settings and train nothing: the evaluations have their numbers."""
        return tuple(name for name in dict.fromkeys(self.baselines) if name != NO_TEACHER)

    @property
    def resolves(self) -> bool:
        """Whether the arms can differ from those that the keys alone make."""
        return bool(self.equal or self.together or self.tune)

    @property
    def asks(self) -> bool:
        """Whether there is anything to say of the arms beside their settings."""
        return bool(self.equal or self.tune or self.vary)
