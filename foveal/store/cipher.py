"""Encryption at rest: AES-256-GCM over every record's payload (needs `pip install foveal[encrypt]`).

A record's header is the payload's associated data, so a payload moved under another key, or a header changed, does not
decrypt. Each record has a fresh random nonce of 96 bits. The key never lies in the store; a check value made with it
does, so that a wrong key is refused at once and nothing is ever written with it.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from foveal.store.errors import StoreError

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


class Cipher:
    """Seals and opens payloads. `key` is 32 bytes; raises `StoreError` for another length or without `cryptography`."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise StoreError(f"the key has {len(key)} bytes; it must have {KEY_BYTES} (64 hexadecimal digits)")
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise StoreError("encryption needs the package cryptography: pip install 'foveal[encrypt]'") from error
        self._gcm = AESGCM(blake2b(key, digest_size=KEY_BYTES, person=b"foveal-payload").digest())
        self._key = key

    def seal(self, data: bytes | memoryview, about: bytes) -> tuple[bytes, bytes]:
        """(nonce, ciphertext and tag)."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce, self._gcm.encrypt(nonce, data, about)

    def open(self, nonce: bytes, data: bytes | memoryview, about: bytes) -> bytes | None:
        """The plain bytes, or None when anything was changed."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._gcm.decrypt(nonce, data, about)
        except (InvalidTag, ValueError):
            return None

    def secret(self, salt: bytes) -> bytes:
        """The secret of names: without the key, nobody can compute the name of a text they know."""
        return blake2b(salt, digest_size=32, key=self._key, person=b"foveal-names").digest()

    def check_value(self, salt: bytes) -> str:
        """What the store keeps to recognise the key (hex)."""
        return blake2b(salt, digest_size=16, key=self._key, person=b"foveal-keycheck").hexdigest()


def key_from(text: str) -> bytes:
    """A key as it is written: 64 hexadecimal digits. Raises `StoreError`."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError as error:
        raise StoreError("a key is written as 64 hexadecimal digits; `openssl rand -hex 32` makes one") from error
    if len(key) != KEY_BYTES:
        raise StoreError(f"the key has {len(key)} bytes; it must have {KEY_BYTES} (64 hexadecimal digits)")
    return key


def key_file(path: str | Path) -> bytes:
    """The key in a file. Raises `StoreError`, also when others may read the file."""
    try:
        if os.stat(path).st_mode & 0o077:
            raise StoreError(f"others may read the key file {path}; run chmod 600 {path}")
        return key_from(Path(path).read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read the key file {path}: {error}") from error
