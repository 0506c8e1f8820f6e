"""mini-swe-agent, two steps of it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import KEY, MODEL, V1, did

with tempfile.TemporaryDirectory() as folder:
    Path(folder, "a.py").write_text("x = 1\n")
    settings = {
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_GLOBAL_CONFIG_DIR": folder,
        "OPENAI_API_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HOME": folder,
    }
    kwargs = [f"model.model_kwargs.api_base={V1}", "model.model_kwargs.max_tokens=40", "agent.step_limit=2"]
    command = [str(Path(sys.executable).parent / "mini"), "-m", f"openai/{MODEL}", "-t", "Read a.py", "-y"]
    command += ["--exit-immediately", "-c", "mini.yaml"]
    command += [part for setting in kwargs for part in ("-c", setting)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
said = done.stdout + done.stderr
assert "Traceback" not in said and ("LimitsExceeded" in said or "limit" in said.lower()), said[-3000:]
did("two steps, and its own limit")
