"""What a JSON schema means as a whole: whether values of it ever end, bounds, and what its parts refer to.

llguidance sees none of this before it has begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

_ROUNDS = 32
"""How deeply definitions may lean on each other; those that do more are taken for sound."""
_MOST = 2**63
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def senseless(schema: Any) -> str:
    """Why no value can ever be complete by a schema, or be held to it; empty if one can."""
    for part in _all_parts(schema):
        for key in _BOUNDS:
            bound = part.get(key)
            if isinstance(bound, int | float) and part.get("type") == "integer" and not -_MOST <= bound < _MOST:
                return f"{key} is {bound}; integers are followed from -{_MOST} to {_MOST - 1}"
    return "" if _Ends(schema).ends() else "it refers to itself without an end, so no value is ever complete"


def target_of(root: Any, reference: Any) -> Any:
    """What a ``$ref`` such as ``#/$defs/a`` points to; True for what is not found, which others report."""
    if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
        return True
    found = root
    for step in unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isascii() and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return True
    return found


_WHOLE = "the-whole-schema"


def by_definitions(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same schema, whose parts mean the same beside its ``$defs`` alone: all references lead there."""

    def led(value: Any) -> Any:
        if isinstance(value, list):
            return [led(entry) for entry in value]
        if not isinstance(value, Mapping):
            return value
        found = {key: inner if key == "enum" else led(inner) for key, inner in value.items()}
        if _is_elsewhere(value.get("$ref")):
            found["$ref"] = f"#/$defs/{_WHOLE}{value['$ref'][1:]}"
        return found

    if not any(_is_elsewhere(part.get("$ref")) for part in _all_parts(schema)):
        return schema
    found = led(schema)
    return {**found, "$defs": {**found.get("$defs", {}), _WHOLE: {k: v for k, v in found.items() if k != "$defs"}}}


def _is_elsewhere(reference: Any) -> bool:
    """Whether a reference points into its schema, but to none of its definitions."""
    inside = isinstance(reference, str) and (reference + "/").startswith("#/")
    return inside and not reference.startswith(("#/$defs/", "#/definitions/"))


class _Ends:
    """Whether a schema allows a value that ends. A reference does once what it points to is known to."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: set[str] = set()

    def ends(self) -> bool:
        """Whether the whole does."""
        waiting = {part["$ref"] for part in _all_parts(self._root) if isinstance(part.get("$ref"), str)}
        for _ in range(_ROUNDS):
            new = {each for each in waiting if self._ends(target_of(self._root, each))}
            self._known |= new
            waiting -= new
            if not new:
                return self._ends(self._root)
        return True

    def _ends(self, schema: Any) -> bool:
        if not isinstance(schema, Mapping):
            return True
        if "const" in schema or "enum" in schema:
            return True
        if isinstance(schema.get("$ref"), str) and schema["$ref"] not in self._known:
            return False
        for key, enough in (("allOf", all), ("anyOf", any), ("oneOf", any)):
            branches = schema.get(key)
            if isinstance(branches, list) and branches and not enough(self._ends(branch) for branch in branches):
                return False
        return self._object_ends(schema) and self._array_ends(schema)

    def _object_ends(self, schema: Mapping[str, Any]) -> bool:
        named, required = schema.get("properties"), schema.get("required")
        if schema.get("type") != "object" or not isinstance(named, Mapping) or not isinstance(required, list):
            return True
        return all(self._ends(named[name]) for name in required if isinstance(name, str) and name in named)

    def _array_ends(self, schema: Mapping[str, Any]) -> bool:
        least, first = schema.get("minItems"), schema.get("prefixItems")
        if schema.get("type") != "array" or not isinstance(least, int) or least < 1:
            return True
        first = first if isinstance(first, list) else []
        return all(map(self._ends, first[:least])) and (least <= len(first) or self._ends(schema.get("items", True)))


def _all_parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object of a JSON value, values that merely look like schemas among them."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
