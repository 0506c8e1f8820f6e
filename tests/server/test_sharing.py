"""Prompts that are read are there for others at once, and for nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import Running, serving

pytestmark = pytest.mark.slow

PROMPT = [(7 * n) % 4000 + 50 for n in range(1500)]


def completion(running: Running, prompt: list[int], **settings: Any) -> Any:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 3, "ignore_eos": True, "temperature": 0} | settings
    return httpx.post(f"{running.url}/v1/completions", json=body, timeout=60).json()


def found(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_prompt_is_found_while_its_answer_is_written(tmp_path: Path) -> None:
    with serving(tmp_path, save_prompts=False) as running:
        alone = completion(running, [*PROMPT, 5])
    with serving(tmp_path / "again", save_prompts=False) as running:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 100_000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line.startswith("data: ") and json.loads(line[6:])["choices"][0]["text"])
            beside = completion(running, [*PROMPT, 5])
        assert found(beside) == len(PROMPT) - 1 and found(alone) == 0
        assert beside["choices"] == alone["choices"]
        short = completion(running, [9, *PROMPT[:100]])
        assert found(short) == 0


def test_a_common_beginning_is_found_whole_from_the_third_prompt_on(tmp_path: Path) -> None:
    """Where the first two part no tail lay; the second leaves one there."""
    with serving(tmp_path, save_prompts=False) as running:
        common, rests = PROMPT[:300], [PROMPT[n : n + 200] for n in (301, 302, 303, 304)]
        answers = [completion(running, common + rest) for rest in rests]
        assert [found(answer) for answer in answers] == [0, 0, 300, 300]
        assert [answer["usage"]["cache_miss"]["reason"] for answer in answers[1:]] == ["first_difference"] * 3
    with serving(tmp_path / "again", save_prompts=False) as running:
        assert completion(running, common + rests[3])["choices"] == answers[3]["choices"]


@pytest.mark.parametrize("prompt", [[4, -1], [4, 1 << 70], [4, 4096], [[4], [4096]]])
def test_a_token_that_there_is_not(tmp_path: Path, prompt: Any) -> None:
    with serving(tmp_path) as running:
        answer = httpx.post(f"{running.url}/v1/completions", json={"model": "tiny", "prompt": prompt}, timeout=60)
        assert answer.status_code == 400 and "vocabulary" in answer.json()["error"]["message"]
