"""What an engine's steps have taken so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Ran:
    """Steps of the network, and their seconds. Grows on the engine's thread; any other may read it."""

    steps: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a step."""
        self.steps += 1
        self.seconds += seconds
