"""A few seconds of what `store_torture.py` does for minutes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from store_crowd import SETTINGS, Setting
from store_torture import torture


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_kills_and_damage(setting: Setting, tmp_path: Path) -> None:
    assert torture(setting, 1, 1.0, tmp_path, turn=0.5) >= 1
