"""What a state depends on: everything that changes the bytes.

A page or a tail made by one fingerprint means nothing to another, so a saved memory carries its fingerprint and is only
ever loaded by an equal one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from foveal.config import ModelConfig

_ROTARY = ("rope_theta", "compress_rope_theta", "rope_scaling", "qk_rope_head_dim")
_HARMLESS = ("max_position_embeddings", "initializer_range", "expert_dtype", "linear_dtype", "scale_dtype")
"""Fields of the config that change no byte of a state, or only through the weights."""


@dataclass(frozen=True)
class Fingerprint:
    """Each part is a short string; two states fit together when all of them are equal."""

    weights: str
    tokenizer: str
    architecture: str
    numbers: str
    rotary: str

    @classmethod
    def of(cls, config: ModelConfig, *, weights: str, tokenizer: str, numbers: str) -> Self:
        """`weights` and `tokenizer` are content hashes, `numbers` names the formats of arithmetic and cache."""
        data = config.to_dict()
        names = {field.name for field in dataclasses.fields(config)}
        rotary = {name: data.get(name) for name in _ROTARY}
        rest = {name: data[name] for name in names - set(_ROTARY) - set(_HARMLESS)}
        return cls(weights, tokenizer, _hash(rest), numbers, _hash(rotary))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `ValueError` when a part is missing or not a string."""
        names = [field.name for field in dataclasses.fields(cls)]
        if set(data) != set(names) or not all(isinstance(data[name], str) for name in names):
            raise ValueError(f"a fingerprint has the parts {', '.join(names)}")
        return cls(**data)

    def to_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """One hash over all parts (hex)."""
        return _hash(self.to_dict())

    def differing(self, other: Fingerprint) -> tuple[str, ...]:
        """Names of the parts that are not equal, as a person would say them.

        The hash of the weights covers the config as well; the weights are blamed only when the config is the same.
        """
        said = {"numbers": "number format", "rotary": "rotary settings"}
        mine, others = self.to_dict(), other.to_dict()
        names = [name for name in mine if mine[name] != others[name]]
        if "weights" in names and ("architecture" in names or "rotary" in names):
            names.remove("weights")
        return tuple(said.get(name, name) for name in names)


def _hash(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()
