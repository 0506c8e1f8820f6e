"""What is to be measured, as one value that travels to the process that measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from foveal.batch import PREFILL_CHUNK
from foveal.cache import CacheFormat
from foveal.errors import FovealError

DEPTHS = (512, 4096, 32768, 131072, 1048576)
"""The frontiers that are measured unless others are asked for."""


class MeasureError(FovealError, ValueError):
    """A measurement was asked for that cannot be made, or the process that made it failed."""

    code = "invalid_request"


@dataclass(frozen=True)
class Settings:
    """One run of `foveal bench`.

    `model` is a directory that `Engine.open` takes. `depths` are tokens, ascending. `jump`: fill the cache up to each
    depth instead of reading. `kv`, `index`: how the cache stores entries and keys; with neither, as `Engine.open`
    chooses, with one, the other in the same class (BF16, or FP8 with FP4 keys). `prefill_tokens` are timed at the end
    of a jump, and `decode_tokens` tokens `repetitions` times at each depth; a part that takes longer than `seconds` is
    not repeated. Raises `MeasureError`.
    """

    model: str
    threads: int
    depths: tuple[int, ...] = DEPTHS
    jump: bool = False
    kv: str | None = None
    index: str | None = None
    prefill_tokens: int = PREFILL_CHUNK
    decode_tokens: int = 64
    repetitions: int = 5
    seconds: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1 or list(self.depths) != sorted(set(self.depths)):
            raise MeasureError(f"depths must be different numbers of tokens, ascending, not {list(self.depths)}")
        for name in ("threads", "prefill_tokens", "decode_tokens", "repetitions"):
            if getattr(self, name) < 1:
                raise MeasureError(f"{name} is {getattr(self, name)}; it must be at least 1")
        try:
            self.format()
        except ValueError as error:
            raise MeasureError(str(error)) from None

    def format(self) -> CacheFormat | None:
        """How the cache stores entries and keys, or None where that is left to `Engine.open`."""
        if self.kv is None and self.index is None:
            return None
        kv = self.kv or ("bf16" if self.index == "bf16" else "fp8")
        index = self.index or ("fp4" if kv == "fp8" else kv)
        return CacheFormat(kv, index)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types; `from_dict` reads it back."""
        return dataclasses.asdict(self) | {"depths": list(self.depths)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**data, "depths": tuple(data["depths"])})
