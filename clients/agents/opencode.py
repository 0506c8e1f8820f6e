"""opencode, headless."""

import json

from common import HOME, KEY, MODEL, URL, run

folder = HOME / ".config" / "opencode"
folder.mkdir(parents=True, exist_ok=True)
provider = {
    "npm": "@ai-sdk/openai-compatible",
    "name": "foveal",
    "options": {"baseURL": f"{URL}/v1", "apiKey": KEY},
    "models": {MODEL: {"limit": {"context": 100_000, "output": 60}}},
}
settings = {"provider": {"foveal": provider}, "autoupdate": False, "share": "disabled"}
(folder / "opencode.json").write_text(json.dumps(settings))
_, said = run(["opencode", "run", "--format", "json", "-m", f"foveal/{MODEL}", "Read a.py"])
events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
assert events and events[-1]["type"] == "step_finish", said
assert events[-1]["part"]["reason"] in ("stop", "length", "tool-calls"), said
print(f"ok a step to its end: {events[-1]['part']['reason']}")
