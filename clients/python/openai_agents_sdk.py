"""openai-agents: an agent whose output has a type, on chats and responses; streamed, too."""

import asyncio
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from common import KEY, MODEL, V1, did
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class Look(BaseModel):
    path: Literal["a.py", "b.py"]
    line: Literal[1, 2, 3]


@function_tool
def look(path: Literal["a.py", "b.py"]) -> str:
    """Look at a file."""
    return f"{path}: x = 1"


async def main() -> None:
    client = AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0)
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        model = kind(model=MODEL, openai_client=client)
        agent = Agent(
            name="looker",
            instructions="Look.",
            model=model,
            output_type=Look,
            model_settings=ModelSettings(max_tokens=300),
        )
        done = await Runner.run(agent, "Look at line 3 of a.py.")
        assert isinstance(done.final_output, Look)
        streamed = Runner.run_streamed(agent, "Look at line 2 of b.py.")
        events = [event.type async for event in streamed.stream_events()]
        assert isinstance(streamed.final_output, Look) and "raw_response_event" in events
        caller = Agent(
            name="caller",
            model=model,
            tools=[look],
            tool_use_behavior="stop_on_first_tool",
            model_settings=ModelSettings(tool_choice="look", max_tokens=300),
        )
        called = await Runner.run(caller, "Look at a.py.")
        assert "x = 1" in str(called.final_output), called.final_output
        did(kind.__name__)


asyncio.run(main())
