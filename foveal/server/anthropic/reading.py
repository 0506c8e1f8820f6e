"""A request of the Messages API as a conversation.

`cache_control` is never looked at, so that where it stands changes no prompt; and the billing block of Claude Code,
which is another one for each conversation, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from foveal.server.anthropic.schema import Block, CountRequest, Message, Tool
from foveal.server.failures import ApiError
from foveal.server.openai.conversations import effort_of
from foveal.server.settings import Settings
from foveal.text import messages as ours
from foveal.text.messages import Conversation, ResponseFormat, Thinking, ToolChoice, ToolDefinition, ToolMode

BILLING = "x-anthropic-billing-header:"


def conversation_of(body: CountRequest, settings: Settings) -> Conversation:
    """The conversation of a request. Raises `ApiError`."""
    said: list[ours.Message] = [*_system(body.system)]
    for place, message in enumerate(body.messages):
        said += _messages(message, f"messages.{place}")
    goes_on = isinstance(said[-1], ours.AssistantMessage)
    tools = tools_of(body.tools)
    return Conversation(
        messages=tuple(said),
        tools=tools,
        tool_choice=choice_of(body, tools),
        thinking=Thinking.OFF if goes_on else _thinking(body, settings),
        response_format=_format(body),
        continue_last=goes_on,
    )


def _system(system: str | list[Block] | None) -> Iterator[ours.SystemMessage]:
    blocks = [system] if isinstance(system, str) else [block.text or "" for block in system or ()]
    text = "\n\n".join(block for block in blocks if block and not block.startswith(BILLING))
    if text:
        yield ours.SystemMessage(text)


def _messages(message: Message, param: str) -> list[ours.Message]:
    """One message of theirs as one or more of ours."""
    blocks = [Block(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    if message.role == "system":
        return [ours.SystemMessage("\n\n".join(_text(block, param) for block in blocks))]
    if message.role == "assistant":
        return [_assistant(blocks, param)]
    said: list[ours.Message] = []
    texts: list[str] = []
    for block in blocks:
        if block.type != "tool_result":
            texts.append(_text(block, param))
            continue
        if texts:
            said.append(ours.UserMessage("\n\n".join(texts)))
            texts = []
        said.append(ours.ToolMessage(call_id=block.tool_use_id or "", content=_result(block, param)))
    return [*said, ours.UserMessage("\n\n".join(texts))] if texts or not said else said


def _assistant(blocks: list[Block], param: str) -> ours.AssistantMessage:
    texts = [_text(block, param) for block in blocks if block.type not in ("thinking", "redacted_thinking", "tool_use")]
    calls = [
        ours.ToolCall(
            id=block.id or f"toolu_{number}",
            name=block.name or "",
            arguments=json.dumps(block.input or {}, ensure_ascii=False),
        )
        for number, block in enumerate(blocks)
        if block.type == "tool_use"
    ]
    thinking = "".join(block.thinking or "" for block in blocks if block.type == "thinking")
    return ours.AssistantMessage(content="".join(texts), reasoning=thinking, tool_calls=tuple(calls))


def _text(block: Block, param: str) -> str:
    """The text of a block. Raises `ApiError` for one that has none."""
    if block.text is not None:
        return block.text
    source = block.source or {}
    if block.type == "document" and source.get("type") == "text":
        return str(source.get("data", ""))
    if block.type in ("search_result", "document") and isinstance(block.content or source.get("content"), list):
        return _parts(block.content or source["content"], param)
    raise ApiError(
        "invalid_request", f"{param} has a block of type {block.type!r}; this model reads text only", param=param
    )


def _result(block: Block, param: str) -> str:
    content = block.content
    text = content if isinstance(content, str) else _parts(content or [], param)
    return f"Error: {text}" if block.is_error and text[:5].lower() != "error" else text


def _parts(parts: Iterable[Any], param: str) -> str:
    """The texts of some blocks. What is no text is named, so that the model knows that there was something."""
    texts = []
    for part in parts:
        block = part if isinstance(part, dict) else {"text": str(part)}
        texts.append(str(block["text"]) if "text" in block else f"[{block.get('type', 'a part')}: cannot be read]")
    return "\n\n".join(texts)


def tools_of(tools: Iterable[Tool] | None) -> tuple[ToolDefinition, ...]:
    """The client's own tools; those that a server would run are left out."""
    return tuple(
        ToolDefinition(
            name=tool.name,
            description=tool.description or "",
            parameters=_plain(tool.input_schema) if tool.input_schema is not None else None,
            strict=bool(tool.strict),
        )
        for tool in tools or ()
        if tool.input_schema is not None or tool.type in (None, "custom")
    )


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "$schema"}


def choice_of(body: CountRequest, tools: tuple[ToolDefinition, ...]) -> ToolChoice:
    """Whether and which tools are called. Raises `ApiError`."""
    choice = body.tool_choice
    if choice is not None and choice.type in ("any", "tool") and not body.tools:
        raise ApiError("invalid_request", f"tool_choice of type {choice.type!r} needs tools", param="tool_choice")
    if choice is None or not tools:
        return ToolChoice()
    several = not choice.disable_parallel_tool_use
    if choice.type == "tool":
        if choice.name not in {tool.name for tool in tools}:
            raise ApiError(
                "invalid_request", f"tool_choice names the tool {choice.name!r}, which is not among the tools"
            )
        return ToolChoice(mode=ToolMode.REQUIRED, name=choice.name, parallel=several)
    mode = {"auto": ToolMode.AUTO, "any": ToolMode.REQUIRED, "none": ToolMode.NONE}[choice.type]
    return ToolChoice(mode=mode, parallel=several)


def _thinking(body: CountRequest, settings: Settings) -> Thinking:
    level = effort_of(body.output_config.effort if body.output_config else None, "output_config.effort")
    if body.thinking is None:
        return settings.thinking
    if body.thinking.type == "disabled":
        return Thinking.OFF
    default = Thinking.HIGH if settings.thinking is Thinking.OFF else settings.thinking
    return level if level not in (None, Thinking.OFF) else default


def _format(body: CountRequest) -> ResponseFormat | None:
    form = (body.output_config.format if body.output_config else None) or body.output_format
    if not form:
        return None
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise ApiError("invalid_request", "output_config.format must have type json_schema and a schema")
    return ResponseFormat(schema=_plain(form["schema"]), strict=False)
