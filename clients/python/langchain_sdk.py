"""langchain-openai and langchain-anthropic: invoke, stream, tools, structured output."""

from typing import Literal

from common import KEY, MODEL, URL, V1, did
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field


class Look(BaseModel):
    """Look at a line of a file."""

    path: Literal["a.py", "b.py"]
    line: int = Field(ge=1, le=99)


ASKED = "Look at line 3 of a.py."
chats = {
    "chat": ChatOpenAI(model=MODEL, base_url=V1, api_key=KEY, max_tokens=300, max_retries=0),
    "responses": ChatOpenAI(
        model=MODEL, base_url=V1, api_key=KEY, max_tokens=300, max_retries=0, use_responses_api=True
    ),
    "messages": ChatAnthropic(model=MODEL, base_url=URL, api_key=KEY, max_tokens=300, max_retries=0),
}
for name, chat in chats.items():
    assert chat.invoke(ASKED).usage_metadata["output_tokens"] > 0
    assert sum(1 for _ in chat.stream(ASKED)) > 1
    called = chat.bind_tools([Look], tool_choice="Look").invoke(ASKED)
    assert called.tool_calls[0]["name"] == "Look" and Look(**called.tool_calls[0]["args"])
    assert isinstance(chat.with_structured_output(Look).invoke(ASKED), Look)
    did(name)
assert OpenAI(model=MODEL, base_url=V1, api_key=KEY, max_tokens=5).invoke("def f(") is not None
did("completions")
