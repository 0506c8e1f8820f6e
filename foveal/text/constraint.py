"""Replies held to a form while they are written: JSON schemas, regular expressions, grammars, forced tool calls.

The form begins after the reasoning. Control tokens are never allowed unless the form names them, and a token that ends
the reply exactly when the form is complete. Whatever the limits of the form, it is known before the first token that it
can be followed.

    constraint = reply_constraint(encoding, tokenizer, conversation, rendered)     # None: nothing is held
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foveal.errors import FovealError, ParameterError
from foveal.text.chat import ChatEncoding, ChatUnsupported, Rendered, needs
from foveal.text.grammar import ANY_TEXT, FREE, check_grammar, check_schema, json_rule
from foveal.text.messages import Conversation, ResponseFormat, Thinking, ToolDefinition, ToolMode
from foveal.text.specials import THINK_START
from foveal.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

MaskArray = npt.NDArray[np.bool_]

JSON_OBJECT = {"type": "object"}


class ConstraintError(FovealError, RuntimeError):
    """A grammar became too complex while it was followed, or was given a token that it does not allow."""


class Vocabulary:
    """A tokenizer as llguidance knows it, with the tokens that end a reply. Built once for each (`vocabulary`)."""

    def __init__(self, tokenizer: Tokenizer, stop_tokens: Sequence[int]) -> None:
        """Takes most of a second for 129,280 tokens. Raises `ChatUnsupported` if llguidance is missing."""
        try:
            import llguidance
        except ImportError as error:
            raise needs("llguidance", error) from error
        self.size = tokenizer.vocab_size
        self.words = (self.size + 31) // 32
        self._library = llguidance
        wrapped = llguidance.TokenizerWrapper(_Wrapped(tokenizer))
        slices = llguidance.LLTokenizer.json_slices()
        self._tokenizer = llguidance.LLTokenizer(wrapped, self.size, list(stop_tokens), slices)
        self.stop_tokens = tuple(stop_tokens)

    @cached_property
    def all_but_ends(self) -> MaskArray:
        """Every token but those that end the reply: bool [size]. Not to be written to."""
        mask = np.ones(self.size, dtype=np.bool_)
        mask[list(self.stop_tokens)] = False
        return mask

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        """A matcher at the start of a Lark grammar. Raises `ParameterError` if the grammar is no good."""
        matcher = self._library.LLMatcher(
            self._tokenizer, self._library.LLMatcher.grammar_from_lark(grammar), log_level=0
        )
        if matcher.is_error():
            raise ParameterError(f"the grammar cannot be followed: {matcher.get_error().strip()}")
        return matcher


class _Wrapped:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


@lru_cache(maxsize=8)
def vocabulary(tokenizer: Tokenizer, stop_tokens: tuple[int, ...]) -> Vocabulary:
    """The vocabulary of a tokenizer, built at the first call."""
    return Vocabulary(tokenizer, stop_tokens)


class GrammarConstraint:
    """Holds a reply to a Lark grammar. A `TokenConstraint`."""

    repeats_prompt = False

    def __init__(self, vocabulary: Vocabulary, grammar: str) -> None:
        """Raises `ParameterError` if the grammar cannot be followed."""
        self._vocabulary = vocabulary
        self._matcher = vocabulary.matcher(grammar)
        self._bits: npt.NDArray[np.uint32] = np.zeros(vocabulary.words, dtype=np.uint32)
        self._allowed: MaskArray | None = None

    @property
    def complete(self) -> bool:
        """Whether the reply may end here."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> MaskArray:
        """Tokens allowed now, bool [vocab_size], at least one of them true. Not to be written to.

        Raises `ConstraintError` if the grammar has become too complex.
        """
        if self._allowed is None:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            self._check()
            flags = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=self._vocabulary.size)
            self._allowed = flags.view(np.bool_)
        return self._allowed

    def accept(self, token: int) -> None:
        """`token` was chosen. Raises `ConstraintError` if it is not allowed."""
        self._allowed = None
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            why = self._matcher.get_error().split("\n")[0].strip()  # what follows is its state, with the reply's text
            raise ConstraintError(f"the reply's form cannot be followed any further: {why}")


class AfterReasoning:
    """Lets the model reason freely, without ending the reply, and holds what follows to a grammar."""

    repeats_prompt = False

    def __init__(self, vocabulary: Vocabulary, inner: GrammarConstraint, opens: int | None, closes: int) -> None:
        """opens: the token that may open the reasoning first; None if it is open.   closes: the one that ends it."""
        self._vocabulary, self._inner = vocabulary, inner
        self._opens, self._closes = opens, closes
        self._reasons = opens is None

    @property
    def complete(self) -> bool:
        """Whether the reply may end here."""
        return not self._reasons and self._inner.complete

    def allowed(self) -> MaskArray:
        """As `GrammarConstraint.allowed`."""
        if self._reasons:
            return self._vocabulary.all_but_ends
        mask = self._inner.allowed()
        if self._opens is not None:
            mask = mask.copy()
            mask[self._opens] = True
        return mask

    def accept(self, token: int) -> None:
        """As `GrammarConstraint.accept`."""
        if self._reasons:
            self._reasons = token != self._closes
        elif token == self._opens:
            self._reasons = True
        else:
            self._inner.accept(token)
        self._opens = None


Constraint = GrammarConstraint | AfterReasoning


def json_grammar(form: ResponseFormat) -> str:
    """The grammar of a response format. Raises `ParameterError` for a schema that cannot be followed."""
    schema: Any = JSON_OBJECT if form.schema is None else form.schema
    check_schema(schema, "response_format/schema", strict=form.strict)
    return f"start: {json_rule(schema, FREE, strict=form.strict)}\n"


def regex_grammar(regex: str) -> str:
    """The grammar of a regular expression (Rust's syntax, no look-around). Raises `ParameterError`."""
    grammar = f"start: /{_slashed(regex)}/\n"
    check_grammar(grammar, f"regular expression {regex!r}")
    return grammar


def lark_grammar(grammar: str) -> str:
    """A Lark grammar in llguidance's dialect, checked. Raises `ParameterError`."""
    check_grammar(grammar, "grammar")
    return grammar


def reply_constraint(
    encoding: ChatEncoding, tokenizer: Tokenizer, conversation: Conversation, rendered: Rendered
) -> Constraint | None:
    """What a conversation demands of the reply: its response format, forced tools, strict tools, or no tools.

    None if it demands nothing. Raises `ParameterError` for a tool that does not exist or a schema that cannot be
    followed.
    """
    grammar = _reply_grammar(encoding, conversation)
    return None if grammar is None else constrained(encoding, tokenizer, conversation, rendered, grammar)


def constrained(
    encoding: ChatEncoding, tokenizer: Tokenizer, conversation: Conversation, rendered: Rendered, grammar: str
) -> Constraint:
    """Hold the reply, after its reasoning, to a Lark grammar."""
    known = vocabulary(tokenizer, encoding.stop_tokens)
    control = tokenizer.control_tokens
    closes = control.get(encoding.think_end or "")
    if rendered.in_reasoning and closes is None:
        raise ChatUnsupported("the model's reasoning ends in plain text: a form can be held without thinking only")
    opens = None if rendered.in_reasoning else control.get(THINK_START)
    thinks = conversation.thinking is not Thinking.OFF and not conversation.continue_last
    if closes is None or not (rendered.in_reasoning or (thinks and opens is not None)):
        return GrammarConstraint(known, grammar)
    if encoding.gap_after_reasoning:
        grammar = grammar.replace("start: ", "start: AFTER_REASONING? after_reasoning\nafter_reasoning: ", 1)
        grammar += "AFTER_REASONING: /\\n{1,2}/\n"
    return AfterReasoning(known, GrammarConstraint(known, grammar), opens, closes)


def _reply_grammar(encoding: ChatEncoding, conversation: Conversation) -> str | None:
    choice, tools = conversation.tool_choice, conversation.tools
    form = None if conversation.response_format is None else json_grammar(conversation.response_format)
    if choice.mode is ToolMode.REQUIRED:
        return "start: calls\n" + encoding.calls_grammar(_chosen(conversation), choice, free=False)
    if choice.mode is ToolMode.NONE or not tools:
        text = f"start: {ANY_TEXT}\n" if tools else None
        return form or text
    if form is not None:
        return form.replace("start: ", "start: calls | ", 1) + encoding.calls_grammar(tools, choice, free=False)
    if any(tool.strict for tool in tools) or not choice.parallel:
        return "start: calls | call_free\n" + encoding.calls_grammar(tools, choice, free=True)
    return None


def _chosen(conversation: Conversation) -> Sequence[ToolDefinition]:
    name, tools = conversation.tool_choice.name, conversation.tools
    chosen = [tool for tool in tools if name is None or tool.name == name]
    if not chosen:
        raise ParameterError(
            f"tool_choice names the tool {name!r}, which is not among the tools" if name else "tool_choice needs tools"
        )
    return chosen


def _slashed(regex: str) -> str:
    return regex.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")
