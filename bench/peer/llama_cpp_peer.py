"""llama.cpp through the C interface that llama-cpp-python wraps: f16 cache, flash attention, 512-token batches.

llama.cpp accepts any first position in an empty context, and its compressed caches are addressed by position, so a
chunk may be read at any depth, over zeros. Zeros are no fair past (sorting and exponentials of equal numbers are
cheap), so the saved state of such a context gets random f16 values where its compressed caches were never written, and
is loaded back.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from peer.blanks import fill_blanks
from peer.worker import CHUNK, WARM_UP, Timing, serve, text, time_steps

_ROOM = 512
"""Positions behind the depth, for what is decoded."""
_F16 = 2
_FLASH_ATTENTION = 1


class LlamaCpp:
    """One model; a context is made for each measurement, and its past loaded from a saved state."""

    def __init__(self, request: dict[str, Any]) -> None:
        # Kept: the library calls it for as long as the process lives.
        self._log = llama.llama_log_callback(lambda level, message, data: None)
        llama.llama_log_set(self._log, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self.threads: int = request["threads"]
        self.model = llama.llama_model_load_from_file(request["gguf"].encode(), llama.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {request['gguf']}")
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.greedy = llama.llama_sampler_init_greedy()
        self.batch = llama.llama_batch_init(CHUNK, 0, 1)
        self.states: dict[int, Any] = {}
        self.widths = {"entry": request["head_dim"], "key": request["index_head_dim"]}
        ratios = request["compress_ratios"]
        self.caches = 2 * ratios.count(4) + ratios.count(128)
        """Compressed caches of all layers: entries and keys in CSA layers, entries in HCA layers."""

    def describe(self) -> dict[str, Any]:
        """The binding's version and the processor features that were compiled in."""
        return {"version": llama.__version__, "features": llama.llama_print_system_info().decode()}

    def prepare(self, depth: int, jump: bool) -> None:
        context = self._context(depth)
        start = depth - CHUNK
        if jump:
            self._decode(context, text(self.vocabulary, start - CHUNK, CHUNK), start - CHUNK)
        else:
            for position in range(0, start, CHUNK):
                self._decode(context, text(self.vocabulary, position, min(CHUNK, start - position)), position)
        size = llama.llama_state_seq_get_size(context, 0)
        state = (ctypes.c_uint8 * size)()
        if start and llama.llama_state_seq_get_data(context, state, size, 0) != size:
            raise SystemExit("llama.cpp did not save its state")
        if jump and fill_blanks(np.frombuffer(state, np.uint8), self._blanks(start - CHUNK)) != self.caches:
            raise SystemExit("llama.cpp's saved state is laid out otherwise than expected; its jump cannot be filled")
        self.states[depth] = state
        llama.llama_free(context)

    def measure(self, depth: int, decode: int) -> Timing:
        context = self._context(depth)
        start, state = depth - CHUNK, self.states[depth]
        self._decode(context, text(self.vocabulary, 0, CHUNK), 0)  # finds its buffers, touches the weights
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        if start and not llama.llama_state_seq_set_data(context, state, len(state), 0):
            raise SystemExit("llama.cpp did not take its state back")
        timing = Timing()
        chunk = text(self.vocabulary, start, CHUNK)
        began = time.perf_counter()
        self._decode(context, chunk, start)
        llama.llama_synchronize(context)
        timing.read = time.perf_counter() - began
        position = depth

        def step() -> None:
            nonlocal position
            token = llama.llama_sampler_sample(self.greedy, context, -1)
            self._decode(context, [token], position)
            position += 1

        assert decode + WARM_UP <= _ROOM
        timing.steps = time_steps(step, decode)
        llama.llama_free(context)
        return timing

    def _blanks(self, tokens: int) -> list[tuple[int, int]]:
        """(rows, bytes of a row) that `tokens` skipped tokens leave unwritten, for each kind of cache."""
        entry, key = _F16 * self.widths["entry"], _F16 * self.widths["key"]
        kinds = {(tokens // 4, entry), (tokens // 4, key), (tokens // 128, entry)}
        return sorted(kinds)

    def _context(self, depth: int) -> Any:
        params = llama.llama_context_default_params()
        params.n_ctx = depth + _ROOM
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = self.threads
        params.n_seq_max = 1
        params.flash_attn_type = _FLASH_ATTENTION
        context = llama.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit(f"llama.cpp cannot make a context of {depth + _ROOM} tokens")
        return context

    def _decode(self, context: Any, tokens: list[int], position: int) -> None:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = position + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = place == len(tokens) - 1
        if llama.llama_decode(context, batch):
            raise SystemExit(f"llama.cpp could not run {len(tokens)} tokens at {position}")


if __name__ == "__main__":
    serve(LlamaCpp)
