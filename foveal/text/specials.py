"""DeepSeek-V4's control tokens and pre-tokeniser, as literals.

The bars are U+FF5C and the low lines U+2581, not ASCII; and only ids 0 to 2 carry the tokenizer's `special` flag in the
official file. Roles, thinking marks and the rest are plain added tokens there.
"""

from __future__ import annotations

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK_START = "<think>"
THINK_END = "</think>"
DSML = "｜DSML｜"
LATEST_REMINDER = "<｜latest_reminder｜>"

RECALL_BLANKS = "foveal_recall_blanks"
"""Key of tokenizer_config.json: how many PAD tokens a recall puts before its cue (0 when absent). A model trained for
it sees nothing but the cue in the cue's context then."""

FIRST_SPECIALS = (BOS, EOS, PAD)
"""Ids 0, 1, 2 in every V4 vocabulary."""

LAST_SPECIALS = (
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    USER,
    ASSISTANT,
    THINK_START,
    THINK_END,
    DSML,
    LATEST_REMINDER,
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜extracted_url｜>",
    "<｜read_url｜>",
)
"""The added tokens after the base vocabulary, in the order of the official ids (128800 and up, with gaps there)."""

DIGITS_PATTERN = r"\p{N}{1,3}"
CJK_PATTERN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
WORDS_PATTERN = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"""|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
PRETOKENISER_PATTERNS = (DIGITS_PATTERN, CJK_PATTERN, WORDS_PATTERN)
"""Applied one after the other, matches isolated, before the byte-level mapping."""
