"""Claude Code, headless. The nano never ends a turn by itself, so it ends with Claude Code's word for that."""

import json

from common import KEY, MODEL, URL, run

SETTINGS = {
    "ANTHROPIC_BASE_URL": URL,
    "ANTHROPIC_AUTH_TOKEN": KEY,
    "ANTHROPIC_MODEL": MODEL,
    "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "40",
}
code, said = run(["claude", "-p", "Read a.py", "--output-format", "json", "--allowedTools", "Read"], SETTINGS)
result = json.loads(said[said.index("{") :])
assert result["type"] == "result" and result["usage"]["output_tokens"] > 0, said
assert not result["is_error"] or "output token maximum" in result["result"], said
assert result["usage"]["cache_read_input_tokens"] > 0, said
print("ok a turn to its end, with hits")
code, said = run(["claude", "-p", "Read a.py", "--output-format", "json", "--model", "no"], SETTINGS)
assert code and "no" in said, said
print("ok an unknown model is told")
