"""Text to tokens and back: the tokenizer, streaming output, stop strings, token healing.

tokenizer = Tokenizer.from_file("tokenizer.json")
prefix, remainder = heal(tokenizer, "def parse_config(")
constraint = PrefixConstraint(tokenizer, remainder)
stream = TokenStream(tokenizer, stop=("\\n\\n",), skip_bytes=len(remainder))

Chats are in modules of their own, which need ``foveal[serve]`` (docs/chat.md): `messages`, `chat` (the encoding of a
model), `reply` (what a model says, read as it comes), `replay` (sampled ids back into the prompt), `constraint`.
"""

from foveal.text.detokenizer import StopChecker, StreamingDetokenizer, TokenStream
from foveal.text.healing import PrefixConstraint, allowed_tokens, heal
from foveal.text.tokenizer import Tokenizer, TokenizerError

__all__ = [
    "Tokenizer",
    "TokenizerError",
    "StreamingDetokenizer",
    "StopChecker",
    "TokenStream",
    "heal",
    "allowed_tokens",
    "PrefixConstraint",
]
