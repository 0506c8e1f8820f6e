"""The parts of `bench/` that compute: medians and ratios, fractions of a ceiling, filling a saved state."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from foveal.config import preset

BENCH = str(Path(__file__).resolve().parents[2] / "bench")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, BENCH)
    try:
        import circuit
        import limits
        import peers
        from peer import blanks, worker

        yield {"circuit": circuit, "limits": limits, "peers": peers, "blanks": blanks, "worker": worker}
    finally:
        sys.path.remove(BENCH)
        for name in ("circuit", "limits", "peers", "peer", "peer.blanks", "peer.worker", "peer.setup"):
            sys.modules.pop(name, None)


def timing(program: str, read: float, decode: float) -> dict[str, Any]:
    return {"program": program, "depth": 512, "prefill_tok_s": read, "decode_tok_s": decode, "peak_bytes": 100}


def test_rows_are_medians_and_ratios(scripts: dict[str, ModuleType]) -> None:
    runs = [timing("foveal", rate, 3 * rate) for rate in (10.0, 90.0, 30.0)]
    runs += [timing("llama.cpp", rate, 5.0) for rate in (15.0, 14.0, 900.0)]
    row = scripts["peers"].row(512, runs)
    assert row["prefill_tok_s"] == {"foveal": 30.0, "llama.cpp": 15.0}
    assert row["prefill_tok_s_ratio"] == {"llama.cpp": 2.0}
    assert row["decode_tok_s_ratio"] == {"llama.cpp": 18.0}
    alone = scripts["peers"].row(512, runs[3:])
    assert "prefill_tok_s_ratio" not in alone
    assert scripts["peers"].row(4096, runs)["prefill_tok_s"] == {}


def test_the_command_line_is_checked(
    scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parse = scripts["peers"].parse
    chosen = parse(["run", "--preset", "nano-bench", "--depths", "512,1M", "--dir", str(tmp_path)])
    assert chosen.dir == tmp_path and chosen.grow_to == 4096
    for wrong in (["--peers", "foveal,vllm"], ["--depths", "100"], ["--preset", "huge"]):
        with pytest.raises(SystemExit):
            parse(["run", "--preset", "nano-bench", *wrong])
    assert "vllm" in capsys.readouterr().err


def test_every_program_reads_the_same_text(scripts: dict[str, ModuleType]) -> None:
    text = scripts["worker"].text
    whole = text(8192, 0, 9000)
    assert len(whole) == 9000 and min(whole) >= 2 and max(whole) < 8192
    assert text(8192, 4000, 512) == whole[4000:4512] and text(8192, 8191, 1) == whole[8191:8192]


def test_operations_are_held_against_the_ceilings(scripts: dict[str, ModuleType]) -> None:
    limit = {"read_bytes_s": 2e10, "bf16_linear_read_bytes_s": 1e10, "int8_gemm_ops": 2e11}
    limit |= {"bf16_gemm_flops": 1e11, "fp32_gemm_flops": 5e10}
    document = {
        "model": {"config": preset("nano-bench").to_dict()},
        "cache": "bf16+bf16",
        "rows": [
            {"depth": 512, "length": 512, "ops": {"head": 1.0, "(other)": 1.0}, "prefill_ops": None},
            {"depth": 4096, "length": 4096, "ops": None, "prefill_ops": {"experts": 0.01}},
        ],
    }
    found = {(part["phase"], part["op"]): part for part in scripts["limits"].measured_fractions(document, limit)}
    assert set(found) == {("decode", "head"), ("decode", "step"), ("prefill", "experts"), ("prefill", "step")}
    head = found["decode", "head"]
    assert head["bytes"] == 8192 * 256 * 2 and head["bound"] == "read"
    assert head["fraction"] == pytest.approx(8192 * 256 * 2 / 2e10 / 1e-3)
    reading = found["prefill", "experts"]  # 0.01 ms a token, 512 tokens a step
    assert reading["ms"] == pytest.approx(5.12) and reading["bound"] == "compute"
    assert reading["flops"] == 512 * 8 * 2 * 3 * 3 * 256 * 256
    # Where BF16 is slower than FP32, as on a machine that emulates it, FP32 is the ceiling.
    limit["fp32_gemm_flops"] = 2e11
    slower = {(part["phase"], part["op"]): part for part in scripts["limits"].measured_fractions(document, limit)}
    assert slower["prefill", "experts"]["fraction"] == pytest.approx(reading["fraction"] / 2)


@pytest.mark.parametrize("row_bytes", [128, 1024])
def test_what_was_never_written_is_filled_and_nothing_else(scripts: dict[str, ModuleType], row_bytes: int) -> None:
    rows, written = 3000, 5
    cache = bytes(rows * row_bytes) + b"\x07" * (written * row_bytes)
    header = b"\x01" * 12 + row_bytes.to_bytes(8, "little")
    data = np.frombuffer(bytearray(header + cache + header + bytes(4000) + b"\x05" + header + cache), np.uint8)
    before = data.copy()
    assert scripts["blanks"].fill_blanks(data, [(rows, row_bytes)]) == 2
    size = rows * row_bytes
    firsts = (len(header), 2 * len(header) + len(cache) + 4001 + len(header))
    mask = np.ones(len(data), bool)
    for first in firsts:
        values = data[first : first + size].view(np.float16).astype(np.float32)
        assert np.isfinite(values).all() and abs(values.std() - 1) < 0.05
        mask[first : first + size] = False
    assert (data[mask] == before[mask]).all()


def test_the_circuit_alone_tells_copies_apart_as_far_back_as_it_reaches(scripts: dict[str, ModuleType]) -> None:
    generator = torch.Generator().manual_seed(0)
    codes, signatures = (torch.nn.functional.normalize(torch.randn(500, w, generator=generator)) for w in (48, 190))
    text = torch.randint(0, 500, (403,), generator=generator)
    text[300:330] = text[101:131]
    cues = [text[start - 8 : start + 30].tolist() for start in (101, 300)]
    expected = torch.stack([text[131:163], text[330:362]])
    near, far = (scripts["circuit"].ExactCircuit(text, codes, signatures, [1.0] * reach) for reach in (25, 36))
    assert torch.equal(far.recall(cues, 32), expected)
    assert torch.equal(near.recall(cues, 32)[0], near.recall(cues, 32)[1]), "what it sees is the same"
