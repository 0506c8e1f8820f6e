"""What the peers need, made once: llama.cpp compiled for this machine, and every checkpoint in three forms.

Each step leaves one file or folder, made under another name first, and is skipped when that is there. So a set-up that
was interrupted goes on where it stopped.

    DIR/venv                        llama-cpp-python, built from source
    DIR/llama_cpp_python-0.3.36     that source: it carries the converter
    DIR/checkpoints/PRESET          official layout, FP4 and FP8: for Foveal and the converter
    DIR/checkpoints/PRESET-plain    the same in BF16: for transformers
    DIR/gguf/PRESET.gguf            the same as MXFP4 and Q8_0: for llama.cpp
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from foveal.checkpoint import convert_weights, open_checkpoint, random_weights, write_checkpoint
from foveal.config import preset
from foveal.engine import model_folder
from foveal.measure import stored_as_published

NAME = "llama-cpp-python"
LLAMA = f"{NAME}==0.3.36"
SOURCE = "llama_cpp_python-0.3.36"

_CONVERT = """
import runpy, sys
source = sys.argv.pop(1)
sys.path[:0] = [source, source + "/gguf-py"]
from conversion import base
# It knows tokenizers by a hash of what they make of a text. This model's words mean nothing: any kind will do.
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "deepseek-v3"
sys.argv[0] = source + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def set_up(folder: Path, presets: list[str], archive: Path | None = None) -> None:
    """Do what is not done yet. `archive`: llama-cpp-python's source archive, instead of fetching it."""
    folder.mkdir(parents=True, exist_ok=True)
    _step(folder / SOURCE, lambda to: _source(folder, to, archive))
    _step(folder / "venv", lambda to: _build(folder / SOURCE, to))
    for name in presets:
        checkpoint = folder / "checkpoints" / name
        _step(checkpoint, lambda to, name=name: _checkpoint(name, to))  # type: ignore[misc]
        _step(folder / "checkpoints" / f"{name}-plain", lambda to, at=checkpoint: _plain(at, to))  # type: ignore[misc]
        gguf = folder / "gguf" / f"{name}.gguf"
        _step(gguf, lambda to, at=checkpoint: _gguf(folder / SOURCE, at, to))  # type: ignore[misc]


def _step(made: Path, make: Callable[[Path], None]) -> None:
    if made.exists():
        print(f"{made}: there already", file=sys.stderr)
        return
    print(f"{made}: making it", file=sys.stderr)
    made.parent.mkdir(parents=True, exist_ok=True)
    # A virtual environment does not bear being renamed: it marks its own end.
    partial = made if made.name == "venv" else made.with_name(f"partial-{made.name}")
    if partial.is_dir():
        shutil.rmtree(partial)
    make(partial)
    if partial != made:
        partial.rename(made)


def _source(folder: Path, to: Path, archive: Path | None) -> None:
    if archive is None:
        # Of this package alone: with ":all:" pip would compile cmake, too, to ask for the archive's name.
        _run(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-binary", NAME, "-d", folder, LLAMA)
        archive = folder / f"{SOURCE}.tar.gz"
    to.mkdir()
    with tarfile.open(archive) as packed:
        packed.extractall(to, filter="data")
    for item in (to / SOURCE).iterdir():
        item.rename(to / item.name)
    (to / SOURCE).rmdir()


def _build(source: Path, to: Path) -> None:
    """Compile it for this machine: ggml's default when built from source."""
    try:
        _run(sys.executable, "-P", "-m", "venv", to)
        _run(to / "bin" / "python", "-m", "pip", "install", "--quiet", source)
    except BaseException:
        shutil.rmtree(to, ignore_errors=True)
        raise


def _checkpoint(name: str, to: Path) -> None:
    config = stored_as_published(preset(name))
    write_checkpoint(to, config, random_weights(config))
    for file in model_folder("nano").glob("tokenizer*.json"):  # the converter wants one
        shutil.copy(file, to)


def _plain(checkpoint: Path, to: Path) -> None:
    opened = open_checkpoint(checkpoint)
    plain = opened.config.replace(linear_dtype="bf16", expert_dtype="bf16")
    write_checkpoint(to, plain, convert_weights(opened.weights.items(), plain))


def _gguf(source: Path, checkpoint: Path, to: Path) -> None:
    converter = source / "vendor" / "llama.cpp"
    _run(sys.executable, "-P", "-c", _CONVERT, converter, checkpoint, "--outfile", to, "--outtype", "q8_0")


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
