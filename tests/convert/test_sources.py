"""Models are read as transformers reads them, whatever their files look like; what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import llama_config, random_source, random_tokens, save_folder, save_gguf, transformers_source

from foveal.convert import ConvertError, Llama, open_source
from foveal.convert.gguf_file import read_gguf
from foveal.convert.hugging_face import read_folder

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500.0,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "three groups": {},
    "one group": {"num_key_value_heads": 1},
    "a group for each head": {"num_key_value_heads": 6},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16},
    "large theta": {"rope_theta": 500000.0},
    "llama 3 scaling": {"rope_scaling": LLAMA3},
    "linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
}


def difference(theirs: Any, network: Llama, vocab: int) -> float:
    tokens = random_tokens(150, vocab)[None]
    return float((network.logits(tokens) - theirs(tokens).logits).abs().max())


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_folder_computes_what_transformers_computes(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs, source = random_source(tmp_path / "model", **changes)
    assert difference(theirs, Llama(source), 300) < 1e-3


def test_a_sharded_folder(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs, _ = random_source(tmp_path / "model")
    folder = tmp_path / "model"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, inside in parts.items():
        save_file({name: state[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert difference(theirs, Llama(read_folder(folder)), 300) < 1e-3


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_computes_the_same(tmp_path: Path, tied: bool) -> None:
    pytest.importorskip("gguf")
    theirs = transformers_source(llama_config(tie_word_embeddings=tied), 3)
    source = read_gguf(save_gguf(theirs, tmp_path / "model.gguf"))
    vocab = source.shape.vocab_size
    assert difference(theirs, Llama(source), vocab) < 1e-3
    folder = read_folder(save_folder(theirs, tmp_path / "model"))
    assert json.loads(source.text.tokenizer)["model"]["vocab"] == json.loads(folder.text.tokenizer)["model"]["vocab"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
    "biases": ({"attention_bias": True}, "attention_bias"),
    "two things": ({"attention_bias": True, "hidden_act": "gelu"}, "attention_bias.*hidden_act"),
    "qwen3": ({"model_type": "qwen3"}, "k_norm"),
    "half a head turns": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    "no end": ({"eos_token_id": None}, "config.json"),
    "a layer more": ({"num_hidden_layers": 3}, "missing.*2.attn_norm"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    random_source(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ConvertError, match=message) as refusal:
        read_folder(tmp_path / "model")
    assert "\n" not in str(refusal.value)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    """Qwen2's biases, and whatever else a config does not mention."""
    from safetensors.torch import load_file, save_file

    random_source(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}
    save_file(load_file(file) | bias, file)
    with pytest.raises(ConvertError, match=r"no place for model\.layers\.0\.self_attn\.q_proj\.bias"):
        read_folder(tmp_path / "model")


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="smollm2"):
        open_source("no-such-model", tmp_path, print)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(b"no model at all")
    with pytest.raises(ConvertError, match="cannot read"):
        open_source(str(tmp_path / "x.gguf"), tmp_path, print)
    for keys in (0, 1, 2**32, 2**63 - 1, 2**64 - 1):  # more than there are
        counts = (1).to_bytes(8, "little") + keys.to_bytes(8, "little")
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + counts)
        with pytest.raises(ConvertError, match="damaged, or cut off"):
            open_source(str(tmp_path / "x.gguf"), tmp_path, print)


def test_a_tokenizer_that_is_no_byte_level_bpe(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    theirs = transformers_source(llama_config(), 3)
    with pytest.raises(ConvertError, match="tokenizer is 'llama'"):
        read_gguf(save_gguf(theirs, tmp_path / "model.gguf", tokenizer_model="llama"))
