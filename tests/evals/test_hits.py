"""`foveal check-hits`: a sound server passes bit for bit, and every broken one is found."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import write_model
from click.testing import CliRunner
from server_support import Running, serving

from foveal.batch.passes import Passes
from foveal.cli.main import app
from foveal.engine import Start
from foveal.evals.hits import Checks, Client, HitsError, Report, check, connect
from foveal.evals.hits.client import Said
from foveal.memory import StoredPrefixes
from foveal.memory.kept import KeptPrefixes

pytestmark = pytest.mark.slow

PLAN = Checks(lengths=(62, 127, 260, 605), tokens=3, evict=0, seed=1)
Fault = Callable[[list[int]], list[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path, model, kept_tokens=4000) as running:
        yield running


def checked(server: Running, plan: Checks, **options: Any) -> Report:
    with connect(server.url, **options) as client:
        return check(client, plan)


def found_by(report: Report) -> set[str]:
    return {difference.check for difference in report.differences}


@pytest.mark.parametrize("api", ["ids", "text", "chat"])
def test_our_server_passes_bit_for_bit_on_every_api(server: Running, api: Any) -> None:
    report = checked(server, replace(PLAN, lengths=(129, 258)), api=api)
    assert report.equal and not report.differences
    assert report.counts["cold"].cached == 0 < report.counts["hit"].cached
    assert set(report.counts) >= {"cold", "hit", "forked", "cut", "sessions in turn", "together"}
    assert ("scored" in report.counts) == (api != "chat")


def test_our_server_passes_after_eviction_and_restart(model: Path, tmp_path: Path) -> None:
    """What was pushed out comes from the store, if it was long enough to be saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as first, ExitStack() as second:
        running = first.enter_context(serving(tmp_path, model, port=port, kept_tokens=4000))

        def restart() -> None:
            first.close()
            second.enter_context(serving(tmp_path, model, port=port, kept_tokens=4000))

        told: list[str] = []
        plan = replace(PLAN, evict=9000, restart=restart, progress=lambda name, done, of: told.append(name))
        report = checked(running, plan)
    assert report.equal and report.lengths == set(PLAN.lengths) and report.notes() == []
    assert report.counts["evicted"].cached > 0 and report.counts["restarted"].cached > 0
    assert "pushing out" in told and "restarted" in told


def test_our_server_passes_where_memory_is_short(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept prompts are given up again and again, and sequences make room for each other."""
    given_up = []
    sound = KeptPrefixes.make_room
    monkeypatch.setattr(KeptPrefixes, "make_room", lambda kept: given_up.append(sound(kept)) or given_up[-1])
    server.engine.pool.limit = 14
    report = checked(server, PLAN)
    assert report.equal and any(given_up), report.differences


# ---------------------------------------------------------------------- broken on purpose


def one_position_late(ids: list[int]) -> list[int]:
    return [ids[0], *ids[:-1]]


def without_the_last_page(ids: list[int]) -> list[int]:
    kept = (len(ids) - 1) // 256 * 256
    return [*ids[:kept], *ids[: len(ids) - kept]]


def with_another_last_token(ids: list[int]) -> list[int]:
    return [*ids[:-1], ids[-1] + 1]


def break_prefixes(monkeypatch: pytest.MonkeyPatch, prefixes: type, fault: Fault) -> None:
    """Whatever is found of a prompt, it is the state of other tokens."""
    sound = prefixes.start

    def start(self: Any, engine: Any, tokens: Any, **options: Any) -> Start | None:
        found = sound(self, engine, tokens, **options)
        if found is None:
            return None
        ids = np.asarray(tokens)[: found.sequence.length].tolist()
        engine.free(found.sequence)
        other = engine.new_sequence()
        engine.prefill(other, fault(ids))
        return replace(found, sequence=other)

    monkeypatch.setattr(prefixes, "start", start)


@pytest.mark.parametrize("fault", [one_position_late, without_the_last_page, with_another_last_token])
def test_a_hit_that_is_not_what_was_read_is_found(
    server: Running, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    break_prefixes(monkeypatch, KeptPrefixes, fault)
    report = checked(server, PLAN)
    assert not report.equal and {"hit", "forked"} <= found_by(report) | {"forked"}
    assert {"scored", "hit"} <= found_by(report), "forks are told from what is computed without the cache"
    first = report.differences[0]
    assert first.check == "hit" and first.first == "cold" and first.cached


def test_a_store_that_gives_another_state_is_found(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    break_prefixes(monkeypatch, StoredPrefixes, one_position_late)
    found = found_by(checked(server, replace(PLAN, evict=9000)))
    assert "evicted" in found and not found & {"hit", "forked", "scored"}


def test_the_logits_of_a_neighbour_are_found(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Passes._logits

    def logits(self: Passes, plan: Any, streams: Any) -> list[Any]:
        rows = sound(self, plan, streams)
        chosen = [place for place, row in enumerate(rows) if row is not None]
        for place, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
            rows[place], rows[other] = rows[other], rows[place]
        return rows

    monkeypatch.setattr(Passes, "_logits", logits)
    assert found_by(checked(server, PLAN)) == {"together"}


# ---------------------------------------------------------------------- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["check-hits", *arguments], standalone_mode=False)


def test_the_command_tells_and_its_exit_code_says_it_too(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--lengths", "130,258", "--evict", "0", "--tokens", "2", "--seed", "4", server.url]
    good = run(*options)
    assert good.return_value == 0 and "equal, whatever was known" in good.stdout, good.stderr
    assert "remainder 0, 1, 3 modulo 4" in good.stderr
    break_prefixes(monkeypatch, KeptPrefixes, one_position_late)
    bad = run(*options, "--seed", "5")
    assert bad.return_value == 1 and "differ from the first reply" in bad.stdout and "gap" in bad.stdout
    told = json.loads(run(*options, "--seed", "6", "--json").stdout)
    assert told["equal"] is False and told["api"] == "ids" and told["differences"][0]["first"] == "cold"
    assert told["checks"]["hit"]["different"] == 2 and told["lengths"] == [130, 258]


def test_what_cannot_be_checked_is_told_in_one_line(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, words in (
        (["http://127.0.0.1:9"], "does not answer"),
        (["nonsense"], "'nonsense' is no address of a server; give one like http://127.0.0.1:8000"),
        (["localhost:8000"], "is no address of a server"),
        (["http://[::1"], "is no address of a server"),
        (["http://127.0.0.1:99999"], "is no address of a server"),
        ([server.url, "--key", "one\ntwo"], "is no key"),
        ([server.url, "--key", "schlüssel"], "is no key"),
        ([server.url, "--tolerance", "nan"], "the tolerance is nan"),
        ([server.url, "--model", "other"], "there is no model"),
        ([server.url, "--restart", "false", "--lengths", "62", "--evict", "0"], "'false' ended with 1"),
        ([server.url, "--restart", "/no/such", "--lengths", "62", "--evict", "0"], "cannot be run"),
    ):
        result = run(*arguments)
        assert result.return_value == 1 and words in result.stderr, arguments
        assert "Traceback" not in result.stderr


def test_a_server_that_restarts_and_stays_away_is_not_waited_for_for_ever(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "reachable", lambda client: False)
    monkeypatch.setattr("foveal.evals.hits.checking.PATIENCE", 0.0)
    with pytest.raises(HitsError, match="did not come back"):
        checked(server, replace(PLAN, lengths=(62,), restart=lambda: None))


# ---------------------------------------------------------------------- comparing


def test_replies_are_compared_token_by_token() -> None:
    def said(*tokens: tuple[str, float], cached: int | None = 0, **top: float) -> Said:
        return Said(tuple(t for t, _ in tokens), tuple(p for _, p in tokens), tuple(top for _ in tokens), 9, cached)

    first = said(("a", -1.0), ("b", -2.0), x=-3.0)
    cases = (
        (said(("a", -1.0), ("b", -2.0), x=-3.0), None, 0.0),
        (said(("a", -1.0), ("b", -2.0), y=-4.0), None, 0.0),
        (said(("a", -1.0), ("b", -2.5), x=-3.0), (1, 0.5), 0.0),
        (said(("a", -1.0), ("b", -2.5), x=-3.0), None, 0.5),
        (said(("a", -1.0), ("b", -2.0), x=-3.25), (0, 0.25), 0.0),
        (said(("a", -1.0), ("b", float("nan")), x=-3.0), (1, None), 9.0),
        (said(("c", -1.0), ("b", -2.0), x=-3.0), (0, None), 9.0),
        (said(("a", -1.0), x=-3.0), (1, None), 9.0),
    )
    for other, expected, tolerance in cases:
        report = Report(tolerance)
        report.add("cold", (1, 2), first)
        report.add("hit", (1, 2), other)
        report.add("cold", (3,), other)
        found = [(each.place, each.gap) for each in report.differences]
        if expected is None:
            assert found == []
        else:
            assert [place for place, _ in found] == [expected[0]]
            assert expected[1] is None or found[0][1] == expected[1]


def test_a_reader_is_told_what_was_not_checked() -> None:
    report = Report(lengths={4, 5, 6, 7})
    report.add("cold", (1,), Said((), (), (), 5, None))
    report.add("hit", (1,), Said((), (), (), 5, None))
    assert "does not tell" in report.notes()[0]
    report.add("hit", (1,), Said((), (), (), 5, 0))
    assert "reused nothing" in report.notes()[0]
    report.add("hit", (1,), Said((), (), (), 5, 4))
    assert report.notes() == []
