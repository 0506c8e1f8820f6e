"""/openapi.json explains itself: every route says what it does, every field what it means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import Field

from foveal.memory.looks import MOST_BINS, MOST_PICKS, WINDOW_STEP
from foveal.server.bodies import Open
from foveal.server.description import texts_of
from foveal.server.memories.inside import AROUND, MOST_LINES
from foveal.server.memories.routes import LAST, LONGEST_WAIT, TOKEN, WAIT
from foveal.server.openai.completions import DEFAULT_TOKENS, MOST_PROMPTS
from foveal.server.openai.sampling import MOST_STOPS
from foveal.server.responses import DAYS
from foveal.server.settings import Settings
from tools.openapi import document

Json = dict[str, Any]
WHOLE = document()
OPERATIONS = {
    f"{method} {path}": operation for path, each in WHOLE["paths"].items() for method, operation in each.items()
}


def fields(schema: Json, place: str) -> Iterator[tuple[str, Json]]:
    """Every field of a schema, of what lies in it too, and where it stands. References are not followed."""
    for name, field in schema.get("properties", {}).items():
        yield f"{place}.{name}", field
        yield from fields(field, f"{place}.{name}")
    inner = [schema.get("items"), schema.get("additionalProperties")]
    for each in [*inner, *schema.get("anyOf", ()), *schema.get("prefixItems", ())]:
        if isinstance(each, dict):
            yield from fields(each, place)


def bodies(operation: Json) -> Iterator[tuple[str, Json]]:
    """What an operation takes and gives: where, and its schema."""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"request, {kind}", content.get("schema", {})
    for status, response in operation["responses"].items():
        for kind, content in response.get("content", {}).items():
            yield f"{status}, {kind}", content.get("schema", {})


def is_text(said: str | None, *, most: int) -> bool:
    """Whether it is a sentence or more, and not more than a reader takes in at once."""
    return said is not None and re.fullmatch(r"[A-Z`].{5,}\.", said) is not None and len(said) <= most


@pytest.mark.parametrize("name", sorted(WHOLE["components"]["schemas"]))
def test_every_field_of_a_body_is_described(name: str) -> None:
    schema = WHOLE["components"]["schemas"][name]
    assert is_text(schema.get("description"), most=400) or name.startswith("Body_")  # a form, made by FastAPI
    assert not [place for place, field in fields(schema, name) if not is_text(field.get("description"), most=400)]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_route_is_described(name: str) -> None:
    operation = OPERATIONS[name]
    made_up = operation["operationId"].split("_v1_")[0].replace("_", " ").title()
    assert operation["summary"] and operation["summary"] != made_up
    assert len(operation["summary"]) <= 120 and not operation["summary"].endswith(".")
    assert is_text(operation.get("description", "Nothing more."), most=600)
    for parameter in operation.get("parameters", ()):
        assert is_text(parameter.get("description"), most=400), parameter["name"]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_body_of_a_route_has_a_form(name: str) -> None:
    for place, schema in bodies(OPERATIONS[name]):
        assert schema, place
        assert not [where for where, field in fields(schema, place) if not is_text(field.get("description"), most=400)]


NUMBERS = {
    "ChatRequest.stop": MOST_STOPS,
    "ChatRequest.n": Settings().replies,
    "ChatRequest.max_tokens": Settings().output_tokens,
    "CompletionRequest.max_tokens": DEFAULT_TOKENS,
    "CompletionRequest.prompt": MOST_PROMPTS,
    "MessagesRequest.max_tokens": Settings().output_tokens,
    "ResponseRequest.max_output_tokens": Settings().output_tokens,
    "ResponseRequest.store": DAYS,
    "LookAnswer.picks": MOST_PICKS,
    "LookAnswer.overview": MOST_BINS,
    "LookAnswer.window": WINDOW_STEP,
    "SourceAnswer.lines": MOST_LINES,
}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_number_in_a_text_is_the_servers(name: str) -> None:
    body, _, field = name.partition(".")
    text = WHOLE["components"]["schemas"][body]["properties"][field]["description"]
    assert NUMBERS[name] in {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)}


def test_a_number_of_an_argument_is_the_servers() -> None:
    assert f" {LONGEST_WAIT:.0f} " in WAIT and f" {MOST_LINES:,} " in LAST and f" {AROUND} " in TOKEN


# ---------------------------------------------------------------------- where the texts come from


class Above(Open):
    """A body."""

    first: int
    """What stands below it."""
    bare: int


class Below(Above):
    """A body that has more."""

    renamed_: str = Field(alias="renamed")
    """By the name that a client gives it."""
    first: int
    """Said anew."""


def test_a_field_is_described_below_it() -> None:
    assert texts_of(Above) == {"first": "What stands below it."}


def test_what_is_inherited_or_renamed_is_described_too() -> None:
    assert texts_of(Below) == {"first": "Said anew.", "renamed": "By the name that a client gives it."}


def test_a_field_without_a_text_is_found() -> None:
    found = dict(fields({"properties": {"a": {"anyOf": [{"items": {"properties": {"b": {}}}}]}}}, "X"))
    assert [place for place in found] == ["X.a", "X.a.b"] and not is_text(None, most=400)
