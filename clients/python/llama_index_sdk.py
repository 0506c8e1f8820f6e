"""llama-index's OpenAILike: completions and chats, whole and streamed, and structured output."""

from typing import Literal

from common import KEY, MODEL, V1, did
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Look(BaseModel):
    """Look at a file."""

    path: Literal["a.py", "b.py"]
    sure: bool


settings = {"model": MODEL, "api_base": V1, "api_key": KEY, "max_tokens": 200, "max_retries": 0}
plain = OpenAILike(is_chat_model=False, **settings)
assert plain.complete("def f(").text is not None and list(plain.stream_complete("def f("))
did("completions")
chat = OpenAILike(is_chat_model=True, is_function_calling_model=True, should_use_structured_outputs=True, **settings)
asked = [ChatMessage(role="user", content="Look at a.py.")]
assert chat.chat(asked).message is not None and list(chat.stream_chat(asked))
did("chat")
assert isinstance(chat.as_structured_llm(Look).complete("Look at a.py.").raw, Look)
did("structured output")
