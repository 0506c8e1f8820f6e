"""Citations from hand-made traces: what was looked at is what is cited, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.memory import Citation, Place, TokenOrigin, cite, origin_of
from foveal.memory.citations import CONTEXT_TOKENS
from foveal.model import LayerTrace

SOURCE = 1000


def trace(
    ratio: int, entries: Mapping[int, float] | None = None, window: Mapping[int, float] | None = None, *, position: int
) -> LayerTrace:
    """A trace of the row at `position` with a window of 128: masses by entry and by position."""
    width = min(position + 1, 128)
    masses = np.zeros(width)
    for place, mass in (window or {}).items():
        masses[place - (position - width + 1)] = mass
    chosen = entries or {}
    return LayerTrace(2, 0, ratio, np.array(list(chosen), dtype=np.int64), np.array([*chosen.values()]), masses)


def ten_tokens_a_line(token: int) -> Place | None:
    """File a.py holds tokens 0-499 (its header the first ten), b.py the rest."""
    path, place = ("a.py", token) if token < 500 else ("b.py", token - 500)
    return Place(path, place // 10) if place >= 10 else None


def test_masses_of_layers_add_up_and_the_heaviest_cell_comes_first() -> None:
    origin = origin_of(
        [
            trace(4, {5: 1.0, 9: 0.5}, position=1010),
            trace(4, {9: 2.0, 11: 0.25}, position=1010),
        ],
        position=1010,
        source_tokens=SOURCE,
    )
    assert [(start, pytest.approx(mass)) for start, mass in origin.cells] == [(36, 2.5), (20, 1.0), (44, 0.25)]
    assert origin.start == 36 and origin.mass == pytest.approx(3.75)


def test_what_says_nothing_about_the_source_is_left_out() -> None:
    position = 1010
    sliding = trace(0, window={990: 4.0}, position=position)
    diffuse = trace(128, {3: 4.0}, {995: 3.0}, position=position)
    own = trace(4, {250: 3.0, 252: 5.0}, {1000: 2.0, 1010: 2.0}, position=position)  # cue and generated text
    assert origin_of([sliding, own], position, SOURCE) == TokenOrigin((), 0.0)
    assert origin_of([sliding, diffuse, own], position, SOURCE).cells == ()


def test_the_raw_window_of_a_csa_layer_counts_inside_the_source() -> None:
    origin = origin_of([trace(4, {}, {996: 1.0, 999: 0.5, 1000: 9.0}, position=1005)], 1005, SOURCE)
    assert origin.cells == ((996, pytest.approx(1.5)),)


def test_an_hca_entry_decides_between_cells_but_names_none() -> None:
    csa = trace(4, {40: 1.0, 100: 1.0}, position=1010)  # tokens 160 and 400, in HCA entries 1 and 3
    hca = trace(128, {3: 3.0, 6: 5.0}, position=1010)
    origin = origin_of([csa, hca], 1010, SOURCE)
    assert origin.cells == ((400, pytest.approx(1 + 3 / 8 * 2 * 4 / 128)), (160, pytest.approx(1.0)))


def test_however_little_csa_leaves_its_sink_it_is_csa_that_decides() -> None:
    """After a short cue all masses of CSA are tiny; those of HCA, which has a sink of its own, are not."""
    csa = trace(4, {40: 1e-11, 100: 1e-9}, position=1010)
    hca = trace(128, {1: 3.0, 3: 0.5}, position=1010)
    assert origin_of([csa, hca], 1010, SOURCE).start == 400


def test_only_the_heaviest_cells_are_kept() -> None:
    many = {n: 1.0 + n for n in range(20)}
    origin = origin_of([trace(4, many, position=1010)], 1010, SOURCE, top=3)
    assert [start for start, _ in origin.cells] == [76, 72, 68]


def test_a_source_that_ends_inside_a_cell() -> None:
    origin = origin_of([trace(4, {0: 1.0, 1: 1.0, 2: 5.0}, position=6)], 6, source_tokens=6)
    assert [start for start, _ in origin.cells] == [0, 4]
    assert cite([origin], lambda token: Place("a", token), 6)[0].last_line == 5


def origins(*starts: int, mass: float = 1.0) -> list[TokenOrigin]:
    return [TokenOrigin(((start, mass),), mass) for start in starts]


def test_near_lines_are_one_citation_and_shares_are_of_all_mass() -> None:
    looked = origins(20, 24, 28, 32, 60, 64) + origins(540, 544)  # a.py lines 2, 3, 6 and b.py line 4
    assert cite(looked, ten_tokens_a_line, SOURCE) == (
        Citation("a.py", 2, 6, pytest.approx(0.75)),
        Citation("b.py", 4, 4, pytest.approx(0.25)),
    )


def test_far_lines_are_two_citations_and_files_do_not_merge() -> None:
    assert [str(c) for c in cite(origins(20, 24, 100, 496, 512), ten_tokens_a_line, SOURCE)] == [
        "a.py:2 (40%)",
        "a.py:10 (20%)",
        "a.py:49 (20%)",
        "b.py:1 (20%)",
    ]


def test_stray_looks_neither_stretch_nor_appear() -> None:
    looked = origins(*[40] * 60) + origins(60) + origins(800)
    assert cite(looked, ten_tokens_a_line, SOURCE) == (Citation("a.py", 4, 4, pytest.approx(61 / 62)),)


def test_a_look_that_is_spread_over_many_lines_is_cited_as_all_of_them() -> None:
    everywhere = TokenOrigin(tuple((4 * cell, 1.0) for cell in range(100)), 100.0)
    (found,) = cite([everywhere], lambda token: Place("a.py", token // 4 + 1), 400)
    assert (found.first_line, found.last_line, found.share) == (1, 100, 1.0)


def test_headers_and_nothing_are_not_cited() -> None:
    assert cite(origins(0, 4, 500), ten_tokens_a_line, SOURCE) == ()
    assert cite([], ten_tokens_a_line, SOURCE) == ()
    assert cite([TokenOrigin((), 0.0)], ten_tokens_a_line, SOURCE) == ()


def test_a_cell_on_two_lines_is_shared_between_them() -> None:
    (citation,) = cite(origins(28), ten_tokens_a_line, SOURCE)  # tokens 28, 29 | 30, 31
    assert (citation.first_line, citation.last_line) == (2, 3)


@given(st.lists(st.lists(st.tuples(st.integers(0, 249), st.floats(0.001, 8)), max_size=4), max_size=40))
def test_citations_are_always_sane(looks: list[list[tuple[int, float]]]) -> None:
    looked = [TokenOrigin(tuple((cell * 4, mass) for cell, mass in cells), 1.0) for cells in looks]
    found = cite(looked, ten_tokens_a_line, SOURCE)
    assert sum(c.share for c in found) <= 1 + 1e-6
    assert list(found) == sorted(found, key=lambda c: -c.share) and len(found) <= 5
    for c in found:
        assert c.path in ("a.py", "b.py") and 1 <= c.first_line <= c.last_line <= 49


def test_only_cells_that_hold_the_token_support_it() -> None:
    source = np.arange(100, 140)
    origin = TokenOrigin(((0, 1.0), (8, 0.6), (20, 0.2)), mass=2.0)
    assert origin.supporting(110, source[4:10], source).cells == ((8, pytest.approx(0.6 / 1.8)),)
    unheld = origin.supporting(999, source[:4], source).cells
    assert [start for start, _ in unheld] == [0, 8, 20], "no cell holds it: nothing is left out"
    assert sum(mass for _, mass in unheld) == pytest.approx(1 / (1 + CONTEXT_TOKENS))


def test_of_two_places_the_one_whose_context_agrees_is_cited() -> None:
    source = np.array([1, 2, 3, 4, 50, 9, 9, 9, 5, 6, 7, 8, 50, 9, 9, 9])
    origin = TokenOrigin(((4, 1.0), (12, 0.8)), mass=2.0)
    chosen = origin.supporting(50, np.array([6, 7, 8]), source)
    assert chosen.start == 12 and chosen.mass == origin.mass
    assert chosen.cells == ((12, pytest.approx(0.8 / 1.8)), (4, pytest.approx(0.25 / 1.8)))


def test_every_token_has_one_vote() -> None:
    """A sharp look of one token at another place does not outweigh the faint looks of many at theirs."""
    source = np.arange(SOURCE)
    faint = [TokenOrigin(((200, 1e-4),), 1e-4).supporting(200 + n, source[200 - 8 : 200 + n], source) for n in range(4)]
    sharp = TokenOrigin(((800, 3.0),), 3.0).supporting(801, source[793:801], source)
    first, second = cite([*faint, sharp], ten_tokens_a_line, SOURCE)
    assert (first.path, second.path) == ("a.py", "b.py") and first.share == pytest.approx(0.8)


def test_lines_of_an_earlier_version_are_cited_apart() -> None:
    def locate(token: int) -> Place:
        return Place("a.py", 1 + token // 4, outdated=token < 8)

    origin = TokenOrigin(((0, 1.0), (4, 1.0), (8, 6.0)), 8.0)
    now, before = cite([origin], locate, 100)
    assert (now, before) == (Citation("a.py", 3, 3, 0.75), Citation("a.py", 1, 2, 0.25, outdated=True))
    assert str(before) == "a.py:1-2 (25%, earlier version)" and str(now) == "a.py:3 (75%)"
