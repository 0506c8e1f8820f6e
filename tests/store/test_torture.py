"""A few seconds of what `store_torture.py` does for minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from store_crowd import SETTINGS, Setting
from store_torture import torture

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_kills_and_damage(setting: Setting, tmp_path: Path) -> None:
    if setting.memory is None:
        assert torture(setting, 1, 1.0, tmp_path, turn=0.5) >= 1
        return
    # Its limit is that of a process: of a fresh one, whatever this one has done before.
    script = Path(__file__).resolve().parents[1] / "store_torture.py"
    command = [sys.executable, script, "--minutes", "0.02", "--only", setting.name, "--seed", "1", "--dir", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(script.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "nothing lost" in done.stdout, done.stdout + done.stderr
