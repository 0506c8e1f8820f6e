"""Machines a plan can be made for: named ones by their datasheets, and the one this runs on by asking it.

Memory is what the driver or the system reports, not the round number on the box, and `usable` leaves room for
activations and the system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MIB, _GIB = 2**20, 2**30
_USABLE = 0.9
"""Share of a named machine's memory that weights and cache may take; the rest is for activations and the system."""

_UNLIMITED = 2**60
"""A cgroup v1 limit above this (its "none" is about 2**63) is no limit."""


@dataclass(frozen=True)
class Machine:
    """A machine by its memory in bytes: `memory` in all, `usable` for weights and cache."""

    name: str
    memory: int
    usable: int


_MEMORY = {
    "8xB200": 8 * 183359 * _MIB,
    "8xH200": 8 * 143771 * _MIB,
    "4xH200": 4 * 143771 * _MIB,
    "8xH100": 8 * 81559 * _MIB,
    "rtx-5090": 32607 * _MIB,
    "mac-512": 512 * _GIB,
    "mac-256": 256 * _GIB,
    "mac-128": 128 * _GIB,
}

MACHINE_NAMES = (*_MEMORY, "this")
"""Names `machine` knows; "this" is the machine it runs on."""


def machine(name: str) -> Machine:
    """The machine called `name`, in any case. Raises `KeyError` listing the names there are."""
    wanted = name.lower()
    if wanted == "this":
        return this_machine()
    for known, memory in _MEMORY.items():
        if known.lower() == wanted:
            return Machine(known, memory, int(memory * _USABLE))
    raise KeyError(f"no machine {name!r}; there are {', '.join(MACHINE_NAMES)}")


def this_machine(root: Path = Path("/")) -> Machine:
    """The machine this runs on: memory installed or allowed by a cgroup, and what of it is available right now.

    `root` is where ``proc`` and ``sys`` are found.
    """
    total, available = _system_memory(root / "proc/meminfo")
    for limit, used in _cgroup_limits(root):
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return Machine("this", total, available)


def _system_memory(meminfo: Path) -> tuple[int, int]:
    """Bytes in all and available, from Linux's meminfo or, elsewhere, from sysconf (then all of it counts as free)."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        kib = {key: int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable")}
        return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError, IndexError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total


def _cgroup_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, use) in bytes of every memory cgroup around this process that has a limit; version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            base, limit_name, use_name, idle = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit_name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            use_name, idle = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = base / path.lstrip("/")
        # Inside a container the path may not be visible; the limits then stand at the mount's root.
        for group in {base, folder, *(p for p in folder.parents if p.is_relative_to(base))}:
            limit = _number(group / limit_name)
            if limit is not None and limit < _UNLIMITED:
                used = (_number(group / use_name) or 0) - _idle_bytes(group / "memory.stat", idle)
                limits.append((limit, max(used, 0)))
    return limits


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _idle_bytes(stat: Path, name: str) -> int:
    """Page cache the kernel gives back when memory is asked for; it counts as used but is free."""
    try:
        return next(int(line.split()[1]) for line in stat.read_text().splitlines() if line.split()[0] == name)
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
