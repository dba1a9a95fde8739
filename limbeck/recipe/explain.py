"""What is wrong with a recipe, in limbeck's words: the place, what is said there, the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from limbeck.errors import nearest
from limbeck.recipe.recipe import Recipe

_TABLE = "a table of keys and values"


_TABLES = (("models",), ("models", "student"), ("data",), ("train",))  # whose keys are looked for where one is unknown


_KINDS = {
    "tuple_type": "a list such as [1, 2]",
    "dict_type": _TABLE,
    "model_type": _TABLE,
    "model_attributes_type": _TABLE,
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "literal_error": "{expected}",
}


_SAYS = {
    "extra_forbidden": "unknown key; {near}",
    "missing": "missing; set it",
    "invalid_key": "is no key of a recipe; keys are text",
    "string_too_short": "is empty; set it",
    "too_short": "is empty; give at least one",
    "too_long": "has {actual_length} elements; give {max_length}",
    "int_parsing_size": "is too large a number; lower it",
    "finite_number": "must be a finite number, not {found}",
    "greater_than": "must be above {gt:g}, not {found}",
    "greater_than_equal": "must be at least {ge:g}, not {found}",
    "less_than": "must be below {lt:g}, not {found}",
    "less_than_equal": "must be at most {le:g}, not {found}",
}


Place = tuple[int | str, ...]


def explain(error: ValidationError, table: Any, kind: type[BaseModel] = Recipe) -> str:
    """The first thing that is wrong in a table of a kind, as `path: what; remedy`, and how many other places are."""
    found = [(_place(each, table), each) for each in error.errors()]
    inner = [(place, each) for place, each in found if not any(_is_inside(other, place) for other, _ in found)]
    inner.sort(
        key=lambda it: it[1]["type"] == "missing"
    )  # a key at a wrong place says more than the place where it misses
    place = inner[0][0]
    path = "".join(_step(part) for part in place).lstrip(".")
    others = len({other for other, _ in inner}) - 1
    message = _message(place, [each for other, each in inner if other == place], kind)
    return (f"{path}: " if path else "") + message + (f" (and {others} more)" if others else "")


def _step(part: int | str) -> str:
    return f".{part}" if isinstance(part, str) and part.isidentifier() else f"[{part!r:.80}]"


def _message(place: Place, errors: list[Any], kind: type[BaseModel]) -> str:
    """What is wrong at one place; the members of a union each have their own complaint."""
    kinds = [_KINDS[each["type"]].format(**each.get("ctx", {})) for each in errors if each["type"] in _KINDS]
    of_value = [each for each in errors if each["type"] not in _KINDS]
    found = _show(errors[0]["input"])
    if not of_value:
        return f"must be {' or '.join(dict.fromkeys(kinds))}, not {found}{_remedy(errors[0], kinds, _keys_at(place, kind))}"
    first = of_value[0]
    near = _near(place, kind) if first["type"] == "extra_forbidden" else ""
    said = _SAYS.get(first["type"])
    if first["type"] == "too_short" and first["ctx"]["actual_length"]:
        said = "has too few elements ({actual_length}); give at least {min_length}"
    return (
        said.format(near=near, found=found, **first.get("ctx", {}))
        if said
        else first["msg"].removeprefix("Value error, ")
    )


def _remedy(error: Any, kinds: Sequence[str], keys: Sequence[str]) -> str:
    """What to do about a value of another kind; `keys` are those of the table that stands there."""
    found = error["input"]
    if found is None:
        return "; set it"
    if kinds == ["text"]:
        return "; put it in quotes"
    if isinstance(found, str) and re.match(r"\w+:\S", found):
        return "; write a space behind the colon"
    if isinstance(found, list) and keys:
        return f"; write `{keys[0]}:` before it"
    return "; put '- ' before it" if isinstance(found, dict) and error["type"] == "tuple_type" else ""


def _near(place: Place, kind: type[BaseModel]) -> str:
    """What may be meant by an unknown key; at the top also a key of the tables below: `lr` for `train.lr`."""
    key, keys = str(place[-1]), _keys_at(place[:-1], kind)
    below = {each: ".".join((*table, each)) for table in _TABLES for each in _keys_at(table)}
    known = below | {each: each for each in keys} if len(place) == 1 and kind is Recipe else {}
    found = re.fullmatch(r"did you mean '(.+)'\?", nearest(key, known, 0.75))
    return f"did you mean '{known[found[1]]}'?" if found else nearest(key, keys)


def _place(error: Any, table: Any) -> Place:
    """Where in the recipe an error is: pydantic's path without the members of unions that it names in between."""
    place: list[int | str] = []
    for part in error["loc"]:
        inside = part in table if isinstance(table, dict) else isinstance(table, list | tuple) and isinstance(part, int)
        if inside:
            table = table[part] if isinstance(table, dict) or part < len(table) else None
        if inside or (isinstance(table, dict) and error["type"] == "missing" and part == error["loc"][-1]):
            place.append(part)
    return (*place, *error.get("ctx", {}).get("below", ()))


def _is_inside(place: Place, other: Place) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _show(value: Any) -> str:
    return {"None": "nothing", "True": "true", "False": "false"}.get(repr(value), repr(value))[:80]


def _keys_at(place: Sequence[int | str], kind: type[BaseModel] = Recipe) -> tuple[str, ...]:
    kinds: list[Any] = [kind]
    for part in place:
        kinds = [below for kind in kinds for below in _below(kind, part)]
    return tuple(key for kind in kinds if _is_table(kind) for key in kind.model_fields)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _below(kind: Any, part: int | str) -> Iterable[Any]:
    """The types that may stand below a key or a place in a list of a type."""
    if _is_table(kind):
        return _members(kind.model_fields[part].annotation) if part in kind.model_fields else ()
    inside = {dict: 1, tuple: 0}.get(get_origin(kind) or kind)
    return () if inside is None else _members(get_args(kind)[inside])


def _members(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind
