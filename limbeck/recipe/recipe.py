"""Recipes: strict, torch-free types of everything that a run is a function of, and how a file becomes one.

Precedence: defaults < YAML < command line (`key=value`). An unknown word stops before anything is loaded.
"""

from __future__ import annotations

import re
from string import ascii_lowercase
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from limbeck.errors import UserError, nearest
from limbeck.families import FAMILIES
from limbeck.recipe.data import Data
from limbeck.recipe.fields import (
    Depth,
    LayerMap,
    Name,
    Place,
    Strict,
    Text,
    Width,
    enum_of,
    known,
    listed,
    seed_list,
    wrong,
)
from limbeck.recipe.settings import Setting
from limbeck.recipe.train import Cache, Train
from limbeck.recipe.words import LOSSES, METRICS
from limbeck.system.files import path_of

RESERVED = {"teacher", "peers", "ema", "self"}  # roles that are no names of teachers


class Source(Strict):
    """Where a pretrained model comes from: a folder, `embedded`, or a Hub id (`org/name`, or `org/name@revision`)."""

    source: Place = Field(description="a folder, embedded, or a Hub id")
    revision: Text | None = Field(
        default=None, description="branch, tag or commit of a Hub id; recorded as a commit in the manifest"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="of a teacher while it teaches; whoever measures asks it without"
    )


def _source(value: Any) -> Any:
    if isinstance(value, str):
        name, _, revision = value.partition("@")
        return {"source": name, "revision": revision or None}
    return value


def source_of(said: str) -> Source:
    """The model that a command names, in the words of a recipe: a folder, `embedded`, or a Hub id (`@revision`).

    Raises:
        UserError: it is no such name.
    """
    try:
        return Source(**_source(said))
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{said!r:.80} names no model ({why}); give a folder, embedded, or a Hub id") from None


class Ensemble(Strict):
    """Several pretrained models over one vocabulary, whose predictions are averaged."""

    ensemble: tuple[Annotated[Source, BeforeValidator(_source)], ...] = Field(description="the members, two or more")
    average: Literal["logits", "probabilities", "log_probabilities"] = Field(
        default="probabilities", description="what of their predictions is averaged"
    )
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="one for each member, in any scale; equal when left out"
    )

    @model_validator(mode="after")
    def _one_weight_each(self) -> Ensemble:
        if len(self.ensemble) < 2:
            raise wrong("ensemble", "an ensemble has two members or more; name a single model itself")
        if self.weights is not None and len(self.weights) != len(self.ensemble):
            raise wrong("weights", f"{len(self.weights)} weights for {len(self.ensemble)} members; give one for each")
        return self


def _kind(value: Any) -> str:
    return "several" if isinstance(value, Ensemble) or (isinstance(value, dict) and "ensemble" in value) else "one"


Teacher = Annotated[Annotated[Source, Tag("one")] | Annotated[Ensemble, Tag("several")], Discriminator(_kind)]


class Student(Strict):
    """The student's shape. What is left out is taken from the model that it begins as, or else from the teacher."""

    family: Annotated[str, AfterValidator(known("model family", FAMILIES)), enum_of(FAMILIES)] | None = Field(
        default=None, description="bert, roberta, ...; the teacher's when left out"
    )
    layers: Depth | None = Field(default=None, description="number of layers")
    hidden: Width | None = Field(default=None, description="width of the hidden states; heads must divide it")
    heads: Width | None = Field(default=None, description="attention heads of a layer")
    kv_heads: Width | None = Field(default=None, description="heads of keys and values (grouped-query attention)")
    intermediate: Width | None = Field(default=None, description="width inside the feed-forward layers")
    embedding: Width | None = Field(
        default=None, description="width of the token embedding, in families where it has one of its own (electra)"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="of the student while it trains")
    init: Place = Field(
        default="random", description="random; teacher, or a model of one's own: a folder, a Hub id, a finished $STAGE"
    )
    draw: Annotated[int, Field(ge=0)] = Field(
        default=0, description="which random weights: another number, other ones, such as for the next generation"
    )
    from_layers: LayerMap = Field(default="uniform", description="which layers of that model the student takes")
    tokenizer: Place | None = Field(default=None, description="folder or Hub id; the teacher's when left out")

    @model_validator(mode="after")
    def _heads_divide(self) -> Student:
        if self.hidden and self.heads and self.hidden % self.heads:
            raise wrong("heads", f"{self.heads} heads do not divide the width {self.hidden}; choose heads that do")
        return self

    @property
    def origin(self) -> Source | None:
        """The model that the student begins as, where it is not the teacher."""
        return None if self.init in ("random", "teacher") else Source(**_source(self.init))


class Models(Strict):
    """Who teaches and who learns."""

    teacher: Annotated[Teacher | None, BeforeValidator(_source)] = Field(
        default=None, description="a folder, embedded, a Hub id (org/name@revision), or an ensemble; null: labels alone"
    )
    teachers: dict[Name, Annotated[Source, BeforeValidator(_source)]] = Field(
        default={}, description="further teachers by name, for terms that say `teacher: NAME`"
    )
    student: Student = Field(default=Student(), description="the shape of the model that learns")

    @property
    def noisy(self) -> list[str]:
        """The places of the teachers that teach with dropout."""
        found = [f"teachers.{name}" for name, source in self.teachers.items() if source.dropout]
        return (["teacher"] if any(member.dropout for member in self.members) else []) + found

    @property
    def members(self) -> tuple[Source, ...]:
        """The models behind `teacher`: one, or those of an ensemble; the first gives students their shape and tokenizer."""
        if self.teacher is None:
            return ()
        return self.teacher.ensemble if isinstance(self.teacher, Ensemble) else (self.teacher,)

    @property
    def beginning(self) -> Source | None:
        """The model that students begin as; None where they begin at random."""
        return self.members[0] if self.student.init == "teacher" and self.members else self.student.origin

    @field_validator("teachers")
    @classmethod
    def _names_are_free(cls, teachers: dict[str, Source]) -> dict[str, Source]:
        for name in teachers:
            if name in RESERVED or re.fullmatch(r"teacher-\d+|.+-seed\d+.*", name):  # members of an ensemble, students
                raise wrong(name, f"{name} has a meaning of its own; give this teacher another name")
        return teachers


class Recipe(Strict):
    """Everything that a run is a function of."""

    name: Name = Field(description="of the study; heads the report. A file's own name when left out of it")
    stage: Name = Field(default="train", description="what a stage of a staged recipe is called")
    question: str | None = Field(default=None, description="what the study asks; heads the report")
    models: Models = Field(default=Models(), description="who teaches and who learns")
    data: Data = Field(default=Data(), description="the text, and how it becomes batches")
    settings: Annotated[dict[Name, Setting], Field(min_length=1)] = Field(
        description="name -> a way of distilling; each becomes one student for each seed"
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
        if len(set(self.seeds)) < len(self.seeds):
            raise wrong("seeds", f"one seed stands twice: {list(self.seeds)}; give each once")
        if self.cache is not None and self.models.noisy:
            place = f"models.{self.models.noisy[0]}"
            raise wrong("cache", f"{place} has dropout and never says the same twice; leave cache or its dropout out")
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
                    isinstance(self.models.teacher, Ensemble)
                    and term.teacher == "teacher"
                    and not set(term.taps) <= {"logits", "exit"}
                ):
                    raise wrong(
                        f"settings.{name}.terms.{number}.tap",
                        "an ensemble has one voice, its logits; name a member in models.teachers, and say teacher: NAME",
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
                needs = term.loss in LOSSES and "teacher" in LOSSES[term.loss].needs
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
        peer = f"-{ascii_lowercase[number]}" if self.settings[setting].peers > 1 else ""
        return f"{setting}-seed{seed}{peer}"

    @property
    def run_dir(self) -> str:
        """The run directory."""
        return str(path_of(self.out or f"runs/{self.name}"))
