"""aider: one message about one file."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import KEY, MODEL, V1, did

with tempfile.TemporaryDirectory() as folder:
    Path(folder, "a.py").write_text("x = 1\n")
    settings = {"OPENAI_API_BASE": V1, "OPENAI_API_KEY": KEY, "HOME": folder, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(Path(sys.executable).parent / "aider"), "--model", f"openai/{MODEL}", "--no-git", "--yes-always"]
    command += ["--no-show-model-warnings", "--analytics-disable", "--no-check-update", "--no-detect-urls"]
    command += ["--no-auto-lint", "--message", "What is x?", "a.py"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
said = done.stdout + done.stderr
assert done.returncode == 0 and "Tokens:" in said, said[-3000:]
did("a message")
