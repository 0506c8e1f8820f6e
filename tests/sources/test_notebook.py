"""Notebooks as cells and text outputs, with the lines of the file; pointers that stand for other files."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

import foveal
from foveal.sources import Document, Skipped, SourceMap, cited_lines, read_source, tokenize_document
from foveal.text import Tokenizer

PICTURE = base64.b64encode(bytes(range(256)) * 32).decode()
CELLS = [
    {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", f"![p](data:image/png;base64,{PICTURE})"]},
    {
        "cell_type": "code",
        "execution_count": 1,
        "metadata": {},
        "outputs": [
            {"data": {"image/png": PICTURE, "text/plain": ["<Figure>"]}, "metadata": {}, "output_type": "display_data"},
            {"name": "stdout", "output_type": "stream", "text": ["10%\r100%\n", "done é\n"]},
            {"ename": "E", "evalue": "no", "output_type": "error", "traceback": ["\x1b[31mError\x1b[0m", "Error: no"]},
            {"data": {"text/html": ["<table>"]}, "metadata": {}, "output_type": "display_data"},
        ],
        "source": ["def f(x):\n", "    return x\n", "\n", "f(1)"],
    },
    {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": []},
]
TEXT = """# %% cell 1 (markdown)
# Title
![p](data:image/png;base64,...)
# %% cell 2, its output
<Figure>
100%
done é
Error
Error: no
# %% cell 2 (code)
def f(x):
    return x

f(1)
"""


def notebook(path: Path, cells: object = CELLS, indent: int | None = 1) -> Path:
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}, ensure_ascii=False, indent=indent) + "\n")
    return path


def only(path: Path) -> Document | Skipped:
    (item,) = read_source(path)
    return item


def test_cells_and_text_outputs_with_their_lines(tmp_path: Path) -> None:
    path = notebook(tmp_path / "n.ipynb")
    document = only(path)
    assert isinstance(document, Document)
    assert document.text == TEXT
    in_file = path.read_text().split("\n")
    for number, line in cited_lines([str(path)], "n.ipynb"):
        if not line.startswith(("# %%", "![p]", "100%", "Error")):
            assert line in in_file[number - 1]


def test_every_token_has_the_line_of_the_file(tmp_path: Path) -> None:
    path = notebook(tmp_path / "n.ipynb")
    document = only(path)
    assert isinstance(document, Document) and document.numbers is not None
    tokenizer = Tokenizer.from_file(Path(foveal.__file__).parent / "weights" / "nano")
    tokens, places = tokenize_document(document, tokenizer), SourceMap()
    places.append(tokens)
    numbers = {0, *document.numbers}
    assert {places.locate(token).line for token in range(places.tokens)} <= numbers
    line = next(n for n, text in enumerate(path.read_text().split("\n"), 1) if "return x" in text)
    (found,) = places.tokens_of("n.ipynb", line, line)
    assert tokenizer.decode(tokens.ids[found.start : found.stop]).strip() == "return x"
    assert SourceMap.from_bytes(places.to_bytes()).locate(found.start) == places.locate(found.start)


def test_one_line_layout_and_strings(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": "a = 1\nb = 2", "outputs": [{"output_type": "stream", "text": "3\n4"}]}]
    document = only(notebook(tmp_path / "n.ipynb", cells, indent=None))
    assert isinstance(document, Document)
    assert document.text == "# %% cell 1 (code)\na = 1\nb = 2\n# %% cell 1, its output\n3\n4\n"
    assert set(document.numbers or ()) == {1}


def test_older_notebooks(tmp_path: Path) -> None:
    output = {"output_type": "pyout", "png": PICTURE, "text": ["1"]}
    code = {"cell_type": "code", "input": ["x = 1\n", "x"], "outputs": [output]}
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"nbformat": 3, "worksheets": [{"cells": [code]}]}, indent=1))
    document = only(path)
    assert isinstance(document, Document)
    assert document.text == "# %% cell 1 (code)\nx = 1\nx\n# %% cell 1, its output\n1\n"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"cells": 3}',
        '{"cells": [3]}',
        '{"cells": [{}]}',
        "[" * 5000,
        "plain\n",
        '{"cells": null}',
    ],
)
def test_a_broken_notebook_is_read_as_plain_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "n.ipynb"
    path.write_text(text)
    assert only(path) == Document("n.ipynb", text)


ODD_CELLS = [
    None,
    "text",
    {"source": "no = 'kind'"},
    {"cell_type": ["code"], "source": "kind = 'list'"},
    {"cell_type": "code", "source": None, "outputs": None},
    {"cell_type": "code", "source": [1, "x = 1\n", None, "y"], "outputs": {"a": 1}},
    {"cell_type": "code", "execution_count": 10**5000, "source": "z", "outputs": [None, 1, {"data": [PICTURE]}]},
    {
        "cell_type": "code",
        "outputs": [{"text": None}, {"data": {"text/plain": 5, "image/png": PICTURE}}],
        "source": "w",
    },
]


def test_odd_cells_do_not_make_the_others_data(tmp_path: Path) -> None:
    sys.set_int_max_str_digits(0)
    document = only(notebook(tmp_path / "N.IPYNB", ODD_CELLS))
    sys.set_int_max_str_digits(4300)
    assert isinstance(document, Document)
    titles = ["# %% cell 3", "# %% cell 4", *(f"# %% cell {number} (code)" for number in (6, 7, 8))]
    sources = ["no = 'kind'", "kind = 'list'", "x = 1\ny", "z", "w"]
    assert document.text == "".join(f"{title}\n{source}\n" for title, source in zip(titles, sources, strict=True))


@pytest.mark.parametrize("parts", [PICTURE, [f"{PICTURE[:76]}\n", f"{PICTURE[:76]}\n", "AA=="]])
def test_a_notebook_with_a_conflict_is_read_without_its_pictures(tmp_path: Path, parts: object) -> None:
    cells = [{"cell_type": "code", "outputs": [{"data": {"image/png": parts}}], "source": ["x = 1\n", "y = 2"]}]
    path = notebook(tmp_path / "n.ipynb", cells)
    raw = path.read_text().replace(' "nbformat"', '<<<<<<< HEAD\n "nbformat"')
    path.write_text(raw)
    document = only(path)
    assert isinstance(document, Document) and document.numbers is None
    assert PICTURE[:76] not in document.text and "x = 1" in document.text
    assert document.text.count("\n") == raw.count("\n")


def test_a_notebook_without_text_is_skipped(tmp_path: Path) -> None:
    assert only(notebook(tmp_path / "n.ipynb", [])) == Skipped("n.ipynb", "a notebook without text")


def test_pointers_of_git_lfs_are_skipped(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n"
    (tmp_path / "model.bin").write_text(pointer)
    (tmp_path / "about.md").write_text(f"A pointer:\n{pointer}")
    items = {item.path: item for item in read_source(tmp_path)}
    reason = "a Git LFS pointer: its content (1,234,567 bytes) is not here (git lfs pull)"
    assert items["model.bin"] == Skipped("model.bin", reason)
    assert isinstance(items["about.md"], Document)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n", "\r\n"),
        ("\n", "\r"),
        ("\n", " \n"),
        ("version", "\ufeffversion"),
        ("size 12\n", "size 12\n\n"),
        ("size 12\n", "size 12"),
        ("https://git-lfs", "http://git-media"),
        ("size", "later some thing\nsize"),
        ("oid", f"ext-0-name sha256:{'1' * 64}\noid"),
    ],
)
def test_pointers_that_were_touched_are_pointers(tmp_path: Path, old: str, new: str) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n"
    (tmp_path / "a.bin").write_bytes(pointer.replace(old, new).encode())
    found = only(tmp_path / "a.bin")
    assert isinstance(found, Skipped) and "(12 bytes)" in found.reason
