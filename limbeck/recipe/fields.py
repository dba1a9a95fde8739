"""The kinds of values that stand in a recipe, each with the check that it must pass."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from limbeck.errors import UserError, nearest
from limbeck.recipe.keys import LAYER_MAPS, LOSS_KEYS, TAPS
from limbeck.system.files import path_of


def wrong(below: str, message: str) -> PydanticCustomError:
    """An error at a key (or a path of keys) below the table that is being checked."""
    return PydanticCustomError("wrong", "{message}", {"below": _path(below), "message": message})


def _path(below: str) -> list[str | int]:
    return [int(word) if word.isdigit() else word for word in below.split(".")] if below else []


def known(what: str, words: Iterable[str]) -> Callable[[str], str]:
    """A check that a word is one of `words`; what it refuses is told the nearest."""

    def check(word: str) -> str:
        if word not in words:
            raise ValueError(f"unknown {what} '{word:.80}'; {nearest(word, words)}")
        return word

    return check


def enum_of(words: Iterable[str]) -> WithJsonSchema:
    """The words that an editor offers."""
    return WithJsonSchema({"type": "string", "enum": list(words)})


def is_name(value: str) -> str:
    """A name that is safe as a folder, in a metric and on a page."""
    if not re.fullmatch(r"[\w-][\w.-]{0,63}", value):
        raise ValueError(f"{value[:80]!r} is no name: use letters, digits, '_', '-' and '.', 64 at most")
    return value


def is_loss(value: str) -> str:
    """A loss by its name, or by an import path."""
    if "." in value and ":" not in value:
        raise ValueError(f"{value[:80]!r} is no loss; one's own is named package.module:function")
    if ":" not in value:
        return known("loss", LOSS_KEYS)(value)
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise ValueError(f"{value[:80]!r} is no import path; write package.module:function")
    return value


def is_place(value: str) -> str:
    """A file, a folder, or what stands for one (`docs`, `hub:ID`, a Hub id): text that the system can be asked for.

    >>> is_place("~/models/bert")
    '~/models/bert'
    """
    parts = [len(os.fsencode(part)) for part in re.split(r"/| \+ ", value)]
    if "\0" in value or max(parts) > 255 or sum(parts) > 4000:
        raise ValueError(
            f"{value[:80]!r} is no path; a path has at most 4,000 bytes, each of its names 255, and no NUL"
        )
    try:
        path_of(value)
    except UserError as error:
        raise ValueError(str(error)) from None
    return value


def is_device(value: str) -> str:
    """A device by name; whether this machine has it shows when it is used."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu|hpu|npu)(:\d+)?", value):
        raise ValueError(f"unknown device '{value:.80}'; write auto, cpu, cuda, cuda:1, mps, xpu, hpu or npu")
    return value


def listed(value: Any) -> Any:
    """One word stands for a list of one."""
    return [value] if isinstance(value, str) else value


def seed_list(value: Any) -> Any:
    """A bare number could be a seed or a count of seeds: it is neither."""
    if isinstance(value, int):
        raise ValueError(f"must be a list: seeds=[{value}] for the seed {value}, seeds=[0,1,2] for three seeds")
    return value


Positive = Annotated[int, Field(gt=0, le=10**12)]
Depth = Annotated[int, Field(gt=0, le=1000)]  # layers
Width = Annotated[int, Field(gt=0, le=1_000_000)]  # units, heads
Share = Annotated[float, Field(gt=0, lt=1)]
TextField = Annotated[str, Field(min_length=1)]
Own = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]  # the import path of something of one's own: package.module:name
Place = Annotated[TextField, AfterValidator(is_place)]
Name = Annotated[str, AfterValidator(is_name)]
Layer = int | Literal["last"]
LayerMap = (
    Annotated[str, AfterValidator(known("layer map", LAYER_MAPS)), enum_of(LAYER_MAPS)]
    | Annotated[dict[Layer, Layer], Field(min_length=1)]
)
Loss = Annotated[
    str,
    AfterValidator(is_loss),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": list(LOSS_KEYS)}, {"type": "string", "pattern": ":"}]}),
]
Tap = Annotated[str, AfterValidator(known("tap", TAPS)), enum_of(TAPS)]
Device = Annotated[str, AfterValidator(is_device)]


class Strict(BaseModel):
    """A table of a recipe: no unknown key, no number that is not finite, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is no value here; write a number or text")
        return value
