"""A workload that makes every kind of change to a store, and whether what was acknowledged of it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from store_support import CHUNK, Runner, random_tokens, same

from foveal.cache import Sequence
from foveal.store import contexts, gc, loading, saving
from foveal.store.objects import Context
from foveal.store.store import Store
from foveal.store.verify import verify

TOKENS = random_tokens(1400)
OTHER = random_tokens(600, seed=4)

Expected = dict[str, np.ndarray]
"""Name -> tokens."""


def workload(store: Store, acknowledge: Callable[[Expected], None]) -> None:
    """Every kind of change; after each, what there is."""
    store.packs.pack_bytes, fingerprint = 150_000, Runner().fingerprint
    saving.save(store, "a", reference(TOKENS[:600]), fingerprint)
    acknowledge({"a": TOKENS[:600]})
    contexts.fork(store, "a", "b")
    acknowledge({"a": TOKENS[:600], "b": TOKENS[:600]})
    saving.save(store, "other", reference(OTHER), fingerprint)
    acknowledge({"a": TOKENS[:600], "b": TOKENS[:600], "other": OTHER})
    saving.save(store, "a", reference(TOKENS), fingerprint)
    acknowledge({"a": TOKENS, "b": TOKENS[:600], "other": OTHER})
    contexts.delete(store, "other")
    acknowledge({"a": TOKENS, "b": TOKENS[:600]})
    gc.collect(store, threshold=0)
    acknowledge({"a": TOKENS, "b": TOKENS[:600]})
    store.repair()
    acknowledge({"a": TOKENS, "b": TOKENS[:600]})
    contexts.delete(store, "a")
    acknowledge({"b": TOKENS[:600]})


AFTER: list[Expected] = []
"""All states that the workload goes through."""


def check(folder: Path, known: list[Expected]) -> None:
    """The last acknowledged state, or the one that was being made; whole, and nothing beside it."""
    if not AFTER:
        AFTER.append({})
        with Store(folder.parent / "whole", durability="off") as store:
            workload(store, AFTER.append)
    check_states(folder, AFTER[len(known) - 1 : len(known) + 1])


def check_states(folder: Path, allowed: list[Expected], *, evicted: bool = False) -> None:
    """The store is in one of these states: whole (unless something was `evicted`, with all pages and tails), and
    nothing beside it."""
    with Store(folder, durability="off") as store:
        listed = store.contexts()
        assert all(isinstance(context, Context) for context in listed)
        found = {context.name: context.length for context in listed if isinstance(context, Context)}
        state = next((s for s in allowed if found == {name: len(tokens) for name, tokens in s.items()}), None)
        assert state is not None, f"{found} is neither what was acknowledged nor what came next"
        for name, tokens in state.items():
            engine = Runner()
            loaded = loading.load(store, store.context(name), engine.fingerprint, engine, chunk=CHUNK)
            assert np.array_equal(loaded.sequence.tokens, tokens.astype(np.int32))
            assert evicted or not loaded.replayed
            assert same(loaded.sequence, reference(tokens))
        report = verify(store)
        assert report.sound, report.problems
        assert store.packs.files() == store.look(lambda index: index.state().sizes), "torn space was given back"
        saving.save(store, "new", reference(TOKENS[:300]), Runner().fingerprint)


_references: dict[bytes, Sequence] = {}


def reference(tokens: np.ndarray) -> Sequence:
    """What `tokens` leave; computed once."""
    key = tokens.tobytes()
    if key not in _references:
        _references[key] = Runner().read(tokens)
    return _references[key]
