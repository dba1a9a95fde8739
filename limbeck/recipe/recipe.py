"""Recipes: strict, torch-free types of everything that a run is a function of, and how a file becomes one.

Precedence: defaults < YAML < command line (`key=value`). An unknown key stops before anything is loaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from limbeck.errors import nearest
from limbeck.recipe import actor_names
from limbeck.recipe.changes import OneChange
from limbeck.recipe.data import Data
from limbeck.recipe.fields import (
    Name,
    Own,
    Place,
    Strict,
    listed,
    seed_list,
    wrong,
)
from limbeck.recipe.keys import LOSS_KEYS, METRICS
from limbeck.recipe.models import RESERVED, EnsembleKeys, Models
from limbeck.recipe.settings import Setting
from limbeck.recipe.train import Cache, Train
from limbeck.system.files import path_of


class Recipe(Strict):
    """Everything that a run is a function of."""

    name: Name = Field(description="of the study; heads the report. A file's own name when left out of it")
    stage: Name = Field(default="train", description="what a stage of a staged recipe is called")
    question: str | None = Field(default=None, description="what the study asks; heads the report")
    models: Models = Field(default=Models(), description="who teaches and who learns")
    data: Data = Field(default=Data(), description="the text, and how it becomes batches")
    settings: dict[Name, Setting] = Field(
        default={}, description="name -> a way of distilling; each becomes one student for each seed"
    )
    write: Own | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of a stage that writes a text in place of training: the import path of a `TextWriter`, package.module:name",
    )
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], BeforeValidator(seed_list), Field(min_length=1)
    ] = Field(default=(0,), description="each trains every setting once; verdicts need several")
    only: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] | None = Field(
        default=None, description="train these settings only"
    )
    train: Train = Field(default=Train(), description="optimisation, evaluation, what is kept")
    cache: Cache | None = Field(default=None, description="keep the teachers' answers on disk; `{}` for the defaults")
    report_to: Annotated[tuple[Literal["tensorboard", "trackio"], ...], BeforeValidator(listed)] = Field(
        default=(), description="trackers that get the metrics too; metrics.jsonl is always written"
    )
    out: Place | None = Field(
        default=None,
        description="the run directory; of a file STEM.yaml runs/STEM when left out, of any other recipe runs/NAME",
    )

    @model_validator(mode="after")
    def _hangs_together(self) -> Recipe:
        if not self.settings and self.write is None:
            said = "settings" in self.model_fields_set
            raise wrong("settings", "is empty; give at least one" if said else "missing; set it")
        if self.settings and self.write is not None:
            raise wrong("write", "a stage trains settings or writes a text; make two stages of it")
        if len(set(self.seeds)) < len(self.seeds):
            raise wrong("seeds", f"one seed stands twice: {list(self.seeds)}; give each once")
        if self.cache is not None and self.models.noisy:
            place = f"models.{self.models.noisy[0]}"
            raise wrong("cache", f"{place} has dropout and never says the same twice; leave cache or its dropout out")
        if self.cache is not None and (own := [it.actor for it in self.models.fixed if it.actor]):
            raise wrong("cache", f"{own[0]} answers for itself; leave cache or the actor out")
        for name in self.only or ():
            if name not in self.settings:
                raise wrong("only", f"there is no setting '{name:.80}'; {nearest(name, self.settings)}")
        return self

    @model_validator(mode="after")
    def _teachers_are_known(self) -> Recipe:
        known = {*RESERVED, *self.models.teachers}
        for name, setting in self.settings.items():
            for number, term in enumerate(setting.terms):
                if term.teacher not in known:
                    raise wrong(
                        f"settings.{name}.terms.{number}.teacher",
                        f"there is no teacher '{term.teacher:.80}'; {nearest(term.teacher, known)}",
                    )
                if (
                    isinstance(self.models.teacher, EnsembleKeys)
                    and term.teacher == "teacher"
                    and not set(term.taps) <= {"logits", "exit"}
                ):
                    raise wrong(
                        f"settings.{name}.terms.{number}.tap",
                        "an ensemble has nothing but logits; name a member in models.teachers, and say teacher: NAME",
                    )
        if self.models.teachers and self.models.teacher is None:
            raise wrong("models.teacher", "missing; one of the teachers gives the measure and the shape; set it")
        return self

    @model_validator(mode="after")
    def _peers_differ(self) -> Recipe:
        if self.models.student.init != "random" and any(setting.peers > 1 for setting in self.settings.values()):
            raise wrong("models.student.init", "peers that begin alike stay alike; set init to random")
        return self

    @model_validator(mode="after")
    def _teaches(self) -> Recipe:
        if self.models.teacher is not None:
            return self
        for setting, table in self.settings.items():
            for number, term in enumerate(table.terms):
                needs = term.loss in LOSS_KEYS and "teacher" in LOSS_KEYS[term.loss].needs
                if needs and term.teacher == "teacher":
                    place = f"settings.{setting}.terms.{number}"
                    raise wrong("models.teacher", f"missing; {place} ({term.loss}) learns from a teacher; set it")
        for word in ("family", "tokenizer"):
            if getattr(self.models.student, word) is None and self.models.student.origin is None:
                raise wrong(f"models.student.{word}", "missing; without a teacher the student needs it; set it")
        if self.models.student.init == "teacher":
            raise wrong("models.student.init", "there is no teacher to copy; set models.teacher, or init to random")
        return self

    @model_validator(mode="after")
    def _kept_by_what_is_measured(self) -> Recipe:
        known = [*self._metrics, "label_loss", *(("logit_loss", "agreement") if self.models.teacher else ())]
        if self.data.task is not None and self.data.task.kind == "regression":
            known = [name for name in known if name != "agreement"]
        if self.train.keep not in ("last", "best", *known):
            raise wrong("train.keep", f"this run has no {self.train.keep}; choose one of {', '.join(known)}")
        return self

    def changes_of(self, setting: str) -> tuple[OneChange, ...]:
        """What is done to the students of a setting beside their training."""
        said = self.settings[setting].changes
        return self.models.student.changes if said is None else said

    @property
    def _metrics(self) -> tuple[str, ...]:
        return METRICS[self.data.task.kind] if self.data.task else ()

    @property
    def measure(self) -> str | None:
        """What chooses the weights that are kept; None where those of the last update are."""
        if self.train.keep != "best":
            return None if self.train.keep == "last" else self.train.keep
        return next(iter(self._metrics), "logit_loss" if self.models.teacher else "label_loss")

    @property
    def chosen(self) -> dict[str, Setting]:
        """The settings that are trained: all, or those that `only` names."""
        return {name: table for name, table in self.settings.items() if self.only is None or name in self.only}

    def learner(self, setting: str, seed: int, number: int = 0) -> str:
        """What the n-th student of a setting and a seed is called."""
        return actor_names.learner(setting, seed, number if self.settings[setting].peers > 1 else None)

    @property
    def run_dir(self) -> str:
        """The run directory."""
        return str(path_of(self.out or f"runs/{self.name}"))
