"""lm-eval: multiple choice by scored token ids, with the server's own tokenizer, and a generation."""

import json
import os
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
import lm_eval
from common import KEY, MODEL, URL, V1, did
from lm_eval.tasks import TaskManager

os.environ["OPENAI_API_KEY"] = KEY
CHOICES = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
GENERATES = """
task: continues
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""
QUESTIONS = [
    {"question": f"def f{n}(x):\n    return", "choices": [" x + 1", " banana", " {}"], "answer": 0} for n in range(4)
]

with tempfile.TemporaryDirectory() as folder:
    data = Path(folder, "test.jsonl")
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, text in (("capitals", CHOICES), ("continues", GENERATES)):
        Path(folder, f"{name}.yaml").write_text(text % data)
    manager = TaskManager(include_path=folder, include_defaults=False)
    settings = (
        f"model={MODEL},base_url={V1}/completions,tokenizer_backend=remote,tokenizer_base_url={URL},auth_token={KEY}"
    )
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=settings + ",num_concurrent=2,max_length=2048",
        tasks=["capitals", "continues"],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )
assert found is not None and 0 <= found["results"]["capitals"]["acc,none"] <= 1
scores = [response[0][0] for sample in found["samples"]["capitals"] for response in sample["resps"]]
assert len(scores) == 12 and all(float(score) < 0 for score in scores), scores
did(f"multiple choice, {found['results']['capitals']['acc,none']:.2f}")
assert len(found["samples"]["continues"]) == 4
did("generation")
