"""Memories with the real network: reading, going on, saving, loading, refusing what is damaged."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import write_model
from memory_support import CHUNK, TINY, make_engine, read_at_once, same, stop_after, write_project

import foveal
from foveal.batch import ParameterError
from foveal.cache import CacheFormat, InWork, Keeper, Sequence
from foveal.engine import Engine
from foveal.memory import (
    FingerprintMismatch,
    InvalidName,
    Memory,
    MemoryNotFound,
    Progress,
    ReadError,
    StoreError,
    delete_memory,
    list_memories,
    memory_info,
    open_store,
    store_root,
)
from foveal.memory.options import TailEvery
from foveal.sources import SourceError
from foveal.store import contexts, eviction


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(autouse=True)
def no_page_leaks(engine: Engine) -> Iterator[None]:
    before = engine.pool.live
    yield
    assert engine.pool.live == before, "a test (or the code it tests) kept pages"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project")


# ---------------------------------------------------------------------- reading


def test_read_gives_a_memory_that_knows_its_lines(engine: Engine, project: Path) -> None:
    seen: list[Progress] = []
    with Memory.read(engine, project, name="p", progress=seen.append) as memory:
        assert memory.complete and memory.length == memory.totals.tokens == memory.places.tokens
        assert memory.totals.files == 6 and memory.totals.seconds > 0
        text = engine.tokenizer.decode(memory.sequence.tokens.tolist())
        assert text.startswith("# file: m0.py\ndef f0_0(x):")
        token = next(i for i in range(memory.length) if memory.locate(i) == ("m3.py", 2))
        assert engine.tokenizer.decode(memory.sequence.tokens[token : token + 3].tolist()).lstrip().startswith("return")
        assert memory.locate(0) is None, "a header is no line of the file"
        exact = [p for p in seen if p.exact]
        assert [p.tokens_done for p in exact][-1] == memory.length == exact[-1].tokens_total
        assert exact[0].tokens_done == CHUNK and exact[-1].seconds_left == 0 and exact[-1].file == "m5.py"
        assert not seen[0].exact and seen[0].tokens_done == 0


def test_what_cannot_be_read(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        Memory.read(engine, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "b.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ReadError, match=r"b\.bin"):
        Memory.read(engine, tmp_path / "empty")
    with pytest.raises(InvalidName):
        Memory.read(engine, tmp_path, name="../x")


@pytest.mark.parametrize(
    "ids", [[2**32 + 5], [10**30], [float("nan")], ["a"], [None], [True], [[1, 2]], np.array([2**32 + 5])]
)
def test_what_is_no_token_is_refused_before_the_store_is_asked(
    engine: Engine, project: Path, tmp_path: Path, ids: Any
) -> None:
    with Memory.read(engine, project, root=tmp_path / "store") as memory:
        length = memory.length
        with pytest.raises(ParameterError, match="token"):
            memory.extend(ids)
        assert memory.length == length


@pytest.mark.parametrize("chunks", [0, 1, 3, 5])
def test_interrupted_and_resumed_equals_uninterrupted(
    engine: Engine, project: Path, tmp_path: Path, chunks: int
) -> None:
    with Memory.read(engine, project) as whole, Memory.read(engine, project, should_stop=stop_after(chunks)) as part:
        assert part.length == chunks * CHUNK < whole.length and not part.complete
        assert part.places.tokens == part.length
        part.save(tmp_path / "part")
        with Memory.load(engine, tmp_path / "part") as loaded:
            assert not loaded.complete
            assert loaded.resume().kept == chunks * CHUNK
            assert loaded.complete and same(loaded.sequence, whole.sequence)
        assert part.resume().changed == ()
        assert same(part.sequence, whole.sequence) and part.places.to_bytes() == whole.places.to_bytes()


def test_ctrl_c_in_the_middle_of_a_chunk_keeps_it_and_those_before(
    engine: Engine, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, calls = Sequence.begin_work, [0]

    def interrupted(self: Sequence, count: int, keeper: Keeper) -> InWork:
        calls[0] += 1
        if calls[0] == 3:  # the third chunk
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return begin(self, count, keeper)

    with monkeypatch.context() as patch:
        patch.setattr(Sequence, "begin_work", interrupted)
        part = Memory.read(engine, project)
    with Memory.read(engine, project) as whole, part:
        assert part.length == 3 * CHUNK and not part.complete
        part.resume()
        assert same(part.sequence, whole.sequence)


def test_what_was_saved_while_reading_outlives_the_reader(engine: Engine, project: Path, tmp_path: Path) -> None:
    chunks = 0

    def die() -> bool:
        nonlocal chunks
        chunks += 1
        if chunks == 4:
            raise SystemError("killed")
        return False

    with open_store(tmp_path / "store", create=True) as store:
        with pytest.raises(SystemError, match="killed"):
            Memory.read(engine, project, name="part", should_stop=die, root=store, save_every=0.0)
        assert memory_info("part", store).facts["totals"]["complete"] is False
        with Memory.read(engine, project) as whole, Memory.load(engine, "part", root=store) as part:
            assert part.length == 3 * CHUNK and part.problem == ""
            assert part.places.tokens == part.length and part.unread
            assert part.resume(save_every=0.0).kept == 3 * CHUNK and part.complete
            assert same(part.sequence, whole.sequence) and part.places.to_bytes() == whole.places.to_bytes()
            assert part.totals.run == whole.totals.run == whole.length


def test_resume_after_changes_equals_reading_it_at_once(engine: Engine, project: Path, tmp_path: Path) -> None:
    with Memory.read(engine, project) as memory:
        memory.save(tmp_path / "saved")
        assert memory.resume() == foveal.memory.Resumed(memory.length)
        (project / "m4.py").write_text("changed = True\n" * 20)
        (project / "m6.py").write_text("new = True\n")
        with Memory.load(engine, tmp_path / "saved") as loaded:
            found = loaded.resume()
            assert found.changed == ("m4.py",) and 0 < found.kept < memory.length
            with read_at_once(engine, loaded) as fresh_sequence:
                assert same(loaded.sequence, fresh_sequence)
            (project / "m7.py").write_text("one_more = 1\n")
            before = loaded.length
            assert loaded.resume().kept == before, "an added file costs one chunk"
            (project / "m0.py").unlink()
            (project / "a.py").write_text("first = 1\n")
            assert loaded.resume().changed == ("m0.py",)
            paths = [path for path, _, _ in loaded.places.documents]
            assert paths == [*(f"m{number}.py" for number in (1, 2, 3, 5, 4, 6, 7)), "a.py"], "what is new comes last"
            with read_at_once(engine, loaded) as fresh_sequence:
                assert same(loaded.sequence, fresh_sequence)
        memory.resume()
        with read_at_once(engine, memory) as fresh_sequence:
            assert same(memory.sequence, fresh_sequence)


def test_going_back_uses_kept_tails(engine: Engine, project: Path, tmp_path: Path) -> None:
    with Memory.read(engine, project, tail_every=2 * CHUNK) as memory:
        memory.save(tmp_path / "m")
        (project / "m5.py").write_text("other = 1\n")
        with Memory.load(engine, tmp_path / "m") as loaded, Memory.read(engine, project) as fresh:
            kept = {tail.position for tail in memory.sequence.kept_tails}
            assert len(kept) > 3 and kept <= {tail.position for tail in loaded.sequence.kept_tails}
            run: list[int] = []
            loaded.resume(progress=lambda p: run.append(p.tokens_done))
            assert min(n for n in run if n) > 2 * CHUNK, "it did not begin at the beginning"
            assert same(loaded.sequence, fresh.sequence)


def test_standard_input(engine: Engine) -> None:
    text = b"a = 1\nb = 2\n" * 40
    with Memory.read(engine, "-", stdin=io.BytesIO(text), should_stop=stop_after(1)) as memory:
        assert not memory.complete
        memory.resume(stdin=io.BytesIO(text))
        assert memory.complete and memory.locate(memory.length - 1) == ("<stdin>", 80)


# ---------------------------------------------------------------------- recall and fork


def test_recall_leaves_the_memory_as_it_was(engine: Engine, project: Path) -> None:
    with Memory.read(engine, project) as memory, memory.fork() as twin:
        first = memory.recall("def f2_1(x", max_tokens=12, ignore_eos=True)
        stream = memory.recall_stream("def f2_1(x", max_tokens=12, ignore_eos=True)
        with pytest.raises(ParameterError):
            _ = stream.result
        assert "".join(stream) == first.text == stream.result.text
        assert first == stream.result == twin.recall("def f2_1(x", max_tokens=12, ignore_eos=True)
        assert same(memory.sequence, twin.sequence)
        assert len(first.tokens) - first.healed in (12, 13)  # a healed token may already say more than the cue
        healed = engine.tokenizer.decode_bytes(first.tokens).decode(errors="replace")
        assert healed.endswith(first.text) and len(first.origins) == len(first.tokens)
        for citation in first.citations:
            count = (project / citation.path).read_text().count("\n")
            assert 1 <= citation.first_line <= citation.last_line <= count + 1 and 0 < citation.share <= 1
        assert 0 < sum(citation.share for citation in first.citations) <= 1 + 1e-9


def test_blanks_stand_before_the_cue_of_a_model_that_wants_them(
    engine: Engine, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    go_on = engine.go_on
    monkeypatch.setattr(
        engine, "go_on", lambda own, prompt, *a, **k: seen.append(prompt) or go_on(own, prompt, *a, **k)
    )
    with Memory.read(engine, project) as memory:
        memory.recall("def f2_1(x", max_tokens=1)
        monkeypatch.setattr(engine, "recall_blanks", 30)
        memory.recall("def f2_1(x", max_tokens=1)
        memory.recall("def", max_tokens=1)
    plain, behind, *opened, word = map(list, seen)
    assert behind == [2] * 30 + plain and word == [2] * 30
    assert [engine.tokenizer.decode(other[30:])[:4] for other in opened] == [" def", "\ndef", "\n\nde"]


def test_the_tokenizer_config_says_how_many_blanks(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", seed=1)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    assert Engine.open(folder).recall_blanks == 0
    (folder / "tokenizer_config.json").write_text('{"foveal_recall_blanks": 25}')
    assert Engine.open(folder).recall_blanks == 25
    (folder / "tokenizer_config.json").write_text('{"foveal_recall_blanks": "many"}')
    with pytest.raises(FileNotFoundError, match="tokenizer_config"):
        Engine.open(folder)


def test_recall_can_be_abandoned_and_refuses_an_empty_cue(engine: Engine, project: Path) -> None:
    with Memory.read(engine, project) as memory:
        stream = memory.recall_stream("import", max_tokens=50, ignore_eos=True)
        for _ in stream:
            break
        stream.close()
        assert stream.result.finish_reason == "cancelled"
        unused = memory.recall_stream("import")
        unused.close()
        assert unused.result.text == ""
        with pytest.raises(ParameterError, match="cue"):
            memory.recall("")
        word = memory.recall("def", max_tokens=3, ignore_eos=True)  # one word: nothing stands before what is healed
        assert engine.tokenizer.decode_bytes(word.tokens).startswith(b"def")


def test_healing_chooses_the_cue_s_last_token_anew(engine: Engine, project: Path) -> None:
    with Memory.read(engine, project) as memory:
        for cue in ("def f1_0(x):", "    return x * 1", "def f1"):
            whole = memory.recall(cue, max_tokens=5, ignore_eos=True)
            said = engine.tokenizer.decode_bytes(whole.tokens)
            plain = memory.recall(cue, max_tokens=5, ignore_eos=True, healing=False)
            assert plain.healed == 0 and len(plain.tokens) == 5
            typed = next(n for n in range(len(cue), 0, -1) if said.startswith(cue[-n:].encode()))
            assert said[typed:].decode(errors="replace").startswith(whole.text[:1])


# ---------------------------------------------------------------------- saving


LENGTHS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 127, 128, 129, 130, 255, 256, 257, 383, 384, 385, 511, 512, 513]


@pytest.mark.parametrize("kv", [CacheFormat(), CacheFormat("fp8", "fp4")], ids=str)
def test_save_load_continue_equals_continue(tmp_path: Path, kv: CacheFormat) -> None:
    config = TINY.replace(head_dim=80, index_head_dim=32) if kv.kv == "fp8" else TINY
    engine = make_engine(config, kv=kv)
    reader = make_engine(config, kv=kv)  # nothing is shared with the one that saved
    dice = random.Random(7)
    ids = [dice.randrange(300, 4000) for _ in range(max(LENGTHS))]
    sequence = engine.new_sequence()
    for length in LENGTHS:
        engine.prefill(sequence, ids[sequence.length : length])
        totals = foveal.memory.ReadTotals(tokens=length, complete=True)
        options = foveal.memory.SourceOptions("-")
        Memory(engine, sequence, _places(engine, length), options, totals).save(tmp_path / "m")
        with Memory.load(reader, tmp_path / "m") as loaded:
            assert same(sequence, loaded.sequence)
            settings = {"max_tokens": 3, "ignore_eos": True, "logprobs": 2}
            expected = engine.generate([5, 6, 7], base=sequence, **settings)
            assert reader.generate([5, 6, 7], base=loaded.sequence, **settings) == expected
    sequence.free()
    assert engine.pool.live == reader.pool.live == 0


def _places(engine: Engine, tokens: int) -> foveal.sources.SourceMap:
    places = foveal.sources.SourceMap()
    document = foveal.sources.Document("a.txt", "word " * (tokens + 8))
    places.append(foveal.sources.tokenize_document(document, engine.tokenizer))
    places.truncate(tokens)
    return places


def test_a_new_process_goes_on_exactly(project: Path, tmp_path: Path) -> None:
    engine = Engine.open(write_model(tmp_path / "model", 1, TINY), threads=1)
    with Memory.read(engine, project) as memory:
        memory.save(tmp_path / "m")
        expected = memory.recall("def f3_1(", max_tokens=8, ignore_eos=True)
    program = (
        "import sys, json, foveal\n"
        "engine = foveal.Engine.open(sys.argv[1], threads=1)\n"
        "memory = foveal.Memory.load(engine, sys.argv[2])\n"
        "answer = memory.recall('def f3_1(', max_tokens=8, ignore_eos=True)\n"
        "print(json.dumps([answer.tokens, [s.logprob for s in answer.sampled], [str(c) for c in answer.citations]]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model"), str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tokens, logprobs, citations = json.loads(done.stdout)
    assert tuple(tokens) == expected.tokens and logprobs == [s.logprob for s in expected.sampled]
    assert citations == [str(c) for c in expected.citations]


@pytest.fixture(scope="module")
def saved(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with Memory.read(engine, write_project(folder / "project")) as memory:
        assert memory.save(folder / "store" / "m") == folder / "store"
    return folder / "store"


def test_loading_with_anything_else_names_the_difference(saved: Path) -> None:
    theta = TINY.replace(compress_rope_theta=10000.0)
    for other, differing in [
        (make_engine(seed=2), ("weights",)),
        (make_engine(kv=CacheFormat("fp32", "fp32")), ("number format",)),
        (make_engine(theta), ("rotary settings",)),
        (make_engine(TINY.replace(index_topk=8)), ("architecture",)),
    ]:
        with pytest.raises(FingerprintMismatch, match=differing[0]) as caught:
            Memory.load(other, saved / "m")
        assert caught.value.differing == differing and other.pool.live == 0
    other = make_engine()
    other.fingerprint = replace(other.fingerprint, tokenizer="another")
    with pytest.raises(FingerprintMismatch, match=r"another model \(different: tokenizer\); open that one"):
        Memory.load(other, saved / "m")


def test_damage_is_computed_again_by_the_network(engine: Engine, saved: Path, tmp_path: Path) -> None:
    with Memory.load(engine, saved / "m") as memory:
        expected = memory.recall("def f2_1(x", max_tokens=8, ignore_eos=True)
        reader = make_engine()
        size = (saved / "packs" / "0000000001.pack").stat().st_size
        dice = random.Random(5)
        for turn in range(6):
            copy = shutil.copytree(saved, tmp_path / f"copy{turn}")
            with open(copy / "packs" / "0000000001.pack", "r+b") as file:
                place = dice.randrange(200, size)
                file.seek(place)
                value = file.read(1)[0]
                file.seek(place)
                file.write(bytes([value ^ 1 << dice.randrange(8)]))
            with Memory.load(reader, copy / "m") as loaded:
                assert same(loaded.sequence, memory.sequence)
                assert loaded.recall("def f2_1(x", max_tokens=8, ignore_eos=True) == expected


def test_what_was_evicted_is_computed_again_by_the_network(engine: Engine, saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    reader = make_engine()
    assert eviction.evict(open_store(copy), 0).pages > 0
    with Memory.load(engine, saved / "m") as memory, Memory.load(reader, copy / "m") as loaded:
        assert same(loaded.sequence, memory.sequence)


def test_saving_over_an_old_one_replaces_it_whole(engine: Engine, project: Path, tmp_path: Path) -> None:
    with Memory.read(engine, project, should_stop=stop_after(2)) as memory:
        memory.save(tmp_path / "m")
        memory.resume()
        memory.save(tmp_path / "m")
        with Memory.load(engine, tmp_path / "m") as loaded:
            assert same(loaded.sequence, memory.sequence)
        assert [info.name for info in list_memories(tmp_path)] == ["m"]


def test_a_failed_save_leaves_the_old_one(
    engine: Engine, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Memory.read(engine, project, should_stop=stop_after(2)) as memory:
        memory.save(tmp_path / "m")
        memory.resume()

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space"):
            patch.setattr(os, "fsync", full)
            memory.save(tmp_path / "m")
    with Memory.load(engine, tmp_path / "m") as loaded:
        assert loaded.length == 2 * CHUNK


def test_a_source_that_begins_like_a_stored_one_is_not_read_again(
    engine: Engine, project: Path, tmp_path: Path
) -> None:
    store = open_store(tmp_path / "store")
    with Memory.read(engine, project, name="one", root=store, tail_every="full") as one:
        one.save(root=store)
    (project / "z.py").write_text("behind = everything\n" * 30)
    reader, run = make_engine(), []
    with Memory.read(
        reader, project, root=store, tail_every="full", progress=lambda p: run.append(p.tokens_done if p.exact else 0)
    ) as two:
        first = min(done for done in run if done)
        assert first > 256, "it began behind what the store has"
        with Memory.read(engine, project) as fresh:
            assert same(two.sequence, fresh.sequence) and two.places.to_bytes() == fresh.places.to_bytes()


@pytest.mark.parametrize("policy", ["auto", "full", "none", 128])
def test_tail_policies(engine: Engine, project: Path, tmp_path: Path, policy: TailEvery) -> None:
    with Memory.read(engine, project, tail_every=policy) as memory:
        memory.save(tmp_path / "m")
        with Memory.load(make_engine(), tmp_path / "m") as loaded:
            assert same(loaded.sequence, memory.sequence) and loaded.tail_every == policy
    with pytest.raises(ReadError, match="tails every"):
        Memory.read(engine, project, tail_every=0)


def test_forks_remember_where_they_come_from(engine: Engine, project: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    with Memory.read(engine, project, name="base", root=store) as memory:
        memory.save(root=store)
        with memory.fork() as fork:
            fork.save("fork", root=store)
            assert fork.length == memory.length
        info = memory_info("fork", store, sizes=True)
        assert info.facts["parent"] == "base" and info.facts["forked_at"] == memory.length
        contexts.fork(store, "base", "part", at=300)
        with Memory.load(engine, "part", root=store) as part:
            assert part.length == 300 and not part.complete
            part.resume()
            assert part.complete and same(part.sequence, memory.sequence)


# ---------------------------------------------------------------------- names


def test_the_store(engine: Engine, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_STORE", str(tmp_path / "deep" / "store"))
    assert list_memories() == []
    with Memory.read(engine, project, name="b-1.x") as memory:
        assert memory.save() == tmp_path / "deep" / "store"
        memory.name = "a"
        memory.save()
    with Memory.load(engine, "a") as elsewhere:
        assert elsewhere.save(root=tmp_path / "other") == elsewhere.save() == tmp_path / "other"
    infos = list_memories()
    assert [info.name for info in infos] == ["a", "b-1.x"]
    assert infos[0].facts["totals"]["files"] == 6 and infos[0].problem is None
    assert infos[0].facts["shared_bytes"] > infos[0].facts["own_bytes"] > 0
    with Memory.load(engine, "a") as loaded:
        assert loaded.name == "a" and loaded.complete
    delete_memory("a")
    assert [info.name for info in list_memories()] == ["b-1.x"]
    for missing in (delete_memory, lambda name: Memory.load(engine, name)):
        with pytest.raises(MemoryNotFound):
            missing("a")
    assert stat.S_IMODE(store_root().stat().st_mode) == 0o700


def test_a_store_made_anew_at_the_same_place_is_another(engine: Engine, project: Path, tmp_path: Path) -> None:
    with Memory.read(engine, project, name="m") as memory:
        memory.save(root=tmp_path / "store")
        held = open_store(tmp_path / "store")
        shutil.rmtree(tmp_path / "store")
        assert list_memories(tmp_path / "store") == []
        memory.save(root=tmp_path / "store")
        assert open_store(tmp_path / "store") is not held
        Memory.load(engine, "m", root=tmp_path / "store").free()


def test_folders_of_earlier_versions_are_named(engine: Engine, tmp_path: Path) -> None:
    open_store(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("{}")
    with pytest.raises(MemoryNotFound, match="earlier version"):
        memory_info("old", tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-rf", "a\n", "a\0", "é", "x" * 101])
def test_names_that_are_paths_are_refused(engine: Engine, tmp_path: Path, name: str) -> None:
    for use in (memory_info, delete_memory, lambda n: Memory.load(engine, n, root=tmp_path)):
        with pytest.raises(InvalidName):
            use(name)


def test_the_key_may_stand_in_the_environment(
    engine: Engine, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "key").write_text("12" * 32)
    os.chmod(tmp_path / "key", 0o600)
    monkeypatch.setenv("FOVEAL_STORE_KEY_FILE", str(tmp_path / "key"))
    with Memory.read(engine, project, name="m") as memory:
        memory.save(root=tmp_path / "store")
        monkeypatch.setenv("FOVEAL_STORE_KEY", "12" * 32)
        with Memory.load(engine, "m", root=tmp_path / "store") as loaded:
            assert same(loaded.sequence, memory.sequence)
        monkeypatch.delenv("FOVEAL_STORE_KEY")
        monkeypatch.delenv("FOVEAL_STORE_KEY_FILE")
        with pytest.raises(StoreError, match="encrypted"):
            Memory.load(engine, "m", root=tmp_path / "store")
        with pytest.raises(StoreError, match="durability"):
            open_store(tmp_path / "other", durability="perhaps")  # type: ignore[arg-type]
