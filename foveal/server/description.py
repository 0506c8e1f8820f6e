"""What /openapi.json says: routes by the docstrings of their functions, fields by the docstrings below them."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from foveal.server.bodies import Json, Open


def described(app: FastAPI) -> dict[str, Any]:
    """The description of all routes, with the errors as they are: never FastAPI's 422."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    made = FastAPI.openapi(app)
    for path in made["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            _summarise(operation)
    schemas = made["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _describe(schemas)
    return made


def _summarise(operation: Json) -> None:
    """The first sentence becomes the summary, which FastAPI makes of the function's name; the rest stays."""
    text = " ".join(operation.pop("description", "").split())
    first, dot, rest = text.partition(". ")
    operation["summary"] = first.removesuffix(".")
    if dot:
        operation["description"] = rest


def _describe(schemas: Json) -> None:
    """The schemas name bodies by their classes."""
    for model in _below(Open):
        schema = schemas.get(model.__name__, {})
        for name, text in texts_of(model).items():
            if name in schema.get("properties", {}):
                schema["properties"][name]["description"] = text
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].split())


def texts_of(model: type[BaseModel]) -> dict[str, str]:
    """The texts below the fields of a body and of those it is made of, by the names that clients give the fields.

    pydantic can do this when it makes a class (`use_attribute_docstrings`); all of them together would take a tenth of
    the time in which the server starts, and seldom does anybody ask.
    """
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, Open) and each is not Open:
            found |= _texts_in(each.__module__).get(each.__name__, {})
    return {model.model_fields[name].alias or name: text for name, text in found.items()}


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in model.__subclasses__():
        yield each
        yield from _below(each)


@functools.cache
def _texts_in(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the docstring below it. Empty where Foveal was installed without its sources."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:
        return {}
    return {node.name: dict(_texts(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _texts(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            yield field.target.id, " ".join(below.value.value.split())
