"""What we write loads in Hugging Face transformers, and what transformers saves loads here."""

import json

import numpy as np
import pytest
import torch
from checkpoint_support import CONFIG, PLAIN, WITHOUT_MTP, same, weights_of
from safetensors.numpy import save_file

from foveal.cache.memory import address_of
from foveal.checkpoint import CheckpointError, convert_weights, open_checkpoint, to_transformers, write_checkpoint
from foveal.formats import BF16, F32
from foveal.formats.tensors import to_tensor

transformers = pytest.importorskip("transformers", minversion="5.23")

# transformers has no MTP block.
NO_MTP = {"num_nextn_predict_layers": 0, "compress_ratios": WITHOUT_MTP.compress_ratios}


def load(folder, dtype):
    model, info = transformers.DeepseekV4ForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    return model


def check_equal(model, expected):
    state = model.state_dict()
    assert set(state) == set(expected)
    # transformers keeps some BF16 tensors in fp32; the values must be the same.
    assert not [name for name in expected if not torch.equal(state[name].float(), to_tensor(expected[name]).float())]


@pytest.mark.parametrize("shard_bytes", [200_000, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_there_and_back(tmp_path, dtype, shard_bytes):
    stored = BF16 if dtype is torch.bfloat16 else F32
    weights = weights_of(PLAIN, plain_dtype=stored)
    write_checkpoint(tmp_path / "ours", PLAIN, weights.items(), max_shard_bytes=shard_bytes)
    model = load(tmp_path / "ours", dtype)
    check_equal(model, to_transformers(PLAIN, weights, dtype=stored)[1])

    model.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    back = open_checkpoint(tmp_path / "theirs")
    # transformers does not have these fields, or drops what they announce; the rest of the config comes back.
    assert back.config == PLAIN.replace(**NO_MTP)
    assert list(back.weights) == [name for name in weights if not name.startswith("mtp.")]
    assert all(np.array_equal(back.weights[name].astype(F32), weights[name].astype(F32)) for name in back.weights)


@pytest.mark.parametrize(
    "formats",
    [{}, {"expert_dtype": "fp8"}, {"expert_dtype": "fp8", "scale_dtype": "float32"}],
    ids=["fp4", "fp8", "fp8-float32"],
)
def test_packed_checkpoints_load_dequantised(tmp_path, formats):
    # transformers divides a matrix evenly among its scales, so it reads no partial blocks of 128: whole ones here.
    sizes = {"hidden_size": 256, "head_dim": 64, "q_lora_rank": 128, "o_lora_rank": 64, "moe_intermediate_size": 128}
    config = CONFIG.replace(**sizes, **formats)
    plain = weights_of(config.replace(linear_dtype="bf16", expert_dtype="bf16"), plain_dtype=F32)
    weights = dict(convert_weights(((name, uneven(weight)) for name, weight in plain.items()), config))
    write_checkpoint(tmp_path / "ours", config, weights.items())
    check_equal(load(tmp_path / "ours", torch.float32), to_transformers(config, weights)[1])


def uneven(weight):
    """A matrix whose blocks have scales of their own."""
    if weight.ndim < 2 or weight.dtype == np.int64:
        return weight
    rows, columns = np.arange(weight.shape[0]) // 128, np.arange(weight.shape[1]) // 128
    return weight * (1.7 ** (rows[:, None] - 2.0 * columns)).astype(F32)


def test_module_names_and_fused_experts_are_read(tmp_path):
    weights = weights_of(PLAIN, plain_dtype=F32)
    data, state = to_transformers(PLAIN, weights)
    assert "model.layers.1.mlp.experts.gate_up_proj" in state
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(data))
    back = open_checkpoint(tmp_path)
    assert back.config == PLAIN.replace(**NO_MTP)
    assert all(same(back.weights[name], weights[name]) for name in back.weights)
    fused = back.weights["layers.1.ffn.experts.2.w3.weight"]
    again = back.weights["layers.1.ffn.experts.2.w3.weight"]
    assert address_of(fused) == address_of(again), "an expert is a view of the mapped stack"


def test_state_dict_and_config_make_their_model():
    weights = weights_of(PLAIN, plain_dtype=F32)
    data, state = to_transformers(PLAIN, weights)
    model = transformers.DeepseekV4ForCausalLM(transformers.DeepseekV4Config(**data))
    model.load_state_dict({name: to_tensor(array) for name, array in state.items()}, strict=True)
    config = model.config
    assert config.layer_types == [
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
        "compressed_sparse_attention",
    ]
    assert config.mlp_layer_types == ["hash_moe", "moe", "moe", "moe"]
    assert config.qk_rope_head_dim == PLAIN.qk_rope_head_dim
    assert config.rope_parameters["compress"]["rope_type"] == "yarn"


def test_other_compression_rates_are_refused(tmp_path):
    data, state = to_transformers(PLAIN, weights_of(PLAIN))
    save_file(state, tmp_path / "model.safetensors")
    data["compress_rates"] = {"compressed_sparse_attention": 8, "heavily_compressed_attention": 128}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="compress_rates"):
        open_checkpoint(tmp_path)
