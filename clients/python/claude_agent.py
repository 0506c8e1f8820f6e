"""claude-agent-sdk, which brings a Claude Code of its own: one question, to its end."""

import asyncio
import os
import tempfile

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, query
from common import KEY, MODEL, URL, did

SETTINGS = {
    "ANTHROPIC_BASE_URL": URL,
    "ANTHROPIC_AUTH_TOKEN": KEY,
    "ANTHROPIC_MODEL": MODEL,
    "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "40",
}


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ClaudeAgentOptions(env=SETTINGS | {"HOME": folder}, cwd=folder, allowed_tools=["Read"], max_turns=2)
        messages = []
        try:
            async for message in query(prompt="Read a.py", options=options):
                messages.append(message)
        except Exception as error:  # it raises when the result is an error, as here
            assert messages, error
    results = [message for message in messages if isinstance(message, ResultMessage)]
    assert results and results[-1].usage["output_tokens"] > 0, messages
    # The nano never ends a turn by itself, so Claude Code ends it in its own words.
    assert not results[-1].is_error or "output token maximum" in str(results[-1].result), results[-1]
    did(f"a turn to its end: {str(results[-1].result)[:60]!r}")


os.environ.pop("CLAUDECODE", None)
asyncio.run(main())
