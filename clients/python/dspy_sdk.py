"""dspy: plain completions of its LM, and a signature by its JSON adapter."""

import os
from typing import Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import dspy
from common import KEY, MODEL, V1, did


class Served(dspy.LM):
    """dspy looks up what a model can do in a list of known ones, and a model of one's own is not in it."""

    supports_response_schema = True
    supported_params = frozenset({"response_format", "max_tokens", "temperature"})


lm = Served(f"openai/{MODEL}", api_base=V1, api_key=KEY, max_tokens=300, cache=False, num_retries=0)
assert lm("hello")
did("LM")
dspy.configure(lm=lm, adapter=dspy.JSONAdapter())


class Look(dspy.Signature):
    """Say where to look."""

    question: str = dspy.InputField()
    path: Literal["a.py", "b.py"] = dspy.OutputField()
    sure: bool = dspy.OutputField()


found = dspy.Predict(Look)(question="Where is x?")
assert found.path in ("a.py", "b.py") and isinstance(found.sure, bool)
did("a signature")
