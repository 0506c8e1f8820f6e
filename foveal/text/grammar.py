"""Pieces of Lark grammars for llguidance: literals, JSON schemas, and what is wrong with a schema, by its place.

A schema is compiled once, before anything is read. One that cannot be followed is an error that names the place in it,
as a JSON pointer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from foveal.errors import ParameterError
from foveal.text.chat import needs
from foveal.text.schema_sense import senseless

TRAINED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON inside markup, in the one form that models are trained on."""
FREE = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n\t]{0,40}"}
"""JSON as content: the model may lay it out, but not write white space for ever."""
_LENIENT = {"lenient": True, "coerce_one_of": True}

ANY_TEXT = r"/(.|\n)*/"
_BRANCHES = ("anyOf", "oneOf", "allOf", "prefixItems")
_CHILDREN = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def literal(text: str) -> str:
    """A text as a Lark string; empty for an empty text."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def token(token_id: int) -> str:
    """A control token in a Lark rule."""
    return f"<[{token_id}]>"


def json_rule(schema: Any, layout: Mapping[str, Any], *, strict: bool) -> str:
    """A JSON value in a Lark rule. `strict`: what cannot be followed is an error, not left out (see `check_schema`)."""
    if not isinstance(schema, Mapping):
        schema = {} if schema else {"not": {}}
    options = {**layout, **({} if strict else _LENIENT)}
    return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)


def check_schema(schema: Any, name: str, *, strict: bool = True) -> None:
    """Raises `ParameterError` for a schema that cannot be followed; it names the place: ``name/properties/a``."""
    problem = problem_of(schema, strict)
    if problem:
        place, problem = _blamed(schema, schema, strict, name, problem)
        raise ParameterError(f"the JSON schema at {place} cannot be followed: {problem}")


def check_grammar(grammar: str, name: str) -> None:
    """Raises `ParameterError` for a Lark grammar or a regular expression that cannot be followed."""
    problem = validated(grammar)
    if problem:
        raise ParameterError(f"the {name} cannot be followed: {problem.strip()}")


def validated(grammar: str) -> str:
    """What llguidance says against a Lark grammar; empty if nothing. Raises `ChatUnsupported` without the library."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise needs("llguidance", error) from error
    problem: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar))
    return "" if problem.startswith("WARNING") else problem


def problem_of(schema: Any, strict: bool) -> str:
    """Why a schema cannot be followed; empty if it can."""
    if not isinstance(schema, Mapping | bool):
        return f"a schema is an object or true or false, not {type(schema).__name__}"
    try:
        if found := senseless(schema):
            return found
        return validated(f"start: {json_rule(schema, FREE, strict=strict)}\n").split("\n")[0]
    except (TypeError, ValueError, RecursionError) as error:  # a value that JSON does not have
        return str(error)


def _blamed(root: Any, schema: Any, strict: bool, place: str, problem: str) -> tuple[str, str]:
    """The innermost part of a schema that alone is a problem, and the problem."""
    for step, part in _parts(schema):
        shared = {key: root[key] for key in ("$defs", "definitions") if isinstance(root, Mapping) and key in root}
        alone = {**shared, **part} if isinstance(part, Mapping) else part
        inner = problem_of(alone, strict)
        if inner and not (shared and inner == problem_of(shared, strict)):
            return _blamed(root, part, strict, f"{place}/{step}", inner)
    return place, problem


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(schema, Mapping):
        return
    for key in _NAMED:
        if isinstance(schema.get(key), Mapping):
            yield from ((f"{key}/{_escaped(str(name))}", part) for name, part in schema[key].items())
    for key in _BRANCHES:
        if isinstance(schema.get(key), list):
            yield from ((f"{key}/{number}", part) for number, part in enumerate(schema[key]))
    yield from ((key, schema[key]) for key in _CHILDREN if isinstance(schema.get(key), Mapping))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
