"""From a recipe's file and the command line to a `Recipe`, or to one clear line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limbeck.errors import UserError, nearest
from limbeck.recipe.explain import _keys_at, _show, explain
from limbeck.recipe.plain_yaml import flat, parse, require_plain
from limbeck.recipe.recipe import Recipe
from limbeck.system.files import path_of

COPY = "`limbeck recipes quickstart` prints one to copy"
LARGEST = 1 << 18  # bytes of a recipe
ASKED = "???"  # in place of a value that a recipe leaves to its user


def built_in() -> dict[str, Path]:
    """The recipes that come with limbeck: name -> YAML file."""
    folder = Path(str(files("limbeck.recipe") / "built_in"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(recipe: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a built-in name, a YAML file or a mapping means, with `key=value` overrides on top.

    >>> load("quickstart", ["train.steps=10", "seeds=[0]"]).train.steps
    10

    Raises:
        UserError: it is not there, not YAML, or says something that limbeck does not know.
    """
    where, table = read(recipe)
    if "stages" in table:
        raise UserError(f"{where}: has stages, and one recipe is wanted; limbeck.recipe.stages.expand gives them")
    return validated(where, table, overrides)


def read(recipe: str | Path | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What errors call a recipe, and its table."""
    where, table = ("recipe", recipe) if isinstance(recipe, dict) else _read(str(recipe))
    require_plain(table, where)
    return where, table


def validated(where: str, table: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a table means, with overrides on top."""
    for override in overrides:
        table = overridden(table, override)
    if asked := dict(_asked(table)):
        wanted = " and ".join(f"{place}=... ({what})" for place, what in asked.items())
        raise UserError(f"{where}: it leaves to you what nobody else has; give {wanted}")
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, table)}") from None


def _asked(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place -> what is to be given there, of all keys that a recipe leaves to its user: `teacher: "??? a causal model"`."""
    if isinstance(value, dict):
        for word, inner in value.items():
            yield from _asked(inner, f"{place}.{word}" if place else str(word))
    elif isinstance(value, str) and value.startswith(ASKED):
        yield place, value.removeprefix(ASKED).strip()


# files


def _read(recipe: str) -> tuple[str, dict[str, Any]]:
    """What errors call the recipe, and its table."""
    known = built_in()
    path = known.get(recipe) or path_of(recipe)
    name = recipe if recipe in known else str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise UserError(f"{name}: longer than {LARGEST:,} bytes, which no recipe is; name a YAML file; {COPY}")
        table = parse(raw.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{name}: no such file, and no built-in recipe of that name; {_near_file(path, known)}"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a recipe; name a YAML file in it") from None
    except OSError as error:
        raise UserError(f"{name[:200]}: cannot be read ({error.strerror}); name a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not YAML: no text in UTF-8; {COPY}") from None
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {flat(error)}; {COPY}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: a recipe is a table of keys and values; {COPY}")
    given = {} if recipe in known else {"out": f"runs/{_stem(path)}"}
    return name, {"name": path.stem, **given, **table}


def _near_file(path: Path, known: Iterable[str]) -> str:
    """What may be meant by a file that is not there: one beside it, or a built-in recipe."""
    beside = [str(it) for ending in ("yaml", "yml") for it in path.parent.glob(f"*.{ending}")]
    near = nearest(str(path), (*known, *beside))
    return near if near.startswith("did you mean") else "`limbeck recipes` lists the built-in ones"


def _stem(path: Path) -> str:
    """The name of a recipe's file as that of a folder."""
    if path.stem.startswith("."):
        raise UserError(f"{path}: a run directory cannot be named after this file; rename it")
    return path.stem


# overrides


def overridden(table: dict[str, Any], override: str) -> dict[str, Any]:
    """A copy of `table` in which the one place that `override` names has its value."""
    key, equals, text = override.partition("=")
    path = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
    if not equals or not all(path):
        raise UserError(f"'{override:.200}' is no override; write key=value, such as train.lr=3e-4")
    try:
        value = parse(text)
    except ValueError as error:
        raise UserError(f"{key:.80}: '{text:.80}' is not YAML: {error}; put it in quotes") from None
    require_plain(value, key)
    return _put(table, path, value, key)


def _put(table: Any, path: list[str], value: Any, key: str, done: tuple[str, ...] = ()) -> Any:
    if not path:
        return value
    word, rest = path[0], path[1:]
    further = (rest, value, key, (*done, word))
    if isinstance(table, list):
        if not word.isdigit() or int(word) >= len(table):
            raise UserError(f"{key}: there is no element '{word}'; the list has {len(table)}, counted from 0")
        return [_put(item, *further) if i == int(word) else item for i, item in enumerate(table)]
    if table is None or isinstance(table, dict):
        table = table or {}
        keys = _keys_at(done[2:] if done[:1] == ("stages",) else done)
        if rest and word not in table and word not in keys:
            raise UserError(f"{key}: there is no '{word}'; {nearest(word, {*keys, *map(str, table)})}")
        return {**table, word: _put(table.get(word), *further)}
    if isinstance(table, str) and "source" in _keys_at(done):
        return _put({"source": table}, path, value, key, done)
    raise UserError(f"{key}: '{word}' cannot stand below a single value; {'.'.join(done)} is {_show(table)}")


# what pydantic found, in limbeck's words


# the keys that a recipe knows at a place
