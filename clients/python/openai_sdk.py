"""The openai SDK: chats, streams, tools, structured output, completions, responses, models, errors."""

import json
from typing import Literal

import openai
from common import KEY, MODEL, SCHEMA, V1, check_look, did
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)
ASKED = [{"role": "user", "content": "Look at line 3 of a.py."}]
TOOL = {"type": "function", "function": {"name": "look", "description": "look", "parameters": SCHEMA, "strict": True}}


class Look(BaseModel):
    path: Literal["a.py", "b.py"]
    line: int = Field(ge=1, le=99)


reply = client.chat.completions.create(model=MODEL, messages=ASKED, max_completion_tokens=20)
assert reply.choices[0].finish_reason in ("stop", "length") and reply.usage.total_tokens > 0
did("chat")

with client.chat.completions.stream(
    model=MODEL, messages=ASKED, temperature=0, max_tokens=300, tools=[TOOL], tool_choice="required"
) as stream:
    kinds = {event.type for event in stream}
    message = stream.get_final_completion().choices[0].message
assert message.tool_calls and "tool_calls.function.arguments.done" in kinds, kinds
check_look(json.loads(message.tool_calls[0].function.arguments))
did("stream helper with a forced tool")

history = [
    *ASKED,
    message.model_dump(exclude_none=True),
    *({"role": "tool", "tool_call_id": call.id, "content": "x = 1"} for call in message.tool_calls),
]
answer = client.chat.completions.create(model=MODEL, messages=history, tools=[TOOL], max_tokens=10)
assert answer.usage.prompt_tokens_details.cached_tokens > 0
did("tool result, with a hit")

parsed = client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Look, max_tokens=200)
assert isinstance(parsed.choices[0].message.parsed, Look)
did("parse")

chunks = list(
    client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
        n=2,
    )
)
assert chunks[-1].usage.completion_tokens > 0 and {c.choices[0].index for c in chunks if c.choices} == {0, 1}
did("stream with usage, logprobs and n")

penal = client.chat.completions.create(
    model=MODEL,
    messages=ASKED,
    max_tokens=8,
    frequency_penalty=1.5,
    presence_penalty=-1,
    logit_bias={"300": -100},
    seed=1,
    stop=["zzz"],
)
assert penal.choices
did("penalties and bias")

text = client.completions.create(model=MODEL, prompt=["def f(", "import "], max_tokens=5, echo=True, logprobs=2)
assert [c.index for c in text.choices] == [0, 1] and text.choices[0].logprobs.token_logprobs[0] is None
did("completions with echo")

response = client.responses.create(model=MODEL, input="hello", max_output_tokens=20)
again = client.responses.create(model=MODEL, input="more", previous_response_id=response.id, max_output_tokens=20)
assert client.responses.retrieve(response.id).id == response.id and again.previous_response_id == response.id
client.responses.delete(response.id)
did("responses, stored")

with client.responses.stream(model=MODEL, input="Look.", text_format=Look, max_output_tokens=200) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_response()
assert kinds[0] == "response.created" and kinds[-1] == "response.completed" and isinstance(final.output_parsed, Look)
did("responses stream, parsed")

forced = client.responses.create(
    model=MODEL,
    input="Look.",
    tools=[{"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}],
    tool_choice={"type": "function", "name": "look"},
    max_output_tokens=300,
)
call = next(item for item in forced.output if item.type == "function_call")
check_look(json.loads(call.arguments))
did("responses with a forced tool")

assert MODEL in [model.id for model in client.models.list()]
for wrong, kind in (
    (lambda: client.chat.completions.create(model="no", messages=ASKED), openai.NotFoundError),
    (lambda: client.chat.completions.create(model=MODEL, messages=[]), openai.BadRequestError),
    (lambda: client.with_options(api_key="no").models.list(), openai.AuthenticationError),
    (lambda: client.chat.completions.create(model=MODEL, messages=ASKED, temperature=7), openai.BadRequestError),
):
    try:
        wrong()
    except kind as error:
        assert error.body["message"], error
    else:
        raise AssertionError(f"no {kind}")
did("models and errors")
