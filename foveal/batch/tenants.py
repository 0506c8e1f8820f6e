"""Fairness between tenants: who was served least goes first.

A tenant that comes back starts where the least served of those in work are, so that nobody saves up a claim to the
whole machine by staying away.
"""

from __future__ import annotations

from collections.abc import Iterable


class Tenants:
    """Seconds that the requests of each tenant took. Names are any strings; "" is a tenant like others."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    @property
    def several(self) -> bool:
        """Whether there is anything to share out."""
        return len(self._served) > 1

    def came(self, tenant: str, present: Iterable[str]) -> None:
        """A request of `tenant` came while there were requests of those `present`."""
        names = set(present)
        self._served = {name: self._served.get(name, 0.0) for name in names} | (
            {tenant: self._served[tenant]} if tenant in self._served else {}
        )
        if tenant not in names:
            least = min((self._served[name] for name in names), default=0.0)
            self._served[tenant] = max(self._served.get(tenant, 0.0), least)

    def served(self, tenant: str) -> float:
        """Seconds so far; they compare with those of others."""
        return self._served.get(tenant, 0.0)

    def charge(self, tenant: str, seconds: float) -> None:
        self._served[tenant] = self._served.get(tenant, 0.0) + seconds
