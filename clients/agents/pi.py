"""pi, headless, over each of the three APIs that it speaks."""

import json

from common import HOME, KEY, MODEL, URL, run

folder = HOME / ".pi" / "agent"
folder.mkdir(parents=True, exist_ok=True)
APIS = {"openai-completions": f"{URL}/v1", "openai-responses": f"{URL}/v1", "anthropic-messages": URL}
model = {"id": MODEL, "name": MODEL, "contextWindow": 100_000, "maxTokens": 40}
providers = {api: {"baseUrl": url, "api": api, "apiKey": KEY, "models": [model]} for api, url in APIS.items()}
(folder / "models.json").write_text(json.dumps({"providers": providers}))
for api in APIS:
    _, said = run(["pi", "--offline", "--mode", "json", "--provider", api, "--model", MODEL, "-p", "Read a.py"])
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    ended = [event for event in events if event["type"] == "agent_end"]
    assert ended, said[-2000:]
    last = ended[-1]["messages"][-1]
    assert last["role"] == "assistant" and last["stopReason"] in ("stop", "length", "toolUse"), last
    print(f"ok {api}: {last['stopReason']}")
