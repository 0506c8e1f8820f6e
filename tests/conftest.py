"""Settings that every test shares."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from hypothesis import settings

# The suite runs in several processes (pytest -n): one thread each, so that they do not fight over the cores.
torch.set_num_threads(1)

# A test finds nothing in the store of the person who runs it.
os.environ["FOVEAL_STORE"] = str(Path(tempfile.gettempdir()) / "foveal-tests-have-no-store")

# In CI most examples are the same in every run; the state machines draw new ones there, too, and a failure
# prints what reproduces it. A person's runs look for new ones everywhere.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
