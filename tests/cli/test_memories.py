"""`foveal read`, `recall`, `ls`, `show` and `rm`, on a small model with random weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import Foveal, write_model
from click.testing import CliRunner

from foveal import cli
from foveal.cli import progress as cli_progress
from foveal.cli.main import app
from foveal.memory import Progress

pytestmark = pytest.mark.slow

ROOT = Path(cli.__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.py").write_text("def alpha(x):\n    return x + 1\n\n\ndef beta(y):\n    return y * 2\n")
    (folder / "b.txt").write_text("hello\n")
    (folder / "c.bin").write_bytes(bytes(range(256)) * 8)
    return folder


@pytest.fixture
def foveal(tmp_path: Path, model: Path) -> Foveal:
    return Foveal(tmp_path / "store", model)


# ---------------------------------------------------------------------- read


def test_read_tells_what_it_read(foveal: Foveal, source: Path) -> None:
    told = foveal.json("read", str(source), "--name", "s")
    assert told["complete"] and told["tokens"] == told["source_tokens"] > 20
    assert told["files"] == 2 and told["source"] == str(source)
    assert [skip["path"] for skip in told["skipped"]] == ["c.bin"]
    kinds = dict(told["bytes"])
    assert kinds.pop("total") == sum(kinds.values())
    assert [rival["bytes"] > kinds["csa_entries"] for rival in told["rivals"]] == [True, True]
    assert Path(told["path"]).is_dir() and told["resumed"] is None


def test_read_prints_a_table_on_stdout_and_the_rest_on_stderr(foveal: Foveal, source: Path) -> None:
    result = foveal("read", str(source), "-n", "s")
    assert result.exit_code == 0
    for word in ("tokens", "CSA entries", "index keys", "HCA entries", "DeepSeek-V3.2", "GQA", "per token"):
        assert word in result.stdout
    assert "c.bin" in result.stderr and "c.bin" not in result.stdout


def test_reading_again_keeps_what_is_unchanged(foveal: Foveal, source: Path) -> None:
    first = foveal.json("read", str(source), "-n", "s")
    again = foveal.json("read", str(source), "-n", "s")
    assert again["resumed"] == {"kept": first["tokens"], "changed": []}
    (source / "a.py").write_text("def gamma():\n    pass\n")
    changed = foveal.json("read", str(source), "-n", "s")
    assert changed["resumed"]["changed"] == ["a.py"] and changed["complete"]


def test_replace_reads_anew(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    assert foveal.json("read", str(source), "-n", "s", "--replace")["resumed"] is None


def test_interrupted_reading_is_kept_and_goes_on(foveal: Foveal, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "long.py").write_text("".join(f"value_{i} = {i * i}\n" for i in range(600)))
    show = cli_progress.ReadingBar.__call__

    def interrupt_after_one_chunk(bar: cli_progress.ReadingBar, progress: Progress) -> None:
        show(bar, progress)
        if progress.exact:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(cli_progress.ReadingBar, "__call__", interrupt_after_one_chunk)
        cut = foveal("read", str(source), "-n", "s", "--json")
    assert cut.exit_code == 130 and "run the same command again" in cut.stderr
    part = json.loads(cut.stdout)
    assert not part["complete"] and 0 < part["tokens"] < part["source_tokens"]
    assert "of" in foveal("ls").stdout and not foveal.json("show", "s")["complete"]
    rest = foveal.json("read", str(source), "-n", "s")
    assert rest["complete"] and rest["resumed"]["kept"] == part["tokens"]

    whole = foveal.json("read", str(source), "-n", "whole")
    assert whole["tokens"] == rest["tokens"]
    shared = {memory["name"]: memory["shared_bytes"] for memory in foveal.json("ls")["memories"]}
    assert shared["s"] == shared["whole"] > 100_000, "they are the same pages"


def test_standard_input_and_single_files_are_read(foveal: Foveal, source: Path) -> None:
    assert foveal.json("read", "-", "-n", "piped", input="some text\nfrom a pipe\n")["files"] == 1
    assert foveal.json("read", str(source / "a.py"), "-n", "file")["files"] == 1


def test_filters_are_followed(foveal: Foveal, source: Path) -> None:
    (source / ".gitignore").write_text("b.txt\n")
    assert foveal.json("read", str(source), "-n", "one", "--include", "*.py")["files"] == 1
    assert foveal.json("read", str(source), "-n", "two", "--exclude", "a.py", "--no-gitignore")["files"] == 2
    assert foveal.json("read", str(source), "-n", "three", "--max-file-size", "20")["files"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("/nowhere", "-n", "s"), "/nowhere"),
        (("{source}", "-n", "../s"), "is not a name"),
        (("{source}/c.bin", "-n", "s"), "nothing to read"),
        (("{source}", "-n", "s", "--model", "/nowhere"), "no model"),
    ],
)
def test_read_refuses_in_one_line(foveal: Foveal, source: Path, arguments: tuple[str, ...], said: str) -> None:
    result = foveal("read", *(argument.format(source=source) for argument in arguments))
    assert result.exit_code == 1 and said in result.stderr
    assert result.stderr.count("\n") == 1 and not result.stdout
    assert foveal.json("ls")["memories"] == []


def test_a_name_is_not_taken_over_by_another_source(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    result = foveal("read", str(source / "a.py"), "-n", "s")
    assert result.exit_code == 1 and "--replace" in result.stderr


# ---------------------------------------------------------------------- recall


def test_recall_continues_and_cites(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    told = foveal.json("recall", "s", "def alpha(", "--max-tokens", "12")
    assert told["memory"] == "s" and told["cue"] == "def alpha("
    assert told["tokens"] in (12, 13)  # one more when the token that ends the cue also begins the answer
    again = foveal.json("recall", "s", "def alpha(", "--max-tokens", "12")
    assert {**again, "seconds": 0} == {**told, "seconds": 0}
    for citation in told["citations"]:
        lines = (source / citation["path"]).read_text().count("\n")
        assert 1 <= citation["first_line"] <= citation["last_line"] <= lines and 0 < citation["share"] <= 1
    streamed = foveal("recall", "s", "def alpha(", "--max-tokens", "12").stdout
    assert streamed.startswith("def alpha(" + told["text"])
    assert all(citation["path"] in streamed for citation in told["citations"])


def test_a_recall_that_is_impossible_prints_nothing(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    result = foveal("recall", "s", "def alpha(", "--max-tokens", "100000000")
    assert result.exit_code == 1 and not result.stdout and "max_tokens" in result.stderr


def test_recall_says_when_the_cue_does_not_stand_there(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    nowhere = foveal.json("recall", "s", "the capital of France is", "--max-tokens", "4")
    assert 0 <= nowhere["cue_matched"] < nowhere["cue_tokens"]
    assert (
        "\nthe cue does not stand there"
        in foveal("recall", "s", "the capital of France is", "--max-tokens", "4").stdout
    )


def test_recall_shows_the_cited_lines(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    cited = foveal.json("recall", "s", "def alpha(", "--max-tokens", "4")["citations"][0]
    line = (source / cited["path"]).read_text().splitlines()[cited["first_line"] - 1]
    options = ("recall", "s", "def alpha(", "--max-tokens", "4", "--lines")
    assert f"{cited['first_line']:6}  {line}\n" in foveal(*options).stdout
    shutil.rmtree(source)
    gone = foveal(*options)
    assert gone.exit_code == 0 and "cannot be shown" in gone.stdout


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8"])
def test_cited_lines_are_decoded_as_they_were_read(foveal: Foveal, source: Path, encoding: str) -> None:
    text = "# Größe\rhier\n" + "def alpha(x):\n    return 'äöü'\n" * 3
    for file in source.iterdir():
        file.unlink()
    (source / "a.py").write_bytes(text.encode(encoding))
    told = foveal.json("read", str(source), "-n", "s")
    assert [found["path"] for found in told["encodings"]] == ([] if encoding == "utf-8" else ["a.py"])
    cited = foveal.json("recall", "s", "def alpha(", "--max-tokens", "4")["citations"][0]
    shown = foveal("recall", "s", "def alpha(", "--max-tokens", "4", "--lines").stdout
    lines = text.split("\n")
    for number in range(cited["first_line"], cited["last_line"] + 1):
        assert f"{number:6}  {lines[number - 1]}\n" in shown


def test_encodings_and_damage_are_told(foveal: Foveal, source: Path) -> None:
    (source / "g.py").write_bytes("x = 1  # 中文\n".encode("gbk"))
    (source / "u.py").write_bytes("# été, déjà vu ".encode() + b"\xed\xa0\x80\n")
    told = foveal.json("read", str(source), "-n", "s")
    assert told["encodings"] == [
        {"path": "g.py", "encoding": "gb18030", "replaced": 0},
        {"path": "u.py", "encoding": "utf-8", "replaced": 3},
    ]
    said = foveal("read", str(source), "-n", "t").stderr
    assert "read 1 as gb18030 (g.py)" in said
    assert "3 replacement characters stand for damaged bytes (u.py)" in said


def test_recall_takes_sampling_options(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    options = ("recall", "s", "def ", "--temperature", "2", "--top-p", "0.9", "--max-tokens", "8")
    texts = [foveal.json(*options, "--seed", seed)["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    stopped = foveal.json("recall", "s", "def alpha(", "--max-tokens", "12", "--stop", texts[0][:3] or "x")
    assert stopped["finish_reason"] in ("stop", "length")


def test_recall_refuses_in_one_line(foveal: Foveal, source: Path, tmp_path: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    other = write_model(tmp_path / "other", seed=2)
    for arguments, said in (
        (("nope", "x"), "no memory"),
        (("s", ""), "cue is empty"),
        (("s", "x", "--temperature", "-1"), "temperature"),
        (("s", "x", "--model", str(other)), "different: weights"),
    ):
        result = foveal("recall", *arguments)
        assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1


def test_a_memory_of_an_unshipped_model_asks_for_it(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    result = CliRunner().invoke(app, ["recall", "s", "x", "--store", str(foveal.store)])
    assert result.exit_code == 1 and "--model DIR" in result.stderr


# ---------------------------------------------------------------------- ls, show, rm


def test_ls_show_and_rm(foveal: Foveal, source: Path) -> None:
    assert foveal("ls").stdout == "" and "no memories" in foveal("ls").stderr
    read = foveal.json("read", str(source), "-n", "s")
    (listed,) = foveal.json("ls")["memories"]
    shown = foveal.json("show", "s", "--verify")
    assert listed["tokens"] == shown["tokens"] == read["tokens"] and shown["verified"]
    assert listed.items() <= shown.items()
    assert listed["own_bytes"] + listed["shared_bytes"] == listed["disk_bytes"] > 0
    assert "s" in foveal("ls").stdout and str(source) in foveal("show", "s").stdout
    assert foveal.json("rm", "s") == {"removed": ["s"], "problems": {}}
    assert foveal.json("ls")["memories"] == []


def test_rm_deletes_what_it_can_and_reports_the_rest(foveal: Foveal, source: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    result = foveal("rm", "nope", "s")
    assert result.exit_code == 1 and "nope" in result.stderr
    assert foveal.json("ls")["memories"] == []


def test_a_flipped_byte_is_noticed_and_mended(foveal: Foveal, source: Path) -> None:
    (source / "long.py").write_text("".join(f"value_{i} = {i * i}\n" for i in range(100)))
    foveal.json("read", str(source), "-n", "s")
    right = foveal.json("recall", "s", "def alpha(", "--max-tokens", "8")
    (pack,) = (foveal.store / "packs").iterdir()
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    shown = foveal("show", "s", "--verify")
    assert shown.exit_code == 1 and "damaged" in shown.stderr and shown.stderr.count("\n") == 1
    found = foveal("verify", "--json")
    assert found.stderr.startswith("foveal: ") and found.stderr.count("\n") == 1 and " problem" in found.stderr
    assert found.exit_code == 1 and json.loads(found.stdout)["problems"][0]["memories"] == ["s"]
    again = foveal.json("recall", "s", "def alpha(", "--max-tokens", "8")
    assert again | {"seconds": 0} == right | {"seconds": 0}
    assert foveal.json("verify")["sound"]


# ---------------------------------------------------------------------- the store


def test_fork_log_du_pin(foveal: Foveal, source: Path) -> None:
    tokens = foveal.json("read", str(source), "-n", "s")["tokens"]
    assert foveal.json("fork", "s", "twin") == {"name": "twin", "parent": "s", "forked_at": tokens, "tokens": tokens}
    assert foveal.json("fork", "twin", "half", "--at", "10")["tokens"] == 10
    assert not foveal.json("show", "half")["complete"] and foveal.json("show", "half")["parent"] == "twin"
    tree = foveal.json("log", "half")
    assert tree["name"] == "s" and tree["forks"][0]["forks"][0]["name"] == "half"
    assert "    half" in foveal("log", "s").stdout
    foveal.json("rm", "s")
    assert foveal.json("log", "twin")["tokens"] is None and "deleted" in foveal("log", "half").stdout
    assert foveal.json("recall", "twin", "def alpha(", "--max-tokens", "2")["tokens"] in (2, 3)
    assert {memory["name"] for memory in foveal.json("du")["memories"]} == {"twin", "half"}
    assert "twin" in foveal("du").stdout
    assert foveal.json("pin", "twin")["pinned"] and not foveal.json("pin", "twin", "--off")["pinned"]
    for arguments, said in (
        (("fork", "nope", "x"), "no memory"),
        (("fork", "twin", "half"), "already"),
        (("fork", "twin", "../x"), "not a name"),
        (("fork", "twin", "x", "--at", "1M"), "give 1 to"),
        (("log", "nope"), "no memory"),
        (("verify", "nope"), "no memory"),
    ):
        result = foveal(*arguments)
        assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1


def test_export_and_import(foveal: Foveal, source: Path, tmp_path: Path, model: Path) -> None:
    foveal.json("read", str(source), "-n", "s")
    right = foveal.json("recall", "s", "def alpha(", "--max-tokens", "8")
    file = tmp_path / "s.memory"
    assert foveal("export", "s", str(file)).exit_code == 0 and file.stat().st_mode & 0o777 == 0o600
    other = Foveal(tmp_path / "other", model)
    assert other.json("import", str(file), "-n", "t")["name"] == "t"
    again = other.json("recall", "t", "def alpha(", "--max-tokens", "8")
    assert again | {"seconds": 0, "memory": "s"} == right | {"seconds": 0}
    data = bytearray(file.read_bytes())
    data[1000] ^= 4
    file.write_bytes(data)
    refused = other("import", str(file), "-n", "u")
    assert refused.exit_code == 1 and "damaged" in refused.stderr
    assert [memory["name"] for memory in other.json("ls")["memories"]] == ["t"]


def test_gc_and_limits(foveal: Foveal, source: Path) -> None:
    (source / "long.py").write_text("".join(f"value_{i} = {i * i}\n" for i in range(200)))
    foveal.json("read", str(source), "-n", "s")
    right = foveal.json("recall", "s", "def alpha(", "--max-tokens", "8")
    told = foveal.json("gc", "--limit", "50k")
    assert told["evicted_pages"] > 0 and told["within_limit"] and told["bytes"] < 60_000 + told["freed"]
    again = foveal.json("recall", "s", "def alpha(", "--max-tokens", "8")
    assert again | {"seconds": 0} == right | {"seconds": 0}
    assert foveal("gc", "--limit", "1").exit_code == 1
    foveal.json("rm", "s")
    assert foveal.json("gc")["bytes"] < 10_000


# ---------------------------------------------------------------------- a real process

_WITHOUT_TORCH = """
import sys
from foveal.cli.main import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules
if sys.argv[1] in ("ls", "du", "log", "show", "gc", "fork", "pin", "rm"):
    assert "numpy" not in sys.modules
"""


def test_work_on_a_store_does_not_load_torch(foveal: Foveal, source: Path, tmp_path: Path) -> None:
    """Torch takes seconds to load: commands that open no model do without."""
    foveal.json("read", str(source), "-n", "s")
    file = str(tmp_path / "s.foveal")
    for line in (
        "--help|--version|verify --help|ls|du|log s|show s|gc|verify|fork s t --at 5|pin s|"
        f"export s {file}|import {file} -n u|rm u"
    ).split("|"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FOVEAL_STORE": str(foveal.store)}
        command = [sys.executable, "-c", _WITHOUT_TORCH, *line.split()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_as_a_process(foveal: Foveal, source: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foveal.cli.main", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FOVEAL_STORE": str(foveal.store), "LC_ALL": "C"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    version = run("--version")
    assert (version.returncode, version.stderr) == (0, "") and version.stdout.startswith("foveal ")
    read = run("read", str(source), "-n", "s", "--model", str(foveal.model), "--threads", "1", "--json")
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout)["complete"] and "\x1b" not in read.stderr
    recalled = run("recall", "s", "def alpha(", "--model", str(foveal.model), "--threads", "1", "--max-tokens", "4")
    assert recalled.returncode == 0 and recalled.stdout.startswith("def alpha(")
    assert json.loads(run("ls", "--json").stdout)["memories"][0]["name"] == "s"
    failed = run("show", "nope")
    assert failed.returncode == 1 and failed.stderr.startswith("foveal: ") and not failed.stdout


def test_odd_names_places_and_files(foveal: Foveal, source: Path, tmp_path: Path) -> None:
    """Refused in one line, and nothing that was there is touched: not a device either."""
    foveal.json("read", str(source), "-n", "s")
    whole = tmp_path / "s.foveal"
    foveal("export", "s", str(whole))
    (tmp_path / "twice").write_bytes(whole.read_bytes() * 2)
    (tmp_path / "short").write_bytes(whole.read_bytes()[:-1])
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for line, said in (
        ("fork s s", "already"),
        ("fork s t --at 0", "give 1 to"),
        ("fork s t --at 1M", "give 1 to"),
        ("fork s x/y", "is not a name"),
        ("fork s " + "n" * 101, "is not a name"),
        (f"export s {tmp_path}", "is a folder"),
        (f"import {whole}", "already"),
        (f"import {tmp_path / 'twice'} -n t", "goes on behind its end"),
        (f"import {tmp_path / 'short'} -n t", "ends too early"),
        (f"import {tmp_path / 'empty'} -n t", "ends too early"),
        ("export s /dev/full", "No space left"),
    ):
        done = foveal(*line.split())
        assert done.exit_code == 1 and said in done.stderr and done.stderr.count("\n") == 1, line
    for command in ("ls", "verify", "du"):
        assert "is a file" in Foveal(whole, foveal.model)(command).stderr
    assert [memory["name"] for memory in foveal.json("ls")["memories"]] == ["s"]
    assert Path("/dev/full").is_char_device()
    foveal("export", "s", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == whole.read_bytes()
