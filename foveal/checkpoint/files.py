"""The tensors in a checkpoint folder, as they lie: names, shapes, dtypes, and a way to map each into memory.

What is special here: nothing is read but the files' headers. A tensor is mapped when it is asked for and is a view of
the file's pages; the operating system reads them on first touch and may drop them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foveal.checkpoint.layout import Shape

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `load` maps it: no copy, no reading until its values are touched."""

    name: str
    shape: Shape
    dtype: torch.dtype
    load: Callable[[], Tensor]

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
    return isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\\0")


def _read_header(path: Path, problems: list[str]) -> Iterator[StoredTensor]:
    try:
        _require_file(path)
        file = safe_open(path, framework="pt")
        names = list(file.keys())
    except FileNotFoundError:
        problems.append(f"{path.name}: file is missing")
        return
    except (OSError, SafetensorError) as error:
        problems.append(f"{path.name}: truncated or damaged ({error}); fetch or write it again")
        return
    for name in names:
        view = file.get_slice(name)
        dtype = _DTYPES.get(view.get_dtype())
        if dtype is None:
            problems.append(f"{name}: dtype {view.get_dtype()} is not one Foveal reads ({', '.join(_DTYPES)})")
            continue
        yield StoredTensor(name, tuple(view.get_shape()), dtype, _loader(file, name))


def _loader(file: Any, name: str) -> Callable[[], Tensor]:
    return lambda: file.get_tensor(name)
