"""An agent of pydantic-ai whose tools are the memories of this machine, over MCP.

python examples/pydantic_ai_over_mcp.py openai:gpt-5 'Where is the configuration parsed?'
"""

import asyncio
import os
import sys

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models import Model


async def answer(model: Model | str, question: str) -> str:
    foveal = StdioTransport("foveal", ["mcp"], env=dict(os.environ))  # FOVEAL_STORE is not passed on by itself
    memories = MCPToolset(foveal, include_instructions=True, init_timeout=60)
    agent = Agent(model, toolsets=[memories], instructions="Look it up in the memories, and name file and lines.")
    return (await agent.run(question)).output


if __name__ == "__main__":
    print(asyncio.run(answer(*sys.argv[1:])))
