"""cline, headless."""

import json

from common import KEY, MODEL, URL, run

code, said = run(["cline", "auth", "-p", "openai", "-k", KEY, "-m", MODEL, "-b", f"{URL}/v1"])
assert code == 0, said[-2000:]
_, said = run(["cline", "--json", "Read a.py"], limit=200)
events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
assert events, said[-2000:]
last = events[-1]
# The nano never ends a turn by itself, so cline ends the task in its own words.
assert last["type"] != "error" or "output token limit" in last["message"], said[-2000:]
print(f"ok a task to its end: {last.get('message', last['type'])}")
