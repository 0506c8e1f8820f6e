"""smolagents: a model that is made to call tools, for a step or two."""

from typing import ClassVar

from common import KEY, MODEL, V1, did
from smolagents import OpenAIServerModel, Tool, ToolCallingAgent


class Look(Tool):
    name = "look"
    description = "Looks at a file."
    inputs: ClassVar = {"path": {"type": "string", "description": "which", "enum": ["a.py", "b.py"]}}
    output_type = "string"

    def forward(self, path: str) -> str:
        return f"{path}: x = 1"


model = OpenAIServerModel(model_id=MODEL, api_base=V1, api_key=KEY, max_tokens=200)
message = model.generate(
    [{"role": "user", "content": "Look at a.py."}], stop_sequences=["zzz"], tools_to_call_from=[Look()]
)
assert message.tool_calls[0].function.name == "look", message
did("a required tool with stop strings")
agent = ToolCallingAgent(tools=[Look()], model=model, max_steps=2, verbosity_level=0)
agent.run("Look at a.py.")
did("an agent of two steps")
assert sum(1 for _ in model.generate_stream([{"role": "user", "content": "hello"}])) > 1
did("stream")
