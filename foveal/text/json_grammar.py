"""Forced tool calls in the JSON forms: hermes, llama3 and mistral (`tools` reads them)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from foveal.text.chat import dumped
from foveal.text.grammar import ANY_TEXT, TRAINED, check_schema, json_rule, literal, token
from foveal.text.messages import ToolChoice, ToolDefinition

_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def json_calls(
    form: str, tools: Sequence[ToolDefinition], choice: ToolChoice, control: Mapping[str, int], *, free: bool
) -> str:
    """The rules of `ChatEncoding.calls_grammar` for a format of `tools.SYNTAXES`.

    control: control tokens and their ids: a mark that is none is written out.
    """
    if form == "mistral":
        return _mistral(tools, choice, control, free)
    if form == "llama3":
        return _llama(tools, free)
    return _hermes(tools, choice, control, free)


def _hermes(tools: Sequence[ToolDefinition], choice: ToolChoice, control: Mapping[str, int], free: bool) -> str:
    opens, closes = _mark("<tool_call>", control), _mark("</tool_call>", control)
    rules = [f"call: {_either(len(tools))}"]
    for number, tool in enumerate(tools):
        head = literal(f'\n{{"name": {dumped(tool.name)}, "arguments": ')
        rules.append(f"call_{number}: {head} {_arguments(tool)} {literal('}' + chr(10))}")
    more = f' ("\\n" {opens} call {closes})*' if choice.parallel else ""
    return _led("<tool_call>", opens, f"call {closes}{more}", control, free) + "\n".join(rules) + "\n"


def _llama(tools: Sequence[ToolDefinition], free: bool) -> str:
    rules = [f"calls: {_either(len(tools))}"]
    for number, tool in enumerate(tools):
        head = literal(f'{{"name": {dumped(tool.name)}, "parameters": ')
        rules.append(f'call_{number}: {head} {_arguments(tool)} "}}"')
    if free:
        rules.append(r"call_free: /[^{ \n\r\t](.|\n)*/")
    return "\n".join(rules) + "\n"


def _mistral(tools: Sequence[ToolDefinition], choice: ToolChoice, control: Mapping[str, int], free: bool) -> str:
    opens = _mark("[TOOL_CALLS]", control)
    rules = [f"call: {_either(len(tools))}"]
    named = "[ARGS]" in control
    for number, tool in enumerate(tools):
        if named:
            rules.append(f"call_{number}: {literal(tool.name)} {_mark('[ARGS]', control)} {_arguments(tool)}")
        else:
            head = literal(f'{{"name": {dumped(tool.name)}, "arguments": ')
            rules.append(f'call_{number}: {head} {_arguments(tool)} "}}"')
    if named:
        body = f"call ({opens} call)*" if choice.parallel else "call"
    else:
        body = '" "? "[" call (", " call)* "]"' if choice.parallel else '" "? "[" call "]"'
    return _led("[TOOL_CALLS]", opens, body, control, free) + "\n".join(rules) + "\n"


def _led(mark: str, opens: str, body: str, control: Mapping[str, int], free: bool) -> str:
    """The rule for calls that a mark opens. Before it, free content ends where the mark first stands."""
    if not free:
        return f"calls: {opens} {body}\n"
    text = f"call_free: CALL_TEXT\nCALL_TEXT: {ANY_TEXT}\n"
    if mark in control:
        return f"calls: CALL_TEXT? {opens} {body}\n{text}"
    return f"calls: call_lead {body}\ncall_lead[lazy]: /(.|\\n)*{re.escape(mark).replace('/', chr(92) + '/')}/\n{text}"


def _either(count: int) -> str:
    return " | ".join(f"call_{number}" for number in range(count))


def _arguments(tool: ToolDefinition) -> str:
    schema = _NOTHING if tool.parameters is None else tool.parameters
    check_schema(schema, f"tools/{tool.name}/parameters", strict=tool.strict)
    return json_rule(schema, TRAINED, strict=tool.strict)


def _mark(text: str, control: Mapping[str, int]) -> str:
    return token(control[text]) if text in control else literal(text)
