"""Memories of a tiny network: the engine, a project to read, and what is the same."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

import foveal
from foveal.backends.cpu import NativeNetwork
from foveal.batch import BatchEngine, Scheduler
from foveal.cache import CacheFormat, Sequence
from foveal.checkpoint import random_weights
from foveal.config import PRESETS, ModelConfig
from foveal.engine import Engine
from foveal.memory import Memory
from foveal.text import Tokenizer

TINY = PRESETS["nano"].replace(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=2,
    head_dim=32,
    qk_rope_head_dim=16,
    q_lora_rank=32,
    o_lora_rank=16,
    compress_ratios=(0, 4, 128, 4),
    index_n_heads=4,
    index_head_dim=32,
    index_topk=16,
    n_routed_experts=4,
    moe_intermediate_size=64,
    num_nextn_predict_layers=0,
    expert_dtype="bf16",
    linear_dtype="bf16",
)
"""The nano's vocabulary on a network of every layer kind that runs in no time."""

NANO = Path(foveal.__file__).parent / "weights" / "nano"
CHUNK = 64


def make_engine(config: ModelConfig = TINY, seed: int = 1, kv: CacheFormat | None = None) -> Engine:
    network = NativeNetwork(config, dict(random_weights(config, seed=seed)), threads=1)
    batch = BatchEngine(network, scheduler=Scheduler(chunk=CHUNK), batched=True)
    return Engine(network, Tokenizer.from_file(NANO), weights=lambda: f"seed {seed}", kv=kv, batch=batch)


def make_reference_engine(seed: int = 1) -> Engine:
    """The same on torch, whose last bits depend on where a prompt is cut."""
    from foveal.backends.reference import ReferenceRunner
    from foveal.model import load_transformer

    runner = ReferenceRunner(load_transformer(TINY, dict(random_weights(TINY, seed=seed))))
    batch = BatchEngine(runner, scheduler=Scheduler(chunk=CHUNK))
    return Engine(runner, Tokenizer.from_file(NANO), weights=lambda: f"seed {seed}", batch=batch)


def write_project(folder: Path, files: int = 6, seed: int = 3) -> Path:
    dice = random.Random(seed)
    folder.mkdir()
    for number in range(files):
        lines = [f"def f{number}_{n}(x):\n    return x * {dice.randrange(999)}\n" for n in range(dice.randrange(3, 9))]
        (folder / f"m{number}.py").write_text("\n".join(lines))
    return folder


def same(one: Sequence, other: Sequence) -> bool:
    """Tokens, pages and tail bit for bit."""
    a, b = one.export(), other.export()
    pairs = [(a.tokens, b.tokens), *zip(a.pages, b.pages, strict=True)]
    if a.open_page is not None and b.open_page is not None:
        pairs.append((a.open_page, b.open_page))
    pairs += [(a.tail[name], b.tail[name]) for name in a.tail]
    return a.length == b.length and a.tail.keys() == b.tail.keys() and all(np.array_equal(x, y) for x, y in pairs)


def read_at_once(engine: Engine, memory: Memory) -> Sequence:
    """The memory's tokens, read in one go."""
    sequence = engine.new_sequence()
    engine.prefill(sequence, memory.sequence.tokens.tolist())
    return sequence


def stop_after(chunks: int) -> object:
    left = [chunks]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return should_stop
