"""What several commands tell of memories and of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveal.cli.output import note, show_bytes

if TYPE_CHECKING:
    from foveal.memory import Memory, MemoryInfo


def describe(info: MemoryInfo) -> dict[str, Any]:
    """The JSON of one memory in `foveal ls` (docs/cli.md)."""
    if info.problem is not None:
        return {"name": info.name, "path": str(info.path), "problem": info.problem}
    facts = info.facts
    return {
        "name": info.name,
        "path": str(info.path),
        "problem": None,
        "model": facts["model"],
        "cache": facts["cache"],
        "created": facts["created"],
        "source": facts["source"]["source"],
        "conversation": "chat" in facts,
        "elsewhere": facts["source"].get("elsewhere", False),
        "origin": facts["origin"] or None,
        "tokens": facts["tokens"],
        "source_tokens": facts["totals"]["tokens"],
        "complete": facts["totals"]["complete"],
        "files": facts["totals"]["files"],
        "own_bytes": facts["own_bytes"],
        "shared_bytes": facts["shared_bytes"],
        "disk_bytes": facts["own_bytes"] + facts["shared_bytes"],
        "parent": facts["parent"] or None,
        "forked_at": facts["forked_at"] or None,
        "pinned": facts["pinned"],
    }


def tell_incomplete(memory: Memory) -> None:
    """How much of the source is in the memory, and how to go on."""
    note(f"{memory.length:,} of {memory.totals.tokens:,} tokens are kept; run the same command again to go on")


def tell_lost(nbytes: int) -> None:
    """What the store has given up, and keeps for a person to look at."""
    if nbytes:
        note(f"{show_bytes(nbytes)} of damaged files lie in the folder lost; `foveal gc --empty-lost` deletes them")
