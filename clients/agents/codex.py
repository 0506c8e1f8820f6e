"""Codex, headless. A reply that is cut ends its turn as incomplete."""

import json

from common import HOME, KEY, MODEL, URL, run

(HOME / ".codex").mkdir(parents=True, exist_ok=True)
(HOME / ".codex" / "config.toml").write_text(f"""
model = "{MODEL}"
model_provider = "foveal"
[model_providers.foveal]
name = "foveal"
base_url = "{URL}/v1"
env_key = "FOVEAL_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
""")
command = [
    "codex",
    "exec",
    "--json",
    "--skip-git-repo-check",
    "--dangerously-bypass-approvals-and-sandbox",
    "Read a.py",
]
_, said = run(command, {"FOVEAL_API_KEY": KEY})
events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
kinds = [event["type"] for event in events]
assert kinds[0] == "thread.started" and "turn.started" in kinds, said
items = [event["item"]["type"] for event in events if event["type"] == "item.completed"]
assert "agent_message" in items or "command_execution" in items, said
assert kinds[-1] == "turn.completed" or "max_output_tokens" in said, said
print(f"ok a turn to its end: {kinds[-1]}")
