"""Any sequence of operations against a model that is a dictionary of token lists. In the end nothing is left over."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_damage import flip
from store_support import CHUNK, Runner, random_tokens, same

from foveal.cache import Sequence
from foveal.store import contexts, eviction, gc, loading, saving, usage
from foveal.store.about import ABOUT, ABOUT_COPY
from foveal.store.index_file import INDEX
from foveal.store.objects import Context
from foveal.store.own_files import RESERVE
from foveal.store.prefix import find_prefix
from foveal.store.store import Store
from foveal.store.verify import verify

REGIONS = ("packs", "packs", INDEX, f"{INDEX}-wal", ABOUT, ABOUT_COPY, RESERVE)
NAMES = st.sampled_from("abcd")
SIZES = st.sampled_from([1, 3, 4, 127, 128, 255, 256, 257, 300, 511, 512, 513])
TEXT = [random_tokens(700, seed=seed) for seed in range(2)]
_references: dict[bytes, Sequence] = {}


def reference(tokens: np.ndarray) -> Sequence:
    """What `tokens` leave; computed once."""
    key = tokens.tobytes()
    if key not in _references:
        _references[key] = Runner().read(tokens)
    return _references[key]


class StoreMachine(RuleBasedStateMachine):
    """`model`: name -> tokens. `damaged`: a bit was flipped since all was last known to be whole."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="foveal-machine-"))
        self.model: dict[str, np.ndarray] = {}
        self.damaged = False
        self.store = self.open()

    def open(self) -> Store:
        store = Store(self.folder / "store", durability="off")
        store.packs.pack_bytes = 200_000
        return store

    def load(self, name: str, runner: Runner) -> Sequence:
        context = self.store.context(name)
        return loading.load(self.store, context, runner.fingerprint, runner, chunk=CHUNK).sequence

    @initialize(size=SIZES)
    def begin(self, size: int) -> None:
        self.save("a", 0, size)

    # ------------------------------------------------------------------ operations

    @rule(name=NAMES, text=st.sampled_from([0, 1]), size=SIZES)
    def save(self, name: str, text: int, size: int) -> None:
        runner, tokens = Runner(), TEXT[text][:size]
        sequence = runner.read(tokens, tail_every=256)
        saving.save(self.store, name, sequence, runner.fingerprint)
        self.model[name] = tokens

    @precondition(lambda self: self.model)
    @rule(data=st.data(), size=SIZES)
    def append(self, data: st.DataObject, size: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        runner, more = Runner(), TEXT[1][:size]
        if len(self.model[name]) + size > 1500:
            return
        sequence = self.load(name, runner)
        runner.prefill(sequence, more.tolist())
        saving.save(self.store, name, sequence, runner.fingerprint)
        self.model[name] = np.concatenate([self.model[name], more])

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        size = data.draw(st.integers(1, len(self.model[name])))
        runner = Runner()
        sequence = self.load(name, runner)
        runner.prefill(sequence, sequence.truncate(size).tolist())
        saving.save(self.store, name, sequence, runner.fingerprint)
        self.model[name] = self.model[name][:size]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), new=NAMES)
    def fork(self, data: st.DataObject, new: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        at = data.draw(st.integers(1, len(self.model[name])))
        if new not in self.model:
            contexts.fork(self.store, name, new, at=at)
            self.model[new] = self.model[name][:at]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        contexts.delete(self.store, name)
        del self.model[name]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        contexts.change(self.store, data.draw(st.sampled_from(sorted(self.model))), pinned=pinned)

    @rule(share=st.sampled_from([0.0, 0.3, 0.7]))
    def evict(self, share: float) -> None:
        eviction.evict(self.store, int(usage.disk_bytes(self.store) * share))

    @rule(threshold=st.sampled_from([0.0, 0.3]))
    def compact(self, threshold: float) -> None:
        gc.collect(self.store, threshold=threshold)

    @rule(without_index=st.booleans())
    def reopen(self, without_index: bool) -> None:
        self.store.close()
        if without_index:
            os.unlink(self.folder / "store" / INDEX)
        self.store = self.open()

    @rule(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), region=st.sampled_from(REGIONS))
    def corrupt(self, place: float, bit: int, region: str) -> None:
        if self.damaged:  # a second flip might hit the second copy
            verify(self.store, repair=True)
            assert verify(self.store).sound
        packs = sorted((self.folder / "store" / "packs").iterdir())
        path = self.folder / "store" / region
        if region == "packs" and packs:
            path = packs[int(place * 1e6) % len(packs)]
        if path.is_file() and path.stat().st_size:
            flip(path, int(path.stat().st_size * place), bit)
            self.damaged = True

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def everything_is_there(self) -> None:
        found = self.store.contexts()
        assert {context.name: context.length for context in found if isinstance(context, Context)} == {
            name: len(tokens) for name, tokens in self.model.items()
        }
        assert len(found) == len(self.model)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def load_one(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        assert same(self.load(name, Runner()), reference(self.model[name]))

    @rule(text=st.sampled_from([0, 1]))
    def look_for_a_prefix(self, text: int) -> None:
        found = find_prefix(self.store, TEXT[text], Runner().fingerprint)
        longest = max((_common(tokens, TEXT[text]) for tokens in self.model.values()), default=0)
        assert (found.length if found is not None else 0) >= longest - longest % 256 or self.damaged

    def teardown(self) -> None:
        try:
            for name, tokens in self.model.items():
                assert same(self.load(name, Runner()), reference(tokens))
            verify(self.store, repair=True)
            assert verify(self.store).sound
            for name in self.model:
                contexts.delete(self.store, name)
            assert self.store.look(lambda index: index.objects.all()) == []
            gc.collect(self.store, threshold=0)
            assert usage.disk_bytes(self.store) < 20_000 and verify(self.store).sound
        finally:
            self.store.close()
            shutil.rmtree(self.folder)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=15,
    stateful_step_count=15,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
