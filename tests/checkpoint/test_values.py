"""Entries of a checkpoint that would read outside a table, or are not numbers: found when it is opened, all at once."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_support import CONFIG, PLAIN, edit, edit_config, write_small

from foveal.checkpoint import CheckpointError, open_checkpoint, values

pytestmark = pytest.mark.slow

NAN, INF = float("nan"), float("inf")
TABLE = "layers.0.ffn.gate.tid2eid"


def problems_of(folder: Path) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return caught.value.problems


def put(name: str, value: float, *place: int) -> Callable[[dict[str, np.ndarray]], None]:
    """What writes `value` into an entry of a tensor; of packed ones, as a byte."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensor = tensors[name]
        tensor = tensor.view(np.uint8) if tensor.itemsize == 1 else tensor
        tensor[place] = value

    return change


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize("value", [3, 16, 999, -1, -2, 10**8, -(2**62)])
def test_a_table_that_names_no_expert(tmp_path: Path, value: int) -> None:
    write_small(tmp_path)
    edit(tmp_path, put(TABLE, value, 7, 1))
    said = f"{TABLE}: 1 of 100 entries name no expert (0 to 2), the first is {value} at [7, 1]"
    assert problems_of(tmp_path) == (said,)


def test_a_table_of_int32_is_looked_through_too(tmp_path: Path) -> None:
    write_small(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({TABLE: tensors[TABLE].astype(np.int32)}))
    edit(tmp_path, put(TABLE, 3, 0, 0))
    assert TABLE in problems_of(tmp_path)[0]


def test_a_table_may_name_an_expert_twice(tmp_path: Path) -> None:
    write_small(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({TABLE: np.zeros_like(tensors[TABLE])}))
    assert not open_checkpoint(tmp_path).weights[TABLE].any()


# ---------------------------------------------------------------------- numbers

QUIET = [
    "norm.weight",
    "layers.1.attn_norm.weight",
    "layers.1.attn.attn_sink",
    "layers.1.ffn.gate.bias",
    "layers.1.ffn.gate.weight",
    "layers.1.attn.indexer.weights_proj.weight",
    "layers.1.attn.indexer.compressor.ape",
    "layers.1.attn.indexer.compressor.wkv.weight",
    "layers.2.attn.compressor.wgate.weight",
    "layers.2.attn.compressor.norm.weight",
    "layers.0.hc_attn_fn",
    "layers.0.hc_ffn_scale",
    "hc_head_base",
    "embed.weight",
    "head.weight",
    "mtp.0.enorm.weight",
]


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_entries_that_are_not_finite(tmp_path: Path, value: float) -> None:
    write_small(tmp_path)
    for name in QUIET:
        edit(tmp_path, lambda tensors, name=name: tensors[name].reshape(-1)[-1:].fill(value))
    problems = problems_of(tmp_path)
    assert [problem.split(":")[0] for problem in problems] == sorted(QUIET, key=[*open_names(tmp_path)].index)
    assert all("1 of" in problem and "not finite" in problem for problem in problems)
    assert "norm.weight: 1 of 160 entries are not finite (NaN or infinite), the first at [159]" in problems


def open_names(folder: Path) -> list[str]:
    """Names in the network's order."""
    write_small(folder / "whole")
    return [*open_checkpoint(folder / "whole").weights]


PACKED = [
    ("layers.1.attn.wq_a.scale", 0xFF, (0, 0)),
    ("layers.1.ffn.experts.2.w1.scale", 0xFF, (3, 1)),
    ("layers.1.attn.wkv.weight", 0x7F, (5, 5)),
    ("layers.1.attn.wkv.weight", 0xFF, (0, 0)),
    ("layers.1.attn.indexer.wq_b.weight", 0xFF, (1, 2)),
]


@pytest.mark.parametrize(("name", "value", "place"), PACKED)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_codes_and_scales_that_are_not_finite(
    tmp_path: Path, name: str, value: int, place: tuple[int, int], as_bytes: bool
) -> None:
    write_small(tmp_path)
    edit(tmp_path, put(name, value, *place))
    if as_bytes and name.endswith("scale"):
        edit(tmp_path, lambda tensors: tensors.update({name: tensors[name].view(np.uint8)}))
    problems = problems_of(tmp_path)
    assert len(problems) == 1 and problems[0].startswith(f"{name}: 1 of")
    assert problems[0].endswith(f"the first at {list(place)}")


def test_scales_in_fp32(tmp_path: Path) -> None:
    write_small(tmp_path, CONFIG.replace(expert_dtype="fp8", scale_dtype="float32"))
    edit(tmp_path, put("layers.2.ffn.experts.0.w2.scale", INF, 0, 0))
    assert problems_of(tmp_path)[0].startswith("layers.2.ffn.experts.0.w2.scale: 1 of")


def test_of_large_models_the_indexer_is_looked_through_and_the_experts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "CODES_UP_TO", 0)
    write_small(tmp_path)
    edit(tmp_path, put("layers.1.attn.wkv.weight", 0x7F, 5, 5))
    open_checkpoint(tmp_path)
    edit(tmp_path, put("layers.1.attn.indexer.wq_b.weight", 0x7F, 0, 0))
    assert [problem.split(":")[0] for problem in problems_of(tmp_path)] == ["layers.1.attn.indexer.wq_b.weight"]


@pytest.mark.parametrize("threshold", [1 << 40, 0])
def test_values_shapes_and_config_are_told_in_one_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: int
) -> None:
    monkeypatch.setattr(values, "_WORTH_THREADS", threshold)
    write_small(tmp_path, PLAIN)
    edit_config(tmp_path, norm_topk_prob=False, n_group=8)
    edit(tmp_path, put(TABLE, 16, 3, 0))
    edit(tmp_path, put("layers.3.ffn.gate.bias", NAN, 1))
    edit(tmp_path, lambda tensors: [tensors.pop("layers.3.attn.q_norm.weight"), put("norm.weight", NAN, 0)(tensors)])
    problems = problems_of(tmp_path)
    for said in ("norm_topk_prob", "n_group", "q_norm.weight: missing", TABLE, "gate.bias: 1 of 3", "norm.weight: 1"):
        assert any(said in problem for problem in problems), said
    assert len(problems) == 6


# ---------------------------------------------------------------------- files and numbers that lead astray


def header(folder: Path, change: Callable[[dict[str, dict[str, list[int]]]], None]) -> None:
    """Rewrite the header of a single-file checkpoint."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    parsed = json.loads(data[8 : 8 + size])
    change(parsed)
    text = json.dumps(parsed).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def test_offsets_outside_the_file_or_inside_another_tensor(tmp_path: Path) -> None:
    write_small(tmp_path)
    header(tmp_path, lambda parsed: parsed["norm.weight"].update(data_offsets=[10**12, 10**12 + 320]))
    assert "damaged" in problems_of(tmp_path)[0]
    write_small(tmp_path / "two")
    header(tmp_path / "two", lambda parsed: parsed["norm.weight"].update(data_offsets=[0, 320]))
    assert "damaged" in problems_of(tmp_path / "two")[0]


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    write_small(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + file.read_bytes()[8:])
    assert "damaged" in problems_of(tmp_path)[0]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\0b", 3, None])
def test_an_index_that_names_files_elsewhere(tmp_path: Path, name: object) -> None:
    write_small(tmp_path, shards=True)
    file = tmp_path / "model.safetensors.index.json"
    data = json.loads(file.read_text())
    data["weight_map"]["norm.weight"] = name
    file.write_text(json.dumps(data))
    assert "must map tensor names to file names in the same folder" in problems_of(tmp_path)[0]


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json"])
def test_json_without_bottom(tmp_path: Path, name: str) -> None:
    write_small(tmp_path)
    (tmp_path / name).write_text("[" * 200_000)
    assert any(problem.startswith(f"{name} is not readable") for problem in problems_of(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json"])
def test_a_pipe_in_place_of_a_file(tmp_path: Path, name: str) -> None:
    write_small(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert "not a file" in problems_of(tmp_path)[0]


def test_more_experts_than_there_can_be(tmp_path: Path) -> None:
    write_small(tmp_path)
    edit_config(tmp_path, n_routed_experts=10**9)
    assert problems_of(tmp_path) == (
        "config.json: config field 'n_routed_experts' is 1000000000, but no tensor has so many rows",
    )
