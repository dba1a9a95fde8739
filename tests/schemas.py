"""Whether a value fits the schema of recipes."""

from __future__ import annotations

from typing import Any


def fits(value: Any, said: Any, defs: dict[str, Any]) -> bool:
    """Whether a value fits a schema: the part of JSON Schema that pydantic writes for recipes."""
    if "$ref" in said:
        return fits(value, defs[said["$ref"].rpartition("/")[2]], defs)
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    one = [any(fits(value, each, defs) for each in said[word]) for word in ("anyOf", "oneOf") if word in said]
    kind = said.get("type")
    right = value is None if kind == "null" else kind is None or isinstance(value, kinds[kind])
    if not right or not all(one) or value not in said.get("enum", [value]) or value != said.get("const", value):
        return False
    if isinstance(value, dict):
        known, other = said.get("properties", {}), said.get("additionalProperties", True)
        here = all(word in value for word in said.get("required", []))
        return here and all(
            fits(item, known[word], defs)
            if word in known
            else other is not False and (other is True or fits(item, other, defs))
            for word, item in value.items()
        )
    if isinstance(value, list) and "items" in said:
        return len(value) >= said.get("minItems", 0) and all(fits(item, said["items"], defs) for item in value)
    return True
