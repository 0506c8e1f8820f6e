"""Hashes: names and keys, which say what a page, a tail and a context are called, and checksums.

Every name is a keyed BLAKE2b, and the key is a secret of the store and of the tenant. Names of equal text therefore
agree within one tenant and say nothing to another, who can neither hit them nor probe for them.

A page has a name and a key, and so has a tail. Its `page_name` says what it stands for: the fingerprint and all
tokens up to its end. Its `node_key` says which bytes it has as well: on a backend whose last bits depend on how the
tokens were cut, two reads of one text may differ, and then both are kept, so that what is restored is what was saved.
Looking a prompt up goes by the name, restoring a context by the key.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Self

import xxhash

NAME_BYTES = 32
DIGEST_BYTES = 16


def checksum(*pieces: bytes | bytearray | memoryview) -> bytes:
    """XXH3-128 (16 bytes): finds what was damaged, not what was forged."""
    if len(pieces) == 1:
        return xxhash.xxh3_128_digest(pieces[0])
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.digest()


class Names:
    """The names of one tenant in one store; `secret` is the store's, at most 64 bytes."""

    def __init__(self, secret: bytes, tenant: str = "") -> None:
        self.tenant = _hash(secret, b"foveal-tenant", tenant.encode())

    @classmethod
    def of(cls, tenant: bytes) -> Self:
        """The names of a tenant whose key is known, as it is in each of its contexts."""
        made = cls.__new__(cls)
        made.tenant = tenant
        return made

    def root(self, fingerprint: str, origin: str = "") -> bytes:
        """The parent of a first page: the digest of everything that changes the bytes, and, for pages that were not
        computed here, where they are from (`Context.origin`). All names derive from it, so those never meet ours."""
        if origin:
            return _hash(self.tenant, b"foveal-origin", bytes.fromhex(origin), fingerprint.encode())
        return _hash(self.tenant, b"foveal-root", fingerprint.encode())

    def page_name(self, parent: bytes, tokens: bytes) -> bytes:
        """`parent` is the name of the page before (or the root); `tokens` 256 int32, little-endian."""
        return _hash(self.tenant, b"foveal-page", parent, tokens)

    def node_key(self, parent: bytes, name: bytes, digest: bytes) -> bytes:
        """`parent` is the key of the node before (or the root); `digest` the checksum of the page's bytes."""
        return _hash(self.tenant, b"foveal-node", parent, name, digest)

    def tail_name(self, node: bytes, rest: bytes) -> bytes:
        """What a tail stands for: all up to the page `node` (or the root) and the tokens `rest`, fewer than 256."""
        return _hash(self.tenant, b"foveal-place", node, rest)

    def tail_key(self, name: bytes, digest: bytes) -> bytes:
        """A tail with its bytes, as `node_key`."""
        return _hash(self.tenant, b"foveal-tail", name, digest)

    def map_key(self, data: bytes) -> bytes:
        """A part of a source map, by its bytes."""
        return _hash(self.tenant, b"foveal-map", data)

    def label(self, name: str) -> bytes:
        """A context's name, as it stands in the index."""
        return _hash(self.tenant, b"foveal-context", name.encode("utf-8", "surrogatepass"))


def _hash(key: bytes, person: bytes, *pieces: bytes) -> bytes:
    state = blake2b(digest_size=NAME_BYTES, key=key, person=person)
    for piece in pieces:
        state.update(piece)
    return state.digest()
