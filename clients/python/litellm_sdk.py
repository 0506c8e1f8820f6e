"""litellm: chats, responses and messages of one server."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
from common import KEY, MODEL, SCHEMA, URL, V1, check_look, did

ASKED = [{"role": "user", "content": "Look at line 3 of a.py."}]
TOOL = {"type": "function", "function": {"name": "look", "description": "look", "parameters": SCHEMA}}
KEYS = {"api_key": KEY, "num_retries": 0}

for provider, base in (("openai", V1), ("hosted_vllm", V1), ("anthropic", URL)):
    reply = litellm.completion(f"{provider}/{MODEL}", messages=ASKED, api_base=base, max_tokens=10, **KEYS)
    assert reply.usage.completion_tokens > 0
    chunks = list(
        litellm.completion(f"{provider}/{MODEL}", messages=ASKED, api_base=base, max_tokens=10, stream=True, **KEYS)
    )
    assert chunks[-1].choices[0].finish_reason in ("stop", "length"), chunks[-1]
    forced = litellm.completion(
        f"{provider}/{MODEL}",
        messages=ASKED,
        api_base=base,
        max_tokens=300,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "look"}},
        **KEYS,
    )
    check_look(json.loads(forced.choices[0].message.tool_calls[0].function.arguments))
    did(provider)
response = litellm.responses(model=f"openai/{MODEL}", input="hello", api_base=V1, max_output_tokens=20, **KEYS)
assert response.id
did("responses")
text = litellm.text_completion(
    model=f"text-completion-openai/{MODEL}", prompt="def f(", api_base=V1, max_tokens=5, **KEYS
)
assert text.choices
did("completions")
try:
    litellm.completion("openai/no", messages=ASKED, api_base=V1, **KEYS)
except litellm.NotFoundError:
    did("errors")
