"""What an operator decides, frozen when the server starts."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveal.aio import SamplingParams
from foveal.errors import ParameterError
from foveal.memory import store_root
from foveal.text.messages import Thinking


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a million tokens cost, in any currency."""

    input: float = 0.0
    cached: float = 0.0
    output: float = 0.0

    def of(self, prompt: int, cached: int, output: int) -> float:
        """What an answer cost."""
        return (self.input * (prompt - cached) + self.cached * cached + self.output * output) / 1e6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a server but its models and keys.

    aliases: other names of models; a name may be a pattern (``claude-*``).
    roots: folders below which memories may be read from.
    store: the folder of the store (None: the default one).
    body_bytes, context_tokens: limits of a request; None: the model's context.   import_bytes: of uploads and imports.
    output_tokens: tokens of a reply where the client names no limit.   most_output_tokens: where it does.
    request_seconds: time for one answer.   patience: seconds to wait for a place.
    running, waiting: requests in work, and in the queue before them, at once.   replies: most of one request (`n`).
    temperature, top_p, thinking: what is used where the client says nothing.
    kept_tokens: tokens of earlier prompts kept in memory, for each tenant and model.
    save_prompts: whether they are saved in the store too, so that they outlive the process.
    prices: by model.   drain_seconds: time for open answers when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    insecure: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[Path, ...] = ()
    store: Path | None = None
    body_bytes: int = 64 << 20
    import_bytes: int = 64 << 30
    context_tokens: int | None = None
    output_tokens: int = 4096
    most_output_tokens: int = 128_000
    request_seconds: float = 1800.0
    patience: float = 30.0
    running: int = 64
    waiting: int = 256
    replies: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    thinking: Thinking = Thinking.OFF
    kept_tokens: int = 1 << 20
    save_prompts: bool = True
    prices: Mapping[str, Price] = field(default_factory=dict)
    drain_seconds: float = 30.0
    ping_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Raises `ParameterError` for numbers that no request could be served with."""
        SamplingParams(temperature=self.temperature, top_p=self.top_p)
        if not self.patience >= 0:
            raise ParameterError(f"the patience is {self.patience:g}; give seconds from 0 up")
        if not self.request_seconds >= 0:
            raise ParameterError(f"the time limit is {self.request_seconds:g}; give seconds from 0 up")
        for model, price in self.prices.items():
            for number in (price.input, price.cached, price.output):
                if not 0 <= number < math.inf:
                    raise ParameterError(f"the price of {model} is {number:g}; give numbers from 0 up")

    def check_reach(self, keys: int) -> None:
        """Raises `ParameterError` when others than this machine could use the server, and no key is asked for."""
        if keys or self.insecure or is_loopback(self.host):
            return
        raise ParameterError(
            f"{self.host} can be reached from other machines, and there is no key: give --keys FILE or "
            "FOVEAL_API_KEY, or --insecure if everybody may use it"
        )


def beside(store: Path | None) -> Path:
    """The server's own folder, beside its store."""
    root = store_root(store)
    return root.with_name(f"{root.name}.server")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
