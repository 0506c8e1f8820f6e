"""What `foveal doctor` looks at, one function each. Nothing is changed, and no network runs."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foveal.cli.output import show_bytes
from foveal.errors import installed
from foveal.process.failures import reason

LEAST_MEMORY = 900 * 2**20
"""Address space in bytes that a command which runs a network may want (docs/cli.md)."""

SHOWN_EXTRAS = ("serve", "convert", "train", "torch", "evals", "encrypt", "otel")
"""Extras for people who use Foveal; the others are for working on it."""


@dataclass(frozen=True)
class Check:
    """One finding. `state`: "ok"; "note" where something is missing that not everybody needs; "broken" where nothing
    or no memory works without it. `mend` is the command, or what to do, where there is anything to do."""

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    mend: str | None = None

    def document(self) -> dict[str, Any]:
        """As JSON (docs/cli.md)."""
        return asdict(self)


def checks(folder: Path | None) -> Iterator[Check]:
    """All findings, in the order in which they are shown. `folder`: the store (None: the default one)."""
    for look in (_version, _native, _memory, _git, _models, _chat_model):
        yield _safely(look)
    yield from _store(folder)
    yield from _extras()


def _safely(look: Callable[[], Check]) -> Check:
    """What `look` finds; a failure of the system's is a finding, too."""
    try:
        return look()
    except Exception as error:
        line = reason(error)
        if line is None:
            raise
        return Check(look.__name__.strip("_").replace("_", " "), "broken", line)


# ---------------------------------------------------------------------- the machine


def _version() -> Check:
    from foveal import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    return Check("foveal", "ok", f"{__version__} with Python {python}, in {Path(__file__).parents[1]}")


def _native() -> Check:
    """The kernels, and which instruction set they use here."""
    from foveal.measure.machine import machine_facts

    try:
        from foveal import _native
    except ImportError as error:
        mend = "pip install --force-reinstall --no-deps foveal"
        return Check("kernels", "broken", f"the native library cannot be loaded: {error}", mend)
    facts, sets = machine_facts(), _native.available_isas()
    found = f"{sets[0]} (can run: {', '.join(sets)}); {facts['cores']} cores of {facts['cpu']}"
    if sets[0] == "portable":
        return Check("kernels", "note", f"{found}. Kernels of this processor's own do not exist: it will be slow")
    return Check("kernels", "ok", found)


def _memory() -> Check:
    from foveal.plan.machines import this_machine

    machine = this_machine()
    found = f"{show_bytes(machine.usable)} of {show_bytes(machine.memory)} free"
    limit = _address_space()
    if limit is not None and limit < LEAST_MEMORY:
        return Check(
            "memory", "note", f"{found}; address space is limited to {show_bytes(limit)}", "ulimit -v unlimited"
        )
    if machine.usable < LEAST_MEMORY // 2:
        return Check("memory", "note", f"{found}: little for a network", "end other programs, or use --memory-limit")
    return Check("memory", "ok", found)


def _address_space() -> int | None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _git() -> Check:
    where = shutil.which("git")
    if where is None:
        found = "not found; of a source only its .gitignore files are known then, not what git tracks"
        return Check("git", "note", found, "apt install git, or brew install git")
    return Check("git", "ok", where)


# ---------------------------------------------------------------------- models


def _models() -> Check:
    """Those that ship."""
    from foveal.engine import SHIPPED, model_folder

    return Check("models", "ok", ", ".join(f"{name} in {model_folder(name)}" for name in SHIPPED))


def _chat_model() -> Check:
    """A person's own, of `foveal convert` or `foveal train`."""
    from foveal.engine import own_model, user_models

    folder = user_models()
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    own = [name for name in names if own_model(name) is not None]
    if own:
        return Check("own models", "ok", f"{', '.join(own)} in {folder}")
    return Check("own models", "note", "none, so no model that talks: nano recalls text", "foveal convert smollm2")


# ---------------------------------------------------------------------- the store


def _store(folder: Path | None) -> Iterator[Check]:
    from foveal.memory import store_root

    root = store_root(folder)
    if not root.exists():
        yield Check("store", "ok", f"none yet in {root}", "foveal read PATH --name NAME makes one")
        return
    try:
        yield from _look_into(root)
    except Exception as error:
        line = reason(error)
        if line is None:
            raise
        yield Check("store", "broken", f"{root}: {line}")


def _look_into(root: Path) -> Iterator[Check]:
    from foveal.cli.opening import opened
    from foveal.memory import list_memories
    from foveal.store.usage import disk_bytes

    store = opened(root)
    memories, lost = list_memories(root), sum(store.packs.lost.sizes().values())
    found = f"{len(memories)} memories, {show_bytes(disk_bytes(store))} in {root}"
    found += f"; {show_bytes(shutil.disk_usage(root).free)} free on its disk"
    if os.access(root, os.W_OK):
        yield Check("store", "ok", found)
    else:
        yield Check("store", "note", f"{found}. It cannot be written to", f"chown -R $USER {root}")
    damaged = sorted(info.name for info in memories if info.problem is not None)
    if damaged:
        yield Check("memories", "broken", f"damaged: {', '.join(damaged)}", f"foveal verify --repair --store {root}")
    if lost:
        yield Check("packs", "note", f"{show_bytes(lost)} were given up as damaged", f"foveal verify --store {root}")


# ---------------------------------------------------------------------- extras


def _extras() -> Iterator[Check]:
    for extra, packages in requirements().items():
        missing = [name for name in packages if not _there(name)]
        mend = f"pip install 'foveal[{extra}]'"
        if missing:
            yield Check(f"extra {extra}", "note", f"not installed: {', '.join(missing)}", mend)
        else:
            yield Check(f"extra {extra}", "ok", "installed")


def requirements() -> dict[str, list[str]]:
    """Extra -> the packages it brings, as the installed package says, those of extras that it names included."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("foveal") or []
    except PackageNotFoundError:
        return {}
    named: dict[str, list[str]] = {}
    for line in lines:
        found = re.fullmatch(r"([\w.-]+)(\[[^\]]*\])?[^;]*;.*extra == ['\"]([\w-]+)['\"].*", line)
        if found:
            inner = (found[2] or "")[1:-1].split(",") if found[1] == "foveal" else [found[1]]
            named.setdefault(found[3], []).extend(f"[{each}]" if found[1] == "foveal" else each for each in inner)
    return {extra: sorted(set(_flat(named, extra))) for extra in SHOWN_EXTRAS if extra in named}


def _flat(named: dict[str, list[str]], extra: str) -> Iterator[str]:
    for each in named.get(extra, ()):
        if each.startswith("["):
            yield from _flat(named, each[1:-1])
        else:
            yield each


def _there(package: str) -> bool:
    """Whether the distribution is installed. (torch may be there without its metadata.)"""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(package)
    except PackageNotFoundError:
        return installed(package.replace("-", "_"))
    return True
