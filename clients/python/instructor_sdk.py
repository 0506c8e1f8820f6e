"""instructor: a response model by a forced tool, by a schema, and as a stream of partial objects."""

from typing import Literal

import instructor
import openai
from common import KEY, MODEL, V1, did
from pydantic import BaseModel, Field


class Look(BaseModel):
    path: Literal["a.py", "b.py"]
    line: int = Field(ge=1, le=99)


ASKED = [{"role": "user", "content": "Look at line 3 of a.py."}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0), mode=mode)
    found = client.chat.completions.create(
        model=MODEL, messages=ASKED, response_model=Look, max_tokens=300, max_retries=0
    )
    assert isinstance(found, Look)
    did(mode.name)
client = instructor.from_openai(openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0))
parts = list(client.chat.completions.create_partial(model=MODEL, messages=ASKED, response_model=Look, max_tokens=300))
assert parts[-1].path in ("a.py", "b.py")
did("partial objects")
