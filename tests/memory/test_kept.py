"""Prompts that begin like earlier ones: found to the last token, equal to a cold run, and the reason where not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_support import write_model

from foveal.batch.admission import Admission
from foveal.engine import Engine
from foveal.memory import StoredPrefixes, open_store
from foveal.memory.kept import KeptPrefixes, common
from foveal.memory.prompts import SavedPrompts

DICE = np.random.default_rng(3)
TEXT = DICE.integers(10, 4000, 1200).tolist()
LENGTHS = (1, 2, 3, 4, 5, 127, 128, 129, 130, 255, 256, 257, 383, 384, 385, 511, 512, 513, 900, 1199)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with Engine.open(model, threads=1) as engine:
        yield engine


def kept_after(engine: Engine, ids: list[int], kept: KeptPrefixes | None = None) -> KeptPrefixes:
    kept = kept or KeptPrefixes(engine)
    sequence = engine.new_sequence()
    engine.prefill(sequence, ids)
    kept.keep(sequence)
    return kept


def said(engine: Engine, ids: list[int], kept: KeptPrefixes | None) -> list[tuple[int, float]]:
    """The reply to a prompt, with log-probabilities."""
    start = engine.start(ids, prefixes=kept)
    result = engine.go_on(start.sequence, ids[start.tokens :]).result()
    engine.free(start.sequence)
    return [(each.token, each.logprob) for each in result.logprobs[:6]]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_hit_is_equal_to_a_cold_run(engine: Engine, length: int) -> None:
    kept = kept_after(engine, TEXT)
    prompt = [*TEXT[:length], 7, 8, 9]
    start = engine.start(prompt, prefixes=kept)
    assert start.tokens in (0, length)
    engine.free(start.sequence)
    assert said(engine, prompt, kept) == said(engine, prompt, None)
    kept.clear()
    engine.call(lambda: None)
    assert engine.pool.live == 0


def test_the_end_of_what_is_kept_costs_nothing(engine: Engine) -> None:
    kept = kept_after(engine, TEXT)
    start = engine.start([*TEXT, 5, 6], prefixes=kept)
    assert (start.tokens, start.replayed, start.reused) == (len(TEXT), 0, len(TEXT))
    engine.free(start.sequence)
    kept.clear()


def test_a_longer_one_takes_the_place_of_its_beginning(engine: Engine) -> None:
    kept = kept_after(engine, TEXT[:600])
    kept_after(engine, TEXT, kept)
    kept_after(engine, TEXT[:300], kept)
    assert kept.tokens == len(TEXT)
    kept.clear()


def test_there_is_a_limit(engine: Engine) -> None:
    kept = KeptPrefixes(engine, most_tokens=1000)
    for first in range(4):
        kept_after(engine, [first + 10, *TEXT[:399]], kept)
    assert kept.tokens == 800
    why = kept.why([10, *TEXT[:399]], 0)
    assert why is not None and why.reason == "evicted"
    kept.clear()


def test_why_says_what_is_so(engine: Engine) -> None:
    other = kept_after(engine, [3000, *TEXT])
    kept = KeptPrefixes(engine, others=[other])
    kept_after(engine, TEXT, kept)
    assert kept.why(TEXT, len(TEXT) - 1) is None
    why = kept.why([*TEXT[:700], 5, *TEXT], 700)
    assert why is not None and (why.reason, why.position, why.expected) == ("first_difference", 700, TEXT[700])
    assert (new := kept.why([2999, 5], 0)) is not None and new.reason == "new"
    assert (elsewhere := kept.why([3000, *TEXT], 0)) is not None and elsewhere.reason == "other model"
    number = kept.running([2000, *TEXT])
    assert (working := kept.why([2000, *TEXT, 4], 0)) is not None and working.reason == "not yet saved"
    kept.ended(number)
    assert (over := kept.why([2000, *TEXT, 4], 0)) is not None and over.reason == "new"
    kept.clear()
    other.clear()


def test_saved_prompts_are_found_by_another_process(model: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    with Engine.open(model, threads=1) as engine:
        kept = KeptPrefixes(engine, stored=StoredPrefixes(store), saved=SavedPrompts(engine, store))
        kept_after(engine, TEXT, kept)
        cold = said(engine, [*TEXT, 5], None)
        kept.clear()
        engine.call(lambda: None)
        assert engine.pool.live == 0
    with Engine.open(model, threads=1) as engine:
        kept = KeptPrefixes(engine, stored=StoredPrefixes(store), saved=SavedPrompts(engine, store))
        start = engine.start([*TEXT, 5], prefixes=kept)
        assert start.tokens == len(TEXT)
        engine.free(start.sequence)
        assert said(engine, [*TEXT, 5], kept) == cold
        kept.clear()


def test_only_the_latest_prompts_stay_saved(engine: Engine, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    kept = KeptPrefixes(engine, saved=SavedPrompts(engine, store, most=2))
    for first in range(4):
        kept_after(engine, [first + 10, *TEXT[:600]], kept)
        assert kept._saved is not None
        kept._saved.flush()
    kept.clear()
    assert len(list(store.contexts())) == 2


def test_common() -> None:
    one = np.arange(10_000, dtype=np.int32)
    for place in (0, 1, 4095, 4096, 9999):
        other = one.copy()
        other[place] = -1
        assert common(one, other) == place
    assert common(one, one[:5000]) == 5000 and common(one, one[:0]) == 0


def test_room_is_made_from_what_was_used_longest_ago(engine: Engine) -> None:
    kept = KeptPrefixes(engine)
    for first in range(3):
        kept_after(engine, [first + 10, *TEXT[:299]], kept)
    assert kept.make_room() and kept.tokens == 300
    assert kept.why([12, *TEXT[:299]], 299) is None
    assert kept.make_room() and not kept.make_room()
    engine.call(lambda: None)
    assert engine.pool.live == 0


def test_kept_prompts_go_before_anybody_is_parked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences that grow, where two prompts are kept: there is room for the three alone."""
    parked: list[int] = []
    monkeypatch.setattr(Admission, "_park", lambda admission, request: bool(parked.append(request.id)))
    with Engine.open(model, threads=1) as engine:
        engine.pool.limit = 9
        kept = KeptPrefixes(engine)
        engine.batch.admission.spare = kept.make_room
        for first in range(2):
            kept_after(engine, [first + 10, *TEXT[:767]], kept)
        assert engine.pool.free == 3
        jobs = [engine.submit([number + 50], max_tokens=600, ignore_eos=True) for number in range(3)]
        with engine.new_sequence() as base:
            engine.prefill(base, TEXT[:10])
        assert [len(job.result().tokens) for job in jobs] == [600] * 3
        assert kept.tokens == 0 and not parked
        assert kept.why([10, *TEXT[:767]], 0).reason == "evicted"  # type: ignore[union-attr]
        kept_after(engine, TEXT[:767], kept)
        fill = [kept_after(engine, [n, *TEXT[:300]], kept) for n in range(3)]
        assert fill and len(engine.generate([9] * 2000, max_tokens=3, ignore_eos=True).tokens) == 3
    assert engine.pool.live == 0


def test_a_sequence_that_is_in_use_is_not_given_up(engine: Engine) -> None:
    kept = kept_after(engine, TEXT)
    entry, _ = kept._take(np.asarray(TEXT, dtype=np.int32))
    assert not kept.make_room()
    kept._give_back(entry)
    assert kept.make_room() and not kept.tokens
    engine.call(lambda: None)
    assert engine.pool.live == 0


def test_what_waits_to_be_saved_is_given_up_too(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store", create=True)
    kept = KeptPrefixes(engine, saved=SavedPrompts(engine, store))
    saving, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr("foveal.store.saving.save", lambda *a, **k: (saving.set(), go_on.wait()))
    for first in range(4):
        kept_after(engine, [first + 10, *TEXT[:600]], kept)
        assert saving.wait(60)
    held = engine.pool.live
    while kept.make_room():
        pass
    engine.call(lambda: None)
    assert engine.pool.live == held // 4 and kept.holds, "the one that is being saved is left"
    go_on.set()
    kept.clear()
    engine.call(lambda: None)
    assert engine.pool.live == 0 and not kept.holds


def test_a_store_that_fails_holds_nobody_up(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "store", create=True)
    kept = KeptPrefixes(engine, saved=SavedPrompts(engine, store))

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("nothing goes")

    monkeypatch.setattr("foveal.store.saving.save", fail)
    kept_after(engine, TEXT, kept)
    start = engine.start([*TEXT, 5], prefixes=kept)
    assert start.tokens == len(TEXT)
    engine.free(start.sequence)
    kept.clear()
    engine.call(lambda: None)
    assert engine.pool.live == 0


def test_whatever_hinders_saving_nobody_waits_for_ever(engine: Engine, tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store, engine.new_sequence() as sequence:
        saved = SavedPrompts(engine, store)
        engine.prefill(sequence, TEXT[:600])

        def fails() -> None:
            raise RuntimeError("it cannot be given back")

        saved.save(sequence, "", fails)
        saved.flush()
        name = saved.save(sequence, "", lambda: None)
        saved.close()
        assert store.context(name).length == 600
