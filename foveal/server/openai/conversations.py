"""A request of the chat API as a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from foveal.errors import ParameterError
from foveal.server.failures import ApiError, unsupported
from foveal.server.openai.schema import ChatFormat, ChatMessage, ChatRequest, ChatTool, Content
from foveal.server.settings import Settings
from foveal.text.messages import (
    AssistantMessage,
    Conversation,
    Message,
    ResponseFormat,
    SystemMessage,
    Thinking,
    ToolCall,
    ToolChoice,
    ToolDefinition,
    ToolMessage,
    ToolMode,
    UserMessage,
)

EFFORTS = {
    "none": Thinking.OFF,
    "minimal": Thinking.LOW,
    "low": Thinking.LOW,
    "medium": Thinking.HIGH,
    "high": Thinking.HIGH,
    "xhigh": Thinking.MAX,
    "max": Thinking.MAX,
}


def conversation_of(body: ChatRequest, settings: Settings) -> Conversation:
    """The conversation of a request. Raises `ApiError`, `ParameterError`."""
    last = body.messages[-1]
    goes_on = last.role == "assistant" and bool(body.continue_final_message or last.prefix)
    return Conversation(
        messages=tuple(message_of(message, place) for place, message in enumerate(body.messages)),
        tools=tools_of(body.tools),
        tool_choice=choice_of(body.tool_choice, body.parallel_tool_calls, bool(body.tools)),
        thinking=_thinking(body, settings),
        response_format=format_of(body.response_format),
        continue_last=goes_on,
        template_arguments=body.chat_template_kwargs or {},
    )


def message_of(message: ChatMessage, place: int) -> Message:
    """One message."""
    content = text_of(message.content, f"messages.{place}.content")
    if message.role in ("system", "developer"):
        return SystemMessage(content)
    if message.role == "user":
        return UserMessage(content)
    if message.role == "assistant":
        return AssistantMessage(
            content=content,
            reasoning=message.reasoning_content or message.reasoning or "",
            tool_calls=tuple(
                ToolCall(
                    id=call.id or f"call_{place}_{number}",
                    name=call.function.name,
                    arguments=arguments_of(call.function.arguments),
                )
                for number, call in enumerate(message.tool_calls or ())
            ),
        )
    return ToolMessage(call_id=message.tool_call_id or message.name or "", content=content, name=message.name)


def text_of(content: Content, param: str) -> str:
    """The text of a message. Raises `ApiError` for parts that are none."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        text = part.text if part.text is not None else part.refusal
        if text is None:
            raise ApiError(
                "invalid_request", f"{param} has a part of type {part.type!r}; this model reads text only", param=param
            )
        texts.append(text)
    return "".join(texts) if len(texts) < 2 else "\n".join(texts)


def arguments_of(arguments: str | dict[str, Any] | None) -> str:
    """The arguments of a call as a JSON text."""
    if isinstance(arguments, str):
        return arguments or "{}"
    return json.dumps(arguments or {}, ensure_ascii=False)


def tools_of(tools: Iterable[ChatTool] | None) -> tuple[ToolDefinition, ...]:
    """The tools. Raises `ApiError` for those that are no functions."""
    found = []
    for place, tool in enumerate(tools or ()):
        if tool.function is None:
            raise unsupported(f"tools.{place}", f"tools of type {tool.type!r} are not supported here; give functions")
        function = tool.function
        found.append(
            ToolDefinition(
                name=function.name,
                description=function.description or "",
                parameters=function.parameters,
                strict=bool(function.strict),
            )
        )
    return tuple(found)


def choice_of(choice: str | dict[str, Any] | None, parallel: bool | None, tools: bool) -> ToolChoice:
    """Whether and which tools are called. Raises `ApiError`."""
    several = parallel is not False
    if choice is None or not tools:
        if choice not in (None, "auto", "none"):
            raise ApiError("invalid_request", "tool_choice needs tools", param="tool_choice")
        return ToolChoice(parallel=several or not tools)
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise ApiError(
                "invalid_request",
                f"tool_choice is {choice!r}; give auto, none, required or a tool",
                param="tool_choice",
            )
        return ToolChoice(mode=ToolMode(choice), parallel=several)
    if choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools") or choice, several)
    name = (choice.get("function") or {}).get("name") or choice.get("name")
    if not isinstance(name, str):
        raise ApiError("invalid_request", "tool_choice names no tool", param="tool_choice")
    return ToolChoice(mode=ToolMode.REQUIRED, name=name, parallel=several)


def _allowed(choice: dict[str, Any], several: bool) -> ToolChoice:
    """One of several tools only cannot be asked for; one alone can."""
    tools = [((tool.get("function") or tool).get("name")) for tool in choice.get("tools", ()) if isinstance(tool, dict)]
    if choice.get("mode") == "required" and len(tools) == 1:
        return ToolChoice(mode=ToolMode.REQUIRED, name=tools[0], parallel=several)
    raise unsupported("tool_choice", "allowed_tools is not supported; send only the tools that may be called")


def format_of(form: ChatFormat | None) -> ResponseFormat | None:
    """The form of the content. Raises `ApiError`."""
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return ResponseFormat()
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise ApiError(
            "invalid_request", "response_format has no json_schema.schema", param="response_format.json_schema"
        )
    return ResponseFormat(schema=form.json_schema.schema_, strict=bool(form.json_schema.strict))


def effort_of(effort: str | None, param: str) -> Thinking | None:
    """A level of reasoning. Raises `ApiError`."""
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise ApiError("invalid_request", f"{param} is {effort!r}; give one of {', '.join(EFFORTS)}", param=param)
    return EFFORTS[effort]


def _thinking(body: ChatRequest, settings: Settings) -> Thinking:
    """How much the model thinks: by effort, by DeepSeek's switch, by a template's argument."""
    level = effort_of(body.reasoning_effort, "reasoning_effort")
    switch = (body.thinking or {}).get("type")
    arguments = body.chat_template_kwargs or {}
    wanted = arguments.get("enable_thinking", arguments.get("thinking"))
    if switch == "disabled" or wanted is False:
        return Thinking.OFF
    if level is not None:
        return level
    if switch in ("enabled", "adaptive") or wanted is True:
        return Thinking.HIGH if settings.thinking is Thinking.OFF else settings.thinking
    return settings.thinking


def logprobs_of(body: ChatRequest) -> int | None:
    """How many alternatives are told. Raises `ParameterError`."""
    if not body.logprobs:
        if body.top_logprobs:
            raise ParameterError("top_logprobs needs logprobs: true")
        return None
    return body.top_logprobs or 0
