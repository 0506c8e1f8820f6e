"""Which run-time quantisations of the official inference code are simulated."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Numerics:
    """Which run-time quantisations of the official inference code are simulated (report section on FP4 QAT).

    `kv`: the non-rotary channels of raw and compressed KV go through FP8. `index`: the indexer's queries and keys go
    through the Hadamard rotation and FP4. `activations`: the input of every FP8 or FP4 linear goes through FP8.
    Hugging Face transformers simulates none of them: compare with `Numerics.none()`.
    """

    kv: bool = True
    index: bool = True
    activations: bool = True

    @classmethod
    def none(cls) -> Numerics:
        """No simulation: the network as a plain function of its weights."""
        return cls(kv=False, index=False, activations=False)

    def __str__(self) -> str:
        return "+".join(name for name, on in asdict(self).items() if on) or "nothing"
