"""Where torch is not installed: everything but training, the reference and a look inside the network works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import write_model

ROOT = Path(__file__).resolve().parent.parent
NO_TORCH = '''
import sys


class NoTorch:
    """Imports torch as it is imported where it is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoTorch())
'''

Foveal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every Python that is started under it has no torch (`sitecustomize` is imported first)."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(NO_TORCH)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


@pytest.fixture
def foveal(environment: dict[str, str], tmp_path: Path) -> Foveal:
    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foveal", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def python(environment: dict[str, str], code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_environment_has_no_torch(environment: dict[str, str]) -> None:
    assert python(environment, "try:\n  import torch\nexcept ImportError:\n  print('none')") == "none\n"


def test_an_engine_opens_and_generates_without_it() -> None:
    """Also where it is installed, nobody loads it."""
    code = """
import sys, foveal
engine = foveal.Engine.open("nano", threads=1)
done = engine.generate("def main(", max_tokens=3, temperature=0.5, seed=1, logprobs=2)
assert len(done.tokens) == 3 and "torch" not in sys.modules, sorted(n for n in sys.modules if n.startswith("torch"))
"""
    python({**os.environ, "PYTHONPATH": str(ROOT)}, code)


def test_the_command_line_without_it(foveal: Foveal, model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("".join(f"def f{n}(x):\n    return x * {n * 37 % 101}\n\n\n" for n in range(60)))
    store = ("--store", str(tmp_path / "store"))
    tiny = ("--model", str(model))
    read = json.loads(foveal("read", "a.py", "--name", "a", *tiny, *store, "--json").stdout)
    assert read["tokens"] > 500
    recalled = json.loads(foveal("recall", "a", "def f7(x", *tiny, *store, "--json").stdout)
    assert "text" in recalled
    foveal("fork", "a", "b", *store)
    assert {m["name"] for m in json.loads(foveal("ls", *store, "--json").stdout)["memories"]} == {"a", "b"}
    foveal("verify", *store)
    foveal("verify", "--recompute", *tiny, *store)
    (tmp_path / "a.py").write_text((tmp_path / "a.py").read_text() + "def g(x):\n    return 1\n")
    foveal("sync", "a", *tiny, *store)
    foveal("export", "a", "a.fvl", *store)
    foveal("import", "a.fvl", "--name", "c", *store)
    foveal("plan", "--model", "flash", "--context", "1M", "--json")
    foveal("inspect", str(model))
    foveal("rm", "b", *store)


def test_measuring_without_it(foveal: Foveal, model: Path) -> None:
    found = foveal("bench", "--model", str(model), "--jump", "--depths", "600", "--repetitions", "1", "--json").stdout
    assert json.loads(found)["rows"][0]["decode_tok_s"] > 0


def test_what_needs_it_says_what_to_install(
    foveal: Foveal, environment: dict[str, str], model: Path, tmp_path: Path
) -> None:
    said = foveal("train", "toy", code=1).stderr
    assert said.count("\n") == 1 and "pip install" in said
    for command in (["convert", "."], ["eval", "indexer", "--model", str(model), "--length", "1000", "--samples", "1"]):
        said = foveal(*command, code=1).stderr
        assert "needs torch, which is not installed: pip install 'foveal[torch]'" in said.splitlines()[-1]
    code = """
import sys, foveal
from foveal.errors import MissingExtra
try:
    foveal.Engine.open(sys.argv[1], backend="reference")
except MissingExtra as error:
    print(error)
"""
    line = "the reference backend needs torch, which is not installed: pip install 'foveal[torch]'\n"
    assert python(environment, code, str(model)) == line
    modules = "train model ops convert backends.reference".split()
    for module in (f"foveal.{name}" for name in modules):
        assert "pip install" in python(environment, f"try:\n  import {module}\nexcept ImportError as e: print(e)")


BEGIN = """
import sys, foveal
from foveal import Memory
engine = foveal.Engine.open(sys.argv[1], threads=1)
root = sys.argv[2]
"""
READ = """
memory = Memory.read(engine, sys.argv[3], name="m", tail_every=256)
memory.save(root=root)
"""
LOAD = 'memory = Memory.load(engine, "m", root=root)\n'
ASK = 'print(memory.fork().recall("two", max_tokens=5).tokens)\n'


def test_saving_and_loading_between_processes(environment: dict[str, str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three\n" * 200)
    places = (str(model), str(tmp_path / "store"), str(tmp_path / "a.txt"))
    first = python(environment, BEGIN + READ + ASK, *places)
    assert first == python(environment, BEGIN + LOAD + ASK, *places)
