"""YAML of plain values: texts, numbers, lists and tables, and no more of them than a recipe can have."""

from __future__ import annotations

import re
from typing import Any

import yaml

from limbeck.errors import UserError

SAID = {  # what YAML calls a mistake: what it means
    "could not find expected ':'": "a ':' is missing here or on the line before",
    "found character '\\t'": "a tab; indent with spaces",
    "expected <block end>, but found": "indented otherwise than the keys beside it, or a bracket too many",
    "expected ',' or '}'": "a ',' or '}' is missing before this place",
    "expected ',' or ']'": "a ',' or ']' is missing before this place",
    "found unexpected end of stream": "a quotation mark is not closed",
    "mapping values are not allowed": "a ':' where none can stand; put the text in quotes, or mend the indentation",
}
MOST, DEEPEST = 50_000, 40  # values; tables and lists one within another
SURROGATE = re.compile("[\ud800-\udfff]")


_Fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(yaml.SafeLoader):
    """YAML of plain values, in which a key that stands twice is an error, and 1e-3 is a number."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # a month 13, `!!bool maybe`, `!!int ""`
            problem = f"{node.value!r:.40} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


for _kind in ("binary", "omap", "pairs", "set"):  # no values of a recipe
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", yaml.SafeLoader.construct_undefined)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it has none; one line that says where and why.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = flat(error.problem)
        raise ValueError(place + next((it for problem, it in SAID.items() if said.startswith(problem)), said)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(flat(error)) from None


def of_run(text: str) -> Any:
    """The value of a recipe.yaml that a run has written, read by libyaml where that is there: ten times as fast."""
    return yaml.load(text, Loader=_Fast)


def require_plain(table: Any, where: str) -> None:
    """Whether a value can be looked at as a whole: an alias may stand for very many values, or for what it lies in.

    Raises:
        UserError: it is too large, or holds what is no text.
    """
    waiting, count = [(table, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MOST or depth > DEEPEST:
            limits = f"{MOST:,} values, and {DEEPEST} tables or lists one within another"
            raise UserError(f"{where}: too large; a recipe has at most {limits}")
        if isinstance(value, str) and SURROGATE.search(value):
            raise UserError(f"{where}: {value[:40]!r} holds half a surrogate pair, which is no text; write another")
        if isinstance(value, dict):
            waiting += ((each, depth + 1) for pair in value.items() for each in pair)
        elif isinstance(value, list | tuple):
            waiting += ((each, depth + 1) for each in value)


def flat(error: object) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:200]
