"""`foveal export`, `import` and `verify --recompute` as a person uses them, with a small model and with nano."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_support import Foveal as WithoutCodes
from cli_support import write_model
from click.testing import Result
from transfer_support import apart, with_page, with_record

from foveal.cli import recomputing
from foveal.memory.cited import lines_of
from foveal.memory.options import SourceOptions
from foveal.store.errors import ReadError
from foveal.store.exported import PAGE

pytestmark = pytest.mark.slow


class Foveal(WithoutCodes):
    """The command line, also where it fails."""

    def __call__(self, *arguments: str, input: str | None = None) -> Result:
        named = ["--model", str(self.model)] if "--recompute" in arguments else []
        return super().__call__(*arguments, *named, input=input)

    def json(self, *arguments: str, input: str | None = None, code: int = 0) -> Any:
        result = self(*arguments, "--json", input=input)
        assert result.exit_code == code, result.stderr
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.py").write_text("def alpha(x):\n    return x + 1\n")
    (folder / "long.py").write_text("".join(f"value_{i} = {i * i}\n" for i in range(150)))
    return folder


@pytest.fixture
def file(tmp_path: Path, model: Path, source: Path) -> Path:
    """What somebody else exported."""
    other = Foveal(tmp_path / "other", model)
    other.json("read", str(source), "-n", "s")
    made = tmp_path / "s.foveal"
    assert other("export", "s", str(made)).exit_code == 0
    return made


@pytest.fixture
def foveal(tmp_path: Path, model: Path) -> Foveal:
    return Foveal(tmp_path / "store", model)


def forge(file: Path) -> None:
    file.write_bytes(with_page(file.read_bytes(), 1, lambda page: page.__setitem__(40, page[40] ^ 8)))


def test_an_import_is_a_strangers_until_it_was_computed_again(foveal: Foveal, source: Path, file: Path) -> None:
    told = foveal("import", str(file))
    assert told.exit_code == 0 and "verify --recompute s" in told.stderr and told.stderr.count("\n") == 1
    (listed,) = foveal.json("ls")["memories"]
    assert len(listed["origin"]) == 64 and listed["elsewhere"] and listed["source"] == str(source)
    assert "(elsewhere)" in foveal("ls").stdout and "imported" in foveal("show", "s").stdout
    assert foveal.json("read", str(source), "-n", "own")["reused_tokens"] == 0
    told = foveal.json("verify", "--recompute", "s")
    assert told["sound"] and told["recomputed"]["adopted"] == ["s"] and told["recomputed"]["complete"]
    assert told["recomputed"]["tokens"] == listed["tokens"] and told["recomputed"]["unchecked"] == {}
    shown = foveal.json("show", "s")
    assert shown["origin"] is None and shown["elsewhere"], "its source is still on another machine"
    assert shown["shared_bytes"] > 0, "with what was read here"
    done = foveal("verify", "--recompute")
    assert done.exit_code == 0 and "all as the network computes them" in done.stderr


def test_a_forged_one_is_found_out(foveal: Foveal, source: Path, file: Path) -> None:
    forge(file)
    foveal.json("import", str(file))
    assert foveal("verify").exit_code == 0
    assert foveal.json("read", str(source), "-n", "own")["reused_tokens"] == 0
    done = foveal("verify", "--recompute")
    assert done.exit_code == 1 and "page of s: page 1 (tokens 256 to 511) is not what the network" in done.stdout
    assert foveal("verify", "--recompute", "own").exit_code == 0
    sampled = foveal.json("verify", "--recompute", "--sample", "100", code=1)
    assert {name for problem in sampled["problems"] for name in problem["memories"]} == {"s"}
    assert foveal.json("verify", "--recompute", "--repair", code=1)["recomputed"]["repaired"] == ["s"]
    assert foveal.json("verify", "--recompute")["sound"] and foveal.json("show", "s")["origin"] is None


def test_trusted_and_with_its_source(foveal: Foveal, source: Path, file: Path) -> None:
    assert foveal.json("import", str(file), "--trust", "--source", str(source))["origin"] is None
    assert foveal.json("read", str(source), "-n", "own")["reused_tokens"] > 0
    shown = foveal.json("show", "s")
    assert not shown["elsewhere"] and shown["source"] == str(source)
    assert foveal.json("sync", "s")["up_to_date"]
    assert foveal("import", str(file), "-n", "t", "--source", str(source / "nope")).exit_code == 1


def test_a_strangers_paths_are_never_opened(foveal: Foveal, source: Path, file: Path, tmp_path: Path) -> None:
    """Not even by a path that is right here; until one says so."""
    foveal.json("import", str(file))
    shown = foveal("recall", "s", "def alpha(", "--lines", "--max-tokens", "4")
    assert shown.exit_code == 0 and "cannot be shown" in shown.stdout and "sync NAME --source" in shown.stdout
    for arguments in (("sync", "s"), ("sync", "s", "--dry-run")):
        refused = foveal(*arguments)
        assert refused.exit_code == 1 and "--source PATH" in refused.stderr and refused.stderr.count("\n") == 1
    refused = foveal("read", str(source), "-n", "s")
    assert refused.exit_code == 1 and "was imported" in refused.stderr
    moved = tmp_path / "moved"
    source.rename(moved)
    (moved / "a.py").write_text("def alpha(x):\n    return x + 2\n")
    told = foveal.json("sync", "s", "--source", str(moved), "--append")
    assert told["source"] == str(moved) and told["changed"] == ["a.py"]
    told = foveal.json("show", "s")
    assert not told["elsewhere"] and told["source"] == str(moved) and told["origin"], "its pages are still theirs"
    shown = foveal("recall", "s", "value_12 = ", "--lines", "--max-tokens", "4")
    assert "cannot be shown" not in shown.stdout


def test_odd_records_are_refused_in_one_line(foveal: Foveal, file: Path) -> None:
    data = file.read_bytes()
    for change, said in (
        ({"created": None}, "created: must be a string, it is null"),
        ({"name": "../x"}, "name: '../x' is not a name"),
        ({"rest": {}}, "rest: must be a list, it is an object"),
        ({"a\x1b[31m": 1}, "unknown field"),
    ):
        file.write_bytes(with_record(data, lambda record, change=change: record.update(change)))  # type: ignore[misc]
        refused = foveal("import", str(file), "-n", "t")
        assert refused.exit_code == 1 and said in refused.stderr and refused.stderr.count("\n") == 1
        assert "\x1b" not in refused.stderr
    assert foveal.json("ls")["memories"] == []


@pytest.mark.parametrize("byte", [0x7F, 0x80, 0xFF])
def test_a_state_of_garbage_breaks_nothing(foveal: Foveal, file: Path, byte: int) -> None:
    """Numbers that are none, infinite, or anything else: a text, or one line that says so."""
    data = file.read_bytes()
    for number in range(sum(what == PAGE for what, _ in apart(data))):
        data = with_page(data, number, lambda page: page.__setitem__(slice(None), bytes([byte]) * len(page)))
    file.write_bytes(data)
    foveal.json("import", str(file))
    done = foveal("recall", "s", "value_12 = ", "--max-tokens", "4")
    assert done.exit_code in (0, 1) and done.stderr.count("\n") == done.exit_code
    assert "checkpoint" not in done.stderr, "the weights are as they should be"


def test_export_writes_a_whole_file_or_none(foveal: Foveal, source: Path, tmp_path: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    target = tmp_path / "out" / ("x" * 250)
    target.parent.mkdir()
    target.write_text("before")
    assert foveal("export", "nope", str(target)).exit_code == 1
    nowhere = foveal("export", "s", str(tmp_path / "none" / "f"))
    assert nowhere.exit_code == 1 and f"there is no folder {tmp_path / 'none'}" in nowhere.stderr
    assert target.read_text() == "before" and list(target.parent.iterdir()) == [target]
    assert foveal("export", "s", str(target)).exit_code == 0
    assert target.stat().st_mode & 0o777 == 0o600 and apart(target.read_bytes())
    assert list(target.parent.iterdir()) == [target]


def test_computing_again_can_be_stopped(
    foveal: Foveal, file: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    foveal.json("import", str(file))

    class Stopping(recomputing.ComputingBar):
        def __call__(self, progress: Any) -> None:
            super().__call__(progress)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(recomputing, "ComputingBar", Stopping)
    stopped = foveal("verify", "--recompute")
    assert stopped.exit_code == 130 and "go on" in stopped.stderr
    monkeypatch.undo()
    assert foveal.json("verify", "--recompute")["recomputed"]["adopted"] == ["s"]


def test_what_no_model_here_made_is_told(foveal: Foveal, file: Path, tmp_path: Path, source: Path) -> None:
    foveal.json("import", str(file))
    other = Foveal(foveal.store, write_model(tmp_path / "model-2", seed=2))
    told = other.json("verify", "--recompute", code=1)
    assert "weights" in told["recomputed"]["unchecked"]["s"] and told["problems"] == []
    assert other("verify", "--sample", "3").exit_code == 2


# ---------------------------------------------------------------------- cited files


def test_cited_files_lie_below_the_source(tmp_path: Path) -> None:
    source, outside = tmp_path / "source", tmp_path / "secret"
    (source / "sub").mkdir(parents=True)
    outside.write_text("secret")
    (source / "sub" / "a.py").write_text("a")
    (source / "inner").symlink_to(source / "sub")
    (source / "out").symlink_to(tmp_path)
    (source / "link").symlink_to(outside)
    (source / "loop").symlink_to(source / "loop")
    os.mkfifo(source / "pipe")
    options = SourceOptions(str(source))
    assert lines_of(options, "sub/a.py") == [(1, "a")]
    assert lines_of(options, "inner/a.py") == [(1, "a")]
    for path in ("../secret", "/etc/passwd", "out/secret", "link", "loop", "pipe", "sub", "nope", "", "a\0b", "\ud800"):
        with pytest.raises(ReadError):
            lines_of(options, path)
    (tmp_path / "way").symlink_to(source)
    assert lines_of(SourceOptions(str(tmp_path / "way")), "sub/a.py") == [(1, "a")]
    assert lines_of(SourceOptions(str(outside)), "secret") == [(1, "secret")]
    for options in (
        SourceOptions("-"),
        SourceOptions(str(source), elsewhere=True),
        SourceOptions(str(tmp_path / "no")),
    ):
        with pytest.raises(ReadError):
            lines_of(options, "sub/a.py")


# ---------------------------------------------------------------------- nano


def test_with_nano(tmp_path: Path, source: Path) -> None:
    """The network itself, on a few hundred tokens: what was read here comes out again, bit for bit."""
    nano = Foveal(tmp_path / "nano", Path("nano"))
    (source / "long.py").write_text("".join(f"value_{i} = {i * i}\n" for i in range(80)))
    nano.json("read", str(source), "-n", "s")
    assert nano("export", "s", str(tmp_path / "f")).exit_code == 0
    nano.json("import", str(tmp_path / "f"), "-n", "t")
    told = nano.json("verify", "--recompute")
    assert told["sound"] and told["recomputed"]["adopted"] == ["t"] and told["recomputed"]["pages"] >= 4
