"""A measuring process ends with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from foveal.measure import run
from foveal.measure.settings import Settings


def test_ctrl_c_while_the_process_is_being_started_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    start: Callable[[], subprocess.Popen[str]] = run._start

    def interrupted() -> subprocess.Popen[str]:
        started.append(start())
        os.kill(os.getpid(), signal.SIGINT)
        return started[0]

    monkeypatch.setattr(run, "_start", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(run._process(Settings("nowhere", 1)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].returncode is not None, "it was stopped and waited for"
