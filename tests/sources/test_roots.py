"""Several paths as one source, what their files are called, streams, and the lines of a cited file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from foveal.sources import Document, SourceError, cited_lines, is_stream, read_source


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}\n")
    return root


def read(*paths: Path, exclude: tuple[str, ...] = ()) -> dict[str, str]:
    found = read_source([*map(str, paths)], exclude=exclude)
    return {item.path: item.text for item in found if isinstance(item, Document)}


def test_each_path_is_known_by_its_last_name(tmp_path: Path) -> None:
    make(tmp_path, "src/a.py", "docs/b.md", "c.txt")
    found = read(tmp_path / "src", tmp_path / "docs", tmp_path / "c.txt")
    assert list(found) == ["src/a.py", "docs/b.md", "c.txt"]
    assert list(read(tmp_path / "docs", tmp_path / "src", exclude=("src/a.py",))) == ["docs/b.md"]
    assert list(read(tmp_path / "src")) == ["a.py"]
    assert list(read(tmp_path / "src", tmp_path / "src")) == ["a.py"]


def test_equal_names_are_told_apart_by_the_folders_before_them(tmp_path: Path) -> None:
    make(tmp_path, "one/src/a.py", "two/src/a.py", "docs/a.py", "x/a.py")
    assert set(read(tmp_path / "one/src", tmp_path / "two/src")) == {"one/src/a.py", "two/src/a.py"}
    assert set(read(tmp_path / "docs/a.py", tmp_path / "x/a.py", tmp_path / "docs")) == {"docs/a.py", "x/a.py"}
    other = make(tmp_path / "other", "one/src/a.py")
    assert len(read(tmp_path / "one", other / "one" / "src", tmp_path / "two" / "src")) == 3


def test_a_file_is_read_once(tmp_path: Path) -> None:
    make(tmp_path, "p/src/a.py", "p/b.py")
    assert set(read(tmp_path / "p", tmp_path / "p/src")) == {"p/b.py", "p/src/a.py"}
    assert set(read(tmp_path / "p/src", tmp_path / "p")) == {"src/a.py", "p/b.py"}


def test_cited_lines_are_those_of_the_right_root(tmp_path: Path) -> None:
    make(tmp_path, "src/a.py", "docs/a.py", "secret")
    text = "\ufeffGröße\nzwei\rnoch zwei\r\n\x0cdrei\u2028"
    (tmp_path / "src" / "w.txt").write_bytes(text.encode("utf-16-le"))
    roots = [str(tmp_path / "src"), str(tmp_path / "docs")]
    assert cited_lines(roots, "docs/a.py") == [(1, "docs/a.py")]
    assert cited_lines(roots, "src/w.txt") == [(1, "Größe"), (2, "zwei\rnoch zwei\r"), (3, "\x0cdrei\u2028")]
    (tmp_path / "src" / "w.txt").write_bytes("# 中文\n".encode("gbk"))
    assert cited_lines(roots[:1], "w.txt") == [(1, "# 中文")]
    (tmp_path / "src" / "out").symlink_to(tmp_path / "secret")
    for path in ("src/../../secret", "src//etc/passwd", "src/out", "/etc/passwd", "../secret", "secret"):
        with pytest.raises(SourceError):
            cited_lines(roots, path)
    with pytest.raises(SourceError, match="No such file"):
        cited_lines(roots, "src/gone.py")


def test_pipes_are_read_as_streams(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"piped\n")
    os.close(writing)
    path = f"/dev/fd/{reading}"
    assert is_stream(path)
    assert list(read_source(path)) == [Document(f"<pipe {reading}>", "piped\n")]
    os.close(reading)
    named = tmp_path / "named"
    os.mkfifo(named)
    writer = threading.Thread(target=named.write_text, args=("named\n",))
    writer.start()
    assert list(read_source(named)) == [Document("named", "named\n")]
    writer.join()
    assert not is_stream(str(tmp_path)) and not is_stream(str(tmp_path / "gone"))
    assert is_stream("-") and is_stream("/dev/stdin") and is_stream(str(named))


def test_an_endless_device_ends() -> None:
    (item,) = read_source("/dev/zero")
    assert not isinstance(item, Document)
