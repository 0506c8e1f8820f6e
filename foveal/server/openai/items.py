"""The items of the Responses API as a conversation, and its tools under names that a model can call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.server.failures import ApiError, unsupported
from foveal.text.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolDefinition,
    ToolMessage,
    UserMessage,
)

Json = dict[str, Any]

CUSTOM = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
"""The arguments of a tool that takes free text."""


_ROLES: dict[str, type[SystemMessage] | type[UserMessage]] = {
    "system": SystemMessage,
    "developer": SystemMessage,
    "user": UserMessage,
}


@dataclass(frozen=True)
class Named:
    """What a tool of ours is to the client."""

    name: str
    namespace: str | None = None
    custom: bool = False


class Tools:
    """The tools of a request. Those that a server would run itself are let through and left out."""

    def __init__(self, tools: Iterable[Json] | None) -> None:
        """Raises `ApiError` for a function without a name."""
        self.definitions: list[ToolDefinition] = []
        self.named: dict[str, Named] = {}
        for tool in tools or ():
            self._add(tool, None)

    def _add(self, tool: Json, namespace: str | None) -> None:
        kind = tool.get("type", "function")
        if kind == "namespace":
            for inner in tool.get("tools") or ():
                self._add(inner, str(tool.get("name", "")))
            return
        if kind not in ("function", "custom"):
            return
        tool = tool.get("function") or tool.get("custom") or tool
        name = tool.get("name")
        if not isinstance(name, str) or not name:
            raise ApiError("invalid_request", f"a tool of type {kind} has no name", param="tools")
        ours = called(name, namespace)
        self.named[ours] = Named(name, namespace, kind == "custom")
        description = str(tool.get("description") or "")
        form = tool.get("format") or {}
        if kind == "custom" and form.get("definition"):
            description += f"\n\nThe input follows this {form.get('syntax', 'grammar')} grammar:\n{form['definition']}"
        parameters = CUSTOM if kind == "custom" else tool.get("parameters")
        strict = bool(tool.get("strict")) and kind == "function"
        self.definitions.append(
            ToolDefinition(name=ours, description=description, parameters=parameters, strict=strict)
        )

    def of(self, name: str) -> Named:
        """What the client calls our tool `name`."""
        return self.named.get(name, Named(name))

    def ours(self, choice: Json) -> str:
        """Our name of the tool that a choice names."""
        wanted = (choice.get("name"), choice.get("namespace"))
        for name, named in self.named.items():
            if named.name == wanted[0] and wanted[1] in (None, named.namespace):
                return name
        raise ApiError("invalid_request", f"tool_choice names the tool {wanted[0]!r}, which is not among the tools")


def called(name: str, namespace: str | None) -> str:
    """What the model calls a tool of a namespace."""
    if not namespace:
        return name
    return namespace + name if namespace.endswith("_") else f"{namespace}__{name}"


def messages_of(items: Sequence[Json]) -> list[Message]:
    """The messages of some items; what the assistant said in one turn is one message. Raises `ApiError`."""
    reading = _Reading()
    for place, item in enumerate(items):
        reading.take(item, f"input.{place}")
    reading.finish()
    return reading.messages


class _Reading:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []

    def take(self, item: Json, param: str) -> None:
        """One item."""
        kind = item.get("type") or "message"
        if kind == "message" and item.get("role") == "assistant":
            if self._calls:
                self.finish()
            self._texts.append(text_of(item.get("content"), param))
        elif kind == "reasoning":
            if self._texts or self._calls:
                self.finish()
            self._reasoning.append(_reasoning(item))
        elif kind in ("function_call", "custom_tool_call"):
            self._calls.append(_call(item, param))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self.finish()
            output = item.get("output")
            text = output if isinstance(output, str) else text_of(output, param)
            self.messages.append(ToolMessage(call_id=str(item.get("call_id", "")), content=text))
        elif kind == "message":
            self.finish()
            text = text_of(item.get("content"), param)
            role = str(item.get("role"))
            if role not in _ROLES:
                raise ApiError("invalid_request", f"{param}.role is {role!r}", param=param)
            self.messages.append(_ROLES[role](text))
        # Others are what a server did for another model: searches, images. They say nothing here.

    def finish(self) -> None:
        """The assistant's turn is over."""
        if self._texts or self._calls or self._reasoning:
            self.messages.append(
                AssistantMessage(
                    content="".join(self._texts), reasoning="".join(self._reasoning), tool_calls=tuple(self._calls)
                )
            )
        self._texts, self._reasoning, self._calls = [], [], []


def _reasoning(item: Json) -> str:
    parts = item.get("content") or item.get("summary") or []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _call(item: Json, param: str) -> ToolCall:
    name = item.get("name")
    if not isinstance(name, str):
        raise ApiError("invalid_request", f"{param} is a call without a name", param=param)
    if item.get("type") == "custom_tool_call":
        arguments = json.dumps({"input": item.get("input") or ""}, ensure_ascii=False)
    else:
        arguments = str(item.get("arguments") or "{}")
    return ToolCall(
        id=str(item.get("call_id") or item.get("id") or ""),
        name=called(name, item.get("namespace")),
        arguments=arguments,
    )


def text_of(content: Any, param: str) -> str:
    """The text of a message or of a tool's output. Raises `ApiError` for what is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise unsupported(param, f"{param} has a part of type {kind!r}; this model reads text only")
        texts.append(text)
    return "\n".join(texts)
