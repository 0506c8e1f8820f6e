"""The least work of a step, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from foveal.cache import CacheFormat
from foveal.config import ModelConfig, preset
from foveal.measure import OPS, Work, fractions, step_work, stored_as_published, total

SLICE = stored_as_published(preset("flash-slice"))
MIB = 1 << 20


def test_flash_slice_decodes_by_reading_a_gigabyte() -> None:
    work = step_work(SLICE, depth=512)
    assert set(work) == set(OPS)
    # wo_a [8192, 4096] and wo_b [4096, 8192], FP8 with a scale byte for each 128 x 128, in 4 layers.
    assert work["output"].nbytes == 4 * 2 * (8192 * 4096 + 64 * 32)
    # 6 of 32 experts of 3 x 4096 x 2048 in FP4 with a scale byte for each 32, a shared one in FP8, in 4 layers.
    expert = 3 * 4096 * 2048
    shared = expert + 3 * 32 * 16
    assert work["experts"].nbytes == pytest.approx(4 * (6 * expert * (1 / 2 + 1 / 32) + shared))
    assert work["head"].nbytes == 8192 * 4096 * 2
    assert total(work).nbytes == pytest.approx(1.0e9, rel=0.01)


def test_flash_slice_reads_at_two_and_a_half_gigaflop_a_token() -> None:
    work = step_work(SLICE, tokens=512, depth=3584)
    per_token = {op: part.flops / 512 for op, part in work.items()}
    assert per_token["experts"] == 2 * 4 * 7 * 3 * 4096 * 2048
    assert per_token["head"] == 2 * 8192 * 4096 / 512
    assert total(work).flops / 512 == pytest.approx(2.6e9, rel=0.03)
    # All experts are visited by 512 tokens that choose 6 of 32 each.
    assert work["experts"].nbytes == pytest.approx(4 * (32 * 3 * 4096 * 2048 * 17 / 32 + 3 * 4096 * 2048), rel=1e-3)


def test_depth_costs_keys_and_entries() -> None:
    depth = 1 << 17
    bf16 = step_work(SLICE, tokens=1, depth=depth, format=CacheFormat("bf16", "bf16"))
    lean = step_work(SLICE, tokens=1, depth=depth, format=CacheFormat("fp8", "fp4"))
    keys = depth // 4
    assert bf16["index"].nbytes == 2 * keys * 256
    assert lean["index"].nbytes == 2 * keys * 68
    assert bf16["index"].flops == 2 * 2 * 64 * 128 * keys
    # Window 128 rows in 4 layers; 512 entries in 2 CSA layers, 1024 in the HCA layer, each row 512 channels.
    assert bf16["attend"].nbytes == 2 * 512 * (4 * 128 + 2 * 512 + depth // 128)
    assert bf16["attend"].flops == 4 * 64 * 512 * (4 * 128 + 2 * 512 + depth // 128)
    assert {op: lean[op] for op in ("output", "experts", "project")} == {
        op: bf16[op] for op in ("output", "experts", "project")
    }


def test_nothing_is_scored_while_all_entries_are_looked_at() -> None:
    assert step_work(SLICE, depth=4 * SLICE.index_topk - 4)["index"] == Work()
    assert step_work(SLICE, depth=4 * SLICE.index_topk + 4)["index"].nbytes > 0


@pytest.mark.parametrize("name", ["flash", "pro", "nano", "nano-bench", "flash-base"])
def test_every_matrix_of_every_preset_belongs_to_an_operation(name: str) -> None:
    config: ModelConfig = preset(name)
    small = config.replace(
        n_routed_experts=config.num_experts_per_tok,
        num_hidden_layers=4,
        num_nextn_predict_layers=0,
        compress_ratios=config.compress_ratios[:4],
    )
    assert all(part.nbytes > 0 for op, part in step_work(small).items() if op != "index")


def test_fractions_say_what_binds_and_how_near_it_is() -> None:
    work = {"experts": Work(1e9, 1e9), "attend": Work(1e6, 1e9)}
    found = fractions(work, {"experts": 0.2, "attend": 0.02, "stage": 0.08}, bandwidth=1e10, flops=1e11)
    assert [(part.op, part.bound, pytest.approx(part.share)) for part in found] == [
        ("experts", "read", 0.5),
        ("attend", "compute", 0.5),
        ("step", "read", 0.11 / 0.3),
    ]
    assert fractions(work, {}, bandwidth=1e10, flops=1e11) == []
