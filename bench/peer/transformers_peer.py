"""Hugging Face transformers: eager attention, dynamic cache, 512-token chunks, weights unpacked to `dtype`."""

from __future__ import annotations

import copy
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from peer.worker import CHUNK, Timing, serve, text, time_steps


class Transformers:
    """One model, and for each depth the cache of what was read before it."""

    def __init__(self, request: dict[str, Any]) -> None:
        torch.set_num_threads(request["threads"])
        torch.set_grad_enabled(False)
        self.dtype = request["dtype"]
        self.model = transformers.DeepseekV4ForCausalLM.from_pretrained(
            request["plain"], dtype=getattr(torch, self.dtype), attn_implementation="eager"
        ).eval()
        self.vocabulary = self.model.config.vocab_size
        self.pasts: dict[int, Any] = {}

    def describe(self) -> dict[str, Any]:
        """Versions, and what the weights are computed in."""
        return {"version": transformers.__version__, "torch": torch.__version__, "dtype": self.dtype}

    def prepare(self, depth: int, jump: bool) -> None:
        if jump:
            raise SystemExit("transformers has no way to jump")
        past = transformers.DynamicCache(config=self.model.config)
        for position in range(0, depth - CHUNK, CHUNK):
            self._run(text(self.vocabulary, position, min(CHUNK, depth - CHUNK - position)), past)
        self.pasts[depth] = past

    def measure(self, depth: int, decode: int) -> Timing:
        past = copy.deepcopy(self.pasts[depth])
        chunk = text(self.vocabulary, depth - CHUNK, CHUNK)
        began = time.perf_counter()
        token = self._run(chunk, past)
        timing = Timing(time.perf_counter() - began)

        def step() -> None:
            nonlocal token
            token = self._run([token], past)

        timing.steps = time_steps(step, decode)
        return timing

    def _run(self, tokens: list[int], past: Any) -> int:
        out = self.model(torch.tensor([tokens]), past_key_values=past, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())


if __name__ == "__main__":
    serve(Transformers)
