"""From a recipe's file and the command line to a `Recipe`, or to one clear line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from limbeck.errors import UserError
from limbeck.recipe import Recipe
from limbeck.words import nearest


def built_in() -> dict[str, Path]:
    """The recipes that come with limbeck: name -> YAML file."""
    folder = Path(str(files("limbeck") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(recipe: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a built-in name, a YAML file or a mapping means, with `key=value` overrides on top.

    >>> load("quickstart", ["train.steps=10", "seeds=[0]"]).train.steps
    10

    Raises:
        UserError: it is not there, not YAML, or says something that limbeck does not know.
    """
    where, table = ("recipe", recipe) if isinstance(recipe, dict) else _read(str(recipe))
    for override in overrides:
        table = _override(table, override)
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{where}: {_first(error)}") from None


def _read(recipe: str) -> tuple[str, dict[str, Any]]:
    path = built_in().get(recipe) or Path(recipe)
    if not path.is_file():
        hint = nearest(recipe, tuple(built_in()))
        raise UserError(f"{recipe}: no such file, and no built-in recipe of that name ({hint})")
    try:
        table = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {_flat(error)}; `limbeck recipes quickstart` prints one to copy") from None
    if not isinstance(table, dict):
        raise UserError(
            f"{path}: a recipe is a table of words and values; `limbeck recipes quickstart` prints one to copy"
        )
    return str(path), {"name": path.stem, **table}


class _Loader(yaml.SafeLoader):
    """YAML in which a word that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


def _override(table: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy of `table` in which the one place that `override` names has its value."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is no override; write key=value, such as train.lr=3e-4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: '{text}' is not YAML: {_flat(error)}") from None
    return _put(table, key.split("."), value, key)


def _put(table: Any, path: list[str], value: Any, key: str) -> Any:
    if not path:
        return value
    word, rest = path[0], path[1:]
    if isinstance(table, list):
        if not word.isdigit() or int(word) >= len(table):
            raise UserError(f"{key}: there is no element '{word}'; the list has {len(table)}")
        return [_put(item, rest, value, key) if i == int(word) else item for i, item in enumerate(table)]
    if table is None or isinstance(table, dict):
        return {**(table or {}), word: _put((table or {}).get(word), rest, value, key)}
    if word == "revision" or not isinstance(table, str):
        raise UserError(f"{key}: '{word}' cannot stand below a single value")
    return _put({"source": table}, path, value, key)


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, as `path: what; remedy`."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if not _is_type_name(part)]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown word; {nearest(str(place[-1]), _words_at(place[:-1]))}"
    elif first["type"] == "missing":
        message = "missing; set it"
    else:
        message = message[0].lower() + message[1:]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return (f"{path}: " if path else "") + message + more


def _is_type_name(part: int | str) -> bool:
    """Whether pydantic put the name of a member of a union, not a word of the recipe, into a path."""
    return isinstance(part, str) and (
        "[" in part or part in {"float", "str", "int", "Ramp", "Source", "dict", "constrained-float"}
    )


def _words_at(place: list[int | str]) -> tuple[str, ...]:
    """The words that a recipe knows at a path."""
    model: Any = Recipe
    for part in place:
        annotation = model.model_fields[part].annotation if isinstance(part, str) and _is_model(model) else model
        model = (
            _inner(annotation)
            if not (isinstance(part, str) and part not in getattr(model, "model_fields", {}))
            else model
        )
    return tuple(model.model_fields) if _is_model(model) else ()


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _inner(annotation: Any) -> Any:
    """The table type inside an annotation such as `tuple[Term, ...]` or `dict[str, Setting]`."""
    if _is_model(annotation):
        return annotation
    for part in get_args(annotation):
        found = _inner(part)
        if _is_model(found):
            return found
    return annotation
