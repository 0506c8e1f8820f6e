"""Where a model's folder keeps its chat template, and what the template may use: the conventions of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.text.chat import ChatUnsupported

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Templates:
    """default: the template of a plain chat.   tools: the one for chats with tools (often the same).
    tokens: names of special tokens, as templates call them.   stop_ids: ids that end a reply, where the model says so.
    """

    default: str
    tools: str
    tokens: Mapping[str, str]
    stop_ids: tuple[int, ...] = ()


def read_templates(folder: Path) -> Templates:
    """The templates of a model's folder. Raises `ChatUnsupported` if it has none or they cannot be read."""
    try:
        config = _json(folder / "tokenizer_config.json")
        named = _named(config.get("chat_template"))
        separate = _json(folder / "chat_template.json").get("chat_template")
        named |= _named(separate)
        for path in [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]:
            if path.is_file():
                name = "default" if path.parent == folder else path.stem
                named[name] = path.read_text(encoding="utf-8")
        stops = _json(folder / "generation_config.json").get("eos_token_id", [])
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ChatUnsupported(f"the chat template in {folder} cannot be read: {error}") from error
    if "default" not in named:
        raise ChatUnsupported(
            f"the model in {folder} has no chat template; it can complete text, but a chat needs one in "
            "tokenizer_config.json or chat_template.jinja"
        )
    tokens = {key: text for key in _TOKENS if (text := _content(config.get(key))) is not None}
    ids = stops if isinstance(stops, list) else [stops]
    default = named["default"]
    return Templates(default, named.get("tool_use", default), tokens, tuple(i for i in ids if isinstance(i, int)))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    return {entry["name"]: entry["template"] for entry in value or []}


def _content(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
