"""A file from a stranger: refused whole, or taken in so that nothing but itself ever uses what it brought."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_support import CHUNK, Runner, random_tokens, same
from transfer_support import (
    apart,
    exported_memory,
    source_map,
    together,
    with_map,
    with_page,
    with_part,
    with_record,
    with_tail,
)

from foveal.memory.names import delete_memory, list_memories
from foveal.store import contexts, exported, gc, loading, saving, transfer
from foveal.store.errors import CorruptMemory, InvalidName, StoreError
from foveal.store.files import Disk
from foveal.store.objects import Context
from foveal.store.prefix import find_prefix, load_prefix
from foveal.store.records import Kind
from foveal.store.store import Store
from foveal.store.transfer import TransferError, import_file
from foveal.store.verify import verify

LENGTH = 1100


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A memory of 1,100 tokens as a file."""
    with Store(tmp_path_factory.mktemp("from") / "store", durability="off") as store:
        return exported_memory(store, Runner(), LENGTH)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", durability="off") as opened:
        yield opened


def take(store: Store, data: bytes, name: str | None = None, **options: Any) -> Context:
    return import_file(store, io.BytesIO(data), name, **options)


def load(store: Store, name: str, runner: Runner) -> loading.Loaded:
    return loading.load(store, store.context(name), runner.fingerprint, runner, chunk=CHUNK)


def forged(data: bytes) -> bytes:
    return with_page(data, 1, lambda page: page.__setitem__(slice(0, 64), bytes(range(64))))


def refused(store: Store, data: bytes, said: str = "") -> None:
    """The file is refused with one line, and the store is as it was."""
    before = store.look(lambda index: (index.contexts.all(), index.objects.all())), store.packs.files()
    with pytest.raises(TransferError, match=said or None) as error:
        take(store, data)
    assert "\n" not in str(error.value) and str(error.value).isprintable()
    assert (store.look(lambda index: (index.contexts.all(), index.objects.all())), store.packs.files()) == before


# ---------------------------------------------------------------------- whose bytes


def test_own_reads_never_take_a_strangers_pages(store: Store, data: bytes) -> None:
    runner, tokens = Runner(), random_tokens(LENGTH)
    made = take(store, forged(data))
    assert len(made.origin) == 64
    assert find_prefix(store, tokens, runner.fingerprint) is None
    assert load_prefix(store, tokens, runner.fingerprint, runner, chunk=CHUNK) is None
    own = runner.read(tokens)
    saving.save(store, "own", own, runner.fingerprint)
    assert same(load(store, "own", Runner()).sequence, own) and store.context("own").origin == ""
    theirs = load(store, "a", Runner())
    assert theirs.exact and not same(theirs.sequence, own), "it serves itself"
    assert verify(store).sound


def test_a_trusted_file_is_as_good_as_ones_own(store: Store, data: bytes) -> None:
    runner, tokens = Runner(), random_tokens(LENGTH)
    assert take(store, data, trust=True).origin == ""
    found = find_prefix(store, tokens, runner.fingerprint)
    assert found is not None and found.length == LENGTH and found.origin == ""
    before = store.packs.written
    saving.save(store, "own", runner.read(tokens), runner.fingerprint)
    assert store.packs.written - before < 3000 + 4 * runner.pool.layout.tail_bytes(LENGTH, mtp=True)


def test_twice_the_same_file_is_stored_once_and_two_files_are_not(store: Store, data: bytes) -> None:
    take(store, data)
    pages = len(store.look(lambda index: index.objects.all(Kind.PAGE)))
    take(store, data, "again")
    assert len(store.look(lambda index: index.objects.all(Kind.PAGE))) == pages
    take(store, with_record(data, lambda record: record.update(labels={"x": "y"})), "other")
    assert len(store.look(lambda index: index.objects.all(Kind.PAGE))) == 2 * pages
    assert verify(store).sound


@pytest.mark.parametrize("at", [100, 256, 1000, LENGTH])
def test_what_comes_of_an_import_stays_a_strangers(store: Store, data: bytes, at: int, tmp_path: Path) -> None:
    """Forks on disk and in memory, appends, other names, other stores, the same pages in one process."""
    take(store, forged(data))
    origin, runner = store.context("a").origin, Runner()
    assert contexts.fork(store, "a", "fork", at=at).origin == origin
    with load(store, "a", runner).sequence as theirs, theirs.fork() as child:
        dropped = child.truncate(at).tolist()
        runner.prefill(child, [*dropped, *random_tokens(300, seed=9).tolist()])
        left = origin if child.origin else ""  # from an empty tail on all was computed here
        assert bool(left) == (at >= 512)
        assert saving.save(store, "grown", child, runner.fingerprint).origin == left
        with Store(tmp_path / "other", durability="off") as other:
            assert saving.save(other, "moved", child, runner.fingerprint).origin == left
        assert find_prefix(store, theirs.tokens, runner.fingerprint, after=None, most=LENGTH) is None or not left
        saving.save(store, "again", theirs, runner.fingerprint)
    tokens = random_tokens(LENGTH)
    with runner.read(tokens) as own:
        saving.save(store, "own", own, runner.fingerprint)
        for name in ("grown", "again", "fork"):
            loaded = load(store, name, runner).sequence
            assert loaded.origin == store.context(name).origin and loaded.length == store.context(name).length
        assert same(load(store, "own", Runner()).sequence, own)
    store.repair()
    assert verify(store).sound and store.context("a").origin == origin


def test_a_prompt_behind_a_strangers_pages_finds_only_theirs(store: Store, data: bytes) -> None:
    runner, tokens, more = Runner(), random_tokens(LENGTH), random_tokens(600, seed=3)
    take(store, forged(data))
    whole = np.concatenate([tokens, more])
    with runner.read(whole) as own:
        saving.save(store, "own", own, runner.fingerprint)
    with load(store, "a", runner).sequence as theirs:
        assert find_prefix(store, whole, runner.fingerprint, after=theirs) is None
        with theirs.fork() as longer:
            runner.prefill(longer, more.tolist())
            saving.save(store, "theirs", longer, runner.fingerprint)
        found = find_prefix(store, whole, runner.fingerprint, after=theirs)
        assert found is not None and found.length == len(whole) and found.origin == theirs.origin
    with runner.read(tokens[:512]) as mine:
        found = find_prefix(store, whole, runner.fingerprint, after=mine)
        assert found is not None and found.origin == ""


def test_pages_that_all_had_to_be_computed_are_ours(store: Store, data: bytes) -> None:
    parts = [
        (what, payload[: exported.PAGE_HEAD] if what == exported.PAGE else payload) for what, payload in apart(data)
    ]
    wrong = [(what, bytes(16) + payload[16:] if what == exported.PAGE else payload) for what, payload in parts]
    take(store, together(part for part in wrong if part[0] != exported.TAIL))
    runner = Runner()
    loaded = load(store, "a", runner)
    assert not loaded.exact and same(loaded.sequence, Runner().read(random_tokens(LENGTH)))
    assert store.context("a").origin == "" and verify(store).sound
    assert find_prefix(store, random_tokens(LENGTH), runner.fingerprint) is not None


def test_an_exported_import_does_not_say_where_it_was_from(store: Store, data: bytes, tmp_path: Path) -> None:
    take(store, data)
    file = io.BytesIO()
    transfer.export(store, "a", file)
    assert b"origin" not in file.getvalue()[:3000]
    with Store(tmp_path / "third", durability="off") as third:
        assert take(third, file.getvalue()).origin not in ("", store.context("a").origin)


# ---------------------------------------------------------------------- the record


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


WRONG: list[tuple[str, Any]] = [
    *(("created", value) for value in (None, 1, [], "yesterday", "2024-13-01T00:00:00", "2024-01-01T00:00:00\n")),
    *(("name", value) for value in (None, "", "../x", "a\nb", "a\x1b[31m", ".a", "-a", "x" * 101, "a/b", "\ud800")),
    *(("parent", value) for value in ("../x", None, "a")),
    *(("length", value) for value in (None, -1, 1101, 1 << 60, 1e3, True, "1100")),
    *(("rest", value) for value in (None, [1], ["a"] * 76, [-1] * 76, [1 << 31] * 76, [True] * 76, [[]] * 76)),
    *(("tails", value) for value in (None, [[1, "00"]], 5)),
    *(("maps", value) for value in (None, [[1, "00"]])),
    *(("labels", value) for value in (None, [], {"a": 1}, {"a": None}, "x", {"a\n": "b"}, {"a": "\x1b"})),
    *(("fingerprint", value) for value in (None, {}, [], {"weights": 1}, dict.fromkeys("abcde", "x"))),
    *(
        ("facts", value)
        for value in (None, [], {"totals": None}, {"totals": {}}, {"source": "/x"}, {"deep": nested(40)})
    ),
    *(
        ("facts", value)
        for value in ({"cache": 5}, {"cache": "x"}, {"tail_every": 0}, {"model": None}, {"unread": [1]})
    ),
    *(("facts", value) for value in ({"page_bytes": 1 << 40}, {"big": 1 << 80}, {"appending": "yes"})),
    *(("pinned", value) for value in (None, 1, "yes")),
    *(("keeps_tails", value) for value in (None, 0)),
    *(("forked_at", value) for value in (-1, None, "1")),
    *(("head", value) for value in ("00", None)),
    *(("tenant", value) for value in ("00" * 32, None)),
    *(("version", value) for value in (2, None, True)),
    *(("unheard of", value) for value in (None, 1)),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: ascii(value)[:30])
def test_a_record_that_does_not_fit_is_refused_naming_the_field(
    store: Store, data: bytes, field: str, value: Any
) -> None:
    refused(store, with_record(data, lambda record: record.update({field: value})), field)


@pytest.mark.parametrize("key", ["skipped", "tokens", "seconds", "complete", "files"])
@pytest.mark.parametrize("value", [None, "x", -1, [1], [["a"]], {"a": {}}])
def test_facts_of_a_memory_have_their_types(store: Store, data: bytes, key: str, value: Any) -> None:
    refused(
        store,
        with_record(data, lambda record: record["facts"]["totals"].update({key: value})),
        rf"facts\.totals\.{key}",
    )


@pytest.mark.parametrize("within", ["source", "totals"])
def test_facts_that_nobody_knows_are_refused(store: Store, data: bytes, within: str) -> None:
    changed = with_record(data, lambda record: record["facts"][within].update({"unheard of": 1}))
    refused(store, changed, rf"facts\.{within}")


@pytest.mark.parametrize(
    "text", [b"{}", b"[]", b"", b"\xff", b"nan", b"[" * 100_000, b'{"length": 1e999}', b'{"a": NaN}']
)
def test_a_record_that_is_none_is_refused(store: Store, data: bytes, text: bytes) -> None:
    refused(store, together([(exported.CONTEXT, text), *apart(data)[1:]]))


def test_numbers_that_json_cannot_say_are_refused(store: Store, data: bytes) -> None:
    text = apart(data)[0][1].replace(b'"seconds":1.5', b'"seconds":1e999')
    refused(store, together([(exported.CONTEXT, text), *apart(data)[1:]]), "facts")


def test_a_bad_record_in_a_store_is_one_bad_record(store: Store, data: bytes) -> None:
    """As older versions took them in: it is told, everything else works, and it can be deleted."""
    take(store, data, "good")
    bad = {"version": 1, "name": "bad", "created": None, "length": [], "facts": {"totals": 1}}
    label = store.names.label("bad")

    class Odd(Context):
        record: dict[str, Any]

        def to_bytes(self) -> bytes:
            return json.dumps({**self.record, "tenant": self.tenant.hex()}).encode()

    def put(record: dict[str, Any]) -> None:
        odd = Odd("bad", store.names.tenant, {}, 0, b"")
        object.__setattr__(odd, "record", record)
        store.transact(lambda tx: tx.put_context(odd, []))

    for change in ({}, {"created": []}, {"length": {}}, {"facts": nested(900)}, {"tails": [[1, "zz"]]}):
        put({**bad, **change})
        found = {info.name: info.problem for info in list_memories(store)}
        assert found["good"] is None and "damaged" in str(found["?"])
        assert [problem.what for problem in verify(store).problems] == ["record"]
        take(store, data, "another")
        delete_memory("another", store)
        store.repair()
        with pytest.raises(StoreError):
            store.context("bad")
    delete_memory(label.hex()[:12], store)
    assert verify(store).sound and [info.name for info in list_memories(store)] == ["good"]


@pytest.mark.parametrize("name", ["../x", "", "a\nb", "a\x1b[31m", "ä", " "])
def test_any_name_that_is_in_a_store_can_be_deleted(store: Store, name: str) -> None:
    runner = Runner()
    saving.save(store, name, runner.read(random_tokens(300)), runner.fingerprint)
    assert [found.name for found in store.contexts() if isinstance(found, Context)] == [name]
    with pytest.raises(InvalidName):
        take(store, b"", name)
    with pytest.raises(StoreError, match="name"):
        transfer.export(store, name, io.BytesIO())
    delete_memory(name, store)
    assert store.contexts() == [] and verify(store).sound
    with pytest.raises(InvalidName):
        delete_memory(name, store)


@pytest.mark.parametrize(
    "changes", [{"labels": {"a": 1}}, {"created": "x"}, {"facts": {"a": float("nan")}}, {"facts": {"a": b""}}]
)
def test_what_could_not_be_read_again_is_not_written(store: Store, data: bytes, changes: dict[str, Any]) -> None:
    take(store, data)
    before = store.context("a")
    with pytest.raises(StoreError, match="does not fit"):
        contexts.change(store, "a", **changes)
    assert store.context("a") == before and verify(store).sound


# ---------------------------------------------------------------------- paths

PLACES = zlib.compress(np.zeros(76 + 1, "<i4").tobytes())


def named(data: bytes, path: Any) -> bytes:
    def change(payload: bytes) -> bytes:
        length = struct.unpack("<Q", payload[:8])[0]
        packed = zlib.compress(np.zeros(length + 1, "<i4").tobytes())
        return payload[:8] + source_map([[path, length, 1]], packed)

    return with_part(data, exported.MAP, change)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        "C:\\x",
        "c:/x",
        "\\\\host\\x",
        "..\\x",
        "",
        "a\0b",
        "./a",
        "a//b",
        "a/",
        "\ud800",
        "x" * 5000,
        5,
        None,
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_path_that_leads_out_of_the_source_is_refused(store: Store, data: bytes, path: Any) -> None:
    refused(store, named(data, path), "source map")


@pytest.mark.parametrize("path", ["a.txt", "a b/c\n.py", "..a/b..", "\udcff/x", "[id]/[slug].tsx", "-", "C:"])
def test_any_other_path_is_taken(store: Store, data: bytes, path: str) -> None:
    take(store, named(data, path))
    assert contexts.read_map(store, store.context("a")).documents[0][0] == path


def test_a_strangers_source_is_not_here(store: Store, data: bytes, tmp_path: Path) -> None:
    assert take(store, data).facts["source"]["elsewhere"] is True
    there = take(store, data, "b", source=[tmp_path]).facts["source"]
    assert there["source"] == str(tmp_path) and not there["elsewhere"]
    assert take(store, data, "c", trust=True).facts["source"]["elsewhere"] is True, "bytes are trusted, not paths"


# ---------------------------------------------------------------------- sizes


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [exported.CONTEXT, exported.PAGE, exported.TAIL, exported.MAP, exported.END])
@pytest.mark.parametrize("size", [3 << 30, 1 << 62, (1 << 64) - 1])
def test_a_small_file_that_declares_gigabytes_is_not_read(
    store: Store, data: bytes, tmp_path: Path, kind: bytes, size: int
) -> None:
    parts = apart(data)
    before = [part for part in parts if part[0] != kind] if kind != exported.PAGE else parts[:1]
    if kind == exported.CONTEXT:
        before = []
    start = together([part for part in before if part[0] < kind or kind != exported.TAIL], sealed=False)
    path = tmp_path / "sparse"
    path.write_bytes(start + exported.FRAME.pack(kind, 0, size, bytes(16)))
    os.truncate(path, min(size, 3 << 30) + len(start))
    with path.open("rb") as file:

        def attempt() -> None:
            with pytest.raises(TransferError):
                import_file(store, file)

        assert peak(attempt) < 4 << 20 and file.tell() < len(data) + (2 << 20)


def test_a_file_too_short_for_its_pages_is_refused_at_once(store: Store, data: bytes) -> None:
    refused(store, with_record(data, lambda record: record.update(length=(1 << 40) + 76)), "too short")


BOMB = zlib.compress(bytes(64 << 20), 9)


@pytest.mark.parametrize(
    "documents",
    [
        [["a", LENGTH, (16 << 20) - LENGTH]],
        [["a", LENGTH, 1]],
        [["a", 16 << 20, 1]],
        [["a", 1 << 62, 1]],
        [["a", LENGTH, 1 << 62]],
        [["a", -1, 1]],
        [["a", LENGTH, 0]],
        [["a", True, 1]],
        [["a", LENGTH]],
        [[]] * 100_000,
        {"a": 1},
        None,
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_source_map_that_expands_is_not_expanded(store: Store, data: bytes, documents: Any) -> None:
    made = with_map(data, source_map(documents, BOMB))
    assert peak(lambda: refused(store, made, "source map")) < 6 * len(made)


@pytest.mark.parametrize("packed", [b"", b"x", BOMB[:100], zlib.compress(b""), zlib.compress(b"\xff" * 4 * 1101)])
def test_places_that_are_none_are_refused(store: Store, data: bytes, packed: bytes) -> None:
    refused(store, with_map(data, source_map([["a", LENGTH, 1]], packed)), "source map")


@pytest.mark.parametrize(
    "payload", [b"", b"\0" * 7, struct.pack("<Q", 0), struct.pack("<Q", LENGTH), struct.pack("<Q", 1 << 63)]
)
def test_a_part_that_is_no_source_map_is_refused(store: Store, data: bytes, payload: bytes) -> None:
    refused(store, with_part(data, exported.MAP, lambda _: payload), "source map")


def test_tails_are_held_against_the_file(store: Store, data: bytes) -> None:
    for change in (
        lambda tail: replace(tail, position=LENGTH + 1, rest=tail.rest + tail.rest[:4]),
        lambda tail: replace(tail, position=512, rest=b""),
        lambda tail: replace(tail, rest=b"\1" + tail.rest[1:]),
        lambda tail: replace(tail, rest=tail.rest[:-4]),
        lambda tail: replace(tail, open_page=tail.open_page[:-1]),
        lambda tail: replace(tail, tensors=tail.tensors[:-1]),
        lambda tail: replace(tail, tensors=struct.pack("<Q", 1 << 62) + tail.tensors[8:]),
    ):
        refused(store, with_tail(data, change), "tail")
    refused(store, with_part(data, exported.TAIL, lambda payload: payload[:50]), "tail")
    refused(store, with_part(data, exported.TAIL, lambda payload: payload[:72] + b"\xff" * 8 + payload[80:]), "tail")


def test_arrays_of_types_that_nobody_knows_are_a_miss(store: Store, data: bytes) -> None:
    """The tail is computed again, like one that was damaged."""
    parts = []
    for what, payload in apart(data):
        header = payload.replace(b'"F32"', b'"F4" ') if what == exported.TAIL else payload
        parts.append(
            (what, header.replace(b'"dtype":"F4" ', b'"dtype": "U16"')) if what == exported.TAIL else (what, header)
        )
    try:
        take(store, together(parts))
    except TransferError:
        return
    assert load(store, "a", Runner()).sequence.length == LENGTH


def test_tokens_that_the_model_has_not_are_an_error_of_the_memory(store: Store, data: bytes) -> None:
    """Which tokens a model has is not known while a file is imported. (A file of changed tokens, found by fuzzing.)"""
    parts = apart(data)
    where = next(place for place, (what, _) in enumerate(parts) if what == exported.PAGE)
    payload = parts[where][1]
    parts[where] = (exported.PAGE, payload[:16] + struct.pack("<i", 8_720_505) + payload[20:])
    take(store, together(parts))
    with pytest.raises(CorruptMemory, match="that the model knows"):
        load(store, "a", Runner())
    assert verify(store).sound


def test_pages_are_held_against_the_record(store: Store, data: bytes) -> None:
    parts = apart(data)
    pages = [place for place, part in enumerate(parts) if part[0] == exported.PAGE]
    refused(store, together(parts[: pages[-1]] + parts[pages[-1] + 1 :]), "as many pages")
    refused(store, together([*parts[: pages[0]], parts[pages[0]], *parts[pages[0] :]]), "page")
    refused(store, together([*parts, parts[pages[0]]]), "no part")
    refused(store, together([*parts[1:], parts[0]]), "no part")
    refused(store, together([parts[0], *parts]), "no part")
    refused(store, together([*parts[:2], (b"\x1b[31", b""), *parts[2:]]), "no part")
    refused(store, with_page(data, 2, lambda page: page.append(0)), "impossible size")
    refused(store, with_page(data, 2, lambda page: page.pop()), "page 2")
    head = parts[pages[1]][1]
    negative = head[:16] + b"\xff\xff\xff\xff" + head[20:]
    refused(store, together([*parts[: pages[1]], (exported.PAGE, negative), *parts[pages[1] + 1 :]]), "page 1")


def test_a_large_file_takes_little_memory(tmp_path: Path, store: Store) -> None:
    """However long the memory is, about its largest part is held at a time, and its tokens."""
    with Store(tmp_path / "long", durability="off") as long:
        data = exported_memory(long, Runner(), 24_000)
    largest = max(len(payload) for _, payload in apart(data))
    assert len(data) > 20 * largest
    file = tmp_path / "file"
    file.write_bytes(data)
    with file.open("rb") as stream:
        assert peak(lambda: import_file(store, stream)) < 8 * largest + 8 * 24_000 + (1 << 20)


# ---------------------------------------------------------------------- files and disks


class FullDisk(Disk):
    """Has no room after so many bytes."""

    room: int | None = None

    def step(self, operation: Any, path: Path, size: int = 0) -> int:
        if self.room is not None and operation == "write":
            self.room -= size
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return size


@pytest.mark.parametrize("room", [0, 1000, 50_000, 200_000])
def test_a_full_disk_is_told_as_that(tmp_path: Path, data: bytes, room: int) -> None:
    disk = FullDisk()
    with Store(tmp_path / "store", durability="off", disk=disk) as store:
        take(store, data, "before")
        contexts.delete(store, "before")
        disk.room = room
        refused(store, data, r"no room for a: it takes about [\d,]+ bytes in .*, and about [\d,]+ are free")
        disk.room = None
        take(store, data)
        assert verify(store).sound


def test_a_pipe_that_a_full_disk_cannot_keep(store: Store, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(spool: Any, piece: bytes) -> None:
        spool.size += len(piece)
        if spool.size > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    monkeypatch.setattr(exported._Spool, "write", full)
    with pytest.raises(TransferError, match=r"more than [5-9]\d,\d+ bytes"):
        import_file(store, Pipe(data))
    assert store.contexts() == []


def test_what_cannot_fit_is_refused_before_anything_is_written(
    store: Store, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(store, data, "a")
    written = store.packs.written
    monkeypatch.setattr(transfer, "_free", lambda store: 10_000)
    refused(store, with_record(data, lambda record: record.update(name="b")), "no room for b")
    assert store.packs.written == written
    take(store, data, "again")  # it is there already


def test_the_room_that_is_asked_for_is_enough(store: Store, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(transfer, "_check_room", lambda store, context, checked: asked.append(checked.needed))
    before = store.packs.written
    take(store, data)
    assert store.packs.written - before <= asked[0] < 2 * len(data)


@pytest.mark.parametrize("key", [None, bytes(32)])
def test_through_a_pipe(tmp_path: Path, data: bytes, key: bytes | None) -> None:
    if key is not None:
        pytest.importorskip("cryptography")
    with Store(tmp_path / "store", durability="off", key=key) as store:
        for content, good in ((data, True), (data[:-1], False), (data + b"x", False), (b"", False)):
            read, write = os.pipe()

            def send(content: bytes = content, write: int = write) -> None:
                with open(write, "wb") as out, contextlib.suppress(BrokenPipeError):
                    out.write(content)

            sender = threading.Thread(target=send)
            sender.start()
            with open(read, "rb") as stream:
                if good:
                    import_file(store, stream)
                    assert same(load(store, "a", Runner()).sequence, Runner().read(random_tokens(LENGTH)))
                    contexts.delete(store, "a")
                else:
                    with pytest.raises(TransferError):
                        import_file(store, stream)
            sender.join()
        gc.collect(store, threshold=0)
        assert verify(store).sound and not [path for path in store.folder.iterdir() if path.name.startswith("tmp")]


def test_a_file_that_changes_while_it_is_read_is_refused(store: Store, data: bytes, tmp_path: Path) -> None:
    """What was checked is what is entered."""

    class Changing(io.BytesIO):
        readings = 0

        def seek(self, place: int, whence: int = 0) -> int:
            if whence == 0:
                self.readings += 1
                if self.readings == 2:
                    self.getbuffer()[:] = forged(data)
            return super().seek(place, whence)

    with pytest.raises(TransferError, match="changed while"):
        import_file(store, Changing(data))
    assert store.contexts() == []


def test_a_file_in_the_middle_of_a_stream(store: Store, data: bytes) -> None:
    stream = io.BytesIO(b"before" + data)
    stream.seek(6)
    assert import_file(store, stream).length == LENGTH
