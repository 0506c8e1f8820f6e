"""Bringing a memory up to date: both ways, what they cost, and what is cited afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_support import CHUNK, make_engine, read_at_once, same, stop_after, write_project

from foveal.engine import Engine
from foveal.memory import Memory, Place, ReadError, open_store
from foveal.memory.syncing import Mode
from foveal.memory.versions import latest_pieces, outdated_tokens
from foveal.sources import SourceError
from foveal.store.verify import verify


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(autouse=True)
def no_page_leaks(engine: Engine) -> Iterator[None]:
    before = engine.pool.live
    yield
    assert engine.pool.live == before


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project", files=8)


@pytest.fixture
def memory(engine: Engine, project: Path) -> Iterator[Memory]:
    with Memory.read(engine, project, name="p", tail_every=2 * CHUNK) as made:
        yield made


def text_of(memory: Memory) -> str:
    return memory.engine.tokenizer.decode(memory.sequence.tokens.tolist())


def paths_of(memory: Memory) -> list[str]:
    return [path for path, _, _ in memory.places.documents]


def change(project: Path) -> None:
    """One file edited in its middle, one gone, one new."""
    lines = (project / "m2.py").read_text().splitlines(keepends=True)
    (project / "m2.py").write_text("".join([*lines[:3], "inserted = True\n", *lines[4:]]))
    (project / "m5.py").unlink()
    (project / "a.py").write_text("fresh = 1\n")


def assert_holds_the_source(memory: Memory, project: Path, *, bits: bool = False) -> None:
    """What the memory says is current is what the files say, and nothing else is called current. `bits`: the state is
    that of reading the tokens at once (on the reference backend appending cuts elsewhere, and so rounds elsewhere)."""
    text = {}
    for path, piece in latest_pieces(memory.places).items():
        if not piece.removal:
            said = memory.engine.tokenizer.decode(memory.sequence.tokens[piece.first : piece.after].tolist())
            header = f"# file: {path}\n"
            text[path] = said[said.index(header) + len(header) :]
    assert text == {file.name: file.read_text() for file in project.iterdir()}
    if bits:
        with read_at_once(memory.engine, memory) as fresh:
            assert same(memory.sequence, fresh)


def test_nothing_changed(memory: Memory) -> None:
    before, plan = memory.sequence.export(), memory.plan_sync()
    assert plan.up_to_date and not (plan.changed or plan.new or plan.removed)
    assert {cost.read for cost in plan.costs.values()} == {0} and not plan.is_needed("rebuild")
    memory.sync("append")
    memory.sync("rebuild")
    assert np.array_equal(memory.sequence.tokens, before.tokens) and memory.length == before.length


def test_append_costs_its_own_tokens_and_says_what_it_replaces(memory: Memory, project: Path) -> None:
    before = memory.length
    change(project)
    plan = memory.plan_sync()
    assert (plan.changed, plan.new) == (("m2.py",), ("a.py",))
    assert [(skip.path, skip.reason) for skip in plan.removed] == [("m5.py", "deleted")]
    run: list[int] = []
    memory.sync("append", plan=plan, progress=lambda progress: run.append(progress.tokens_done))
    cost = plan.costs["append"]
    assert (cost.kept, cost.tokens, cost.read) == (before, memory.length, memory.length - before)
    assert run[0] > before, "nothing was read again"
    added = memory.engine.tokenizer.decode(memory.sequence.tokens[before:].tolist())
    removed, replaced, rest = added.split("\n", 2)
    assert removed == "# update: m5.py was removed, and its text above no longer holds"
    assert replaced == "# update: what follows replaces the earlier m2.py"
    assert rest == f"# file: m2.py\n{(project / 'm2.py').read_text()}# file: a.py\nfresh = 1\n"
    assert_holds_the_source(memory, project)
    assert memory.complete and memory.plan_sync().up_to_date
    assert memory.plan_sync().outdated == cost.outdated == outdated_tokens(memory.places) > 0


def test_lines_are_those_of_the_new_version(memory: Memory, project: Path) -> None:
    old = {token: memory.place(token) for token in range(memory.length)}
    change(project)
    memory.sync("append")
    lines = (project / "m2.py").read_text().splitlines()
    seen = set()
    for token in range(memory.length):
        place = memory.place(token)
        if place is None or place.path == "m5.py":
            assert place is None or place.outdated
        elif place.path == "m2.py" and token in old:
            was = old[token]
            assert was is not None
            moved = Place("m2.py", was.line, outdated=True) if was.line == 4 else Place("m2.py", was.line)
            assert place == moved, "line 4 was replaced, and the others stay where they are"
            seen.add(place.outdated)
        elif place.path == "m2.py":
            assert not place.outdated and 1 <= place.line <= len(lines)
        else:
            assert place == old.get(token, Place("a.py", 1))
    assert seen == {True, False}
    answer = memory.recall("def f2_0(x", max_tokens=8, ignore_eos=True)
    assert all(c.last_line <= len(lines) or c.path != "m2.py" or c.outdated for c in answer.citations)


def test_rebuild_keeps_the_longest_beginning_and_moves_what_changed_behind(memory: Memory, project: Path) -> None:
    first = next(a for path, a, _ in memory.places.documents if path == "m2.py")
    change(project)
    plan = memory.sync("rebuild")
    cost = plan.costs["rebuild"]
    assert first <= cost.kept and cost.outdated == 0 and cost.tokens == memory.length
    assert cost.read < cost.tokens, "it began at a tail"
    assert paths_of(memory)[:2] == ["m0.py", "m1.py"]
    assert sorted(paths_of(memory)) == sorted(file.name for file in project.iterdir())
    assert paths_of(memory)[-1] == "a.py" and paths_of(memory).index("m2.py") in (2, len(paths_of(memory)) - 2)
    assert_holds_the_source(memory, project, bits=True)


def test_a_changed_file_stays_when_its_head_is_long_and_moves_when_it_is_short(engine: Engine, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    body = "".join(f"value_{n} = {n}\n" for n in range(60))
    for name in "abcd":
        (project / f"{name}.py").write_text(body.replace("value", name))
    with Memory.read(engine, project) as memory:
        (project / "a.py").write_text((project / "a.py").read_text() + "end = 1\n")
        assert memory.sync("rebuild").costs["rebuild"].kept > 400 and paths_of(memory)[0] == "a.py"
        (project / "a.py").write_text("begin = 1\n" + (project / "a.py").read_text())
        memory.sync("rebuild")
        assert paths_of(memory) == ["b.py", "c.py", "d.py", "a.py"]
        (project / "a.py").write_text("begin = 2\n" + body)
        assert memory.sync("rebuild").costs["rebuild"].kept > memory.length // 2, "its next change costs little"
        assert_holds_the_source(memory, project, bits=True)


def test_rebuilding_after_appending_leaves_nothing_old(memory: Memory, project: Path, engine: Engine) -> None:
    change(project)
    memory.sync("append")
    (project / "m5.py").write_text("back = 1\n")
    assert memory.plan_sync().new == ("m5.py",)
    memory.sync("append")
    assert_holds_the_source(memory, project)
    plan = memory.plan_sync()
    assert plan.up_to_date and plan.is_needed("rebuild") and not plan.is_needed("append")
    memory.resume()
    assert memory.plan_sync().outdated == plan.outdated, "reading again leaves what is up to date"
    memory.sync("rebuild")
    assert memory.plan_sync().outdated == 0 and "# update" not in text_of(memory)
    assert_holds_the_source(memory, project)


@pytest.mark.parametrize("mode", ["append", "rebuild"])
@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_interrupted_and_gone_on_equals_uninterrupted(
    memory: Memory, engine: Engine, project: Path, tmp_path: Path, mode: Mode, chunks: int
) -> None:
    change(project)
    (project / "m6.py").write_text("changed = 1\n" * 60)
    with memory.fork() as whole, memory.fork() as part:
        whole.sync(mode)
        part.sync(mode, should_stop=stop_after(chunks))  # type: ignore[arg-type]
        assert not part.complete and part.places.tokens == part.length
        part.save("part", root=tmp_path / "store")
        with Memory.load(engine, "part", root=tmp_path / "store") as loaded:
            assert loaded.plan_sync().recommended == mode
            loaded.sync()
            assert loaded.complete and not loaded.appending and not loaded.unread
            assert same(loaded.sequence, whole.sequence)
            assert loaded.places.to_bytes() == whole.places.to_bytes()
        part.resume()
        assert same(part.sequence, whole.sequence), "`read` goes on the same way"


def killed_after(chunks: int) -> Callable[[], bool]:
    """What `should_stop` is to somebody who dies after so many chunks: nothing of what follows is done."""
    left = iter(range(chunks))

    def die() -> bool:
        if next(left, None) is None:
            raise SystemError("killed")
        return False

    return die


@pytest.mark.parametrize("mode", ["append", "rebuild"])
@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_what_was_saved_while_syncing_outlives_the_syncer(
    memory: Memory, engine: Engine, project: Path, tmp_path: Path, mode: Mode, chunks: int
) -> None:
    change(project)
    (project / "m6.py").write_text("changed = 1\n" * 60)
    (project / "m7.py").write_text("other = 1\n" * 60)
    with open_store(tmp_path / "store") as store:
        memory.save(root=store)
        before = store.context("p")
        with memory.fork() as whole:
            whole.sync(mode)
            with Memory.load(engine, "p", root=store) as part, pytest.raises(SystemError, match="killed"):
                part.sync(mode, should_stop=killed_after(chunks), save_every=0.0)
            with Memory.load(engine, "p", root=store) as left:
                if chunks == 0:
                    assert store.context("p") == before, "nothing was read, and the memory is what it was"
                    assert left.complete and not left.plan_sync().up_to_date
                else:
                    assert not left.complete and left.unread and left.appending == (mode == "append")
                    assert left.places.tokens == left.length < whole.length
                    assert np.array_equal(left.sequence.tokens, whole.sequence.tokens[: left.length])
                    assert left.plan_sync().recommended == mode
                left.sync(mode, save_every=0.0)
                assert left.complete and not left.unread and not left.appending
                assert left.places.to_bytes() == whole.places.to_bytes() and same(left.sequence, whole.sequence)
            with Memory.load(engine, "p", root=store) as unsaved:
                assert not unsaved.complete or unsaved.length < whole.length, "the last save is the caller's"
        assert verify(store).sound


def test_an_interrupted_read_is_finished(engine: Engine, project: Path) -> None:
    with Memory.read(engine, project) as whole, Memory.read(engine, project, should_stop=stop_after(2)) as part:  # type: ignore[arg-type]
        plan = part.plan_sync()
        assert plan.new and not plan.changed and plan.recommended == "rebuild"
        part.sync(plan=plan)
        assert part.complete and same(part.sequence, whole.sequence)


def test_what_saving_adds_is_foretold(memory: Memory, engine: Engine, project: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    memory.save(root=store)
    change(project)
    for mode in ("append", "rebuild"):
        memory.save("copy", root=store)
        with Memory.load(engine, "copy", root=store) as copy:
            expected = copy.sync(mode).costs[mode].store_bytes  # type: ignore[index,arg-type]
            before = store.packs.written
            copy.save(root=store)
            assert store.packs.written - before == pytest.approx(expected, rel=0.1)


def test_a_fork_leaves_its_parent_alone(memory: Memory, engine: Engine, project: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    memory.save(root=store)
    change(project)
    with memory.fork() as fork:
        fork.save("fork", root=store)
        fork.sync("append")
        fork.save("fork", root=store)
    with Memory.load(engine, "p", root=store) as parent, Memory.load(engine, "fork", root=store) as fork:
        assert same(parent.sequence, memory.sequence) and not parent.plan_sync().up_to_date
        assert fork.plan_sync().up_to_date and fork.length > parent.length


def test_appending_is_recommended_until_it_is_not(memory: Memory, project: Path) -> None:
    last = paths_of(memory)[-1]
    (project / last).write_text((project / last).read_text().replace("return", "yield"))
    assert memory.plan_sync().recommended == "rebuild", "the change is near the end"
    (project / "m0.py").write_text("changed = 1\n")
    for file in ("m1.py", "m2.py", "m3.py", "m4.py"):
        (project / file).write_text("changed = 1\n")
    assert memory.plan_sync().recommended == "rebuild", "most would be outdated"


def test_what_cannot_be_synced(engine: Engine, memory: Memory, project: Path, tmp_path: Path) -> None:
    plan = memory.plan_sync()
    (project / "more.py").write_text("more = 1\n")
    memory.sync()
    with pytest.raises(ReadError, match="plan anew"):
        memory.sync("append", plan=plan)
    (project / "m1.py").write_bytes(b"\0" * 100)
    (removed,) = memory.plan_sync().removed
    assert removed.path == "m1.py" and "binary" in removed.reason
    shutil.rmtree(project)
    with pytest.raises(SourceError, match="project"):
        memory.plan_sync()
    project.mkdir()
    with pytest.raises(ReadError, match="nothing to read"):
        memory.sync()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["", "x = 1\n", "y = 2\n" * 30, "z\n" * 90])),
            st.sampled_from(["append", "rebuild"]),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_sequence_of_changes(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[dict[str, str], Mode, int]],
) -> None:
    """Files come, change, go and come back; syncs are interrupted: in the end the memory is what the files are."""
    project = tmp_path_factory.mktemp("sync") / "project"
    project.mkdir()
    (project / "keep.py").write_text("keep = 1\n" * 20)
    with Memory.read(engine, project) as memory:
        for files, mode, chunks in steps:
            for name, text in files.items():
                (project / name).write_text(text) if text else (project / name).unlink(missing_ok=True)
            plan = memory.plan_sync()
            memory.sync(mode, plan=plan, should_stop=stop_after(chunks))  # type: ignore[arg-type]
            expected = plan.targets[mode].places.to_bytes()
            if memory.complete and plan.is_needed(mode):
                assert memory.places.to_bytes() == expected
        memory.sync()
        assert memory.complete and memory.plan_sync().up_to_date
        assert_holds_the_source(memory, project)
