"""Who may hold memory, with states that say how many pages they have: order, fairness, and that everybody ends."""

from __future__ import annotations

from typing import Any

import pytest
from batch_support import Driven, MockNetwork, MockState, counting, ids
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.batch import FinishReason, Priority, Request, SamplingParams, Scheduler
from foveal.cache import CacheFull

PAGE = 4


class Paged(MockState):
    """A state of pages of four tokens, which its room counts."""

    def __init__(self, room: CountingRoom, tokens: Any = ()) -> None:
        super().__init__(tokens)
        self.room = room
        room.states.append(self)

    def free(self) -> None:
        self.room.states.remove(self)


class CountingRoom:
    """So many pages for all states together. `parked` are the numbers of tokens of those that made room, in order."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.states: list[Paged] = []
        self.parked: list[Away] = []

    @property
    def free(self) -> int:
        left = self.limit - sum(-(-state.length // PAGE) for state in self.states)
        assert left >= 0, "more pages than there are"
        return left

    def has(self, state: Any) -> bool:
        return isinstance(state, Paged) and state.room is self

    def needed(self, state: Any, tokens: int) -> int:
        return self.pages(state, tokens) - -(-state.length // PAGE)

    def pages(self, state: Any, tokens: int) -> int:
        return -(-(state.length + tokens) // PAGE)

    def park(self, state: Any) -> Away:
        self.parked.append(Away(state))
        return self.parked[-1]


class Away:
    def __init__(self, state: Paged) -> None:
        self.room, self.tokens = state.room, list(state.tokens)
        self.pages = -(-len(self.tokens) // PAGE)
        self.back = False
        state.free()

    def restore(self) -> Paged:
        if self.pages > self.room.free:
            raise CacheFull("no room")
        self.back = True
        return Paged(self.room, self.tokens)

    def drop(self) -> None:
        self.tokens = []


def made(limit: int, **options: Any) -> tuple[Driven, CountingRoom]:
    room = CountingRoom(limit)
    engine = Driven(MockNetwork(counting), scheduler=Scheduler(**{"chunk": 8, **options}), batched=True, room=room)
    return engine, room


def submit(engine: Driven, room: CountingRoom, prompt: int, tokens: int, **options: Any) -> Request:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    release = lambda state: state.free()  # noqa: E731
    request = engine.request(ids("a" * prompt), params, begin=lambda: Paged(room), release=release, **options)
    engine.kept(request)
    engine.add(request)
    return request


def run(engine: Driven) -> int:
    steps = 0
    while engine.scheduler.busy:
        assert engine.step(), "requests are left, and nothing runs"
        steps += 1
    return steps


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 12),
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30), st.booleans()), min_size=1, max_size=12),
)
def test_everybody_ends_with_the_tokens_that_they_have_alone(limit: int, shapes: list[tuple[int, int, bool]]) -> None:
    engine, room = made(limit)
    requests = [
        submit(engine, room, prompt, tokens, priority=Priority.BACKGROUND if late else Priority.INTERACTIVE)
        for prompt, tokens, late in shapes
    ]
    steps = run(engine)
    for request, (prompt, tokens, _) in zip(requests, shapes, strict=True):
        fits = -(-(prompt + tokens - 1) // PAGE) <= limit
        assert request.finish_reason is (FinishReason.LENGTH if fits else FinishReason.ERROR)
        whole = ids("a" * prompt)
        for _ in range(tokens if fits else 0):
            whole.append(counting(whole))
        assert request.generated == whole[prompt:]
    assert room.free == limit and not room.states
    assert steps <= sum(prompt + tokens for prompt, tokens, _ in shapes), "no step was for nothing"


def test_the_newest_makes_room_and_comes_back_before_who_is_newer_still() -> None:
    engine, room = made(8)
    first, second = submit(engine, room, 4, 24), submit(engine, room, 4, 24)
    engine.step()
    third = submit(engine, room, 4, 20)
    while not room.parked:
        engine.step()
    assert second.parked is not None or third.parked is not None
    assert first.parked is None, "the oldest is never parked"
    order = []
    while engine.scheduler.busy:
        engine.step()
        order += [r.id for r in (first, second, third) if r.finish_reason and r.id not in order]
    assert order[0] == first.id and all(away.back for away in room.parked)


def test_what_fits_only_later_waits_for_it() -> None:
    engine, room = made(6, chunk=64)
    first = submit(engine, room, 16, 4)
    engine.step()
    large = submit(engine, room, 20, 3)
    small = submit(engine, room, 2, 1)
    engine.step()
    assert not large.read and not small.read, "nobody overtakes who waits for room"
    run(engine)
    assert {r.finish_reason for r in (first, large, small)} == {FinishReason.LENGTH}


def test_urgent_requests_displace_background_ones() -> None:
    engine, room = made(6)
    background = submit(engine, room, 16, 8, priority=Priority.BACKGROUND)
    for _ in range(4):
        engine.step()
    urgent = submit(engine, room, 12, 4)
    engine.step()
    assert background.parked is not None and urgent.read
    run(engine)
    assert len(background.generated) == 8 and len(urgent.generated) == 4


def test_states_that_callers_hold_are_never_parked() -> None:
    engine, room = made(6)
    held = Paged(room, ids("a" * 12))
    reading = engine.request(ids("a" * 8), state=held)
    engine.kept(reading)
    engine.add(reading)
    other = submit(engine, room, 2, 30)
    kept = engine.kept(other)
    for _ in range(60):
        engine.step()
    assert held in room.states and all(isinstance(away, Away) for away in room.parked)
    assert kept[-1].finish_reason is FinishReason.ERROR and isinstance(kept[-1].error, CacheFull)
    held.free()


def test_who_cannot_come_back_waits_and_fails_in_the_end() -> None:
    now = [0.0]
    engine, room = made(6, clock=lambda: now[0])
    request = submit(engine, room, 12, 12)
    engine.step()
    engine.step()

    def take() -> Paged:
        if room.free < 4:
            raise CacheFull("no room")
        return Paged(room, ids("a" * 16))

    taken = engine.admission.making_room(take)
    assert request.parked is not None
    assert not engine.step() and request.finish_reason is None
    now[0] = engine.admission.patience - 1
    assert not engine.step() and request.finish_reason is None
    now[0] += 2
    engine.step()
    assert request.finish_reason is FinishReason.ERROR
    taken.free()
    with pytest.raises(CacheFull):
        engine.admission.making_room(lambda: (_ for _ in ()).throw(CacheFull("really")))
    assert room.free == 6
