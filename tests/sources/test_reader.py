"""Reading code bases: the right files in the right order, and a reason for everything else."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveal.sources import Document, Skipped, Source, SourceError, document_text, header_line, read_source


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read(source: Source) -> tuple[dict[str, str], dict[str, str]]:
    """Texts and reasons, by path."""
    items = list(source)
    documents = {item.path: item.text for item in items if isinstance(item, Document)}
    skipped = {item.path: item.reason for item in items if isinstance(item, Skipped)}
    assert len(documents) + len(skipped) == len(items)
    return documents, skipped


def test_order_is_that_of_the_paths_as_strings(tmp_path: Path) -> None:
    names = ["b.py", "a/x.py", "a-b/x.py", "a.py", "a/b/c.py", "a/b.py", "Z.py", "ä.py", "a0"]
    make(tmp_path, dict.fromkeys(names, "x\n"))
    paths = [item.path for item in read_source(tmp_path)]
    assert paths == sorted(names)


def test_a_document_is_header_text_and_line_end() -> None:
    assert document_text(Document("a/b.py", "x = 1\n")) == "# file: a/b.py\nx = 1\n"
    assert document_text(Document("a.py", "x = 1")) == "# file: a.py\nx = 1\n"
    assert document_text(Document("a.py", "x\r")) == "# file: a.py\nx\r\n"
    assert header_line("a\nb\udcff\u2028é") == "# file: a\\nb\\udcff\\u2028é\n"


def test_ignore_rules_nested_negated_and_anchored(tmp_path: Path) -> None:
    make(
        tmp_path,
        {
            ".gitignore": "*.log\n/top.txt\nbuild/\n!keep.log\ndata/**\n",
            "a.log": "x",
            "keep.log": "x",
            "top.txt": "x",
            "sub/top.txt": "x",
            "sub/.gitignore": "!a.log\nsecret*\n",
            "sub/a.log": "x",
            "sub/secret.py": "x",
            "secret.py": "x",
            "build/keep.log": "x",
            "sub/build/x.py": "x",
            "data/x.py": "x",
        },
    )
    documents, skipped = read(read_source(tmp_path))
    assert set(documents) == {
        ".gitignore",
        "keep.log",
        "secret.py",
        "sub/.gitignore",
        "sub/a.log",
        "sub/top.txt",
    }
    assert skipped["sub/secret.py"] == "ignored by sub/.gitignore"
    assert skipped["build/"] == skipped["sub/build/"] == skipped["data/x.py"] == "ignored by .gitignore"
    documents, _ = read(read_source(tmp_path, use_gitignore=False))
    assert {"a.log", "top.txt", "build/keep.log", "sub/secret.py"} <= set(documents)


def test_rules_of_the_repository_above_count_unless_they_ignore_what_was_named(tmp_path: Path) -> None:
    make(tmp_path, {".gitignore": "*.log\nbuild/\n", ".git/HEAD": "x", ".git/info/exclude": "*.tmp\n"})
    make(tmp_path, {"src/a.py": "x", "src/a.log": "x", "src/a.tmp": "x", "build/out/a.log": "x", "build/out/a.py": "x"})
    documents, skipped = read(read_source(tmp_path / "src"))
    assert set(documents) == {"a.py"}
    assert skipped == {"a.log": "ignored by ../.gitignore", "a.tmp": "ignored by .git/info/exclude"}
    assert set(read(read_source(tmp_path / "build" / "out"))[0]) == {"a.py", "a.log"}
    assert read(read_source(tmp_path))[1][".git/"] == "version control data"
    assert read(read_source(tmp_path / "src" / "a.log"))[0] == {"a.log": "x"}


patterns = st.lists(
    st.sampled_from(
        ["a", "a/", "/a", "*.py", "!*.py", "a/*", "a/**", "**/b", "!b", "!a/b", "b/", "/b/c", "!c", "?", "# x", ""]
    ),
    max_size=4,
)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git to compare with")
@settings(max_examples=40, deadline=None)
@given(top=patterns, inner=patterns)
@example(top=["*.py"], inner=["!b"])
@example(top=["b", "!b"], inner=["*.py", "!b/"])
def test_ignore_rules_agree_with_git(
    tmp_path_factory: pytest.TempPathFactory, top: list[str], inner: list[str]
) -> None:
    root = tmp_path_factory.mktemp("repo")
    names = ["a/b/c", "a/b/x.py", "a/c", "a/x.py", "b/c/a", "b/x.py", "c/b", "x.py"]
    make(root, dict.fromkeys(names, "x\n") | {".gitignore": "\n".join(top), "a/.gitignore": "\n".join(inner)})
    git = ["git", "-C", str(root), "-c", "core.excludesFile=/dev/null"]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = subprocess.run([*git, "ls-files", "-o", "--exclude-standard"], check=True, capture_output=True, text=True)
    expected = {name for name in listed.stdout.splitlines() if name in names}
    assert {path for path in read(read_source(root))[0] if path in names} == expected


def test_links_are_not_followed_and_say_where_they_lead(tmp_path: Path) -> None:
    root = make(tmp_path / "root", {"a/x.py": "x", "y.py": "y"})
    make(tmp_path, {"outside.py": "secret"})
    (root / "a" / "loop").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "out.py").symlink_to(tmp_path / "outside.py")
    (root / "nothing").symlink_to("nowhere")
    documents, skipped = read(read_source(root))
    assert documents == {"a/x.py": "x", "y.py": "y"}
    assert "links are not followed" in skipped["a/loop"]
    assert "links are not followed" in skipped["out.py"]
    assert skipped["self"] == "symbolic link that leads in a circle"
    assert skipped["nothing"] == "symbolic link to nothing"
    (tmp_path / "link").symlink_to(root)
    assert read(read_source(tmp_path / "link"))[0] == documents


def test_pipes_sockets_and_broken_things_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {"a.py": "x", "gone.py": "x", "dark/x.py": "x"})
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        real_open, real_scan = os.open, os.scandir

        def failing_open(path: os.PathLike[str], *args: int) -> int:
            if Path(path).name == "gone.py":
                raise PermissionError(13, "Permission denied")
            return real_open(path, *args)

        def failing_scan(path: os.PathLike[str]) -> object:
            if Path(path).name == "dark":
                raise PermissionError(13, "Permission denied")
            return real_scan(path)

        monkeypatch.setattr(os, "open", failing_open)
        monkeypatch.setattr(os, "scandir", failing_scan)
        documents, skipped = read(read_source(tmp_path))
    assert set(documents) == {"a.py"}
    assert skipped == {
        "dark/": "folder cannot be read: Permission denied",
        "gone.py": "cannot be read: Permission denied",
        "pipe": "not a regular file (named pipe)",
        "socket": "not a regular file (socket)",
    }


def test_a_pipe_that_took_a_files_place_does_not_block(tmp_path: Path) -> None:
    make(tmp_path, {"a.py": "x", "b.py": "x"})
    items = iter(read_source(tmp_path))
    assert next(items) == Document("a.py", "x")
    (tmp_path / "b.py").unlink()
    os.mkfifo(tmp_path / "b.py")
    assert [item.path for item in items if isinstance(item, Skipped)] == ["b.py"]


def bytes_read() -> int:
    """By this process so far, from whatever (0 where the system does not tell)."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


def test_a_huge_sparse_file_costs_nothing(tmp_path: Path) -> None:
    make(tmp_path, {"a.py": "x", "big.bin": b"", "text.txt": "word\n" * 300_000})
    os.truncate(tmp_path / "big.bin", 300 << 20)
    before = bytes_read()
    documents, skipped = read(read_source(tmp_path))
    assert set(documents) == {"a.py"}
    assert "larger than the limit (314,572,800 > 1,048,576 bytes)" in skipped["big.bin"]
    assert "larger" in skipped["text.txt"]
    # Even with no limit, a binary is recognised by its beginning.
    _, skipped = read(read_source(tmp_path / "big.bin"))
    assert skipped == {"big.bin": "binary file (holds NUL bytes)"}
    documents, skipped = read(read_source(tmp_path, max_file_bytes=1 << 30))
    assert set(documents) == {"a.py", "text.txt"}
    assert bytes_read() - before < 20 << 20


def test_empty_binary_and_generated_things(tmp_path: Path) -> None:
    make(
        tmp_path,
        {
            "empty.py": "",
            "bom.py": b"\xef\xbb\xbf",
            "blank.py": "\n",
            "nul.dat": b"text\0text",
            "late.dat": b"x" * 8000 + b"\0" + b"x" * 20000,
            "noise.dat": bytes(range(1, 32)) * 4,
            "x/__pycache__/x.pyc": "x",
            "venv/pyvenv.cfg": "x",
            "venv/lib/x.py": "x",
            "cache/CACHEDIR.TAG": "x",
            ".hg/store": "x",
        },
    )
    documents, skipped = read(read_source(tmp_path))
    assert documents.pop("late.dat").count("\0") == 1  # git looks at the first 8,000 bytes
    assert documents == {"blank.py": "\n"}
    assert skipped["empty.py"] == skipped["bom.py"] == "empty file"
    assert skipped["nul.dat"] == "binary file (holds NUL bytes)"
    assert skipped["noise.dat"] == "binary file (mostly control characters)"
    assert skipped["x/__pycache__/"] == "generated files"
    assert "virtual environment" in skipped["venv/"]
    assert "CACHEDIR.TAG" in skipped["cache/"]
    assert skipped[".hg/"] == "version control data"


def test_include_and_exclude(tmp_path: Path) -> None:
    make(tmp_path, {"a.py": "x", "b.md": "x", "docs/c.py": "x", "docs/d.md": "x", "tests/e.py": "x"})
    documents, skipped = read(read_source(tmp_path, include=["*.py"], exclude=["tests/", "docs/c*"]))
    assert set(documents) == {"a.py"}
    assert skipped == {
        "b.md": "not among the files asked for",
        "docs/c.py": "excluded by request",
        "docs/d.md": "not among the files asked for",
        "tests/": "excluded by request",
    }


def test_estimate_counts_what_will_be_looked_at(tmp_path: Path) -> None:
    make(tmp_path, {"a.py": "12345", "b/c.py": "123", "x.log": "1234", ".gitignore": "*.log"})
    estimate = read_source(tmp_path).estimate()
    assert (estimate.files, estimate.bytes) == (3, 5 + 3 + 5)
    assert read_source(tmp_path / "a.py").estimate().bytes == 5


def test_standard_input() -> None:
    assert list(read_source("-", stdin=io.BytesIO(b"hello\n"))) == [Document("<stdin>", "hello\n")]
    assert list(read_source("-", stdin=io.BytesIO(b""))) == [Skipped("<stdin>", "empty file")]
    limited = list(read_source("-", stdin=io.BytesIO(b"x" * 99), max_file_bytes=9))
    assert isinstance(limited[0], Skipped)


def test_a_named_file_is_read_whatever_its_size_and_name(tmp_path: Path) -> None:
    make(tmp_path, {".gitignore": "*", "long.txt": "word\n" * 300_000, "target.txt": "x"})
    assert list(read(read_source(tmp_path / "long.txt"))[0]) == ["long.txt"]
    assert "larger" in read(read_source(tmp_path / "long.txt", max_file_bytes=10))[1]["long.txt"]
    (tmp_path / "name.txt").symlink_to("target.txt")
    assert read(read_source(tmp_path / "name.txt"))[0] == {"name.txt": "x"}


def test_what_does_not_exist_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="No such file"):
        read_source(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        server.bind("socket")
        with pytest.raises(SourceError, match="neither a file, a folder nor a pipe"):
            read_source("socket")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SourceError, match="loop"):
        read_source(tmp_path / "loop")
    with pytest.raises(SourceError, match="max_file_bytes is 0"):
        read_source(tmp_path, max_file_bytes=0)
    with pytest.raises(SourceError, match="include"):
        read_source(tmp_path, include=["a", "!"])
    for name in ("include", "exclude"):  # a text is a sequence, too: of globs like "*", which match everything
        with pytest.raises(SourceError, match=f"{name} is '\\*.py'; give a list"):
            read_source(tmp_path, **{name: "*.py"})  # type: ignore[arg-type]
    for size in (float("nan"), float("inf"), 1.5, True, "1M"):
        with pytest.raises(SourceError, match="max_file_bytes is"):
            read_source(tmp_path, max_file_bytes=size)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="nothing to read is named"):
        read_source([])


def test_names_that_are_not_text(tmp_path: Path) -> None:
    try:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.py"))).write_text("x")
    except OSError:
        pytest.skip("this file system takes only text as names")
    ((path, text),) = read(read_source(tmp_path))[0].items()
    assert path == "bad\udcff.py"
    assert document_text(Document(path, text)) == "# file: bad\\udcff.py\nx\n"


def test_a_very_deep_tree(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        here, old = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(old)
    os.close(here)
    make(tmp_path, {"z.py": "x"})
    assert read(read_source(tmp_path))[0] == {"z.py": "x"}
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
