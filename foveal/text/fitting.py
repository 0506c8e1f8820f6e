"""Whether a tokenizer and a network belong together."""

from __future__ import annotations

from foveal.config import ModelConfig
from foveal.errors import FovealError
from foveal.text.tokenizer import Tokenizer


class TokenizerMismatch(FovealError, ValueError):
    """A tokenizer and a network that do not belong together; the message names what differs."""

    code = "invalid_request"


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raises `TokenizerMismatch` when the tokenizer has ids that the network has not, or lacks the one that ends a
    text. Ids that only the network has are padding."""
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerMismatch(
            f"the tokenizer has {tokenizer.vocab_size} ids but the network knows {config.vocab_size}; they do not "
            "belong together"
        )
    if config.eos_token_id >= tokenizer.vocab_size:
        raise TokenizerMismatch(
            f"the network's eos_token_id is {config.eos_token_id}, but the tokenizer has {tokenizer.vocab_size} ids; "
            "they do not belong together"
        )
