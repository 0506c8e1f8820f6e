"""A chat template as a function: Jinja in a sandbox, with the names that transformers gives to templates."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from foveal.text.chat import ChatError, ChatUnsupported, needs


class Template:
    """A compiled template."""

    def __init__(self, source: str, now: Callable[[], datetime.datetime] = datetime.datetime.now) -> None:
        """`now` is what ``strftime_now`` formats. Raises `ChatUnsupported` if the template cannot be compiled."""
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise needs("jinja2", error) from error
        self.source = source
        self._errors = jinja2.TemplateError
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_generation_block(), "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._compiled = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ChatUnsupported(f"the model's chat template cannot be compiled: {error}") from error

    def __call__(self, variables: Mapping[str, Any]) -> str:
        """The rendered text. Raises `ChatError` with the template's own words if it refuses the conversation."""
        try:
            return self._compiled.render(**variables)
        except _Refused as error:
            raise ChatError(f"the model's chat template refuses this conversation: {error}") from None
        except (self._errors, TypeError, ValueError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ChatError(f"the model's chat template fails on this conversation: {error}") from error


class _Refused(Exception):
    """A template called ``raise_exception``."""


def _raise(message: object) -> NoReturn:
    raise _Refused(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_block() -> Any:
    """The extension for ``{% generation %}``, which marks the assistant's text for training: it renders its body."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (Jinja's own type)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation
