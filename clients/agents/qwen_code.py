"""qwen-code, headless."""

import json

from common import HOME, KEY, MODEL, URL, run

folder = HOME / ".qwen"
folder.mkdir(parents=True, exist_ok=True)
settings = {
    "privacy": {"usageStatisticsEnabled": False},
    "model": {"generationConfig": {"samplingParams": {"max_tokens": 40}}},
}
(folder / "settings.json").write_text(json.dumps(settings))
environment = {"OPENAI_BASE_URL": f"{URL}/v1", "OPENAI_API_KEY": KEY, "OPENAI_MODEL": MODEL}
code, said = run(["qwen", "--auth-type", "openai", "--output-format", "json", "-p", "Read a.py"], environment)
events = json.loads(said[said.index("[") :])
assert events[-1]["type"] == "result", said[-2000:]
print(f"ok a turn to its end: {events[-1].get('subtype')}")
