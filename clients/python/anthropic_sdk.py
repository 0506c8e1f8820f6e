"""The anthropic SDK: messages, streams, tools, token counts, models, errors."""

import anthropic
from common import KEY, MODEL, SCHEMA, URL, check_look, did

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
ASKED = [{"role": "user", "content": "Look at line 3 of a.py."}]
TOOL = {"name": "look", "description": "look", "input_schema": SCHEMA}

reply = client.messages.create(model=MODEL, max_tokens=20, messages=ASKED, system="Be brief.")
assert reply.type == "message" and reply.stop_reason in ("end_turn", "max_tokens") and reply.usage.output_tokens > 0
did("messages")

with client.messages.stream(
    model=MODEL, max_tokens=300, messages=ASKED, tools=[TOOL], tool_choice={"type": "tool", "name": "look"}
) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_message()
assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and final.stop_reason == "tool_use", final
used = next(block for block in final.content if block.type == "tool_use")
check_look(used.input)
did("stream helper with a forced tool")

history = [*ASKED, {"role": "assistant", "content": [block.model_dump() for block in final.content]}]
history += [
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": block.id, "content": "x = 1"}
            for block in final.content
            if block.type == "tool_use"
        ],
    }
]
answer = client.messages.create(model=MODEL, max_tokens=10, messages=history, tools=[TOOL])
assert answer.usage.cache_read_input_tokens > 0
did("tool result, with a hit")

thinking = client.messages.create(
    model=MODEL, max_tokens=1200, messages=ASKED, thinking={"type": "enabled", "budget_tokens": 1024}
)
assert all(block.type in ("thinking", "text") for block in thinking.content)
did("thinking")

count = client.messages.count_tokens(model=MODEL, messages=ASKED, tools=[TOOL])
assert count.input_tokens > 10
assert MODEL in [model.id for model in client.models.list()]
did("count_tokens and models")

for wrong, kind in (
    (lambda: client.messages.create(model="no", max_tokens=5, messages=ASKED), anthropic.NotFoundError),
    (lambda: client.messages.create(model=MODEL, max_tokens=5, messages=[]), anthropic.BadRequestError),
    (lambda: client.with_options(api_key="no").models.list(), anthropic.AuthenticationError),
):
    try:
        wrong()
    except kind as error:
        assert error.body["error"]["message"], error
    else:
        raise AssertionError(f"no {kind}")
did("errors")
