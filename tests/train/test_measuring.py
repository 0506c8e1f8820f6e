"""How much work a training step is counted as."""

from __future__ import annotations

import dataclasses

import pytest

from foveal.config import preset
from foveal.train.measuring import training_flops
from foveal.train.settings import StageConfig

STAGE = StageConfig(2048)


def test_work_of_a_window_layer_by_hand() -> None:
    config = preset("nano").replace(num_hidden_layers=1, compress_ratios=(0,))
    attention = 352 * (384 + 5 * 512) + 512 * 384 + 5 * 512 * 320 + 384 * 320 + 2 * 5 * 512 * 128
    experts = 3 * 384 * 128 * 3 + 384 * 8
    streams = 2 * (4 + 4 + 16) * 4 * 384
    expected = 6 * (384 * 4096 + attention + experts + streams)
    assert training_flops(config, STAGE, indexed=False, mtp=False) == pytest.approx(expected)


def test_entries_and_top_k() -> None:
    """A row of 2,048 tokens has 512 entries of 4 tokens; a token sees half of them on average."""
    config = preset("nano").replace(num_hidden_layers=1, compress_ratios=(4,))
    plain = training_flops(config, STAGE, indexed=False, mtp=False)
    few = dataclasses.replace(STAGE, index_topk=64)
    indexed = training_flops(config, few, indexed=True, mtp=False)
    index = 4 * 256 * 352 + 4 * 256 * 384 + 4 * 256 * 256
    assert indexed - plain == pytest.approx(6 * (index - 2 * 5 * 512 * (256 - 64)))


def test_a_kept_circuit_is_only_run_forward() -> None:
    config = preset("nano")
    whole = training_flops(config, STAGE, indexed=False, mtp=False)
    kept = training_flops(config, STAGE, indexed=False, mtp=False, keep_circuit=True)
    window = 352 * (384 + 5 * 512) + 512 * 384 + 5 * 512 * 320 + 384 * 320 + (4 + 4 + 16) * 4 * 384
    experts = 3 * 384 * 128 * 3 + 384 * 8 + (4 + 4 + 16) * 4 * 384
    seen = 2 * 5 * 512
    frozen = 3 * window + 2 * experts + seen * (128 * 3 + 256) + 4 * 512 * 384
    assert whole - kept == pytest.approx(4 * frozen)
