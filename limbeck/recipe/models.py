"""Table `models`: who teaches and who learns."""

from __future__ import annotations

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

from limbeck.errors import UserError
from limbeck.families import FAMILIES
from limbeck.recipe import actor_names
from limbeck.recipe.changes import OneChange, in_order
from limbeck.recipe.fields import (
    Depth,
    LayerMap,
    Name,
    Own,
    Place,
    Strict,
    TextField,
    Width,
    enum_of,
    known,
    wrong,
)

OF_STUDENTS = ("peers", "ema", "self", "base")  # roles that students play, or what they were
RESERVED = {"teacher", *OF_STUDENTS}  # roles that are no names of teachers


class Source(Strict):
    """Where a pretrained model comes from: a folder, `embedded`, or a Hub id (`org/name`, or `org/name@revision`)."""

    source: Place = Field(description="a folder, embedded, or a Hub id")
    revision: TextField | None = Field(
        default=None, description="branch, tag or commit of a Hub id; recorded as a commit in the manifest"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="of a teacher while it teaches; whoever measures asks it without"
    )
    actor: Own | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="who answers in this model's place: the import path of an `Actor` of one's own, made of the model's actor",
    )


def _source(value: Any) -> Any:
    if isinstance(value, str):
        name, _, revision = value.partition("@")
        return {"source": name, "revision": revision or None}
    return value


def source_of(said: str) -> Source:
    """The model that a command names, as a recipe says it: a folder, `embedded`, or a Hub id (`@revision`).

    Raises:
        UserError: it is no such name.
    """
    try:
        return Source(**_source(said))
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{said!r:.80} names no model ({why}); give a folder, embedded, or a Hub id") from None


class EnsembleKeys(Strict):
    """Several pretrained models over one vocabulary, whose predictions are averaged."""

    ensemble: tuple[Annotated[Source, BeforeValidator(_source)], ...] = Field(description="the members, two or more")
    average: Literal["logits", "probabilities", "log_probabilities"] = Field(
        default="probabilities", description="what of their predictions is averaged"
    )
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="one for each member, in any scale; equal when left out"
    )

    @model_validator(mode="after")
    def _one_weight_each(self) -> EnsembleKeys:
        if len(self.ensemble) < 2:
            raise wrong("ensemble", "an ensemble has two members or more; name a single model itself")
        if self.weights is not None and len(self.weights) != len(self.ensemble):
            raise wrong("weights", f"{len(self.weights)} weights for {len(self.ensemble)} members; give one for each")
        return self


def _kind(value: Any) -> str:
    return "several" if isinstance(value, EnsembleKeys) or (isinstance(value, dict) and "ensemble" in value) else "one"


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
    changes: Annotated[tuple[OneChange, ...], AfterValidator(in_order)] = Field(
        default=(),
        exclude_if=lambda value: not value,
        description="what is done to its model beside its training, in this order: {quantise: int8}, {prune: ...}, {factorise: ...}, or the import path of a `Change` of one's own, package.module:name",
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
    def fixed(self) -> tuple[Source, ...]:
        """All teachers, members of an ensemble one by one."""
        return (*self.members, *self.teachers.values())

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
        return self.teacher.ensemble if isinstance(self.teacher, EnsembleKeys) else (self.teacher,)

    @property
    def beginning(self) -> Source | None:
        """The model that students begin as; None where they begin at random."""
        return self.members[0] if self.student.init == "teacher" and self.members else self.student.origin

    @field_validator("teachers")
    @classmethod
    def _names_are_free(cls, teachers: dict[str, Source]) -> dict[str, Source]:
        for name in teachers:
            if name in RESERVED or actor_names.TAKEN.fullmatch(name):
                raise wrong(name, f"{name} has a meaning of its own; give this teacher another name")
        return teachers


Teacher = Annotated[Annotated[Source, Tag("one")] | Annotated[EnsembleKeys, Tag("several")], Discriminator(_kind)]
