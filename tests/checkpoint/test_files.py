"""Writing and reading: round trips, memory mapping, variants, and every way a folder can be wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_support import CONFIG, FORMATS, PLAIN, WITHOUT_MTP, edit, edit_config, same, weights_of, write_small

from foveal.cache.memory import address_of
from foveal.checkpoint import (
    CheckpointError,
    fingerprint,
    inspect_checkpoint,
    open_checkpoint,
    summarize,
    tensor_specs,
    write_checkpoint,
)
from foveal.formats import BF16, Fp4Weight, Fp8Weight, dequantize

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("formats", FORMATS, ids=lambda f: "-".join(f.values()))
def test_what_is_written_is_read(tmp_path, formats, shards):
    config = CONFIG.replace(**formats)
    weights = write_small(tmp_path / "model", config, shards=shards)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.config == config
    assert list(checkpoint.weights) == list(weights)
    assert all(same(checkpoint.weights[name], weight) for name, weight in weights.items())
    assert set(checkpoint.tensors) == set(tensor_specs(config))
    files = sorted(file.name for file in (tmp_path / "model").iterdir())
    assert ("model.safetensors" in files) is not shards
    assert not [file for file in files if file.startswith(".")]


def test_packed_weights_stay_packed(tmp_path):
    write_small(tmp_path)
    weights = open_checkpoint(tmp_path).weights
    assert isinstance(weights["layers.0.attn.wq_a.weight"], Fp8Weight)
    assert isinstance(weights["layers.3.ffn.experts.2.w1.weight"], Fp4Weight)
    assert isinstance(weights["layers.3.ffn.shared_experts.w1.weight"], Fp8Weight)
    assert weights["layers.0.ffn.gate.tid2eid"].dtype == np.int64
    assert "layers.9.attn.wq_a.weight" not in weights


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from Linux' /proc")
def test_opening_maps_and_does_not_copy(tmp_path):
    big = PLAIN.replace(vocab_size=200_000)  # two tables of 64 MB
    write_small(tmp_path, big)

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    before = resident()
    checkpoint = open_checkpoint(tmp_path)
    weights = dict(checkpoint.weights)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 128e6
    assert resident() - before < size / 4
    assert address_of(weights["embed.weight"]) == address_of(checkpoint.weights["embed.weight"])


def test_an_existing_checkpoint_is_not_overwritten(tmp_path):
    weights = write_small(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="already there"):
        write_checkpoint(tmp_path, CONFIG, weights.items())
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="is a file"):
        write_checkpoint(tmp_path / "config.json", CONFIG, weights.items())


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from list(weights_of(CONFIG).items())[:40]
        raise RuntimeError("the source ran dry")

    with pytest.raises(RuntimeError, match="ran dry"):
        write_checkpoint(tmp_path / "new", CONFIG, broken(), max_shard_bytes=20_000)
    assert not (tmp_path / "new").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError, match="ran dry"):
        write_checkpoint(tmp_path, CONFIG, broken(), max_shard_bytes=20_000)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_wrong_weights_are_refused_together(tmp_path):
    weights = weights_of(CONFIG)
    del weights["norm.weight"]
    weights["head.weight"] = weights["head.weight"][:-1]
    weights["layers.0.attn.wq_a.weight"] = dequantize(weights["layers.0.attn.wq_a.weight"])
    weights["layers.0.attn.wq_z.weight"] = np.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(tmp_path / "new", CONFIG, weights.items())
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "norm.weight: missing" in text
    assert "head.weight: has shape [49, 160], must be [50, 160]" in text
    assert "wq_a.weight: is plain, but the config stores it as fp8; use convert_weights" in text
    assert "wq_z.weight: not part of this model" in text
    assert not (tmp_path / "new").exists()


def test_progress_counts_bytes(tmp_path):
    seen: list[int] = []
    write_checkpoint(tmp_path, CONFIG, weights_of(CONFIG).items(), max_shard_bytes=50_000, progress=seen.append)
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == summarize(CONFIG).nbytes == inspect_checkpoint(tmp_path).nbytes


# ---------------------------------------------------------------------- variants that are read


def test_byte_scales_int32_tables_and_bf16_ape(tmp_path):
    weights = write_small(tmp_path)

    def change(tensors):
        for name, tensor in tensors.items():
            if name.endswith(".scale"):
                tensors[name] = tensor.view(np.uint8)
            elif name.endswith("tid2eid"):
                tensors[name] = tensor.astype(np.int32)
            elif name.endswith("ape"):
                tensors[name] = tensor.astype(BF16)
            elif ".experts." in name:
                tensors[name] = tensor.view(np.uint8)

    edit(tmp_path, change)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == CONFIG
    name = "layers.0.ffn.experts.0.w2.weight"
    assert same(checkpoint.weights[name], weights[name])
    assert checkpoint.weights["layers.0.ffn.gate.tid2eid"].dtype == np.int32


def test_the_files_decide_the_formats(tmp_path):
    write_small(tmp_path, CONFIG.replace(expert_dtype="fp8", scale_dtype="float32"))
    edit_config(tmp_path, expert_dtype=None, scale_dtype=None, linear_dtype=None)
    config = open_checkpoint(tmp_path).config
    assert (config.expert_dtype, config.linear_dtype, config.scale_dtype) == ("fp8", "fp8", "float32")


def test_tensors_of_sibling_releases_are_ignored(tmp_path):
    write_small(tmp_path)
    names = ["aligner.0.weight", "image_newline", "layers.1.ffn.gate.bias_vl", "layers.0.ffn.gate.bias"]
    names += ["mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"]
    edit(tmp_path, lambda tensors: tensors.update({name: np.zeros(3) for name in names}))
    assert open_checkpoint(tmp_path).config == CONFIG


def test_a_drafter_of_another_kind_is_left_out(tmp_path):
    write_small(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({"mtp.0.markov_head.markov_w1": np.zeros(3)}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == WITHOUT_MTP
    assert not [name for name in checkpoint.weights if name.startswith("mtp.")]


def test_mtp_is_left_out_when_the_config_says_so_and_missed_when_not(tmp_path):
    write_small(tmp_path)
    edit_config(tmp_path, num_nextn_predict_layers=0, compress_ratios=list(WITHOUT_MTP.compress_ratios))
    assert open_checkpoint(tmp_path).config == WITHOUT_MTP
    edit(tmp_path, lambda t: [t.pop(name) for name in list(t) if name.startswith("mtp.")])
    assert open_checkpoint(tmp_path).config == WITHOUT_MTP
    edit_config(tmp_path, num_nextn_predict_layers=1, compress_ratios=list(CONFIG.compress_ratios))
    with pytest.raises(CheckpointError, match=r"mtp\.0\.hc_attn_fn: missing"):
        open_checkpoint(tmp_path)


# ---------------------------------------------------------------------- faults


def problems_of(folder) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(len(caught.value.problems)) in str(caught.value)
    return caught.value.problems


def test_every_fault_is_in_one_error(tmp_path):
    write_small(tmp_path)

    def change(tensors):
        del tensors["norm.weight"]
        del tensors["layers.1.attn.wkv.scale"]
        tensors["layers.1.attn.wq_z.weight"] = np.zeros(2, np.float32)
        tensors["head.weight"] = np.zeros((49, 160), np.float32)
        tensors["layers.2.attn_norm.weight"] = np.zeros(160, dtype=np.int32)
        tensors["layers.2.ffn.experts.1.w1.weight"] = np.zeros((32, 160), np.float32)
        tensors["layers.2.ffn.experts.2.w1.scale"] = np.zeros((32, 4), np.float32)
        tensors["layers.0.ffn.gate.tid2eid"] = np.zeros((50, 2), np.float32)

    edit(tmp_path, change)
    problems = problems_of(tmp_path)
    for said in (
        "norm.weight: missing (shape [160])",
        "layers.1.attn.wkv.scale: missing (shape [1, 2])",
        "layers.1.attn.wq_z.weight: not part of this model (float32 [2])",
        "head.weight: is float32 [49, 160], must be bfloat16 or float16 or float32 [50, 160]",
        "layers.2.attn_norm.weight: is int32 [160], must be bfloat16 or float16 or float32 [160]",
        "layers.2.ffn.experts.1.w1.weight: is float32 [32, 160], must be int8 or uint8 [32, 80]",
        "layers.2.ffn.experts.2.w1.scale: is float32 [32, 4], must be float8_e8m0fnu or uint8 or float32 [32, 5]",
        "layers.0.ffn.gate.tid2eid: is float32 [50, 2], must be int64 or int32 [50, 2]",
    ):
        assert said in problems
    assert len(problems) == 8


def test_a_long_list_is_cut_in_the_message_only(tmp_path):
    write_small(tmp_path)
    edit(tmp_path, lambda t: [t.pop(name) for name in list(t) if ".experts." in name])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert len(caught.value.problems) == 5 * 3 * 3, "three matrices of three experts in five blocks"
    assert len(str(caught.value).splitlines()) == 22
    assert "more" in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_named(tmp_path, keep):
    write_small(tmp_path, shards=True)
    shards = sorted(tmp_path.glob("*.safetensors"))
    for shard in shards[1:3]:
        shard.write_bytes(shard.read_bytes()[: int(shard.stat().st_size * keep)])
    shards[3].unlink()
    problems = problems_of(tmp_path)
    assert len(problems) == 3
    assert all("truncated or damaged" in problem for problem in problems[:2])
    assert problems[2] == f"{shards[3].name}: file is missing"


def test_folders_that_are_no_checkpoint(tmp_path):
    problems = problems_of(tmp_path)
    assert "config.json: file is missing" in problems
    assert any("neither model.safetensors nor" in problem for problem in problems)
    assert problems_of(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../x.safetensors"}}', r'{"weight_map": {"a": "\ud800"}}'],
)
def test_a_broken_index(tmp_path, text):
    write_small(tmp_path, shards=True)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in problems_of(tmp_path)[0]


def test_an_index_that_promises_too_much(tmp_path):
    write_small(tmp_path, shards=True)
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["layers.7.norm.weight"] = data["weight_map"]["norm.weight"]
    index.write_text(json.dumps(data))
    assert problems_of(tmp_path)[0].startswith("layers.7.norm.weight: named in")


def test_a_wrong_config_is_one_of_the_problems(tmp_path):
    write_small(tmp_path)
    edit_config(tmp_path, hidden_size=None)
    assert "hidden_size" in problems_of(tmp_path)[0]
    for text, said in (("{", "config.json is not readable"), ("[1]", "JSON object")):
        (tmp_path / "config.json").write_text(text)
        assert said in problems_of(tmp_path)[0]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert len(problems_of(tmp_path)) == 2


# ---------------------------------------------------------------------- fingerprint


def test_fingerprint_depends_on_content_only(tmp_path):
    weights = write_small(tmp_path / "one")
    write_small(tmp_path / "many", shards=True)
    name = fingerprint(CONFIG, weights)
    assert len(name) == 32
    assert fingerprint(CONFIG, tmp_path / "one") == name
    assert fingerprint(CONFIG, str(tmp_path / "many")) == name
    assert fingerprint(CONFIG, open_checkpoint(tmp_path / "many").weights) == name


def test_fingerprint_changes_with_any_bit(tmp_path):
    weights = write_small(tmp_path)
    name = fingerprint(CONFIG, weights)
    assert fingerprint(CONFIG.replace(rope_theta=10001.0), weights) != name
    assert fingerprint(CONFIG, weights | {"norm.weight": weights["norm.weight"].astype(np.float32)}) != name
    assert fingerprint(CONFIG, weights | {"norm.weight": weights["norm.weight"].reshape(1, -1)}) != name
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert fingerprint(CONFIG, tmp_path) != name


# ---------------------------------------------------------------------- the network


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    """The library takes the last of them and says nothing."""
    write_small(tmp_path)
    file = tmp_path / "model.safetensors"
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    first = next(name for name in header if name != "__metadata__")
    twice = json.dumps(header)[:-1] + "," + json.dumps({first: header[first]})[1:]
    file.write_bytes(len(twice).to_bytes(8, "little") + twice.encode() + raw[end:])
    with pytest.raises(CheckpointError, match=f"{first}: there twice in model.safetensors"):
        open_checkpoint(tmp_path)
