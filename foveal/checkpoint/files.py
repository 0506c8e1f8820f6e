"""The tensors in a checkpoint folder, as they lie: names, shapes, dtypes, and a way to map each into memory.

Nothing is read but the files' headers. A tensor is an array on the file's own pages; the operating system reads them on
first touch and may drop them again. Arrays cannot be written into.
"""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from foveal.checkpoint.layout import Shape
from foveal.formats import BF16, E4M3, E8M0, F16, F32, F64, I8, I32, I64, U8, Array, DType

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

_DTYPES = {
    "BF16": BF16,
    "F16": F16,
    "F32": F32,
    "F64": F64,
    "F8_E4M3": E4M3,
    "F8_E8M0": E8M0,
    "I8": I8,
    "U8": U8,
    "I32": I32,
    "I64": I64,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `load` maps it: no copy, no reading until its values are touched."""

    name: str
    shape: Shape
    dtype: DType
    load: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Bytes of its entries."""
        return prod(self.shape) * self.dtype.itemsize


def stored_in(folder: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """Every tensor in `folder`'s shards under the name it has there. What is wrong is added to `problems`."""
    found: dict[str, StoredTensor] = {}
    promised = _promised(folder, problems)
    for file in sorted(set(promised.values())):
        for tensor in _read_header(folder / file, problems):
            if tensor.name in found:
                problems.append(f"{tensor.name}: in more than one file")
            found[tensor.name] = tensor
    if promised and not problems:
        absent = [name for name, file in promised.items() if name and name not in found]
        problems.extend(f"{name}: named in {INDEX_FILE} but not in {promised[name]}" for name in absent)
    return found


def _promised(folder: Path, problems: list[str]) -> dict[str, str]:
    """Tensor name -> file name by the index; for a single file, one entry with an empty name."""
    index = folder / INDEX_FILE
    if not index.exists():
        if (folder / SINGLE_FILE).exists():
            return {"": SINGLE_FILE}
        problems.append(f"neither {SINGLE_FILE} nor {INDEX_FILE} is in {folder}")
        return {}
    try:
        weight_map: Any = json.loads(text_of(index))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problems.append(f"{INDEX_FILE} is not readable: {type(error).__name__}: {error}")
        return {}
    if not isinstance(weight_map, dict) or not all(_is_plain_file_name(file) for file in weight_map.values()):
        problems.append(f"{INDEX_FILE}: 'weight_map' must map tensor names to file names in the same folder")
        return {}
    return weight_map


def text_of(path: Path) -> str:
    """The text of a UTF-8 file. Raises `OSError` (for a pipe as well), `UnicodeDecodeError`."""
    _require_file(path)
    return path.read_text(encoding="utf-8")


def _require_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise OSError("it is not a file")


def _is_plain_file_name(file: Any) -> bool:
    if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
        return False
    return not any("\ud800" <= character < "\ue000" for character in file)  # no system has a name for these


def _read_header(path: Path, problems: list[str]) -> Iterator[StoredTensor]:
    try:
        _require_file(path)
        with safe_open(path, framework="np") as checked:  # sizes, offsets and names are as they must be
            names = list(checked.keys())
        header, start = _header(path)
    except FileNotFoundError:
        problems.append(f"{path.name}: file is missing")
        return
    except (OSError, SafetensorError) as error:
        problems.append(f"{path.name}: truncated or damaged ({error}); fetch or write it again")
        return
    if (twice := _named_twice(path, len(names))) is not None:
        problems.append(f"{twice}: there twice in {path.name}")
        return
    mapped = cache(lambda: _map(path))
    for name in names:
        said = header[name]
        dtype = _DTYPES.get(said["dtype"])
        if dtype is None:
            problems.append(f"{name}: dtype {said['dtype']} is not one Foveal reads ({', '.join(_DTYPES)})")
            continue
        shape = tuple(said["shape"])
        yield StoredTensor(name, shape, dtype, _loader(mapped, start + said["data_offsets"][0], shape, dtype))


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their bytes begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)), 8 + size


def _named_twice(path: Path, count: int) -> str | None:
    """The first name that a file's header, which the library has read as `count` tensors, has twice: it takes the
    last."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    if header.count(b'"data_offsets"') <= count:  # each tensor has it; looking for names takes much longer
        return None
    twice: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        twice.extend(name for name, seen in Counter(name for name, _ in pairs).items() if seen > 1)

    json.loads(header, object_pairs_hook=note)
    return twice[0] if twice else None


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _loader(mapped: Callable[[], mmap.mmap], offset: int, shape: Shape, dtype: DType) -> Callable[[], Array]:
    return lambda: np.frombuffer(mapped(), dtype, prod(shape), offset).reshape(shape)
