"""The rooms: who may import whom, what the package may depend on, and what must not be in the code."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "foveal"
ORDER = [
    *"errors process config formats checkpoint cache ops model backends plan text sources store".split(),
    *"batch engine aio memory measure server convert train evals cli".split(),
]
EXTRAS_OF = {
    "formats": ("torch",),
    "ops": ("torch",),
    "model": ("torch",),
    "backends": ("torch",),
    "train": ("train", "torch"),
    "evals": ("evals", "torch", "serve"),
    "store": ("encrypt",),
    "measure": ("bench",),
    "text": ("serve",),
    "server": ("serve", "otel"),
    "convert": ("convert", "torch"),
}
DISTRIBUTION_OF = {
    "prometheus_client": "prometheus-client",
    "charset_normalizer": "charset-normalizer",
    "deepseek_recipe": "deepseek-recipe",
    "yaml": "pyyaml",
    "opentelemetry": "opentelemetry-sdk",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that the file imports, at its top or inside functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module or "").split(".") if node.module else ())))
            yield module
            if module == "foveal":
                yield from (f"foveal.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str | None:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first in ("__init__", "__main__") else first  # the command line's way in


def test_every_module_is_in_a_room() -> None:
    assert {room for path in modules() if (room := room_of(path))} <= set(ORDER)


def test_rooms_import_only_rooms_before_them() -> None:
    wrong = []
    for path in modules():
        room = room_of(path)
        for name in imports(path):
            parts = name.split(".")
            if room is None or parts[0] != "foveal" or len(parts) < 2 or parts[1] not in ORDER:
                continue
            if ORDER.index(parts[1]) > ORDER.index(room):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_import_linter_has_the_same_order() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [layer.strip("()").removeprefix("foveal.") for layer in reversed(layers)] == ORDER


def test_few_call_the_native_library() -> None:
    """The backends; what measures them, for its made-up numbers; and who names the instruction set."""
    callers = {
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in modules()
        for name in imports(path)
        if name == "foveal._native" and not str(path.relative_to(PACKAGE)).startswith("backends/")
    }
    assert callers == {"measure/machine", "measure/synthetic", "cli/doctoring"}


def test_no_room_imports_the_package_itself() -> None:
    """import-linter cannot see this: it takes the native module for the package (pyproject.toml)."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports(path)
        if room_of(path) is not None
        and name.startswith("foveal.")
        and name.split(".")[1] not in [*ORDER, "_native", "__version__", "lazily"]
    ]
    assert not wrong


def declared(settings: dict[str, object], *extras: str) -> set[str]:
    project = settings["project"]
    assert isinstance(project, dict)
    optional = project.get("optional-dependencies", {})
    lines = [*project["dependencies"], *(line for extra in extras for line in optional.get(extra, ()))]
    return {line.split(";")[0].split("[")[0].split("=")[0].split(">")[0].split("<")[0].strip() for line in lines}


def test_third_party_imports_are_declared() -> None:
    """A room may import what every installation has; some also what their extras bring."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wrong = []
    for path in modules():
        room = room_of(path)
        allowed = declared(settings, *EXTRAS_OF.get(room or "", ()))
        for name in imports(path):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top == "foveal" or not top:
                continue
            if DISTRIBUTION_OF.get(top, top) not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {top}")
    assert not wrong


NEEDS_TORCH = (
    "formats/tensors",
    "ops/",
    "model/",
    "backends/reference/",
    "convert/",
    "train/",
    "evals/watching",
    "evals/systems/teacher",
)


def test_torch_is_imported_where_it_is_said_to_be() -> None:
    """Everything else works without it."""
    users = {
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in modules()
        for name in imports(path)
        if name.partition(".")[0] == "torch"
    }
    assert not [user for user in users if not user.startswith(NEEDS_TORCH)]


def test_nothing_is_pickled_and_no_error_is_swallowed() -> None:
    wrong = []
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrong += [f"{path}: {name}" for name in imports(path) if name.partition(".")[0] in ("pickle", "shelve", "dill")]
        for node in ast.walk(tree):
            swallows = isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body)
            if swallows:
                assert isinstance(node, ast.ExceptHandler)
                wrong.append(f"{path}:{node.lineno}: an exception is swallowed")
    assert not wrong


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules()
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert not silent


@pytest.mark.parametrize("module", ["foveal", "foveal.config", "foveal.cli.main"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    """`foveal --help` and shell completion must not wait for torch."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
