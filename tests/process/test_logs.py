"""Loggers: silent as a library, and heard by whoever adds a handler."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from foveal.process.logs import logger


def test_a_library_that_logs_is_silent() -> None:
    code = "from foveal.process.logs import logger; logger('foveal.test').error('something')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_handler_hears_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "foveal"):
        logger("foveal.test").info("%d pages", 3)
    assert caplog.messages == ["3 pages"]
