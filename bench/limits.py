"""This machine's ceilings, measured, and how near to them each operation of a measured step comes.

    python bench/limits.py                       the ceilings, with 1 thread and with all
    foveal bench --preset flash-slice --jump --json > slice.json
    python bench/limits.py --ops slice.json      ... and each operation of that measurement as a fraction

Ceilings are measured with the fastest code at hand (a reduction over 1.5 GiB, oneDNN's matrix products), best of
several runs, because a ceiling is what can be reached, not what is usual. The read ceiling stands beside the rate of
the same reduction out of cache: were that hardly faster, it would be the reduction's own limit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from foveal.cache import CacheFormat
from foveal.cli.render import results, table
from foveal.config import ModelConfig
from foveal.measure import OtherWork, cores, fractions, machine_facts, step_work

READ_BYTES = 3 << 29
CACHED_BYTES = 1 << 19
"""For each thread; fits the second cache of any processor of these years."""
GEMM = 2048
ROWS = (1, 4, 16, 64)
LINEAR = (16384, 8192)
"""Outputs and inputs of the linear layer that is measured with few rows: 256 MiB in BF16, in no cache."""


def best(work: Callable[[], object], *, seconds: float, least: int = 3) -> float:
    """The shortest of as many runs as fit into `seconds`, after one that does not count."""
    work()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def read_rate(nbytes: int, seconds: float) -> float:
    """Bytes a second of summing `nbytes` bytes of int64."""
    data = torch.ones(nbytes // 8, dtype=torch.int64)
    repeats = max(1, (1 << 26) // nbytes)

    def work() -> None:
        for _ in range(repeats):
            data.sum()

    return repeats * nbytes / best(work, seconds=seconds)


def float_rate(dtype: torch.dtype, seconds: float) -> float:
    """Operations a second of a square product."""
    a, b = torch.randn(GEMM, GEMM).to(dtype), torch.randn(GEMM, GEMM).to(dtype)
    return 2 * GEMM**3 / best(lambda: a @ b, seconds=seconds)


def int8_rate(seconds: float) -> float:
    """Operations a second of a square product of int8 to int32."""
    a, b = (torch.randint(-128, 128, (GEMM, GEMM), dtype=torch.int8) for _ in range(2))
    return 2 * GEMM**3 / best(lambda: torch._int_mm(a, b), seconds=seconds)


def linear_rate(weight: torch.Tensor, rows: int, seconds: float) -> float:
    """Operations a second of a BF16 linear layer on `rows` rows."""
    x = torch.randn(rows, weight.shape[1]).to(weight.dtype)
    return 2 * rows * weight.numel() / best(lambda: torch.nn.functional.linear(x, weight), seconds=seconds)


@torch.inference_mode()
def ceilings(threads: int, seconds: float) -> dict[str, Any]:
    """Everything with `threads` threads: bytes a second and operations a second."""
    torch.set_num_threads(threads)
    others = OtherWork()
    weight = torch.randn(LINEAR).to(torch.bfloat16)
    linear = {str(rows): linear_rate(weight, rows, seconds) for rows in ROWS}
    return {
        "threads": threads,
        "read_bytes_s": read_rate(READ_BYTES, 2 * seconds),
        "cached_read_bytes_s": read_rate(CACHED_BYTES * threads, seconds),
        "bf16_gemm_flops": float_rate(torch.bfloat16, seconds),
        "fp32_gemm_flops": float_rate(torch.float32, seconds),
        "int8_gemm_ops": int8_rate(seconds),
        "bf16_linear_flops": linear,
        # What a layer on one row reads, as a second opinion on the read rate.
        "bf16_linear_read_bytes_s": linear["1"],
        "other_cores": others.cores(),
    }


def measured_fractions(
    document: dict[str, Any], limit: dict[str, Any], *, arithmetic: str | None = None
) -> list[dict[str, Any]]:
    """Each timed operation of a `foveal bench --json` document as a fraction of its ceiling, decoding and reading.

    `arithmetic` names the ceiling that computing is held against; by default the higher of BF16's and FP32's, since not
    every machine multiplies BF16. Rows without a split give nothing.
    """
    arithmetic = arithmetic or max(("bf16_gemm_flops", "fp32_gemm_flops"), key=lambda name: float(limit[name]))
    config = ModelConfig.from_dict(document["model"]["config"])
    form = CacheFormat(*document["cache"].split("+"))
    found = []
    for row in document["rows"]:
        for phase, ops, tokens, depth in (
            ("decode", row["ops"], 1, row["length"]),
            ("prefill", row["prefill_ops"], 512, max(0, row["depth"] - 512)),
        ):
            spent = {op: 1e-3 * ms * tokens for op, ms in (ops or {}).items()}
            work = step_work(config, tokens=tokens, depth=depth, format=form)
            for part in fractions(work, spent, bandwidth=best_read(limit), flops=limit[arithmetic]):
                found.append(
                    {
                        "depth": row["depth"],
                        "phase": phase,
                        "op": part.op,
                        "bytes": part.work.nbytes,
                        "flops": part.work.flops,
                        "ms": 1e3 * part.spent,
                        "least_ms": 1e3 * part.least,
                        "bound": part.bound,
                        "fraction": part.share,
                    }
                )
    return found


def best_read(limit: dict[str, Any]) -> float:
    """The faster of the two ways memory was read."""
    return max(limit["read_bytes_s"], limit["bf16_linear_read_bytes_s"])


# ---------------------------------------------------------------------- printing


def show(document: dict[str, Any]) -> None:
    """Ceilings, and fractions if there are any, as tables."""
    limits, out = document["ceilings"], results()
    shown = table("what", *(f"{limit['threads']} thread{'s' * (limit['threads'] > 1)}>" for limit in limits))
    lines: list[tuple[str, Callable[[dict[str, Any]], float], str]] = [
        ("memory read", lambda limit: limit["read_bytes_s"], "GB/s"),
        ("  by a linear layer on one row", lambda limit: limit["bf16_linear_read_bytes_s"], "GB/s"),
        ("  out of cache", lambda limit: limit["cached_read_bytes_s"], "GB/s"),
        (f"bf16 product, {GEMM}^3", lambda limit: limit["bf16_gemm_flops"], "GFLOP/s"),
        (f"fp32 product, {GEMM}^3", lambda limit: limit["fp32_gemm_flops"], "GFLOP/s"),
        (f"int8 product, {GEMM}^3", lambda limit: limit["int8_gemm_ops"], "GOP/s"),
    ]
    for rows in ROWS:
        label = f"bf16 linear {LINEAR[0]} x {LINEAR[1]}, {rows} row{'s' * (rows > 1)}"
        lines.append((label, lambda limit, rows=rows: limit["bf16_linear_flops"][str(rows)], "GFLOP/s"))  # type: ignore[misc]
    for label, value, unit in lines:
        shown.add_row(label, *(f"{value(limit) / 1e9:,.1f} {unit}" for limit in limits))
    out.print(f"{document['machine']['cpu']}, {document['machine']['cores']} cores\n")
    out.print(shown)
    busy = max(limit["other_cores"] or 0.0 for limit in limits)
    out.print(f"\nother processes kept {busy:.2f} cores busy meanwhile")
    if document["fractions"]:
        out.print()
        out.print(_fractions(document["fractions"]))


def _fractions(found: list[dict[str, Any]]) -> Any:
    shown = table("depth>", "", "operation", "MB>", "MFLOP>", "ms>", "least ms>", "bound by", "of ceiling>")
    for part in found:
        shown.add_row(
            f"{part['depth']:,}",
            part["phase"],
            part["op"],
            f"{part['bytes'] / 1e6:,.2f}",
            f"{part['flops'] / 1e6:,.1f}",
            f"{part['ms']:.3f}",
            f"{part['least_ms']:.3f}",
            part["bound"],
            f"{part['fraction']:.0%}",
        )
    return shown


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measure this machine's ceilings.")
    parser.add_argument("--threads", type=int, default=cores(), help="measured besides 1 thread; default: all cores")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each ceiling")
    parser.add_argument("--ops", type=Path, help="a document of `foveal bench --json` to hold against them")
    parser.add_argument("--int8", action="store_true", help="hold arithmetic against the int8 ceiling")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    measured = json.loads(arguments.ops.read_text()) if arguments.ops is not None else None
    limits = [ceilings(threads, arguments.seconds) for threads in sorted({1, arguments.threads})]
    document = {"machine": machine_facts(), "ceilings": limits, "fractions": []}
    if measured is not None:
        named = [limit for limit in limits if limit["threads"] == measured["threads"]]
        if not named:
            sys.exit(f"{arguments.ops} was measured with {measured['threads']} threads; give --threads with it")
        arithmetic = "int8_gemm_ops" if arguments.int8 else None
        document["fractions"] = measured_fractions(measured, named[0], arithmetic=arithmetic)
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        show(document)


if __name__ == "__main__":
    main()
