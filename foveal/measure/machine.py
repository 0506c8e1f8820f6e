"""The machine a measurement ran on, what the process took of it, and who else was at work.

A timing is only worth what else ran at the same time, so every measurement carries the number of cores that other
processes kept busy meanwhile (`OtherWork`). Memory is the kernel's own high-water mark.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

from foveal.plan.machines import this_machine


def cores(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Physical cores this process may run on: two CPUs that are threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_core_of(root, cpu) for cpu in os.sched_getaffinity(0)})


def _core_of(root: Path, cpu: int) -> str:
    """The CPUs that share a core with `cpu`, as the system lists them; `cpu` alone where it does not."""
    try:
        return (root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def machine_facts() -> dict[str, Any]:
    """What a reader needs to compare two measurements: name, cores, memory in bytes, versions."""
    import numpy as np

    from foveal import _native

    return {
        "cpu": cpu_field("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory": this_machine().memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "simd": _native.available_isas()[0],
    }


def peak_bytes() -> int:
    """The most memory that was resident in this process so far, in bytes; mapped files (weights) count as they are
    touched. Linux's mark starts anew with each program, the portable one may still be the parent's."""
    mark = _field(Path("/proc/self/status"), "VmHWM")
    if mark is not None:
        return mark * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class OtherWork:
    """How many cores other processes keep busy between the making of this object and `cores`."""

    def __init__(self) -> None:
        self._busy, self._own, self._time = _busy_seconds(), _own_seconds(), time.monotonic()

    def cores(self) -> float | None:
        """Mean number of cores, 0 or more, or None where the system does not tell."""
        busy, passed = _busy_seconds(), time.monotonic() - self._time
        if busy is None or self._busy is None or passed <= 0:
            return None
        others = busy - self._busy - (_own_seconds() - self._own)
        return max(0.0, others / passed)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds(root: Path = Path("/proc")) -> float | None:
    """CPU seconds spent by anybody on anything but idling, from Linux's ``/proc/stat``."""
    try:
        fields = (root / "stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _wait, irq, soft, steal = (int(field) for field in fields[:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def cpu_field(name: str, path: Path = Path("/proc/cpuinfo")) -> str | None:
    """What Linux says of the first core: ``model name``, ``vendor_id``; None elsewhere."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
