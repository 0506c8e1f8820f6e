"""`store.json`: which store this is, and in which format; there twice.

A file that is not bit for bit as it was written is as good as none, and its copy counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveal.store.cipher import Cipher
from foveal.store.errors import FormatError
from foveal.store.files import Disk
from foveal.store.hashes import checksum

FORMAT = 1
"""Version of everything on disk."""
ABOUT, ABOUT_COPY = "store.json", "store.copy.json"


def about_bytes(about: dict[str, Any]) -> bytes:
    bare = {key: value for key, value in about.items() if key != "checksum"}
    plain = json.dumps(bare, sort_keys=True).encode()
    return json.dumps({**bare, "checksum": checksum(plain).hex()}, sort_keys=True, indent=1).encode() + b"\n"


def read_about(path: Path, disk: Disk | None = None) -> dict[str, Any] | None:
    """None when it is missing or not as it was written. Raises `OSError` when it cannot be read."""
    data = (disk or Disk()).read_file(path)
    try:
        about = json.loads(data or b"")
        if isinstance(about, dict) and about_bytes(about) == data:
            about.pop("checksum")
            return about
    except (ValueError, RecursionError):
        return None
    return None


def open_cipher(about: dict[str, Any], key: bytes | None, folder: Path) -> Cipher | None:
    if about["key"] is None:
        if key is not None:
            raise FormatError(f"the store {folder} is not encrypted; open it without a key, or make a new one with it")
        return None
    if key is None:
        raise FormatError(f"the store {folder} is encrypted; give its key (FOVEAL_STORE_KEY, or FOVEAL_STORE_KEY_FILE)")
    cipher = Cipher(key)
    if cipher.check_value(bytes.fromhex(about["store"])) != about["key"]:
        raise FormatError(f"the key is not the one that the store {folder} was made with")
    return cipher
