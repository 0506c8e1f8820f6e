"""`foveal sync`: told before it is done, asked on a terminal, interrupted, refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from cli_support import Foveal, write_model

from foveal.cli import progress as cli_progress
from foveal.cli.commands import sync
from foveal.memory import Progress
from foveal.memory.names import open_store
from foveal.store.usage import disk_bytes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.py").write_text("".join(f"{name}_{i} = {i * i}\n" for i in range(150)))
    return folder


@pytest.fixture
def foveal(tmp_path: Path, model: Path, source: Path) -> Foveal:
    made = Foveal(tmp_path / "store", model)
    made.json("read", str(source), "-n", "s")
    return made


def edit(source: Path) -> None:
    (source / "a.py").write_text((source / "a.py").read_text().replace("a_7 = 49", "a_7 = 'seven'"))
    (source / "b.py").unlink()
    (source / "d.py").write_text("d = 1\n")


def written(foveal: Foveal) -> int:
    return disk_bytes(open_store(foveal.store))


def test_nothing_changed_is_said_and_nothing_written(foveal: Foveal) -> None:
    before = written(foveal)
    for options in ((), ("--append",), ("--rebuild",)):
        told = foveal.json("sync", "s", *options)
        assert told["up_to_date"] and told["done"] is None and told["complete"]
        result = foveal("sync", "s", *options)
        assert result.exit_code == 0 and "nothing has changed" in result.stderr and not result.stdout
    assert written(foveal) == before


def test_a_dry_run_tells_and_does_nothing(foveal: Foveal, source: Path) -> None:
    edit(source)
    before, shown = written(foveal), foveal.json("show", "s")
    told = foveal.json("sync", "s", "--dry-run", "--append")
    assert (told["changed"], told["new"], told["removed"]) == (
        ["a.py"],
        ["d.py"],
        [{"path": "b.py", "reason": "deleted"}],
    )
    append, rebuild = told["costs"]["append"], told["costs"]["rebuild"]
    assert 0 < append["read"] < rebuild["read"] and append["seconds"] > 0 < append["store_bytes"]
    assert append["kept"] == told["tokens"] and rebuild["outdated"] == 0 < append["outdated"] < append["tokens"]
    assert told["done"] is None and not told["up_to_date"]
    result = foveal("sync", "s", "--dry-run")
    for word in (
        "changed (1): a.py",
        "new (1): d.py",
        "removed (1): b.py",
        "--append",
        "--rebuild",
        f"{append['read']:,}",
    ):
        assert word in result.stderr
    assert written(foveal) == before and foveal.json("show", "s") == shown


@pytest.mark.parametrize("mode", ["append", "rebuild"])
def test_it_is_done_as_told(foveal: Foveal, source: Path, mode: str) -> None:
    foveal.json("fork", "s", "before")
    edit(source)
    told = foveal.json("sync", "s", f"--{mode}")
    assert (
        told["done"] == mode and told["tokens"] == told["costs"][mode]["tokens"] == foveal.json("show", "s")["tokens"]
    )
    assert foveal.json("sync", "s")["up_to_date"] and foveal.json("show", "s", "--verify")["files"] == 3
    assert (
        foveal.json("show", "before")["tokens"] != told["tokens"]
        and not foveal.json("sync", "before", "--dry-run")["up_to_date"]
    )
    again = foveal.json("read", str(source), "-n", "s")
    assert again["resumed"] == {"kept": told["tokens"], "changed": []}
    assert foveal.json("sync", "s", "--rebuild")["done"] == ("rebuild" if mode == "append" else None)
    assert foveal.json("sync", "s", "--dry-run")["outdated"] == 0


def test_costs_come_before_the_question_and_the_answer_decides(
    foveal: Foveal, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(source)
    monkeypatch.setattr(sync, "_on_terminal", lambda: True)
    none = foveal("sync", "s", input="what\nn\n")
    assert none.exit_code == 0 and none.stderr.index("--rebuild") < none.stderr.index("append, rebuild, or none?")
    assert none.stderr.count("or none?") == 2 and foveal.json("sync", "s", "--dry-run")["changed"]
    assert foveal("sync", "s", input="").exit_code == 130, "no answer is no consent"
    assert foveal("sync", "s", input="app\n").exit_code == 0
    assert foveal.json("sync", "s")["outdated"] > 0


def test_an_interrupted_sync_goes_on(foveal: Foveal, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "d.py").write_text("".join(f"d_{i} = {i * i}\n" for i in range(300)))
    (source / "a.py").write_text("a = 1\n")
    show = cli_progress.ReadingBar.__call__

    def interrupt(bar: cli_progress.ReadingBar, progress: Progress) -> None:
        show(bar, progress)
        if progress.exact:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(cli_progress.ReadingBar, "__call__", interrupt)
        cut = foveal("sync", "s", "--append", "--json")
    assert cut.exit_code == 130 and "run the same command again" in cut.stderr
    part = json.loads(cut.stdout)
    assert not part["complete"] and part["tokens"] < part["source_tokens"] == part["costs"]["append"]["tokens"]
    rest = foveal.json("sync", "s")
    assert rest["recommended"] == rest["done"] == "append" and rest["complete"]
    assert rest["tokens"] == part["source_tokens"]


def test_a_source_that_was_moved(foveal: Foveal, source: Path, tmp_path: Path) -> None:
    source.rename(tmp_path / "elsewhere")
    gone = foveal("sync", "s")
    assert gone.exit_code == 1 and "--source PATH" in gone.stderr and gone.stderr.count("\n") == 1
    told = foveal.json("sync", "s", "--source", str(tmp_path / "elsewhere"))
    assert told["up_to_date"] and told["source"] == str(tmp_path / "elsewhere")
    assert foveal.json("sync", "s")["up_to_date"], "it is remembered"


def test_what_is_refused_in_one_line(foveal: Foveal, source: Path, tmp_path: Path) -> None:
    foveal.json("read", "-", "-n", "piped", input="some text\n")
    other = write_model(tmp_path / "other", seed=2)
    for arguments, said in (
        (("nope",), "no memory"),
        (("piped",), "not read from files"),
        (("s", "--model", str(other)), "different: weights"),
        (("s", "--source", "-"), "name one"),
        (("s", "--source", "/nowhere"), "/nowhere"),
    ):
        result = foveal("sync", *arguments)
        assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert foveal("sync", "s", "--append", "--rebuild").exit_code == 2
    assert foveal.json("sync", "s")["up_to_date"]


# ---------------------------------------------------------------------- what is read


def test_several_paths_make_one_memory_that_can_be_synced(foveal: Foveal, tmp_path: Path) -> None:
    for name in ("src/a.py", "docs/b.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("".join(f"{name[0]}_{i} = {i}\n" for i in range(40)))
    paths = [str(tmp_path / "src"), str(tmp_path / "docs")]
    told = foveal.json("read", *paths, "-n", "two")
    assert told["sources"] == paths and told["files"] == 2
    assert foveal.json("sync", "two")["up_to_date"]
    (tmp_path / "docs" / "new.md").write_text("new = 1\n")
    told = foveal.json("sync", "two")
    assert told["new"] == ["docs/new.md"] and told["complete"]
    assert foveal("read", paths[0], "-n", "two").exit_code == 1
    assert foveal.json("read", *paths, "-n", "two")["resumed"]["changed"] == []
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "src").rename(moved / "src")
    assert foveal("sync", "two", "--source", str(moved / "src")).exit_code == 1
    told = foveal.json("sync", "two", "--source", str(moved / "src"), "--source", paths[1])
    assert told["up_to_date"] and told["sources"] == [str(moved / "src"), paths[1]]


def test_a_pipe_is_read_and_cannot_be_synced(foveal: Foveal) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"".join(b"piped_%d = %d\n" % (i, i) for i in range(20)))
    os.close(writing)
    assert foveal.json("read", f"/dev/fd/{reading}", "-n", "pipe")["files"] == 1
    os.close(reading)
    result = foveal("sync", "pipe")
    assert result.exit_code == 1 and "was not read from files" in result.stderr
    assert foveal.json("read", "/dev/stdin", "-n", "in", input="x = 1\n" * 9)["source"] == "-"
