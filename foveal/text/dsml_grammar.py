"""Forced tool calls in DeepSeek-V4's form (`dsml` reads them).

Each parameter has a form of its own. The value of a string is raw text, any other is JSON, and the tag says which.
Parameters come in the order of the schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foveal.errors import ParameterError
from foveal.text.grammar import ANY_TEXT, TRAINED, check_schema, json_rule, literal, problem_of, token, validated
from foveal.text.messages import ToolChoice, ToolDefinition
from foveal.text.schema_sense import by_definitions

_NOTES = frozenset(
    "title description default examples deprecated readOnly writeOnly $comment $schema $id $defs definitions".split()
)
_FORMLESS = ("anyOf", "oneOf", "allOf", "patternProperties", "minProperties", "maxProperties")
_RAW_KEYS = frozenset(("type", "minLength", "maxLength", "pattern"))
_TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")


def dsml_calls(tools: Sequence[ToolDefinition], choice: ToolChoice, dsml: int, *, free: bool) -> str:
    """The rules of `ChatEncoding.calls_grammar`. `dsml` is the id of the control token ｜DSML｜."""
    mark = token(dsml)
    more = f' ("\\n<" {mark} call)*' if choice.parallel else ""
    lead = "CALL_LEAD" if free else '"\\n\\n<"'
    rules = [
        f'calls: {lead} {mark} "tool_calls>\\n<" {mark} call{more} "\\n</" {mark} "tool_calls>"',
        "call: " + " | ".join(f"call_{number}" for number in range(len(tools))),
    ]
    if free:
        rules += [r"CALL_LEAD: /(.|\n)*\n\n</", "call_free: CALL_TEXT", f"CALL_TEXT: {ANY_TEXT}"]
    for number, tool in enumerate(tools):
        rules += _Call(f"call_{number}", tool, mark).rules()
    return "\n".join(rules) + "\n"


class _Call:
    """The rules of one tool."""

    def __init__(self, rule: str, tool: ToolDefinition, mark: str) -> None:
        self._rule, self._tool, self._mark = rule, tool, mark
        self._place = f"tools/{tool.name}/parameters"
        self._schema = tool.parameters or {"type": "object", "additionalProperties": False}
        check_schema(self._schema, self._place, strict=tool.strict)
        self._schema = by_definitions(self._schema)
        self._shared = {key: self._schema[key] for key in ("$defs", "definitions") if key in self._schema}
        self._root = self._object(self._schema)

    def rules(self) -> Iterator[str]:
        """The rule of the call, then those of its parameters."""
        declared = self._declared()
        properties = {name: forms for name, schema in declared.items() if (forms := self._usable(schema))}
        required = {name for name in self._root.get("required", ()) if name in properties}
        head, end = literal(f'invoke name="{self._tool.name}">\n'), f'"</" {self._mark} "invoke>"'
        yield f"{self._rule}: {head} {self._rule}_body {end}"
        if not declared and self._root.get("additionalProperties", True) is not False:
            yield f'{self._rule}_body: "\\n" | {self._rule}_any+'
            yield from self._anything()
            return
        yield from self._body(list(properties), required)
        for number, (name, forms) in enumerate(properties.items()):
            yield from self._parameter(number, name, forms)

    def _declared(self) -> dict[str, Any]:
        """The parameters: the properties, and those that are required without being described."""
        declared: dict[str, Any] = dict(self._root.get("properties", {}))
        other = self._root.get("additionalProperties", True)
        return declared | {name: other for name in self._root.get("required", ()) if name not in declared}

    def _body(self, names: list[str], required: set[str]) -> Iterator[str]:
        """Each parameter at most once, in order. Without any, the body is an empty line."""
        rule = self._rule
        starts = ['"\\n"'] if not required else []
        for number, name in enumerate(names):
            starts.append(f"{rule}_p{number} {rule}_r{number + 1}")
            if name in required:
                break
        yield f"{rule}_body: {' | '.join(starts)}"
        for number, name in enumerate(names):
            optional = "" if name in required else "?"
            if number:
                yield f"{rule}_r{number}: {rule}_p{number}{optional} {rule}_r{number + 1}"
        if names:
            yield f'{rule}_r{len(names)}: ""'

    def _parameter(self, number: int, name: str, forms: list[tuple[str, Any]]) -> Iterator[str]:
        rule = f"{self._rule}_p{number}"
        head = literal(f'parameter name="{name}" string="')
        yield f'{rule}: "<" {self._mark} {head} {rule}_v {self._mark} "parameter>\\n"'
        written: list[str] = []
        for form, value in forms:
            if form == "raw":
                yield f"{rule.upper()}_S{len(written)}: {value}"
                written.append(f'"true\\">" {rule.upper()}_S{len(written)}')
            else:
                written.append(f'"false\\">" {self._json(value)} "</"')
        yield f"{rule}_v: {' | '.join(written)}"

    def _usable(self, schema: Any) -> list[tuple[str, Any]]:
        """The forms that some value has. Without any, the parameter is left out."""
        forms = self._forms(schema)
        return [(form, v) for form, v in forms if form == "raw" or not problem_of(self._whole(v), self._tool.strict)]

    def _anything(self) -> Iterator[str]:
        rule, mark = f"{self._rule}_any", self._mark
        value = f'"true\\">" {rule.upper()}_S | "false\\">" {self._json({})} "</"'
        head = f'"parameter name=\\"" {rule.upper()}_N "\\" string=\\""'
        yield f'{rule}: "<" {mark} {head} ({value}) {mark} "parameter>\\n"'
        yield rf"{rule.upper()}_S: /(.|\n)*<\//"
        yield f"{rule.upper()}_N: /[A-Za-z0-9_.-]+/"

    def _json(self, schema: Any) -> str:
        return json_rule(self._whole(schema), TRAINED, strict=self._tool.strict)

    def _whole(self, schema: Any) -> Any:
        return {**self._shared, **schema} if isinstance(schema, Mapping) else schema

    def _object(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema whose properties are the parameters."""
        schema = self._resolved(schema)
        formless = [key for key in _FORMLESS if key in schema]
        if formless and self._tool.strict:
            raise ParameterError(
                f"the JSON schema at {self._place} cannot be followed: {formless[0]} at its top has no form in this "
                "model's tool calls; put it into a property"
            )
        return schema

    def _resolved(self, schema: Any) -> Any:
        """`schema`, or what its ``$ref`` points to."""
        for _ in range(16):
            if not isinstance(schema, Mapping) or not str(schema.get("$ref", "")).startswith("#/"):
                break
            found: Any = self._schema
            for step in schema["$ref"][2:].split("/"):
                found = found.get(step.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, Mapping) else {}
            schema = found
        return schema

    def _forms(self, schema: Any) -> Iterator[tuple[str, Any]]:
        """The forms a value may take: ("raw", a Lark terminal that ends in ``</``) or ("json", a schema)."""
        found = self._resolved(schema)
        if not isinstance(found, Mapping):
            found = {}
        told = {key: value for key, value in found.items() if key not in _NOTES}
        values = [told["const"]] if "const" in told else told.get("enum")
        if values is not None and set(told) <= {"const", "enum", "type"}:
            yield from self._listed(values)
        elif set(told) == {"anyOf"}:
            for branch in told["anyOf"]:
                yield from self._forms(branch)
        elif set(told) <= {"type"} or set(told) <= _RAW_KEYS or isinstance(told.get("type"), list):
            yield from self._typed(told)
        else:
            yield "json", found

    def _listed(self, values: list[Any]) -> Iterator[tuple[str, Any]]:
        strings = [value for value in values if isinstance(value, str)]
        others = [value for value in values if not isinstance(value, str)]
        if strings:
            yield "raw", " | ".join(literal(f"{value}</") for value in strings)
        if others:
            yield "json", {"enum": others}

    def _typed(self, told: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        types = told.get("type", list(_TYPES))
        types = [types] if isinstance(types, str) else list(types)
        if "string" in types:
            strings = {key: told[key] for key in told if key in _RAW_KEYS}
            raw = None if {"enum", "const", "format"} & set(told) else _raw_text(strings)
            yield ("raw", raw) if raw else ("json", {**told, "type": "string"})
        others = [kind for kind in types if kind != "string"]
        if others:
            yield "json", {**told, "type": others if len(others) > 1 else others[0]}


def _raw_text(schema: Mapping[str, Any]) -> str | None:
    """A Lark terminal for a raw string and the ``</`` after it; None if its pattern cannot be written so."""
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if high is not None and low > high:
        return None
    if low == 0 and high is None and "pattern" not in schema:
        return r"/(.|\n)*<\//"
    size = rf"/(.|\n){{{low},{'' if high is None else high}}}/"
    if "pattern" not in schema:
        return f'{size} "</"'
    pattern = schema["pattern"]
    if re.search(r"\||[^\\]/", pattern):
        return None
    before, after = ("" if pattern.startswith("^") else r"(.|\n)*"), ("" if _anchored(pattern) else r"(.|\n)*")
    body = pattern.removeprefix("^")
    body = f"/{before}{body[:-1] if _anchored(pattern) else body}{after}/"
    terminal = body if low == 0 and high is None else f"({body} & {size})"
    return None if validated(f"start: A\nA: {terminal}\n") else f'{terminal} "</"'


def _anchored(pattern: str) -> bool:
    return re.search(r"(?<!\\)(?:\\\\)*\$\Z", pattern) is not None
