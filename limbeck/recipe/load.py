"""From a recipe's file and the command line to a `Recipe`, or to one clear line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from limbeck.errors import UserError, nearest
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
    """Place -> what is to be given there, of all words that a recipe leaves to its user: `teacher: "??? a causal model"`."""
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
        raise UserError(f"{path}: a recipe is a table of words and values; {COPY}")
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
        words = _words_at(done[2:] if done[:1] == ("stages",) else done)
        if rest and word not in table and word not in words:
            raise UserError(f"{key}: there is no '{word}'; {nearest(word, {*words, *map(str, table)})}")
        return {**table, word: _put(table.get(word), *further)}
    if isinstance(table, str) and "source" in _words_at(done):
        return _put({"source": table}, path, value, key, done)
    raise UserError(f"{key}: '{word}' cannot stand below a single value; {'.'.join(done)} is {_show(table)}")


# what pydantic found, in limbeck's words

_TABLE = "a table of words and values"
_TABLES = (("models",), ("models", "student"), ("data",), ("train",))  # whose words are looked for where one is unknown
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
    "extra_forbidden": "unknown word; {near}",
    "missing": "missing; set it",
    "invalid_key": "is no word of a recipe; words are text",
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
    )  # a word at a wrong place says more than the place where it misses
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
        return f"must be {' or '.join(dict.fromkeys(kinds))}, not {found}{_remedy(errors[0], kinds, _words_at(place, kind))}"
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


def _remedy(error: Any, kinds: Sequence[str], words: Sequence[str]) -> str:
    """What to do about a value of another kind; `words` are those of the table that stands there."""
    found = error["input"]
    if found is None:
        return "; set it"
    if kinds == ["text"]:
        return "; put it in quotes"
    if isinstance(found, str) and re.match(r"\w+:\S", found):
        return "; write a space behind the colon"
    if isinstance(found, list) and words:
        return f"; write `{words[0]}:` before it"
    return "; put '- ' before it" if isinstance(found, dict) and error["type"] == "tuple_type" else ""


def _near(place: Place, kind: type[BaseModel]) -> str:
    """What may be meant by an unknown word; at the top also a word of the tables below: `lr` for `train.lr`."""
    word, words = str(place[-1]), _words_at(place[:-1], kind)
    below = {each: ".".join((*table, each)) for table in _TABLES for each in _words_at(table)}
    known = below | {each: each for each in words} if len(place) == 1 and kind is Recipe else {}
    found = re.fullmatch(r"did you mean '(.+)'\?", nearest(word, known, 0.75))
    return f"did you mean '{known[found[1]]}'?" if found else nearest(word, words)


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


# the words that a recipe knows at a place


def _words_at(place: Sequence[int | str], kind: type[BaseModel] = Recipe) -> tuple[str, ...]:
    kinds: list[Any] = [kind]
    for part in place:
        kinds = [below for kind in kinds for below in _below(kind, part)]
    return tuple(word for kind in kinds if _is_table(kind) for word in kind.model_fields)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _below(kind: Any, part: int | str) -> Iterable[Any]:
    """The types that may stand below a word, a key or a place in a list of a type."""
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
