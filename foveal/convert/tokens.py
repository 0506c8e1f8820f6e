"""The text side of a converted model: tokenizer.json with V4's names for the tokens that begin and end a text, and
tokenizer_config.json with the source's chat template.

Foveal knows two control tokens by name. The source's own are renamed, in the template as well; ids stay what they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from foveal.convert.errors import ConvertError
from foveal.convert.source import Source
from foveal.text.specials import BOS, EOS
from foveal.text.tokenizer import Tokenizer, TokenizerError

_BEGINNINGS = ("<|begin_of_text|>", "<|endoftext|>", "<s>")
"""Names that a token which begins a text has, most telling first."""


@dataclass(frozen=True)
class ConvertedText:
    """The contents of two files, the tokenizer of the first, and the id that begins a text."""

    tokenizer_json: str
    tokenizer_config: str
    tokenizer: Tokenizer
    begin: int


def converted_text(source: Source) -> ConvertedText:
    """Raises `ConvertError` when the tokenizer is none that Foveal reads, or begins and ends texts with one token."""
    try:
        data = json.loads(source.text.tokenizer)
        control = {entry["id"]: entry["content"] for entry in data.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError) as error:
        raise ConvertError(f"its tokenizer.json cannot be read: {error!r}") from error
    end = source.shape.eos_token_id
    begin = _begin(control, source.shape.bos_token_id, end)
    if end not in control:
        raise ConvertError(f"the token that ends its texts (id {end}) is no control token of its tokenizer")
    names = {control[begin]: BOS, control[end]: EOS}
    definition = json.dumps(_renamed(data, names), ensure_ascii=False)
    template = source.text.chat_template
    for old, new in names.items():
        template = template.replace(old, new) if template is not None else None
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    settings |= {"chat_template": template} if template is not None else {}
    try:
        tokenizer = Tokenizer(definition)
    except TokenizerError as error:
        raise ConvertError(f"its tokenizer does not fit: {error}") from error
    return ConvertedText(definition, json.dumps(settings, indent=2, ensure_ascii=False), tokenizer, begin)


def _begin(control: dict[int, str], bos: int | None, end: int) -> int:
    """SmolLM2's bos_token opens every turn of a chat and its texts begin with another one: names go first."""
    ids = {name: id_ for id_, name in control.items()}
    for name in _BEGINNINGS:
        if name in ids and ids[name] != end:
            return ids[name]
    if bos is None or bos == end or bos not in control:
        raise ConvertError("its tokenizer has no control token that begins a text, apart from the one that ends it")
    return bos


def _renamed(data: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    added = [entry | {"content": names.get(entry["content"], entry["content"])} for entry in data["added_tokens"]]
    vocabulary = {names.get(token, token): id_ for token, id_ in data["model"]["vocab"].items()}
    return data | {"added_tokens": added, "post_processor": None, "model": data["model"] | {"vocab": vocabulary}}
