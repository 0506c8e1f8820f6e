"""The type stub of the native module lists what the module has (native/tools/make_stub.py writes it)."""

from __future__ import annotations

import ast
from pathlib import Path

import foveal
from foveal import _native


def test_the_stub_lists_what_the_module_has() -> None:
    stub = ast.parse((Path(foveal.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
    listed: dict[str, set[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            listed[node.name] = {item.name for item in node.body if isinstance(item, ast.FunctionDef)} - {"__init__"}
        elif isinstance(node, ast.FunctionDef):
            listed[node.name] = set()
    names = {name for name in dir(_native) if not name.startswith("_")}
    assert set(listed) == names
    for name in names:
        if isinstance(getattr(_native, name), type):
            assert listed[name] == {item for item in vars(getattr(_native, name)) if not item.startswith("_")}
