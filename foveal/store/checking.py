"""An exported file checked whole, before anything of it is entered into a store.

A stranger wrote it: every field has to fit the schema, every size what may stand there, every part those before it. A
file is refused for the first thing that is off. No more than one part is in memory at a time, and the tokens.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from foveal.config import PAGE_TOKENS
from foveal.store import exported
from foveal.store.exported import (
    CONTEXT,
    END,
    END_BYTES,
    FRAME,
    MAP,
    PAGE,
    PAGE_HEAD,
    TAIL,
    Reader,
    TransferError,
)
from foveal.store.hashes import checksum
from foveal.store.objects import Context, Node, StoredTail, are_tokens, pack_tokens
from foveal.store.records import span_of
from foveal.store.schema import PAGE_BYTES, RECORD_BYTES, RecordError

TAIL_BYTES = 128 << 20
"""Most bytes of a tail: more than any model's windows need."""
MAP_BYTES, MAP_TOKEN_BYTES = 1 << 20, 1 << 10
"""Most bytes of a source map's part, and what may be added for each of its tokens."""
_ROW_BYTES = 1 << 10
"""What an object takes in the index and its log, at most."""
_ORDER = {CONTEXT: (CONTEXT,), PAGE: (PAGE, TAIL, MAP, END), TAIL: (TAIL, MAP, END), MAP: (MAP, END), END: ()}
"""What may stand behind, or again in place of, the last part."""


@dataclass(frozen=True)
class Checked:
    """A file that may be entered: its context, without keys; the hash that it ends with; about how many bytes it takes
    in a store; and the largest parts of each kind."""

    context: Context
    digest: bytes
    needed: int
    largest: Mapping[bytes, int]


class Checking:
    """One reading of a file."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.tokens = bytearray()
        self.page_bytes: int | None = None
        self.needed = 0
        self.last_tail = self.last_map = 0
        self.largest: dict[bytes, int] = {END: END_BYTES}

    def run(self) -> Checked:
        """Raises `TransferError`, saying what is wrong."""
        self.reader.begin()
        what, payload = self.reader.next({CONTEXT: RECORD_BYTES})
        self.context = self._context(payload)
        self._note(CONTEXT, payload, copies=2)
        what = PAGE
        while what != END:
            before = what
            what, payload = self.reader.next({kind: self._most(kind) for kind in _ORDER[what]})
            if before == PAGE != what:
                self._end_pages()
            if what in _CHECKS:
                _CHECKS[what](self, payload)
            self._note(what, payload, copies=2 if what == MAP else 1)
        if self.last_map not in (0, self.context.length):
            raise TransferError(f"the source map ends at token {self.last_map} of {self.context.length}")
        return Checked(self.context, self.reader.digest, self.needed, self.largest)

    def _note(self, what: bytes, payload: bytes, *, copies: int) -> None:
        self.largest[what] = max(self.largest.get(what, 0), len(payload))
        self.needed += copies * span_of(len(payload)) + _ROW_BYTES
        if what == PAGE:  # its tokens are an object of their own
            node = len(Node(bytes(32), bytes(32), bytes(16), 0, bytes(exported.TOKEN_BYTES)).to_bytes())
            self.needed += 2 * span_of(node) + _ROW_BYTES

    def _most(self, what: bytes) -> int:
        """Most bytes of a part that comes next."""
        if what == PAGE:
            return PAGE_HEAD + (PAGE_BYTES if self.page_bytes is None else self.page_bytes)
        if what == MAP:
            return MAP_BYTES + MAP_TOKEN_BYTES * (self.context.length - self.last_map)
        return {TAIL: TAIL_BYTES, END: END_BYTES}[what]

    # ------------------------------------------------------------------ the parts

    def _context(self, payload: bytes) -> Context:
        try:
            context = Context.from_export(payload)
        except RecordError as error:
            raise TransferError(f"the file's record does not fit: {error}") from error
        self.page_bytes = context.facts.get("page_bytes")
        pages = context.pages * (FRAME.size + PAGE_HEAD)
        if self.reader.left is not None and pages > self.reader.left:
            raise TransferError(f"the file says that it has {context.pages:,} pages, and it is too short for them")
        return context

    def _page(self, payload: bytes) -> None:
        digest, tokens, page = payload[:16], payload[16:PAGE_HEAD], payload[PAGE_HEAD:]
        number = len(self.tokens) // exported.TOKEN_BYTES
        if len(tokens) != exported.TOKEN_BYTES or not are_tokens(tokens) or number == self.context.pages:
            raise TransferError(f"page {number} is not what it says: it must have 256 tokens, and be one of the pages")
        if self.page_bytes is None and page:
            self.page_bytes = len(page)
        if page and (len(page) != self.page_bytes or checksum(page) != digest):
            raise TransferError(f"page {number} is not what it says")
        self.tokens += tokens

    def _end_pages(self) -> None:
        """Behind the last page come the tokens that fill none."""
        if len(self.tokens) != self.context.pages * exported.TOKEN_BYTES:
            raise TransferError("the file does not hold as many pages as it says")
        self.tokens += pack_tokens(self.context.rest)

    def _tail(self, payload: bytes) -> None:
        tail = StoredTail.from_bytes(payload)
        if tail is None or not self.last_tail < tail.position <= self.context.length:
            raise TransferError("a tail is not what it says")
        full = tail.position // PAGE_TOKENS
        start = full * exported.TOKEN_BYTES
        if self.tokens[start : start + len(tail.rest)] != tail.rest:
            raise TransferError(f"the tail at {tail.position} stands behind other tokens than the file has there")
        due = self.page_bytes if tail.position % PAGE_TOKENS else 0
        if due is not None and len(tail.open_page) != due:
            size = len(tail.open_page)
            raise TransferError(f"the tail at {tail.position} has an open page of {size} bytes, not {due}")
        self.last_tail = tail.position

    def _map(self, payload: bytes) -> None:
        from foveal.sources import SourceMap, SourceMapError  # numpy takes long to load

        if len(payload) < 8:
            raise TransferError("the source map is not what it says")
        (end,) = struct.unpack_from("<Q", payload)
        if not self.last_map < end <= self.context.length:
            raise TransferError(f"a part of the source map ends at token {end} of {self.context.length}")
        try:
            SourceMap.from_bytes(payload[8:], covering=end - self.last_map)
        except SourceMapError as error:
            raise TransferError(str(error)) from error
        self.last_map = end


_CHECKS = {PAGE: Checking._page, TAIL: Checking._tail, MAP: Checking._map}
