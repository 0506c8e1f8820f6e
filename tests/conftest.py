"""Settings that every test shares."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

from helpers.torchless import HAS_TORCH
from hypothesis import settings

if HAS_TORCH:
    import torch

    # The suite runs in several processes (pytest -n): one thread each, so that they do not fight over the cores.
    torch.set_num_threads(1)
else:  # what is about torch's networks, or compares with them
    collect_ignore_glob = ["model/*", "ops/*", "train/*", "convert/*", "native/*", "formats/*", "helpers/*"]
    collect_ignore = [
        "batch/test_network.py",
        "cache/test_network.py",
        "checkpoint/test_transformers.py",
        "cli/test_converting.py",
        "cli/test_ways_out.py",
        "config/test_spellings.py",
        "measure/test_scripts.py",
        "memory/test_citations.py",
        "backends/test_reference.py",
        "backends/test_stages.py",
    ]

# Under nohup and in a shell's background signals are ignored, by what tests start as well; tests send them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    *((each, signal.SIG_DFL) for each in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# A test finds nothing in the store of the person who runs it.
os.environ["FOVEAL_STORE"] = str(Path(tempfile.gettempdir()) / "foveal-tests-have-no-store")

# In CI most examples are the same in every run; the state machines draw new ones there, too, and a failure
# prints what reproduces it. A person's runs look for new ones everywhere.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
