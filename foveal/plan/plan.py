"""What a context costs: weights, cache and what is left, by arithmetic alone.

The bytes come from the `CacheLayout` that allocates pages and from the tensor list that writes checkpoints, so a plan
cannot promise what the cache does not keep. Beside it stand two rivals' caches for as many tokens: DeepSeek-V3.2 (61
layers of a 576-wide latent and a 128-wide index key) and plain GQA of 8 KV heads x 128 in this model's layer count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from foveal.cache.layout import CacheBytes, CacheFormat, CacheLayout
from foveal.checkpoint.summary import summarize
from foveal.config import HCA_RATIO, PAGE_TOKENS, ModelConfig
from foveal.errors import FovealError
from foveal.plan.machines import MACHINE_NAMES, Machine, machine

PLAN_FORMATS: Mapping[str, CacheFormat] = {
    "bf16": CacheFormat("bf16", "bf16"),
    "fp8": CacheFormat("fp8", "fp8"),
    "fp4": CacheFormat("fp8", "fp4"),
}
"""``--kv`` -> cache format: BF16 throughout; FP8 entries and keys; FP8 entries and FP4 keys (the leanest)."""

V32_LAYERS = 61
_V32_BYTES = {"bf16": (576 + 128) * 2, "fp8": 656 + 132}
_GQA_BYTES = 2 * 8 * 128 * 2
"""Keys and values of 8 heads x 128 channels, BF16, per layer and token."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class PlanError(FovealError, ValueError):
    """A plan was asked for something that does not exist; the message lists what does."""

    code = "invalid_request"


def parse_tokens(text: str) -> int:
    """A number of tokens: "4096", "128k" (131,072), "1M" (1,048,576), "1.5M". Raises `PlanError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", text.strip().replace("_", "").replace(",", "").lower())
    count = Fraction(match[1]) * _UNITS[match[2]] if match else Fraction(-1)
    if count < 1 or count.denominator != 1:
        raise PlanError(f"{text!r} is not a number of tokens; write one like 4096, 128k or 1M")
    if count >= 1 << 63:
        raise PlanError(f"{text!r} is more tokens than can be counted")
    return int(count)


@dataclass(frozen=True)
class Rival:
    """Another architecture's cache for as many tokens."""

    name: str
    bytes_per_token: int
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """Bytes for `agents` agents over one context of `tokens` tokens. All sizes are bytes.

    The context's full pages are `shared`; each agent has `private` bytes of its own: a tail (the largest it gets), an
    open page, and pages for `agent_tokens` tokens of its own.
    """

    tokens: int
    agents: int
    agent_tokens: int
    kv: str
    weights: Mapping[str, int]
    """Stored bytes by format; MTP blocks included, as they are stored."""
    parameters: int
    active: int
    """Parameters, and those of them one token's arithmetic touches; without MTP blocks and, active, the embedding."""
    context: CacheBytes
    """One context by kind, as this cache holds it."""
    published: int
    """The same context counted as published figures count it (`CacheLayout.published_bytes`): 9.62 GiB for Pro's
    million tokens in BF16. What to set beside the rivals."""
    bytes_per_token: float
    shared: int
    private: int
    rivals: tuple[Rival, ...]
    machine: Machine

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def cache_bytes(self) -> int:
        """All agents' cache: the shared pages once, the private part for each."""
        return self.shared + self.agents * self.private

    @property
    def total(self) -> int:
        return self.weight_bytes + self.cache_bytes

    @property
    def remaining(self) -> int:
        """Usable memory left on the machine; negative when it does not fit."""
        return self.machine.usable - self.total

    @property
    def fits(self) -> bool:
        return self.remaining >= 0

    @property
    def contexts_fit(self) -> int:
        """How many such contexts with nothing in common fit beside the weights."""
        return max(self.machine.usable - self.weight_bytes, 0) // (self.shared + self.private)

    @property
    def agents_fit(self) -> int:
        """How many agents on this one context fit beside the weights."""
        return max(self.machine.usable - self.weight_bytes - self.shared, 0) // self.private

    def to_dict(self) -> dict[str, Any]:
        """Everything, derived numbers included, in JSON's types."""
        derived = ("weight_bytes", "cache_bytes", "total", "remaining", "fits", "contexts_fit", "agents_fit")
        data = asdict(self) | {name: getattr(self, name) for name in derived}
        data["weights"] = dict(self.weights)
        data["context"] = self.context.to_dict() | {"entries": self.context.entries, "total": self.context.total}
        return data


def make_plan(
    config: ModelConfig,
    tokens: int,
    *,
    kv: str = "bf16",
    agents: int = 1,
    agent_tokens: int = 0,
    on: str | Machine = "this",
) -> Plan:
    """The plan for `agents` agents over one context of `tokens` tokens, on the machine `on` (a name or a `Machine`).

    Raises `PlanError` for an unknown `kv` or machine and for counts out of range.
    """
    if kv not in PLAN_FORMATS:
        raise PlanError(f"no cache format {kv!r}; there are {', '.join(PLAN_FORMATS)}")
    if tokens < 1 or agents < 1 or agent_tokens < 0:
        raise PlanError(f"a plan needs at least 1 token and 1 agent, not {tokens}, {agents} and {agent_tokens}")
    layout, model = CacheLayout(config, PLAN_FORMATS[kv]), summarize(config)
    context = layout.bytes_at(tokens)
    own_pages = 1 + -(-agent_tokens // PAGE_TOKENS)
    return Plan(
        tokens=tokens,
        agents=agents,
        agent_tokens=agent_tokens,
        kv=kv,
        weights=model.bytes_by_format,
        parameters=model.parameters,
        active=model.active,
        context=context,
        published=layout.published_bytes(tokens),
        bytes_per_token=layout.bytes_per_token,
        shared=tokens // PAGE_TOKENS * layout.page_bytes + context.tokens,
        private=_largest_tail(layout, tokens) + own_pages * layout.page_bytes,
        rivals=rivals(config, tokens, kv),
        machine=_machine(on),
    )


def _largest_tail(layout: CacheLayout, tokens: int) -> int:
    """The tail at the end of an HCA window, when most rows are open."""
    return layout.tail_bytes(tokens // HCA_RATIO * HCA_RATIO + HCA_RATIO - 1, mtp=True)


def rivals(config: ModelConfig, tokens: int, kv: str) -> tuple[Rival, ...]:
    """What other architectures keep of `tokens` tokens; `kv` as for `make_plan`."""
    stored = "bf16" if kv == "bf16" else "fp8"
    v32, gqa = V32_LAYERS * _V32_BYTES[stored], config.num_hidden_layers * _GQA_BYTES
    return (
        Rival(f"DeepSeek-V3.2, {V32_LAYERS} layers ({stored.upper()})", v32, v32 * tokens),
        Rival(f"GQA 8x128, {config.num_hidden_layers} layers (BF16)", gqa, gqa * tokens),
    )


def _machine(on: str | Machine) -> Machine:
    if isinstance(on, Machine):
        return on
    try:
        return machine(on)
    except KeyError:
        raise PlanError(f"no machine {on!r}; there are {', '.join(MACHINE_NAMES)}") from None
