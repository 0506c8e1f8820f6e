"""Writes foveal/_native.pyi from the built module. Arrays may be torch's or numpy's.

python native/tools/make_stub.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "foveal" / "_native.pyi"
ARRAY = re.compile(r"Annotated\[NDArray(?:\[[^\]]*\])?, dict\((?:[^()]|\([^()]*\))*\)\]")
IMPORTS = """from typing import Any, TypeAlias

Array: TypeAlias = Any
# numpy's arrays and torch's tensors; the module checks dtypes and shapes.
"""
BARE = {"dict": "dict[str, Any]", "list": "list[Any]", "tuple": "tuple[Any, ...]"}


def main() -> None:
    """Generate, then name the arrays."""
    out = TARGET.with_suffix(".tmp")
    command = [sys.executable, "-P", "-m", "nanobind.stubgen", "-m", "foveal._native", "-q", "-o", str(out)]
    subprocess.run(command, check=True)
    text = out.read_text(encoding="utf-8")
    out.unlink()
    text = ARRAY.sub("Array", text).replace("import numpy\nfrom numpy.typing import NDArray\n", "")
    text = re.sub(
        r"(?<=: |> |.\[)(dict|list|tuple)(?=[],:)]|$)", lambda match: BARE[match[1]], text, flags=re.MULTILINE
    )
    text = text.replace("from typing import Annotated\n", IMPORTS)
    TARGET.write_text(text, encoding="utf-8")
    for command in (["format", "-q"], ["check", "--fix", "-q"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, str(TARGET)], check=True)


if __name__ == "__main__":
    main()
