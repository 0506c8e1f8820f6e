"""pydantic-ai: output types by forced tools, on chats, responses and messages."""

from typing import Literal

from common import KEY, MODEL, URL, V1, did
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Look(BaseModel):
    path: Literal["a.py", "b.py"]
    line: int = Field(ge=1, le=99)


provider = OpenAIProvider(base_url=V1, api_key=KEY)
models = {
    "chat": OpenAIChatModel(MODEL, provider=provider),
    "responses": OpenAIResponsesModel(MODEL, provider=provider),
    "messages": AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key=KEY)),
}
settings = {"max_tokens": 300}
for name, model in models.items():
    found = Agent(model, output_type=Look, model_settings=settings).run_sync("Look at line 3 of a.py.")
    assert isinstance(found.output, Look) and found.usage.output_tokens > 0, found
    did(f"{name}: output by a tool")
native = Agent(models["chat"], output_type=NativeOutput(Look), model_settings=settings).run_sync("Look.")
assert isinstance(native.output, Look)
did("native output")
