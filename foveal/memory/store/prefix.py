"""What the store already has of a prompt.

What is special here: the pages decide, and nothing else can veto a hit. The longest chain of stored pages that agrees
with the tokens is found by their names; where its window lies between two tails, the tokens since the last tail are run
again, and the pages that come out are shared with the stored ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.config import PAGE_TOKENS
from foveal.engine import Fingerprint
from foveal.memory.store.index import Entry, Index
from foveal.memory.store.loading import Loaded, Runner, load_sequence
from foveal.memory.store.objects import Context
from foveal.memory.store.records import Kind
from foveal.memory.store.store import Store
from foveal.memory.store.tensors import token_bytes


def find_prefix(store: Store, tokens: Tensor, fingerprint: Fingerprint, *, grain: int = 1) -> Context | None:
    """The longest stored beginning of `tokens` (int32 [n]), as a context without a name; None when there is none.

    It ends behind a full page, or where something that was saved ended; and, with `grain`, at a multiple of that many
    tokens unless it is all of them.
    """
    return store.look(lambda index: _Search(store, index, tokens.to(torch.int32), fingerprint, grain).run())


def load_prefix(
    store: Store,
    tokens: Tensor,
    fingerprint: Fingerprint,
    runner: Runner,
    *,
    chunk: int,
    grain: int = 1,
    tail_every: int | None = None,
) -> Loaded | None:
    """A sequence that holds the longest stored beginning of `tokens`; None when there is none."""
    found = find_prefix(store, tokens, fingerprint, grain=grain)
    if found is None:
        return None
    return load_sequence(store, found, fingerprint.digest, runner, chunk=chunk, tail_every=tail_every)


class _Search:
    def __init__(self, store: Store, index: Index, tokens: Tensor, fingerprint: Fingerprint, grain: int) -> None:
        self.names, self.index, self.tokens = store.names, index, tokens
        self.fingerprint, self.grain = fingerprint, grain
        self.root = self.names.root(fingerprint.digest)

    def run(self) -> Context | None:
        chain = self._chain()
        tails = self._tails(chain)
        whole = len(self.tokens)
        ends = [len(chain) * PAGE_TOKENS, *(position for position, _ in tails)]
        length = max(end for end in ends if end <= whole)
        if length < whole:
            length -= length % self.grain
        if not length:
            return None
        full = length // PAGE_TOKENS
        return Context(
            name="",
            tenant=self.names.tenant,
            fingerprint=self.fingerprint.to_dict(),
            length=length,
            head=chain[full - 1].key if full else self.root,
            rest=tuple(self.tokens[full * PAGE_TOKENS : length].tolist()),
            tails=tuple(sorted((position, key) for position, key in tails if position <= length)),
        )

    def _chain(self) -> list[Entry]:
        """The deepest nodes whose names are those of the tokens. Of twins, those that lead furthest."""
        levels: list[list[Entry]] = []
        name, above = self.root, {0}
        for start in range(0, len(self.tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
            name = self.names.page_name(name, token_bytes(self.tokens[start : start + PAGE_TOKENS]))
            level = [entry for entry in self.index.named(Kind.NODE, name) if entry.parent in above]
            if not level:
                break
            levels.append(level)
            above = {entry.id for entry in level}
        chain: list[Entry] = []
        for level in reversed(levels):
            wanted = chain[-1].parent if chain else level[0].id
            chain.append(next(entry for entry in level if entry.id == wanted))
        return chain[::-1]

    def _tails(self, chain: list[Entry]) -> list[tuple[int, bytes]]:
        """Tails of this very past: those behind the last pages, back to a place to which `grain` may lead."""
        found: list[tuple[int, bytes]] = []
        for full in range(len(chain), -1, -1):
            node = chain[full - 1] if full else None
            for entry in self.index.tails_behind(node.id if node is not None else 0):
                rest = token_bytes(self.tokens[full * PAGE_TOKENS : entry.position])
                if entry.position % self.grain and entry.position != len(self.tokens):
                    continue
                if entry.name == self.names.tail_place(node.key if node is not None else self.root, rest):
                    found.append((entry.position, entry.key))
            if found and min(found)[0] <= len(chain) * PAGE_TOKENS // self.grain * self.grain:
                break
        return found
