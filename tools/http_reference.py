"""The routes of `foveal serve` as a page, from the description that the server gives of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tools.openapi import document

FIRST = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/models", "/v1/memories")


INTRODUCTION = """# HTTP routes

What `/openapi.json` says. [The server](../serving.md) says how the routes behave. A value outside of what its field
takes is refused (400) with words that name the field. Fields that are not named here are ignored.
"""


def page() -> str:
    """Every route with its parameters and the fields of its body; then the answers, and the bodies inside of bodies."""
    whole = document()
    lines = [INTRODUCTION]
    for path in sorted(whole["paths"], key=_rank):
        for method, route in whole["paths"][path].items():
            lines += _route(f"{method.upper()} {path}", route, whole)
    lines += ["## Bodies", "", "What is answered, and what fields of the above hold.", ""]
    for name in sorted(_referred_to(whole)):
        schema = whole["components"]["schemas"][name]
        rows = [(field, _type(told), _meaning(told)) for field, told in schema.get("properties", {}).items()]
        lines += [f"### {name}", "", schema["description"], "", *_table(("field", "type", "meaning"), rows)]
    return "\n".join(lines)


def _rank(path: str) -> tuple[int, str]:
    return next((n for n, start in enumerate(FIRST) if path.startswith(start)), len(FIRST)), path


def _route(title: str, route: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    said = f"{route['summary']}. {route.get('description', '')}".strip()
    rows = [
        (each["name"], each["in"], _type(each.get("schema", {})), _meaning(each.get("schema", {}) | each))
        for each in route.get("parameters", ())
    ]
    for body in _bodies(route.get("requestBody", {})):
        schema = _resolved(body, whole)
        for name, field in schema.get("properties", {}).items():
            needed = "body, needed" if name in schema.get("required", ()) else "body"
            rows.append((name, needed, _type(field), _meaning(field)))
    answers = [f"[{name}](#{name.lower()})" for name in _answers(route)]
    gives = [f"Answers with {' or '.join(answers)}.", ""] if answers else []
    return [f"## {title}", "", said, "", *_table(("field", "where", "type", "meaning"), rows), *gives]


def _bodies(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The forms of a request or an answer, but that of a stream."""
    for kind, content in told.get("content", {}).items():
        if kind != "text/event-stream":
            yield content.get("schema", {})


def _answers(route: dict[str, Any]) -> list[str]:
    """The names of the bodies that a route answers with when all went well."""
    told = [each for status in ("200", "201") for each in _bodies(route["responses"].get(status, {}))]
    return [name for schema in told for name in _names(schema)]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    cells = [(f"`{name}`", *(cell.replace("|", "\\|") for cell in rest)) for name, *rest in rows]
    return [*("| " + " | ".join(row) + " |" for row in [head, ("---",) * len(head), *cells]), ""]


def _meaning(field: dict[str, Any]) -> str:
    """Its text, with a default that the text leaves to the schema."""
    text, default = str(field.get("description", "")), field.get("default")
    return text if default in (None, "") or "Default" in text else f"{text} Default: {json.dumps(default)}."


def _referred_to(whole: dict[str, Any]) -> set[str]:
    """Bodies that are answered, or that fields of other bodies hold."""
    held = {name for schema in whole["components"]["schemas"].values() for name in _names(schema.get("properties", {}))}
    return held | {name for path in whole["paths"].values() for route in path.values() for name in _answers(route)}


def _names(schema: Any) -> Iterator[str]:
    """The bodies that a schema names."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for each in schema.values():
            yield from _names(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _names(each)


def _resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each.get("type") != "null")
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any")) + _limits(schema)


def _limits(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {low:,g} to {high:,g}"
    return f" from {low:,g} on" if low is not None and low > -(2**53) else ""
